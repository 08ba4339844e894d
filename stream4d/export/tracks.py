"""Followed points: arrays by point (npz, as TAP-Vid holds them), or a line per point and frame (csv)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stream4d.errors import ExportError
from stream4d.export.output import new_file
from stream4d.export.source import Camera, FrameSource, Selection, pick_segment, select_cameras
from stream4d.packets import FrameTracks
from stream4d.store.reader import Store
from stream4d.store.track_set import TrackSet, by_point


def write_tracks(
    source: FrameSource, path: Path, *, selection: Selection | None = None, overwrite: bool = False
) -> None:
    """Write ``id`` (M), ``query_frame`` (M), ``uv`` (M, T, 2), ``visible`` (M, T), ``xyz_in_world`` (M, T, 3).

    Beside them, of the T frames: ``index``, ``timestamp_ns``, ``K``, ``world_from_cam``. ``query_frame`` counts
    among the T frames.

    Raises:
        ExportError: no frames, no followed points, or not writable.
    """
    rows = list(_rows(source, selection or Selection()))
    cameras = [camera for camera, _ in rows]
    tracks = _gather(rows)
    with new_file(path, overwrite=overwrite) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            id=tracks.id,
            query_frame=tracks.query_frame,
            uv=tracks.uv,
            visible=tracks.visible,
            xyz_in_world=tracks.xyz_in_world,
            index=np.array([camera.index for camera in cameras]),
            timestamp_ns=np.array([camera.timestamp_ns for camera in cameras]),
            K=np.stack([camera.K for camera in cameras]),
            world_from_cam=np.stack([camera.world_from_cam for camera in cameras]),
        )


def write_tracks_csv(
    source: FrameSource, path: Path, *, selection: Selection | None = None, overwrite: bool = False
) -> None:
    """Write ``id,frame,timestamp_ns,u,v,visible,x,y,z``; x, y, z in the world, empty where unknown.

    Raises:
        ExportError: no frames, no followed points, or not writable.
    """
    rows = _rows(source, selection or Selection())
    with new_file(path, overwrite=overwrite) as partial, partial.open("w") as file:
        file.write("id,frame,timestamp_ns,u,v,visible,x,y,z\n")
        for row in rows:  # one frame at a time, so that a long run needs no more memory
            tracks, camera = _gather([row]), row[0]
            for n, number in enumerate(tracks.id.tolist()):
                u, v = tracks.uv[n, 0].tolist()
                xyz = tracks.xyz_in_world[n, 0]
                place = ",".join(f"{x:.9g}" for x in xyz) if np.isfinite(xyz).all() else ",,"
                seen = int(tracks.visible[n, 0])
                head = f"{number},{camera.index},{camera.timestamp_ns}"
                file.write(f"{head},{u:.3f},{v:.3f},{seen},{place}\n")


def _rows(source: FrameSource, selection: Selection) -> Iterator[tuple[Camera, FrameTracks]]:
    _, positions = pick_segment(source, selection.segment)
    chosen = positions[:: selection.stride]
    for position, camera in zip(chosen, select_cameras(source, selection), strict=True):
        if isinstance(source, Store):
            tracks = source.tracks_in_frame(position)  # without its maps
        else:
            tracks = source[position].tracks
        if tracks is None:
            raise ExportError("the run followed no points: reconstruct it with --tracks N")
        yield camera, tracks


def _gather(rows: list[tuple[Camera, FrameTracks]]) -> TrackSet:
    slots = {
        f"track_{name}": np.stack([getattr(tracks, name) for _, tracks in rows])
        for name in ("id", "uv", "visible", "depth")
    }
    K = np.stack([camera.K for camera, _ in rows])
    return by_point(slots, K, np.stack([camera.world_from_cam for camera, _ in rows]), 0)

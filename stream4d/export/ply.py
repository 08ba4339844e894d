"""Point clouds as PLY: the static scene, and what moves in each frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stream4d.errors import MissingDependencyError
from stream4d.export.output import new_file, new_folder
from stream4d.export.source import FrameSource, Selection, select_frames, static_cloud
from stream4d.packets import Array
from stream4d.viz.cloud import frame_points

AXES = "axes: x right, y down, z forward (OpenCV), of the first camera"


def write_ply(
    source: FrameSource, path: Path, *, selection: Selection | None = None, overwrite: bool = False
) -> None:
    """Write the static cloud: one coloured point per voxel.

    Raises:
        ExportError: no points, or not writable.
        MissingDependencyError: plyfile is not installed.
    """
    with new_file(path, overwrite=overwrite) as partial:
        cloud = static_cloud(source, selection or Selection())
        _write_points(partial, cloud.points, cloud.rgb)


def write_moving_ply(
    source: FrameSource, path: Path, *, selection: Selection | None = None, overwrite: bool = False
) -> None:
    """Write a folder with the moving points of each frame: ``000000.ply`` … by frame index.

    Raises:
        ExportError: no frames, or not writable.
        MissingDependencyError: plyfile is not installed.
    """
    selection = selection or Selection()
    with new_folder(path, marker="moving.txt", overwrite=overwrite) as partial:
        lines = ["# file timestamp_ns points"]
        for frame in select_frames(source, selection):
            points = frame_points(frame, selection.keep)
            name = f"{frame.index:06d}.ply"
            _write_points(partial / name, points.moving_in_world, points.moving_rgb)
            lines.append(f"{name} {frame.timestamp_ns} {len(points.moving_in_world)}")
        (partial / "moving.txt").write_text("\n".join(lines) + "\n")


def _write_points(path: Path, points: Array, rgb: Array) -> None:  # (N, 3), (N, 3)
    names = [(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")]
    vertices = np.empty(len(points), names)
    for column, axis in enumerate("xyz"):
        vertices[axis] = points[:, column]
    for column, color in enumerate(("red", "green", "blue")):
        vertices[color] = rgb[:, column]
    save_vertices(path, vertices)


def save_vertices(path: Path, vertices: Array) -> None:
    """Write a structured array as the vertices of a little-endian binary PLY."""
    plyfile = _plyfile()
    element = plyfile.PlyElement.describe(vertices, "vertex")
    data = plyfile.PlyData([element], text=False, byte_order="<", comments=["stream4d", AXES])
    data.write(str(path))


def _plyfile() -> Any:
    try:
        import plyfile
    except ImportError:
        raise MissingDependencyError("plyfile", needed_for="PLY export", extra="export") from None
    return plyfile

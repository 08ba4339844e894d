"""A COLMAP model: cameras, images and points3D, binary or text, with the pictures.

COLMAP's pixel centres lie at .5, so the principal point moves by half a pixel. Observations are points of the static
cloud projected into the frames where the depth map agrees; they are not detected features, and the error of a
point is -1 (COLMAP's "unknown").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stream4d.export.images import save_rgb, save_static_mask
from stream4d.export.output import new_folder
from stream4d.export.source import FrameSource, Selection, select_frames, static_cloud
from stream4d.geometry import camera
from stream4d.geometry.transforms import invert, quat_wxyz_from_rotation, transform_points
from stream4d.packets import Array, PosedFrame
from stream4d.viz.cloud import MOVING_FROM

PINHOLE = 1
"""COLMAP's number of the model with fx, fy, cx, cy."""
PER_IMAGE = 1000
"""Observations per image."""
AGREES = 0.05
"""Relative difference between a projected point's depth and the depth map up to which it is seen."""
MAX_POINTS = 200_000
"""Bound of the cloud where the selection leaves it at its default: trainers start from far fewer."""


@dataclass(frozen=True, slots=True)
class _Image:
    image_id: int
    camera_id: int
    name: str
    quat_wxyz: Array
    """(4,) of cam_from_world."""
    translation: Array
    """(3,) of cam_from_world."""
    uv: Array
    """(N, 2) observations, COLMAP's pixel centres."""
    points: Array
    """(N,) positions in the cloud."""


@dataclass(slots=True)
class _Model:
    cameras: dict[tuple[float, ...], int] = field(default_factory=dict)
    """(width, height, fx, fy, cx, cy) → camera_id."""
    images: list[_Image] = field(default_factory=list)


def write_colmap(
    source: FrameSource,
    path: Path,
    *,
    selection: Selection | None = None,
    overwrite: bool = False,
    text: bool = False,
) -> None:
    """Write ``images/``, ``masks/`` (0 where something moves) and ``sparse/0/``.

    Args:
        source: a store or frames.
        path: the folder.
        selection: which frames, how many points.
        overwrite: replace an earlier export.
        text: write ``.txt`` instead of ``.bin``.

    Raises:
        ExportError: no points, or not writable.
    """
    selection = selection or Selection(max_points=MAX_POINTS)
    marker = "sparse/0/cameras." + ("txt" if text else "bin")
    with new_folder(path, marker=marker, overwrite=overwrite) as partial:
        for name in ("images", "masks", "sparse/0"):
            (partial / name).mkdir(parents=True)
        cloud = static_cloud(source, selection)
        points, rgb = cloud.points.astype(np.float64), cloud.rgb
        # All images prefer the same points, so that tracks are long.
        rank = np.random.default_rng(0).permutation(len(points))
        model = _Model()
        for frame in select_frames(source, selection):
            image = _add_image(model, frame, points, rank)
            save_rgb(partial / "images" / image.name, frame)
            # COLMAP's rule for names of masks.
            save_static_mask(partial / "masks" / f"{image.name}.png", frame)
        write = _write_text if text else _write_binary
        write(partial / "sparse" / "0", model, points, rgb)


def _add_image(model: _Model, frame: PosedFrame, points: Array, rank: Array) -> _Image:
    H, W = frame.rgb.shape[:2]
    # A hundredth of a pixel: K that is refined all the time would make a camera per frame.
    fx, fy, cx, cy = (float(round(v, 2)) for v in frame.K[(0, 1, 0, 1), (0, 1, 2, 2)])
    key = (W, H, fx, fy, cx + 0.5, cy + 0.5)
    cam_from_world = invert(frame.world_from_cam)
    seen, uv = _observe(frame, cam_from_world, points, rank)
    image = _Image(
        image_id=len(model.images) + 1,
        camera_id=model.cameras.setdefault(key, len(model.cameras) + 1),
        name=f"{frame.index:06d}.jpg",
        quat_wxyz=quat_wxyz_from_rotation(cam_from_world[:3, :3]),
        translation=cam_from_world[:3, 3],
        uv=uv + 0.5,
        points=seen,
    )
    model.images.append(image)
    return image


def _observe(
    frame: PosedFrame, cam_from_world: Array, points: Array, rank: Array
) -> tuple[Array, Array]:
    """Return which points the frame sees, (N,), and where, (N, 2); the first by rank where there are many."""
    H, W = frame.depth.shape
    in_cam = transform_points(cam_from_world, points)
    uv = camera.project(in_cam, frame.K)
    with np.errstate(invalid="ignore"):
        inside = ((uv >= 0) & (uv <= (W - 1, H - 1))).all(axis=1)
    seen = np.flatnonzero(inside)
    u, v = uv[seen].round().astype(int).T
    z, depth = in_cam[seen, 2], frame.depth[v, u]
    with np.errstate(invalid="ignore"):
        agrees = (np.abs(z - depth) < AGREES * z) & (frame.motion_prob[v, u] < MOVING_FROM)
    seen = seen[agrees]
    if len(seen) > PER_IMAGE:
        seen = np.sort(seen[np.argsort(rank[seen])[:PER_IMAGE]])
    return seen, uv[seen]


def _tracks(model: _Model, n_points: int) -> Iterator[Array]:
    """Yield for each point its (image_id, position in that image) pairs, (K, 2)."""
    owner = np.concatenate([image.points for image in model.images])
    pairs = np.concatenate(
        [
            np.stack([np.full(len(i.points), i.image_id), np.arange(len(i.points))], axis=1)
            for i in model.images
        ]
    )
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(n_points + 1))
    for start, end in pairwise(bounds):
        yield pairs[order[start:end]]


def _write_binary(folder: Path, model: _Model, points: Array, rgb: Array) -> None:
    with (folder / "cameras.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(model.cameras)))
        for (W, H, *parameters), camera_id in model.cameras.items():
            file.write(struct.pack("<IiQQ4d", camera_id, PINHOLE, int(W), int(H), *parameters))
    with (folder / "images.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(model.images)))
        for image in model.images:
            _write_image(file, image)
    with (folder / "points3D.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(points)))
        for i, track in enumerate(_tracks(model, len(points))):
            file.write(struct.pack("<Q3d3BdQ", i + 1, *points[i], *rgb[i], -1.0, len(track)))
            file.write(track.astype("<u4").tobytes())


def _write_image(file: BinaryIO, image: _Image) -> None:
    pose = (*image.quat_wxyz, *image.translation)
    file.write(struct.pack("<I7dI", image.image_id, *pose, image.camera_id))
    file.write(image.name.encode() + b"\0" + struct.pack("<Q", len(image.points)))
    observations = np.empty(len(image.points), [("uv", "<f8", 2), ("point", "<u8")])
    observations["uv"], observations["point"] = image.uv, image.points + 1
    file.write(observations.tobytes())


def _write_text(folder: Path, model: _Model, points: Array, rgb: Array) -> None:
    with (folder / "cameras.txt").open("w") as file:
        file.write("# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n")
        for (W, H, *parameters), camera_id in model.cameras.items():
            file.write(f"{camera_id} PINHOLE {W:.0f} {H:.0f} {_join(parameters)}\n")
    with (folder / "images.txt").open("w") as file:
        file.write("# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n")
        file.write("# POINTS2D[] as (X, Y, POINT3D_ID)\n")
        for image in model.images:
            pose = _join((*image.quat_wxyz, *image.translation))
            file.write(f"{image.image_id} {pose} {image.camera_id} {image.name}\n")
            seen = zip(image.uv, image.points, strict=True)
            file.write(" ".join(f"{u:.4f} {v:.4f} {point + 1}" for (u, v), point in seen) + "\n")
    with (folder / "points3D.txt").open("w") as file:
        file.write("# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)\n")
        for i, track in enumerate(_tracks(model, len(points))):
            r, g, b = rgb[i]
            seen_in = "".join(f" {image_id} {position}" for image_id, position in track)
            file.write(f"{i + 1} {_join(points[i])} {r} {g} {b} -1{seen_in}\n")


def _join(numbers: object) -> str:
    return " ".join(f"{number:.17g}" for number in numbers)  # type: ignore[attr-defined]

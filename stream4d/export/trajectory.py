"""Camera paths as text: TUM, KITTI, and JSON with everything that is known of each camera."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stream4d.export.output import new_file
from stream4d.export.source import Camera, FrameSource, Selection, select_cameras
from stream4d.geometry.transforms import quat_wxyz_from_rotation
from stream4d.packets import Array


def write_tum(
    source: FrameSource, path: Path, *, selection: Selection | None = None, overwrite: bool = False
) -> None:
    """Write ``timestamp tx ty tz qx qy qz qw`` per line: seconds, camera-to-world, OpenCV axes, scalar last.

    Raises:
        ExportError: no frames, or not writable.
    """
    with new_file(path, overwrite=overwrite) as partial, partial.open("w") as file:
        file.write(
            "# timestamp tx ty tz qx qy qz qw  (camera to world, x right, y down, z forward)\n"
        )
        for camera in select_cameras(source, selection or Selection()):
            w, x, y, z = quat_wxyz_from_rotation(camera.world_from_cam[:3, :3])
            numbers = (*camera.world_from_cam[:3, 3], x, y, z, w)
            seconds = f"{camera.timestamp_ns // 10**9}.{camera.timestamp_ns % 10**9:09d}"
            file.write(" ".join([seconds, *(f"{number:.9f}" for number in numbers)]) + "\n")


def write_kitti(
    source: FrameSource, path: Path, *, selection: Selection | None = None, overwrite: bool = False
) -> None:
    """Write the upper three rows of ``world_from_cam``, row by row, 12 numbers per line.

    The format has no time: line n is the n-th exported frame.

    Raises:
        ExportError: no frames, or not writable.
    """
    with new_file(path, overwrite=overwrite) as partial, partial.open("w") as file:
        for camera in select_cameras(source, selection or Selection()):
            numbers = camera.world_from_cam[:3].ravel()
            file.write(" ".join(f"{number:.9e}" for number in numbers) + "\n")


def write_json(
    source: FrameSource, path: Path, *, selection: Selection | None = None, overwrite: bool = False
) -> None:
    """Write one JSON object: conventions, and per camera time, pose, covariance, intrinsics and flags.

    Raises:
        ExportError: no frames, or not writable.
    """
    head: dict[str, Any] = {
        "format": "stream4d trajectory",
        "version": 1,
        "axes": "OpenCV: x right, y down, z forward; world_from_cam takes camera to world",
        "pixel_centres": "integer coordinates",
        "quaternion": "wxyz, scalar first",
        "pose_covariance": "of the left se(3) perturbation (translation, rotation), row by row; "
        "null where none is stated",
    }
    with new_file(path, overwrite=overwrite) as partial, partial.open("w") as file:
        # One camera at a time, so that a long run needs no more memory.
        file.write(json.dumps(head)[:-1] + ', "cameras": [')
        for n, camera in enumerate(select_cameras(source, selection or Selection())):
            file.write(("," if n else "") + "\n" + json.dumps(_entry(camera)))
        file.write("\n]}\n")


def _stated(covariance: Array) -> list[float] | None:
    """JSON has no NaN."""
    values: list[float] = np.asarray(covariance).ravel().tolist()
    return values if np.isfinite(values).all() else None


def _entry(camera: Camera) -> dict[str, Any]:
    return {
        "index": camera.index,
        "timestamp_ns": camera.timestamp_ns,
        "segment": camera.segment,
        "width": camera.width,
        "height": camera.height,
        "K": camera.K.tolist(),
        "world_from_cam": camera.world_from_cam.tolist(),
        "quat_wxyz": quat_wxyz_from_rotation(camera.world_from_cam[:3, :3]).tolist(),
        "position": camera.world_from_cam[:3, 3].tolist(),
        "pose_covariance": _stated(camera.pose_covariance),
        "is_keyframe": camera.is_keyframe,
        "is_tracked": camera.is_tracked,
        "is_metric": camera.is_metric,
    }

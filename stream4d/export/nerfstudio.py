"""A nerfstudio data set: transforms.json, pictures, depth, masks of what is static, and points to start from.

Cameras follow OpenGL: x right, y up, z backwards. Pixel centres lie at .5, so the principal point moves by half a
pixel. The world is left as it is; nerfstudio orients and scales it itself.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from stream4d.export.images import save_depth, save_rgb, save_static_mask
from stream4d.export.output import new_folder
from stream4d.export.ply import write_ply
from stream4d.export.source import FrameSource, Selection, select_frames
from stream4d.packets import PosedFrame

logger = logging.getLogger(__name__)

OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
MILLIMETRE = 1e-3
"""What nerfstudio takes a step of a depth picture for, unless told otherwise."""


def write_nerfstudio(
    source: FrameSource, path: Path, *, selection: Selection | None = None, overwrite: bool = False
) -> None:
    """Write ``transforms.json``, ``images/``, ``depths/``, ``masks/`` and ``points.ply``.

    Raises:
        ExportError: no points, or not writable.
        MissingDependencyError: plyfile is not installed.
    """
    selection = selection or Selection()
    with new_folder(path, marker="transforms.json", overwrite=overwrite) as partial:
        for name in ("images", "depths", "masks"):
            (partial / name).mkdir()
        write_ply(source, partial / "points.ply", selection=selection)
        unit: float | None = None
        frames = []
        for frame in select_frames(source, selection):
            unit = unit or _depth_unit(frame)
            frames.append(_entry(frame))
            save_rgb(partial / frames[-1]["file_path"], frame)
            save_static_mask(partial / frames[-1]["mask_path"], frame)
            save_depth(partial / frames[-1]["depth_file_path"], frame, unit or MILLIMETRE)
        if unit not in (None, MILLIMETRE):
            logger.warning("the scale of the world is unknown: train with %s", _unit_flag(unit))
        content = {
            "camera_model": "OPENCV",
            "orientation_override": "up",
            "depth_unit_scale_factor": unit or MILLIMETRE,
            "ply_file_path": "points.ply",
            "frames": frames,
        }
        (partial / "transforms.json").write_text(json.dumps(content, indent=1))


def _entry(frame: PosedFrame) -> dict[str, Any]:
    H, W = frame.rgb.shape[:2]
    name = f"{frame.index:06d}"
    return {
        "file_path": f"images/{name}.jpg",
        "mask_path": f"masks/{name}.png",
        "depth_file_path": f"depths/{name}.png",
        "timestamp": frame.timestamp_ns / 1e9,
        "w": W,
        "h": H,
        "fl_x": float(frame.K[0, 0]),
        "fl_y": float(frame.K[1, 1]),
        "cx": float(frame.K[0, 2]) + 0.5,
        "cy": float(frame.K[1, 2]) + 0.5,
        "transform_matrix": (frame.world_from_cam @ OPENCV_FROM_OPENGL).tolist(),
    }


def _depth_unit(frame: PosedFrame) -> float | None:
    """Return millimetres for a metric world, else a power of ten that gives the median depth about 4 digits."""
    if frame.is_metric:
        return MILLIMETRE
    known = frame.depth[np.isfinite(frame.depth) & (frame.depth > 0)]
    if known.size == 0:
        return None
    exponent = math.floor(math.log10(float(np.median(known)) / 1000))
    return float(f"1e{exponent}")  # a power of floats may miss 0.001 by a bit


def _unit_flag(unit: float | None) -> str:
    return f"`nerfstudio-data --depth-unit-scale-factor {unit:g}`"

"""Flow as published data sets store it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from stream4d.eval.flow import FLO_TAG, UNKNOWN_FLOW
from stream4d.packets import Array


def write_flo(path: Path, flow: Array) -> None:
    """Write (H, W, 2) flow as Middlebury ``.flo``; NaN becomes unknown."""
    H, W = flow.shape[:2]
    body = np.where(np.isfinite(flow), flow, 10 * UNKNOWN_FLOW).astype("<f4")
    head = np.float32(FLO_TAG).astype("<f4").tobytes() + np.array([W, H], "<i4").tobytes()
    path.write_bytes(head + body.tobytes())


def write_kitti(path: Path, flow: Array) -> None:
    """Write (H, W, 2) flow as KITTI 16-bit PNG, in steps of 1/64 px; NaN becomes invalid."""
    known = np.isfinite(flow).all(axis=-1)
    steps = np.clip(np.rint(np.nan_to_num(flow) * 64 + 32768), 0, 65535).astype(np.uint16)
    image = np.stack([known.astype(np.uint16), steps[..., 1], steps[..., 0]], axis=-1)
    assert cv2.imwrite(str(path), image)

"""Pictures that go with camera formats: frames, masks of what is static, depth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from stream4d.errors import ExportError
from stream4d.packets import Array, PosedFrame
from stream4d.viz.cloud import MOVING_FROM


def save_rgb(path: Path, frame: PosedFrame) -> None:
    """Write the frame as JPEG, nearly without loss."""
    picture = cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR)
    _write(
        path, picture, [cv2.IMWRITE_JPEG_QUALITY, 97, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    )


def save_static_mask(path: Path, frame: PosedFrame) -> None:
    """Write an 8-bit PNG: 255 where the pixel is static (use it), 0 where it moves (leave it out)."""
    _write(path, np.where(frame.motion_prob < MOVING_FROM, 255, 0).astype(np.uint8), [])


def save_depth(path: Path, frame: PosedFrame, unit: float) -> None:
    """Write z-depth as 16-bit PNG in multiples of ``unit``, 0 where unknown or out of range."""
    steps = np.round(np.nan_to_num(frame.depth.astype(np.float64) / unit, posinf=0, neginf=0))
    steps[(steps < 0) | (steps > 65535)] = 0
    _write(path, steps.astype(np.uint16), [])


def _write(path: Path, picture: Array, options: list[int]) -> None:
    # Through memory: OpenCV's own file writing neither takes all paths nor says what failed.
    done, data = cv2.imencode(path.suffix, picture, options)
    if not done:
        raise ExportError(f"cannot encode {path.name}")
    path.write_bytes(data.tobytes())

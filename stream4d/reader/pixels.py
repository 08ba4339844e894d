"""From what a decoder gives to upright 8-bit RGB."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream4d.packets import Array


def clockwise_rotation(frame: Any) -> int:
    """Return by how many degrees clockwise the frame must be turned to be upright: 0, 90, 180 or 270."""
    # PyAV gives the counter-clockwise angle of the display matrix.
    return int(round(-frame.rotation / 90) * 90 % 360)


def to_rgb(frame: Any) -> Array:  # -> (H, W, 3) uint8
    """Convert a frame of any pixel format, upright; transparency is laid over black."""
    if any(component.is_alpha for component in frame.format.components) or frame.format.has_palette:
        rgb = over_black(frame.to_ndarray(format="rgba"))
    else:
        rgb = frame.to_ndarray(format="rgb24")
    turns = clockwise_rotation(frame) // 90
    return np.ascontiguousarray(np.rot90(rgb, -turns)) if turns else rgb


def over_black(rgba: Array) -> Array:  # (H, W, 4) uint8 -> (H, W, 3) uint8
    """Lay an image with straight alpha over black."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    product = rgba[..., :3].astype(np.uint16) * alpha + 127
    return (product // 255).astype(np.uint8)

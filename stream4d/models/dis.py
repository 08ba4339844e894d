"""Optical flow by OpenCV's DIS from one image to another.

Kroeger, Timofte, Dai, Van Gool, "Fast Optical Flow using Dense Inverse Search", ECCV 2016. It needs no weights, is
exact where motion is small and texture is rich, and fails at occlusions.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np

from stream4d.packets import Array

Preset = Literal["ultrafast", "fast", "medium"]
PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
MIN_SIDE = 32
"""Below this DIS has no whole patch at its coarsest level."""


def grey_image(rgb: Array) -> Array:  # (H, W, 3) uint8 -> (H, W) uint8
    """Make the image that DIS matches."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY))


def dis_flow(first: Array, second: Array, preset: Preset) -> Array:  # (H, W) twice -> (H, W, 2)
    """Estimate the flow from the first grey image to the second; zeros where they are too small."""
    if min(first.shape) < MIN_SIDE:
        return np.zeros((*first.shape, 2), np.float32)
    # A solver holds buffers: one for each call, so that calls may overlap.
    solver: Any = cv2.DISOpticalFlow.create(PRESETS[preset])
    # None, not zeros: an initial flow of zeros replaces the coarse level's own start and changes the result.
    return np.asarray(solver.calc(first, second, None))


def missed_trip(
    flow: Array, back: Array, *, every: int = 1, beyond: float | None = None
) -> Array:  # (H, W, 2) twice -> (H, W)
    """Measure by how many pixels going along ``flow``, and by ``back`` from there, misses the start.

    Args:
        every: only every so many-th pixel in both axes.
        beyond: what ``back`` is out of view, per axis; None: as at the nearest border.
    """
    H, W = flow.shape[:2]
    flow = flow[::every, ::every]
    u, v = np.meshgrid(*(np.arange(0, n, every, dtype=np.float32) for n in (W, H)))
    border: dict[str, Any] = {"borderMode": cv2.BORDER_REPLICATE}
    if beyond is not None:
        border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (beyond, beyond)}
    trip = flow + cv2.remap(back, u + flow[..., 0], v + flow[..., 1], cv2.INTER_LINEAR, **border)
    # cv2.magnitude rounds by where in memory its arrays begin: a resumed run would differ.
    du, dv = trip[..., 0], trip[..., 1]
    return np.asarray(np.sqrt(du * du + dv * dv))

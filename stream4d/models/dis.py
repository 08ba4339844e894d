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

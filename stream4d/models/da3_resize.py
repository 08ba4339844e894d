"""How Depth Anything 3 brings frames to multiples of 14: four rules, resampled by OpenCV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import cv2

from stream4d.errors import ModelError
from stream4d.models.da3_config import ResizeRule
from stream4d.models.resize import Fit
from stream4d.packets import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStepFit(Fit):
    """Resize by OpenCV (area down, cubic up) to one long or short side, then each side to its multiple of 14 or cut."""

    first: tuple[int, int]
    """(width, height) after the first step."""

    def image(self, rgb: Array) -> Array:  # (H, W, 3) uint8 -> (h, w, 3) uint8
        """Resize and crop one frame."""
        for size in (self.first, self.resized):
            if rgb.shape[1::-1] != size:
                grows = size[0] > rgb.shape[1] or size[1] > rgb.shape[0]
                rgb = cv2.resize(
                    rgb, size, interpolation=cv2.INTER_CUBIC if grows else cv2.INTER_AREA
                )
        x, y = int(self.left), int(self.top)
        return rgb[y : y + self.size[1], x : x + self.size[0]]


def fit_image(
    width: int, height: int, resolution: int = 504, rule: ResizeRule = "upper_bound_resize"
) -> TwoStepFit:
    """Apply one of Depth Anything 3's rules.

    Raises:
        ModelError: no such rule, or the image is so narrow that a crop leaves nothing.
    """
    if rule not in get_args(ResizeRule):
        raise ModelError(f"resize must be one of {', '.join(get_args(ResizeRule))}, got {rule!r}")
    side = (max if rule.startswith("upper") else min)(width, height)
    factor = resolution / side
    first = (max(1, round(width * factor)), max(1, round(height * factor)))
    if rule.endswith("resize"):
        w, h = resized = (nearest_multiple(first[0], 14), nearest_multiple(first[1], 14))
    else:
        resized, (w, h) = first, (first[0] // 14 * 14, first[1] // 14 * 14)
    if min(w, h) < 14:
        raise ModelError(
            f"frames of {width}×{height} are too narrow to crop: take {rule[:11]}_resize"
        )
    return TwoStepFit(
        source=(width, height),
        first=first,
        resized=resized,
        left=(resized[0] - w) // 2,
        top=(resized[1] - h) // 2,
        size=(w, h),
    )


def nearest_multiple(side: int, step: int) -> int:
    """Round to the nearest multiple, up where both are as near; at least one step."""
    low = side // step * step
    return max(step, low + step if side - low >= low + step - side else low)

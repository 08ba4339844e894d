"""Crop to the nearest aspect ratio of training, then resize: the rule of MUSt3R's demos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stream4d.errors import ModelError
from stream4d.models.resize import Fit
from stream4d.packets import Array

SIZES: dict[int, tuple[tuple[int, int], ...]] = {
    224: ((224, 224),),
    336: ((336, 336),),
    384: ((384, 288), (384, 256), (384, 192), (384, 128)),
    448: ((448, 448),),
    512: ((512, 384), (512, 336), (512, 288), (512, 256), (512, 160)),
    768: ((768, 576), (768, 512), (768, 432), (768, 384), (768, 240)),
}
"""Long side → (long, short) sides that the network was trained with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CropFirstFit(Fit):
    """Cut the middle out of the frame, then resize it (bilinear, antialiased) to the network's size."""

    crop: tuple[int, int]
    """(width, height) of what is cut out, in frame pixels."""

    @property
    def corner(self) -> tuple[int, int]:
        """Left upper corner of the crop in the frame."""
        (W, H), (w, h) = self.source, self.crop
        return round((W - w) / 2), round((H - h) / 2)

    @property
    def scale(self) -> tuple[float, float]:
        """Factors (x, y) from frame to network pixels."""
        return self.size[0] / self.crop[0], self.size[1] / self.crop[1]

    def batch(self, frames: Sequence[Array]) -> Tensor:
        """Crop and resize frames into one float32 tensor in [0, 1]."""
        (x, y), (w, h) = self.corner, self.crop
        cut = np.stack([rgb[y : y + h, x : x + w] for rgb in frames])
        images = torch.from_numpy(cut).permute(0, 3, 1, 2).float() / 255
        if self.crop == self.size:
            return images
        return F.interpolate(images, self.size[::-1], mode="bilinear", antialias=True)

    def image(self, rgb: Array) -> Array:
        """Crop and resize one frame to uint8, for looking at."""
        pixels = self.batch([rgb])[0].permute(1, 2, 0) * 255
        return pixels.round().clamp(0, 255).byte().numpy()


def fit_to_table(
    width: int, height: int, resolution: int, sizes: Sequence[tuple[int, int]] | None = None
) -> CropFirstFit:
    """Choose the size of nearest aspect ratio and the crop that has it.

    Raises:
        ModelError: there are no sizes for ``resolution``.
    """
    if sizes is None and resolution not in SIZES:
        raise ModelError(
            f"no table of sizes for resolution {resolution}: take one of {', '.join(map(str, SIZES))}"
        )
    table = SIZES[resolution] if sizes is None else sizes
    long_side, short_side = max(width, height), min(width, height)
    w, h = min(table, key=lambda size: abs(size[0] / size[1] - long_side / short_side))
    ratio = w / h
    if long_side / short_side > ratio:
        crop = int(short_side * ratio), short_side
    else:
        crop = long_side, int(long_side / ratio)
    if width < height:
        w, h, crop = h, w, crop[::-1]
    sx, sy = w / crop[0], h / crop[1]
    left, top = round((width - crop[0]) / 2), round((height - crop[1]) / 2)
    return CropFirstFit(
        source=(width, height),
        resized=(round(width * sx), round(height * sy)),
        left=left * sx,
        top=top * sy,
        size=(w, h),
        crop=crop,
    )

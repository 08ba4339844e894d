"""Encoder of the temporal model's frames: features at 1/4 to 1/32 for matching, tokens and heads.

Its small branch has the topology of XFeat (Potje et al., CVPR 2024) with batch norm folded away, so that its public
Apache-2.0 weights can be its initial value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models import fused
from stream4d.models.convolution import Conv, rectified
from stream4d.models.sampling import join


class FrameFeatures(NamedTuple):
    """What the encoder keeps of one frame."""

    quarter: Tensor
    """(B, C4, H/4, W/4)."""
    eighth: Tensor
    """(B, 64, H/8, W/8)."""
    sixteenth: Tensor
    """(B, 64, H/16, W/16)."""
    thirtysecond: Tensor
    """(B, 64, H/32, W/32)."""
    grey: Tensor
    """(B, 1, H, W) float32 grey image of zero mean and unit deviation."""
    colour: Tensor
    """(B, 3, H/4, W/4) mean colours in [0, 1]."""


def normalise(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (B, 3, H, W)
    """Bring a frame's grey mean to zero and its deviation to one.

    Returns the grey image (B, 1, H, W), the colours of each 4×4 cell (B, 48, H/4, W/4), likewise normalised, and the
    cells' mean colours as they were (B, 3, H/4, W/4).
    """
    if fused.fits(images):
        return fused.normalise(images)
    grey = images.mean(1, keepdim=True)
    deviation, mean = torch.std_mean(grey, dim=(2, 3), keepdim=True, correction=0)
    gain = 1 / (deviation + 1e-3)
    patches = F.pixel_unshuffle((images - mean) * gain, 4)
    return ((grey - mean) * gain).float(), patches, F.avg_pool2d(images, 4)


class FrameEncoder(nn.Module):
    """Features of one frame at 1/4 … 1/32: a grey matching branch and a colour branch at 1/4."""

    def __init__(self, quarter_channels: int = 48) -> None:
        super().__init__()
        self.skip = Conv(1, 24, 1)
        self.block1 = nn.ModuleList(
            [
                rectified(1, 4),
                rectified(4, 8, stride=2),
                rectified(8, 8),
                rectified(8, 24, stride=2),
            ]
        )
        self.block2 = nn.ModuleList([rectified(24, 24), rectified(24, 24)])
        self.block3 = nn.ModuleList(
            [rectified(24, 64, stride=2), rectified(64, 64), rectified(64, 64, 1)]
        )
        self.block4 = nn.ModuleList(
            [rectified(64, 64, stride=2), rectified(64, 64), rectified(64, 64)]
        )
        self.block5 = nn.ModuleList(
            [
                rectified(64, 128, stride=2),
                rectified(128, 128),
                rectified(128, 128),
                rectified(128, 64, 1),
            ]
        )
        self.fusion = nn.ModuleList([rectified(64, 64), rectified(64, 64)])
        self.fused = Conv(64, 64, 1)
        self.colour = rectified(24 + 48, quarter_channels)
        self.residual = nn.ModuleList(
            [
                rectified(quarter_channels, quarter_channels),
                Conv(quarter_channels, quarter_channels),
            ]
        )

    @staticmethod
    def _run(layers: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    def forward(
        self, images: Tensor
    ) -> FrameFeatures:  # (B, 3, H, W) in [0, 1]; sides multiples of 32
        grey, patches, small = normalise(images)
        x = self._run(self.block1, grey) + self.skip(F.avg_pool2d(grey, 4))
        quarter = self._run(self.block2, x)
        x3 = self._run(self.block3, quarter)
        x4 = self._run(self.block4, x3)
        x5 = self._run(self.block5, x4)
        size = x3.shape[-2:]
        merged = x3 + sum(
            F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (x4, x5)
        )
        eighth = self.fused(self._run(self.fusion, merged))
        colour = self.colour(join(quarter, quarter, patches))
        x = self.residual[0](colour)
        quarter = F.relu_(colour + self.residual[1](x))
        return FrameFeatures(quarter, eighth, x4, x5, grey, small)


def convert_xfeat(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold XFeat's public checkpoint (batch norm without affine) into the encoder's names."""
    names: dict[str, str] = {}
    for block, layers in (
        ("block1", 4),
        ("block2", 2),
        ("block3", 3),
        ("block4", 3),
        ("block5", 4),
    ):
        names |= {f"{block}.{i}": f"{block}.{i}" for i in range(layers)}
    names |= {"fusion.0": "block_fusion.0", "fusion.1": "block_fusion.1"}
    out: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        mean = tensors[f"{theirs}.layer.1.running_mean"]
        scale = torch.rsqrt(tensors[f"{theirs}.layer.1.running_var"] + 1e-5)
        out[f"{ours}.weight"] = tensors[f"{theirs}.layer.0.weight"] * scale[:, None, None, None]
        out[f"{ours}.bias"] = -mean * scale
    for ours, theirs in (("skip", "skip1.1"), ("fused", "block_fusion.2")):
        out[f"{ours}.weight"] = tensors[f"{theirs}.weight"]
        out[f"{ours}.bias"] = tensors[f"{theirs}.bias"]
    return out

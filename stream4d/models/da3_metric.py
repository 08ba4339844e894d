"""Metres and sky for Depth Anything 3's relative depth, from its metric network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stream4d.models.da3_net import MonoOutput

METRIC_FOCAL_PX = 300.0
"""The metric network answers for a lens of this focal length."""
SKY_FROM = 0.3
"""Sky score from which a pixel is sky."""
FARTHEST_M = 200.0


class MetricScale(NamedTuple):
    """What the metric network makes of a relative prediction."""

    depth: Tensor
    """(B, T, H, W) metres; sky lies at the far end."""
    is_sky: Tensor
    """(B, T, H, W) bool."""
    scale: Tensor
    """() factor from the relative prediction to metres."""


def at_focal(mono_depth: Tensor, K: Tensor) -> Tensor:  # (B, T, H, W), (B, T, 3, 3)
    """Turn the metric network's answer into metres for lenses of any focal length."""
    focal_px = (K[..., 0, 0] + K[..., 1, 1]) / 2
    return mono_depth * (focal_px / METRIC_FOCAL_PX)[..., None, None]


def to_metric(depth: Tensor, confidence: Tensor, mono: MonoOutput, K: Tensor) -> MetricScale:
    """Scale relative depth to metres: least squares over confident pixels that are not sky."""
    metric = at_focal(mono.depth, K)
    is_sky = mono.sky >= SKY_FROM
    solid = ~is_sky
    if not solid.any():
        return MetricScale(depth, is_sky, depth.new_ones(()))
    good = solid & (metric > 0) & (confidence >= confidence[solid].median())
    scale = (metric[good] * depth[good]).sum() / (depth[good] ** 2).sum().clamp(min=1e-12)
    scaled = fill_sky(depth * scale, is_sky)
    return MetricScale(scaled, is_sky, scale)


def fill_sky(depth: Tensor, is_sky: Tensor) -> Tensor:
    """Put the sky where the farthest things are: 99 % quantile of all other depth, at most `FARTHEST_M`."""
    solid = depth[~is_sky]
    if not is_sky.any() or solid.numel() == 0:
        return depth
    # quantile() refuses more than 16 million values.
    far = torch.quantile(solid[:: max(1, solid.numel() // 10_000_000)], 0.99)
    return torch.where(is_sky, far.clamp(max=FARTHEST_M), depth)

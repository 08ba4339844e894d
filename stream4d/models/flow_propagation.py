"""Mending a flow before the network refines it: trusted flow spreads along the image into places without trust.

A classical flow fails where its target is hidden, where texture ends and at the borders of moving things. There the
way along the flow and back does not return, or the images differ along it. Such cells take over the flow of trusted
cells of like colour, near ones first: a confidence-weighted bilateral filter over several dilations, in the spirit of
the edge-aware interpolation of EpicFlow (Revaud et al., CVPR 2015) and of normalised convolution (Knutsson & Westin
1993). All its constants are parameters and are trained with the network.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models import fused
from stream4d.models.sampling import pixel_grid, swap_directions, warp

DILATIONS = (16, 8, 4, 2, 1, 8, 4, 2, 1)
"""Distances at which a pass looks for trusted neighbours, in cells."""


class Mended(NamedTuple):
    """A flow at 1/4 resolution, after propagation."""

    flow: Tensor
    """(2B, 2, h, w) in pixels of the full image."""
    trust: Tensor
    """(2B, 1, h, w) in [0, 1]: how far the initial flow was kept."""
    apart: Tensor
    """(2B, 1, h, w) difference of the images along the initial flow, in deviations of the image."""
    mean: Tensor
    """(2B, 2, h, w) the initial flow averaged over each cell, in pixels of the full image."""


class Propagation(nn.Module):
    """Spreads trusted flow; the initial constants make it useful before any training."""

    def __init__(self) -> None:
        super().__init__()

        def log(value: float) -> nn.Parameter:
            return nn.Parameter(torch.tensor(math.log(value)))

        self.miss_px = log(0.25)  # miss of the round trip that halves trust or worse, pixels …
        self.miss_share = log(0.05)  # … plus this share of the flow's length
        self.contrast = log(0.5)  # difference of the images along the flow, deviations of the image
        self.colour = nn.Parameter(torch.full((max(DILATIONS).bit_length(),), math.log(0.04)))
        self.own = log(0.02)  # weight of the cell's own flow against what arrives

    def forward(self, flow: Tensor, grey: Tensor, colour: Tensor) -> Mended:
        """Mend both directions: flow (2B, 2, H, W), grey (2B, 1, H, W), colour (2B, 3, H/4, W/4)."""
        if fused.fits(flow):
            return self._fused(flow, grey, colour)
        trust, alike, apart = self._trust(flow, grey)
        start = F.avg_pool2d(flow, 4)
        own = self.own.exp() * alike
        weight = trust + 1e-4
        mended = start
        affinity = {d: self._affinity(colour, d) for d in set(DILATIONS)}
        for d in DILATIONS:
            packed = torch.cat([weight * mended, weight], 1)
            spread = (affinity[d] * _neighbours(packed, d)).sum(2)  # (2B, 3, h, w)
            arrived = (spread[:, :2] + 9 * own * start) / (spread[:, 2:] + 9 * own)
            mended = trust * start + (1 - trust) * arrived
            weight = torch.maximum(trust, (spread[:, 2:] / 9).clamp(max=1))
        return Mended(mended, trust, apart, start)

    def _fused(self, flow: Tensor, grey: Tensor, colour: Tensor) -> Mended:
        limits = [float(x.exp()) for x in (self.miss_px, self.miss_share, self.contrast)]
        scales = {d: float(self.colour[d.bit_length() - 1].exp()) for d in set(DILATIONS)}
        maps = fused.mend(flow, grey, colour, limits, scales, float(self.own.exp()), DILATIONS)
        mended, trust, _, apart, mean = maps.split([2, 1, 1, 1, 2], 1)
        return Mended(mended, trust, apart, mean)

    def _trust(self, flow: Tensor, grey: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Trust in the initial flow per cell, how alike the images are along it, and how far apart."""
        H, W = flow.shape[-2:]
        # Flow and image of the other direction in one look-up. Beyond the border nothing is trusted anyway.
        other = warp(swap_directions(torch.cat([flow, grey], 1)), flow, "border")
        miss = (flow + other[:, :2]).square().sum(1, keepdim=True)
        limit = (
            self.miss_px.exp() + self.miss_share.exp() * flow.square().sum(1, keepdim=True).sqrt()
        )
        apart = (other[:, 2:] - grey).abs()
        alike = torch.exp(-((apart / self.contrast.exp()) ** 2))
        at = pixel_grid(H, W, flow) + flow
        inside = (at[:, :1] >= 0) & (at[:, :1] <= W - 1) & (at[:, 1:] >= 0) & (at[:, 1:] <= H - 1)
        alike = alike * inside
        trust = torch.exp(-miss / limit**2) * alike
        trust, alike, apart = F.avg_pool2d(torch.cat([trust, alike, apart], 1), 4).split(1, 1)
        return trust, alike, apart

    def _affinity(self, colour: Tensor, dilation: int) -> Tensor:  # (2B, 1, 9, h, w)
        apart = (_neighbours(colour, dilation) - colour[:, :, None]).abs().mean(1, keepdim=True)
        scale = self.colour[dilation.bit_length() - 1].exp()
        inside = _neighbours(torch.ones_like(colour[:, :1]), dilation)
        return torch.exp(-((apart / scale) ** 2)) * inside


def _neighbours(x: Tensor, dilation: int) -> Tensor:  # (B, C, h, w) -> (B, C, 9, h, w)
    """Gather the 3×3 neighbours at a distance; zero beyond the border."""
    B, C, h, w = x.shape
    return F.unfold(x, 3, dilation=dilation, padding=dilation).view(B, C, 9, h, w)

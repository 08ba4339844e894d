"""Sampling flow fields and images on pixel grids: warp, resize, upsample, go there and back.

Integer coordinates are pixel centres. Directions of a pair share the batch: the first half goes a → b, the second
b → a.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stream4d.models import fused


def pixel_grid(h: int, w: int, like: Tensor) -> Tensor:  # (2, h, w) as (x, y), float32
    """List pixel-centre coordinates."""
    y = torch.arange(h, device=like.device, dtype=torch.float32)
    x = torch.arange(w, device=like.device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def warp(
    image: Tensor, flow: Tensor, padding: str = "zeros"
) -> Tensor:  # (B, C, h, w), (B, 2, h, w)
    """Sample ``image`` at each pixel plus its flow (bilinear, integer coordinates are pixel centres)."""
    h, w = image.shape[-2:]
    at = pixel_grid(h, w, flow) + flow.float()
    size = at.new_tensor([w - 1, h - 1]).clamp_min(1)
    grid = at.permute(0, 2, 3, 1) * (2 / size) - 1
    out = F.grid_sample(image.float(), grid, padding_mode=padding, align_corners=True)
    return out.to(image.dtype)


def resize_flow(flow: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize a flow field and scale its vectors with it."""
    h, w = flow.shape[-2:]
    scale = flow.new_tensor([size[1] / w, size[0] / h])[:, None, None]
    if size[0] < h:
        step = h // size[0]
        if size[0] * step == h and size[1] * step == w:
            return F.avg_pool2d(flow, step) * scale  # what "area" means here, several times faster
        return F.interpolate(flow, size, mode="area") * scale
    return F.interpolate(flow, size, mode="bilinear", align_corners=False) * scale


def convex_upsample(values: Tensor, logits: Tensor, factor: int = 4) -> Tensor:
    """Upsample by learned convex combinations of 3×3 neighbours (RAFT, Teed & Deng 2020, §3.3)."""
    if factor == 4 and fused.fits(values):
        return fused.convex_upsample(values, logits)
    B, _, h, w = values.shape
    weights = logits.float().reshape(B, 1, 9, factor * factor, h, w).softmax(2)
    padded = F.pad(values.float(), (1,) * 4, mode="replicate")[:, :, None]
    # Neighbour by neighbour: the product of all at once would be nine times as large as the result.
    out = weights[:, :, 0] * padded[..., :h, :w]
    for i in range(1, 9):
        y, x = divmod(i, 3)
        out = torch.addcmul(out, weights[:, :, i], padded[..., y : y + h, x : x + w])
    return F.pixel_shuffle(out.flatten(1, 2), factor)


def join(like: Tensor, *maps: Tensor) -> Tensor:
    """Concatenate maps over channels in the arithmetic of ``like``.

    For inference channels lie together in memory: maps that disagree would be laid out anew before each convolution.
    """
    layout = torch.channels_last if fused.fits(like) else torch.preserve_format
    return torch.cat([x.to(like.dtype, memory_format=layout) for x in maps], 1)


def swap_directions(x: Tensor) -> Tensor:
    """Exchange the two halves of the batch: forward pairs and their reverses."""
    first, second = x.chunk(2)
    return torch.cat([second, first])


def round_trip(flow: Tensor) -> Tensor:  # (2B, 2, h, w) -> (2B, 1, h, w)
    """Measure by how much going there and back misses the start, in pixels of the level."""
    if fused.fits(flow):
        return fused.round_trip(flow)
    miss = flow + warp(swap_directions(flow), flow)
    return miss.square().sum(1, keepdim=True).clamp_min(1e-12).sqrt()

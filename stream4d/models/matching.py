"""Matches of two frames' features: along a flow, and of every coarse cell over the whole other frame.

Shapes: B frame pairs, of which 2B are both directions (a → b, then b → a), C channels, h w the level at hand.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stream4d.models import fused
from stream4d.models.sampling import pixel_grid, resize_flow, swap_directions, warp

MATCH_CELL = 16
"""Side of the cells of the global match in pixels: its cost grows with the fourth power of the resolution."""


class GlobalMatch(NamedTuple):
    """A match of every coarse cell over the whole other frame."""

    flow: Tensor
    """(2B, 2, h, w) in cells."""
    confidence: Tensor
    """(2B, 1, h, w) dual-softmax probability of the match in [0, 1]."""
    logp: Tensor | None
    """(B, N, N) log dual-softmax, frame a's cells by frame b's; only where gradients are on."""
    cell: int
    """Cell size in pixels of the full image."""


def correlation(features: Tensor, flow: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Compare each frame's features (2B, C, h, w) with the other's, brought back along the flow (2B, 2, h, w).

    Returns ``local_correlation`` and the mean absolute difference (2B, 1, h, w).
    """
    if fused.fits(features):
        return fused.correlation(features, flow, radius)
    moved = warp(swap_directions(features), flow)
    apart = (features - moved).abs().mean(1, keepdim=True)
    return local_correlation(features, moved, radius), apart


def local_correlation(a: Tensor, b: Tensor, radius: int) -> Tensor:  # (B, C, h, w) twice
    """Correlate each cell with its (2r+1)² neighbours in ``b``: (B, (2r+1)², h, w), a quarter of the sum over channels.

    Source: the partial cost volume of PWC-Net (Sun et al. 2018, eq. 2).
    """
    h, w = a.shape[-2:]
    padded = F.pad(b, (radius,) * 4)
    side = 2 * radius + 1
    rows = [
        (a * padded[..., dy : dy + h, dx : dx + w]).sum(1)
        for dy in range(side)
        for dx in range(side)
    ]
    return torch.stack(rows, 1) / 4


def global_match(
    a: Tensor, b: Tensor, scale: Tensor
) -> GlobalMatch:  # (B, C, H/8, W/8) unit vectors twice
    """Match all cells of two frames both ways; refine each match inside its 3×3 neighbourhood.

    Source: the dual-softmax matching of LoFTR (Sun et al. 2021, eq. 2-3), refined by a local soft-argmax.
    """
    full = a.shape[-2:]
    a, b = F.normalize(F.avg_pool2d(a, 2)), F.normalize(F.avg_pool2d(b, 2))
    h, w = a.shape[-2:]
    scores = torch.matmul(a.flatten(2).transpose(1, 2), b.flatten(2)).float() * scale
    flow, confidence, logp = nearest_both_ways(scores, (h, w))
    flow = resize_flow(flow, full)
    confidence = F.interpolate(confidence, full, mode="nearest")
    return GlobalMatch(flow, confidence, logp, MATCH_CELL)


def nearest_both_ways(
    scores: Tensor,  # (B, N, N)
    size: tuple[int, int],  # (h, w) with N = h · w
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find every cell's best match in the other frame.

    Returns flow (2B, 2, h, w) and its dual-softmax probability (2B, 1, h, w), a → b, then b → a; and the logarithms of
    all dual-softmax probabilities (B, N, N) where gradients are on.
    """
    if fused.fits(scores):
        return *fused.nearest_both_ways(scores, size), None
    rows, columns = scores.logsumexp(2, keepdim=True), scores.logsumexp(1, keepdim=True)
    with torch.no_grad():
        found = [
            _nearest(s, r.flatten(1), c.flatten(1), size)
            for s, r, c in ((scores, rows, columns), (scores.mT, columns, rows))
        ]
        flow, confidence = (torch.cat(x) for x in zip(*found, strict=True))
    logp = 2 * scores - rows - columns if torch.is_grad_enabled() else None
    return flow, confidence, logp


def _nearest(
    scores: Tensor,  # (B, N, N)
    rows: Tensor,  # (B, N) log of the sum over each row's softmax, and over each column's
    columns: Tensor,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Take each row's best column as flow, with the soft-argmax over the 3×3 cells around it."""
    h, w = size
    best, index = scores.max(2)
    confidence = (2 * best - rows - columns.gather(1, index)).exp()
    x, y = index % w, index // w  # (B, N)
    steps = torch.tensor([-1, 0, 1], device=index.device)
    dy, dx = (s.flatten() for s in torch.meshgrid(steps, steps, indexing="ij"))
    near_x, near_y = (x[..., None] + dx).clamp(0, w - 1), (y[..., None] + dy).clamp(0, h - 1)
    weight = scores.gather(2, near_y * w + near_x).softmax(-1)  # (B, N, 9)
    at = torch.stack([(weight * near_x).sum(-1), (weight * near_y).sum(-1)], 1)
    return at.view(-1, 2, h, w) - pixel_grid(h, w, scores), confidence.view(-1, 1, h, w)

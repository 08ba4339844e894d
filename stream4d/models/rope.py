"""Rotary positions of image patches: RoPE (Su et al. 2021) in two axes, as in CroCo v2 (Weinzaepfel et al. 2023).

Shapes: B batch, N tokens, h heads, d channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """Rotation of queries or keys by position: made once per forward, shared by all blocks."""

    cos: Tensor
    """(B or 1, 1, N, d)."""
    sin: Tensor
    """(B or 1, 1, N, d)."""


def grid_positions(rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """List the (y, x) index of every patch, row by row: (rows · columns, 2) int64."""
    y, x = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    return torch.stack([y, x], dim=-1).reshape(-1, 2)


def rope_2d(
    positions: Tensor,  # (..., N, 2) as (y, x)
    head_dim: int,
    base: float = 100.0,
    scale: float = 1.0,
) -> Rope:
    """Make the rotary table of 2D positions (CroCo's RoPE2D, half-split convention).

    The first half of a head turns with y, the second with x; position 0 leaves a token as it is. ``scale`` below 1
    squeezes positions, for images larger than those of training (MUSt3R's ``RoPE100_512:768`` is 512 / 768).
    """
    quarter = head_dim // 4
    steps = torch.arange(quarter, device=positions.device, dtype=torch.float32) / quarter
    angles = positions.float()[..., None] * (scale / base**steps)  # (..., N, 2, quarter)
    angles = torch.cat([angles, angles], dim=-1).flatten(-2)  # (..., N, d): y y x x
    if angles.ndim == 2:
        angles = angles[None]
    return Rope(angles.cos()[:, None], angles.sin()[:, None])


def apply_rope(x: Tensor, rope: Rope) -> Tensor:  # (B, h, N, d)
    """Rotate queries or keys."""
    y1, y2, x1, x2 = x.chunk(4, dim=-1)
    turned = torch.cat([-y2, y1, -x2, x1], dim=-1)
    return x * rope.cos.to(x.dtype) + turned * rope.sin.to(x.dtype)

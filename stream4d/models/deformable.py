"""Deformable attention: each query reads a few learned places of a pyramid ("Deformable DETR", Zhu et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, int]
"""(rows, columns) of one level."""


class DeformableAttention(nn.Module):
    """Sample ``points`` places per head and level around each query's own place, and add them up."""

    def __init__(self, dim: int, heads: int, levels: int, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(
        self,
        queries: Tensor,  # (B, N, C)
        places: Tensor,  # (N, 2) own place as (x, y) in [0, 1]
        values: Tensor,  # (B, M, C), levels one after the other
        shapes: Sequence[Shape],
    ) -> Tensor:  # (B, N, C)
        B, N, _ = queries.shape
        parts = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(queries).view(B, N, *parts, 2)
        weights = self.attention_weights(queries).view(B, N, self.heads, -1).softmax(-1)
        weights = weights.view(B, N, *parts)
        sizes = torch.tensor([(w, h) for h, w in shapes], device=queries.device)
        where = (
            places[:, None, None, None] + offsets / sizes[:, None]
        )  # (B, N, h, levels, points, 2)
        per_level = self.value_proj(values).split([h * w for h, w in shapes], dim=1)
        out: Tensor | int = 0
        for level, (shape, value) in enumerate(zip(shapes, per_level, strict=True)):
            read = self._read(value, shape, where[:, :, :, level])
            out = out + torch.einsum("bhcnp,bnhp->bnhc", read, weights[:, :, :, level])
        assert isinstance(out, Tensor)
        return self.output_proj(out.flatten(2))

    def _read(self, value: Tensor, shape: Shape, where: Tensor) -> Tensor:
        """Sample one level bilinearly: (B, h, C / h, N, points)."""
        maps = value.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        grid = (2 * where - 1).transpose(1, 2).flatten(0, 1).to(maps.dtype)  # (B·h, N, points, 2)
        read = F.grid_sample(maps.unflatten(-1, shape), grid, align_corners=False)
        return read.unflatten(0, (-1, self.heads))


def places_of(shapes: Sequence[Shape], device: torch.device | str = "cpu") -> Tensor:
    """List the centres of all cells of all levels as (x, y) in [0, 1]: (N, 2)."""
    places = []
    for rows, columns in shapes:
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(columns, device=device) + 0.5) / columns
        places.append(torch.cartesian_prod(y, x).flip(-1))
    return torch.cat(places)

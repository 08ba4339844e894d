"""Scene tokens of the temporal model: frame attention, causal temporal attention, and the unified queries U.

Frame attention and temporal attention alternate (VGGT, Wang et al. 2025; causal as in StreamVGGT, Zhuo et al. 2025).
A fixed bank of unified queries U is the memory of the scene: R→U gathers the frame's tokens R into U, U→R writes the
scene back into the frame. What a stream carries is a window of keys and values and U: its size does not grow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models import fused
from stream4d.models.blocks import (
    Attention,
    Block,
    CrossAttention,
    Mlp,
    Rope,
    apply_rope,
    grid_positions,
    rope_2d,
)

POOL = 2
"""Past frames are remembered at half the token resolution: a quarter of the keys."""


def attend(
    query: Tensor,  # (B, heads, N, d)
    keys: Tensor,  # (B, heads, M, d)
    values: Tensor,
    bias: Tensor | None = None,  # (heads, M), added to the scores of a key
) -> Tensor:
    """Attend to keys that are so few that their scores fit into the cache."""
    if fused.fits(query) and query.dtype == torch.bfloat16:
        return fused.attend(query, keys, values, bias)
    # Four dimensions: torch's fast attention takes no mask of three.
    mask = None if bias is None else bias[None, :, None].to(query.dtype)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


class FrameAttention(Attention):
    """Attention among a frame's tokens."""

    def look(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is None
        return attend(q, k, v)


class TokenMemory(NamedTuple):
    """What the stream remembers of earlier frames."""

    queries: Tensor
    """(B, Q, C) unified queries U."""
    keys: tuple[Tensor, ...]
    """Per layer (B, heads, F·P, d): keys of the last F frames, newest first."""
    values: tuple[Tensor, ...]
    """Per layer, likewise."""


class TemporalAttention(nn.Module):
    """Attention of a frame's tokens to the pooled tokens of this frame and of the last ``frames``."""

    def __init__(self, dim: int, heads: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = CrossAttention(dim, heads)
        self.age = nn.Parameter(torch.zeros(heads, frames + 1))
        nn.init.zeros_(self.attn.proj.weight)

    def forward(
        self,
        x: Tensor,
        grid: tuple[int, int],
        ropes: tuple[Rope, Rope],
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the new tokens (B, N, C) and the keys and values to remember."""
        normed = self.norm(x)
        small = normed.transpose(1, 2).unflatten(2, grid)
        small = F.avg_pool2d(small, POOL, ceil_mode=True, count_include_pad=False)
        small = small.flatten(2).transpose(1, 2)  # (B, P, C)
        keys = apply_rope(self.attn.split(self.attn.projk(small)), ropes[1])
        values = self.attn.split(self.attn.projv(small))
        keys = keys.to(values.dtype)
        size = keys.shape[2]
        if past is not None:
            keep = self.frames * size
            keys = torch.cat([keys, past[0][:, :, :keep].to(keys.dtype)], 2)
            values = torch.cat([values, past[1][:, :, :keep].to(values.dtype)], 2)
        query = apply_rope(self.attn.split(self.attn.projq(normed)), ropes[0]).to(values.dtype)
        bias = self.age[:, : keys.shape[2] // size].repeat_interleave(size, 1)
        out = attend(query, keys, values, bias)
        out = self.attn.proj(out.transpose(1, 2).flatten(2))
        return x + out, (keys[:, :, : self.frames * size], values[:, :, : self.frames * size])


class UnifiedQueries(nn.Module):
    """The bank U and its two interactions with a frame's tokens."""

    def __init__(self, dim: int, heads: int, count: int) -> None:
        super().__init__()
        self.initial = nn.Parameter(torch.randn(count, dim) * 0.5)
        self.norm_tokens = nn.LayerNorm(dim, eps=1e-6)
        self.gather = CrossAttention(dim, heads)
        self.norm_queries = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 2 * dim)
        self.norm_out = nn.LayerNorm(dim, eps=1e-6)
        self.scatter = CrossAttention(dim, heads)
        nn.init.zeros_(self.scatter.proj.weight)

    def forward(self, x: Tensor, queries: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return tokens that know the scene and the queries that know the frame."""
        if queries is None:
            queries = self.initial.expand(len(x), -1, -1)
        queries = queries.to(x.dtype)
        context = self.norm_tokens(x)
        queries = queries + self.gather(self.norm_queries(queries), context)  # R→U
        # The norm keeps U bounded over a stream of any length.
        queries = self.norm_out(queries + self.mlp(self.norm_queries(queries)))
        return x + self.scatter(context, queries), queries  # U→R


class SceneTokens(nn.Module):
    """Tokens of one frame at 1/16 in the light of the stream so far."""

    def __init__(
        self, inputs: int, dim: int, *, depth: int, heads: int, queries: int, frames: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(inputs, dim)
        self.blocks = nn.ModuleList(
            [Block(dim, heads, mlp_ratio=3.0, attention=FrameAttention) for _ in range(depth)]
        )
        self.temporal = nn.ModuleList([TemporalAttention(dim, heads, frames) for _ in range(depth)])
        self.unified = UnifiedQueries(dim, heads, queries)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, features: Tensor, memory: TokenMemory | None) -> tuple[Tensor, TokenMemory]:
        """Return tokens (B, C, h, w) of a frame with ``features`` (B, inputs, h, w), and the new memory."""
        grid = (features.shape[-2], features.shape[-1])
        x = self.embed(features.flatten(2).transpose(1, 2))
        ropes = self._ropes(grid, x)
        queries = None if memory is None else memory.queries
        kept: list[tuple[Tensor, Tensor]] = []
        for i, (block, temporal) in enumerate(zip(self.blocks, self.temporal, strict=True)):
            x = block(x, ropes[0])
            past = None if memory is None else (memory.keys[i], memory.values[i])
            x, remembered = temporal(x, grid, ropes, past)
            kept.append(remembered)
            if i == len(self.blocks) // 2:
                x, queries = self.unified(x, queries)
        assert queries is not None
        keys, values = zip(*kept, strict=True)
        return self.norm(x).transpose(1, 2).unflatten(2, grid), TokenMemory(queries, keys, values)

    def _ropes(self, grid: tuple[int, int], like: Tensor) -> tuple[Rope, Rope]:
        """Rotations of the tokens, and of pooled tokens at the centres of their cells."""
        d = like.shape[-1] // self.heads
        fine = grid_positions(*grid, device=like.device)
        small = ((grid[0] + POOL - 1) // POOL, (grid[1] + POOL - 1) // POOL)
        coarse = grid_positions(*small, device=like.device) * POOL + (POOL - 1) / 2
        return rope_2d(fine, d), rope_2d(coarse, d)

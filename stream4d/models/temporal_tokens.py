"""Scene tokens of the temporal model: frame attention, causal temporal attention, and the unified queries U.

Frame attention and temporal attention alternate (VGGT, Wang et al. 2025; causal as in StreamVGGT, Zhuo et al. 2025).
A fixed bank of unified queries U is the memory of the scene: R→U gathers the frame's tokens R into U, U→R writes the
scene back into the frame. What a stream carries is a window of keys and values and U: its size does not grow.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models import fused
from stream4d.models.blocks import Attention, Block, CrossAttention, KVCache, Mlp
from stream4d.models.rope import Rope, apply_rope, grid_positions, rope_2d

POOL = 2
"""Past frames are remembered at half the token resolution: a quarter of the keys."""


def attend(
    query: Tensor,  # (B, heads, N, d)
    keys: Tensor,  # (B, heads, M, d)
    values: Tensor,
    bias: Tensor | None = None,  # (heads, M), added to the scores of a key
) -> Tensor:  # (B, N, heads · d)
    """Attend to keys that are so few that their scores fit into the cache."""
    if _is_low(query):
        return fused.attend(query, keys, values, bias)
    # Four dimensions: torch's fast attention takes no mask of three.
    mask = None if bias is None else bias[None, :, None].to(query.dtype)
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def split_heads(
    x: Tensor,  # (B, N, parts · heads · d)
    heads: int,
    rope: Rope,
    *,
    parts: int = 1,
    turned: int = 1,
) -> Tensor:  # (parts, B, heads, N, d)
    """Divide channels into parts (queries, keys, values) and heads, and rotate the first ``turned`` parts."""
    if _is_low(x):
        return fused.split_heads(x, heads, parts, rope, turned)
    split = x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)
    rotated = apply_rope(split[:turned].flatten(0, 1), rope).unflatten(0, (turned, -1))
    return torch.cat([rotated.to(x.dtype), split[turned:]])


def pool_tokens(x: Tensor, grid: tuple[int, int]) -> Tensor:  # (B, N, C) -> (B, P, C)
    """Average tokens over squares of ``POOL``."""
    if _is_low(x):
        return fused.pool_tokens(x, grid, POOL)
    small = x.transpose(1, 2).unflatten(2, grid)
    small = F.avg_pool2d(small, POOL, ceil_mode=True, count_include_pad=False)
    return small.flatten(2).transpose(1, 2)


def _is_low(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and fused.fits(x)


class FrameAttention(Attention):
    """Attention among a frame's tokens."""

    def forward(
        self,
        x: Tensor,
        rope: Rope | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        assert rope is not None
        assert mask is None
        assert cache is None
        q, k, v = split_heads(self.qkv(x), self.heads, rope, parts=3, turned=2)
        return self.proj(attend(q, k, v))  # type: ignore[no-any-return]


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
        small, heads = pool_tokens(normed, grid), self.attn.heads
        keys = split_heads(self.attn.projk(small), heads, ropes[1])[0]
        values = self.attn.split(self.attn.projv(small))
        size = keys.shape[2]
        if past is not None:
            keep = self.frames * size
            keys = torch.cat([keys, past[0][:, :, :keep].to(keys.dtype)], 2)
            values = torch.cat([values, past[1][:, :, :keep].to(values.dtype)], 2)
        query = split_heads(self.attn.projq(normed), heads, ropes[0])[0]
        bias = self.age[:, : keys.shape[2] // size].repeat_interleave(size, 1)
        out = self.attn.proj(attend(query, keys, values, bias))
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
        ropes = _ropes(grid, x.shape[-1] // self.heads, x)
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


def _ropes(grid: tuple[int, int], d: int, like: Tensor) -> tuple[Rope, Rope]:
    """Rotations of the tokens, and of pooled tokens at the centres of their cells."""
    return _kept_ropes(grid, d) if fused.fits(like) else _new_ropes(grid, d, like.device)


def _new_ropes(grid: tuple[int, int], d: int, device: torch.device) -> tuple[Rope, Rope]:
    fine = grid_positions(*grid, device=device)
    small = ((grid[0] + POOL - 1) // POOL, (grid[1] + POOL - 1) // POOL)
    coarse = grid_positions(*small, device=device) * POOL + (POOL - 1) / 2
    return rope_2d(fine, d), rope_2d(coarse, d)


@functools.lru_cache(maxsize=4)
def _kept_ropes(grid: tuple[int, int], d: int) -> tuple[Rope, Rope]:
    """A stream asks for the same in every frame."""
    return _new_ropes(grid, d, torch.device("cpu"))

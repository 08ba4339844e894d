"""Unified queries: a fixed number of tokens that gather all views (R→U) and write the scene back to them (U→R).

The pattern is that of DETR (Carion et al. 2020), Mask2Former (Cheng et al. 2022) and SIU3R (Xu et al. 2025), where one
query bank serves several tasks. Here the bank has a fixed size, so that it can be the memory of a stream: give the
queries that one window returned to the next.

Options, each of which acts on the attention of R→U: queries learned or taken from the tokens themselves, a bias along
epipolar lines, a mask by confidence, and a learned temperature per head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.blocks import Attention, CrossAttention, Mlp


class QueryAttention(CrossAttention):
    """Cross-attention with a learned temperature per head, a bias on the logits and a mask of the context."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.log_temperature = nn.Parameter(torch.zeros(heads))

    def forward(  # type: ignore[override]
        self,
        x: Tensor,  # (B, M, C)
        context: Tensor,  # (B, N, C)
        bias: Tensor | None = None,  # (B or 1, M, N), added to the logits
        allowed: Tensor | None = None,  # (B, N) bool: context that may be read
    ) -> Tensor:
        q, k = self._scaled_query(x), self.split(self.projk(context))
        mask, readable = self._mask(q, k, bias, allowed)
        out = F.scaled_dot_product_attention(q, k, self.split(self.projv(context)), attn_mask=mask)
        out = out * readable[:, None, None, None].to(out.dtype)
        return self.proj(out.transpose(1, 2).flatten(2))

    def weights(
        self,
        x: Tensor,
        context: Tensor,
        bias: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:  # (B, h, M, N)
        """Return the attention itself, to look at it."""
        q, k = self._scaled_query(x), self.split(self.projk(context))
        mask, _ = self._mask(q, k, bias, allowed)
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return (logits if mask is None else logits + mask).softmax(dim=-1)

    def _scaled_query(self, x: Tensor) -> Tensor:
        # A high temperature flattens the attention, a low one sharpens it.
        return self.split(self.projq(x)) / self.log_temperature.exp()[:, None, None]

    @staticmethod
    def _mask(
        q: Tensor, k: Tensor, bias: Tensor | None, allowed: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """Join bias and mask; the second result says which batch entries may read anything at all."""
        readable = torch.ones(len(q), dtype=torch.bool, device=q.device)
        mask = None if bias is None else bias[:, None].to(q.dtype)
        if allowed is not None:
            readable = allowed.any(dim=-1)
            shut = ~(allowed | ~readable[:, None])[:, None, None]
            closed = torch.zeros(len(q), 1, q.shape[2], k.shape[2], dtype=q.dtype, device=q.device)
            closed = closed.masked_fill(shut, float("-inf"))
            mask = closed if mask is None else mask + closed
        return mask, readable


class UnifiedLayer(nn.Module):
    """R→U, exchange inside U, U→R."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm_u, self.norm_r = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.gather = QueryAttention(dim, heads)
        self.norm_self = nn.LayerNorm(dim)
        self.exchange = Attention(dim, heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm_back_r, self.norm_back_u = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.write = QueryAttention(dim, heads)
        self.norm_out = nn.LayerNorm(dim)
        self.mlp_out = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self,
        queries: Tensor,  # (B, M, C)
        tokens: Tensor,  # (B, N, C)
        bias: Tensor | None,
        allowed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        queries = queries + self.gather(self.norm_u(queries), self.norm_r(tokens), bias, allowed)
        queries = queries + self.exchange(self.norm_self(queries))
        queries = queries + self.mlp(self.norm_mlp(queries))
        back = None if bias is None else bias.transpose(-1, -2)
        tokens = tokens + self.write(self.norm_back_r(tokens), self.norm_back_u(queries), back)
        return queries, tokens + self.mlp_out(self.norm_out(tokens))


class Unified(NamedTuple):
    """Result of `UnifiedQueryDecoder`."""

    queries: Tensor
    """(B, M, C): the scene; give it to the next call to remember."""
    tokens: Tensor
    """(B, N, C): the views, with the scene written into them."""


class UnifiedQueryDecoder(nn.Module):
    """A stack of `UnifiedLayer` over one query bank.

    Args:
        dim, heads, layers: sizes of the stack.
        queries: M, the size of the bank.
        from_data: take the initial queries from the tokens (`anchor_tokens`) instead of a learned table; a bias then
            can say where each query comes from.
        min_confidence: tokens below are not read (when confidences are given).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        queries: int,
        layers: int = 2,
        from_data: bool = False,
        min_confidence: float = 0.0,
    ) -> None:
        super().__init__()
        self.count = queries
        self.from_data = from_data
        self.min_confidence = min_confidence
        if from_data:
            self.to_query = nn.Linear(dim, dim)
        else:
            self.table = nn.Parameter(torch.randn(queries, dim) * dim**-0.5)
        self.layers = nn.ModuleList(UnifiedLayer(dim, heads) for _ in range(layers))

    def start(self, tokens: Tensor, confidence: Tensor | None = None) -> Tensor:  # -> (B, M, C)
        """Return the queries of an empty memory."""
        if not self.from_data:
            return self.table.expand(len(tokens), -1, -1)
        index = anchor_tokens(tokens, self.count, confidence)
        return self.to_query(torch.take_along_dim(tokens, index[..., None], dim=1))

    def forward(
        self,
        tokens: Tensor,  # (B, N, C) of all views
        queries: Tensor | None = None,  # (B, M, C) from an earlier window
        *,
        bias: Tensor | None = None,  # (B or 1, M, N), see `epipolar_bias`
        confidence: Tensor | None = None,  # (B, N)
    ) -> Unified:
        if queries is None:
            queries = self.start(tokens, confidence)
        allowed = None if confidence is None else confidence >= self.min_confidence
        for layer in self.layers:
            queries, tokens = layer(queries, tokens, bias, allowed)
        return Unified(queries, tokens)


def anchor_tokens(tokens: Tensor, count: int, confidence: Tensor | None = None) -> Tensor:
    """Choose the tokens that become queries: (B, count) indices, evenly spread over the views.

    With confidences, the best token of each of ``count`` equal stretches is taken instead of its middle.
    """
    B, N, _ = tokens.shape
    edges = torch.linspace(0, N, count + 1, device=tokens.device)
    low, high = edges[:-1].floor().long(), edges[1:].ceil().long()
    if confidence is None:
        return ((low + high) // 2).clamp(max=N - 1).expand(B, -1)
    place = torch.arange(N, device=tokens.device)
    inside = (place >= low[:, None]) & (place < high[:, None])  # (count, N)
    scores = confidence[:, None].masked_fill(~inside, float("-inf"))
    return scores.argmax(dim=-1)


def epipolar_bias(
    anchors: Tensor,  # (M, 2) pixels where the queries come from
    anchor_views: Tensor,  # (M,) view of each
    places: Tensor,  # (N, 2) pixels of the tokens
    views: Tensor,  # (N,) view of each
    K: Tensor,  # (T, 3, 3)
    cam_from_world: Tensor,  # (T, 4, 4)
    sigma_px: float = 16.0,
) -> Tensor:  # (1, M, N), at most 0
    """Favour tokens near the epipolar line of a query's pixel: −d² / 2σ², with d in pixels of the token's view.

    Tokens of the query's own view, and views that share its centre (no epipolar line), get no bias.
    """
    relative = cam_from_world[views][None] @ torch.linalg.inv(cam_from_world[anchor_views])[:, None]
    R, t = relative[..., :3, :3], relative[..., :3, 3]  # (M, N, 3, 3), (M, N, 3)
    ones = torch.ones_like(anchors[:, :1])
    ray = (torch.linalg.inv(K[anchor_views]) @ torch.cat([anchors, ones], -1)[..., None])[..., 0]
    seen = (R @ ray[:, None, :, None])[..., 0]  # the ray's direction in the token's view
    normal = torch.linalg.cross(t, seen)
    line = (torch.linalg.inv(K[views]).transpose(-1, -2) @ normal[..., None])[..., 0]
    place = torch.cat([places, torch.ones_like(places[:, :1])], dim=-1)
    length = line[..., :2].norm(dim=-1)
    distance = (line * place).sum(-1).abs() / length.clamp(min=1e-12)
    unconstrained = (anchor_views[:, None] == views) | (t.norm(dim=-1) < 1e-9)
    distance = distance.masked_fill(unconstrained, 0.0)
    return -(distance**2)[None] / (2 * sigma_px**2)

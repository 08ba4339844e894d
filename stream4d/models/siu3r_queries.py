"""SIU3R's unified queries: a Mask2Former over both views at once, so that one query is one object in both.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022, and its video form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.blocks import CrossAttention
from stream4d.models.deformable import DeformableAttention, Shape, places_of


class QueryOutput(NamedTuple):
    """What the queries say of the views of one scene."""

    class_logits: Tensor
    """(B, Q, classes + 1); the last class is "nothing"."""
    mask_logits: Tensor
    """(B, Q, T, h, w) at a quarter of the image's size."""
    queries: Tensor
    """(B, Q, C)."""


def sine_codes(steps: int, channels: int, device: torch.device) -> Tensor:  # (steps, channels)
    """Encode positions 1 … steps, scaled to 2π, as interleaved sines and cosines."""
    position = torch.arange(1, steps + 1, device=device, dtype=torch.float32)
    position = position / (steps + 1e-6) * 2 * math.pi
    pairs = torch.arange(channels, device=device) // 2
    angles = position[:, None] / 10000 ** (2 * pairs / channels)
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)


def sine_map(shape: Shape, channels: int, device: torch.device) -> Tensor:  # (h, w, channels)
    """Encode the cells of a map: the first half of the channels y, the second x."""
    rows, columns = shape
    y = sine_codes(rows, channels // 2, device)[:, None].expand(rows, columns, -1)
    x = sine_codes(columns, channels // 2, device)[None].expand(rows, columns, -1)
    return torch.cat([y, x], dim=-1)


class PixelEncoderLayer(nn.Module):
    """Deformable self-attention over the levels of one view, and a feed-forward; norms come after."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, heads, levels=3)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, codes: Tensor, places: Tensor, shapes: Sequence[Shape]
    ) -> Tensor:  # (B, N, C)
        x = self.self_attn_layer_norm(x + self.self_attn(x + codes, places, x, shapes))
        return self.final_layer_norm(x + self.fc2(F.relu(self.fc1(x))))


class PixelDecoder(nn.Module):
    """Feature maps → three refined levels, coarse first, and the map that masks are read from."""

    def __init__(
        self, in_dim: int, dim: int, mask_dim: int, heads: int, hidden: int, layers: int
    ) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(3, dim))
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_dim, dim, 1), nn.GroupNorm(32, dim)) for _ in range(3)
        )
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            PixelEncoderLayer(dim, heads, hidden) for _ in range(layers)
        )
        self.mask_projection = nn.Conv2d(dim, mask_dim, 1)
        self.adapter_1 = nn.Sequential(nn.Conv2d(in_dim, dim, 1, bias=False), nn.GroupNorm(32, dim))
        self.layer_1 = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.GroupNorm(32, dim), nn.ReLU()
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Refine maps (B, C, h, w) of strides 4, 8, 16, 32."""
        coarse_first = list(reversed(maps[1:]))
        levels = [p(m) for p, m in zip(self.input_projections, coarse_first, strict=True)]
        shapes = [(int(m.shape[-2]), int(m.shape[-1])) for m in levels]
        device, dim = levels[0].device, levels[0].shape[1]
        codes = torch.cat(
            [
                sine_map(s, dim, device).flatten(0, 1) + e
                for s, e in zip(shapes, self.level_embed, strict=True)
            ]
        )
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in levels], dim=1)
        places = places_of(shapes, device)
        for layer in self.encoder.get_submodule("layers").children():
            x = layer(x, codes, places, shapes)
        tokens = x.split([h * w for h, w in shapes], dim=1)
        refined = [t.transpose(1, 2).unflatten(2, s) for t, s in zip(tokens, shapes, strict=True)]
        finest = F.interpolate(
            refined[-1], size=maps[0].shape[-2:], mode="bilinear", align_corners=False
        )
        return self.mask_projection(self.layer_1(self.adapter_1(maps[0]) + finest)), refined


class QueryLayer(nn.Module):
    """Queries read the views inside their masks, then each other, then themselves; norms come after."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.cross_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.cross_attn_layer_norm = nn.LayerNorm(dim)
        self.self_attn = CrossAttention(dim, heads)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,  # (B, Q, C)
        own_code: Tensor,  # (Q, C)
        features: Tensor,  # (B, N, C)
        codes: Tensor,  # (N, C)
        hidden_from: Tensor,  # (B, Q, N) bool, True where a query may not look
    ) -> Tensor:
        heads = self.cross_attn.num_heads
        read, _ = self.cross_attn(
            x + own_code,
            features + codes,
            features,
            attn_mask=hidden_from.repeat_interleave(heads, dim=0),
            need_weights=False,
        )
        x = self.cross_attn_layer_norm(x + read)
        y = x + own_code
        attention = self.self_attn
        x = x + attention.attend(y, attention.projk(y), attention.projv(x))
        x = self.self_attn_layer_norm(x)
        return self.final_layer_norm(x + self.fc2(F.relu(self.fc1(x))))


class QueryDecoder(nn.Module):
    """Decoder layers, and the masks after each of them."""

    def __init__(self, dim: int, mask_dim: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(QueryLayer(dim, heads, hidden) for _ in range(layers))
        self.layernorm = nn.LayerNorm(dim)
        self.mask_embedder = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, mask_dim)
        )

    def masks(self, x: Tensor, pixels: Tensor) -> Tensor:  # (B, Q, C), (B, T, C', h, w)
        """Return mask logits (B, Q, T, h, w) of queries."""
        return torch.einsum("bqc,btchw->bqthw", self.mask_embedder(self.layernorm(x)), pixels)


class UnifiedQueries(nn.Module):
    """Pixel decoder, query decoder and class predictor."""

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        mask_dim: int,
        heads: int,
        pixel_hidden: int,
        pixel_layers: int,
        hidden: int,
        layers: int,
        queries: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(in_dim, dim, mask_dim, heads, pixel_hidden, pixel_layers)
        self.queries_embedder = nn.Embedding(queries, dim)
        self.queries_features = nn.Embedding(queries, dim)
        self.level_embed = nn.Embedding(3, dim)
        self.decoder = QueryDecoder(dim, mask_dim, heads, hidden, layers)
        self.class_predictor = nn.Linear(dim, classes + 1)

    def forward(self, maps: Sequence[Tensor], views: int) -> QueryOutput:
        """Segment ``views`` views: maps are 4 × (B·T, C, h, w)."""
        pixels, levels = self.pixel_decoder(maps)
        pixels = pixels.unflatten(0, (-1, views))
        features, codes = zip(
            *(self._level(i, m, views) for i, m in enumerate(levels)), strict=True
        )
        sizes = [(int(m.shape[-2]), int(m.shape[-1])) for m in levels]
        own = self.queries_embedder.weight
        x = self.queries_features.weight.expand(len(pixels), -1, -1)
        masks = self.decoder.masks(x, pixels)
        for index, layer in enumerate(self.decoder.layers):
            level = index % len(levels)
            x = layer(x, own, features[level], codes[level], outside(masks, sizes[level]))
            masks = self.decoder.masks(x, pixels)
        return QueryOutput(self.class_predictor(self.decoder.layernorm(x)), masks, x)

    def _level(self, index: int, level: Tensor, views: int) -> tuple[Tensor, Tensor]:
        """Return the tokens of all views (B, T·N, C) and their code in space and view (T·N, C)."""
        dim, shape = level.shape[1], (int(level.shape[-2]), int(level.shape[-1]))
        space = sine_map(shape, dim, level.device).flatten(0, 1)
        code = space[None] + sine_codes(views, dim, level.device)[:, None]
        tokens = level.flatten(2).transpose(1, 2).unflatten(0, (-1, views)).flatten(1, 2)
        return tokens + self.level_embed.weight[index], code.flatten(0, 1)


def outside(masks: Tensor, size: Shape) -> Tensor:  # (B, Q, T, h, w) -> (B, Q, T·N) bool
    """Say where a query may not look: outside its mask, unless that is everywhere."""
    small = F.interpolate(masks.flatten(0, 1), size=size, mode="bilinear", align_corners=False)
    hidden = (small.sigmoid() < 0.5).unflatten(0, masks.shape[:2]).flatten(2)
    return hidden & ~hidden.all(dim=-1, keepdim=True)

"""VGGT's point tracker: refines the tracks of query points by correlation and a transformer over time and points.

After CoTracker (Karaev et al. 2024) and VGGSfM (Wang et al. 2024). Coordinates are pixels of the network's image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.blocks import Mlp
from stream4d.models.heads import Dpt, resize_bilinear


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerConfig:
    """Sizes of the tracker; the defaults are those of VGGT-1B."""

    features: int = 128
    iterations: int = 4
    stride: int = 2
    """Pixels per feature."""
    corr_levels: int = 7
    corr_radius: int = 4
    hidden: int = 384
    heads: int = 8
    depth: int = 6
    virtual_tracks: int = 64
    max_scale: float = 518.0


class Tracks(NamedTuple):
    """Where query points of the first frame are in every frame."""

    pixels: list[Tensor]
    """(B, T, N, 2) after each iteration."""
    visibility: Tensor
    """(B, T, N) in [0, 1]."""
    confidence: Tensor
    """(B, T, N) in [0, 1]."""


class SelfAttnBlock(nn.Module):
    """Attention and feed-forward; the skip starts after the first norm (as the public weights need it)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class CrossAttnBlock(nn.Module):
    """Like `SelfAttnBlock`, reading another token set."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x, context = self.norm1(x), self.norm_context(context)
        x = x + self.cross_attn(x, context, context, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class UpdateFormer(nn.Module):
    """Transformer that alternates attention over time and, through virtual tracks, over points."""

    def __init__(self, config: TrackerConfig, in_dim: int, out_dim: int) -> None:
        super().__init__()
        dim, heads = config.hidden, config.heads
        self.input_norm = nn.LayerNorm(in_dim)
        self.input_transform = nn.Linear(in_dim, dim)
        self.output_norm = nn.LayerNorm(dim)
        self.flow_head = nn.Linear(dim, out_dim)
        self.virual_tracks = nn.Parameter(torch.zeros(1, config.virtual_tracks, 1, dim))  # sic
        depth = range(config.depth)
        self.time_blocks = nn.ModuleList(SelfAttnBlock(dim, heads) for _ in depth)
        self.space_virtual_blocks = nn.ModuleList(SelfAttnBlock(dim, heads) for _ in depth)
        self.space_point2virtual_blocks = nn.ModuleList(CrossAttnBlock(dim, heads) for _ in depth)
        self.space_virtual2point_blocks = nn.ModuleList(CrossAttnBlock(dim, heads) for _ in depth)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, T, C) -> (B, N, T, out)
        start = self.input_transform(self.input_norm(x))
        B, N, T, _ = start.shape
        x = torch.cat([start, self.virual_tracks.expand(B, -1, T, -1)], dim=1)
        for time, virtual_block, to_points, to_virtual in zip(
            self.time_blocks,
            self.space_virtual_blocks,
            self.space_point2virtual_blocks,
            self.space_virtual2point_blocks,
            strict=True,
        ):
            x = time(x.flatten(0, 1)).unflatten(0, (B, -1))
            space = x.transpose(1, 2).flatten(0, 1)  # (B·T, N + V, C)
            points, virtual = space[:, :N], space[:, N:]
            virtual = virtual_block(to_virtual(virtual, points))
            points = to_points(points, virtual)
            x = torch.cat([points, virtual], dim=1).unflatten(0, (B, T)).transpose(1, 2)
        return self.flow_head(self.output_norm(x[:, :N] + start))


class PointTracker(nn.Module):
    """The iterative part: correlation → transformer → update of coordinates and features."""

    def __init__(self, config: TrackerConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.features
        self.in_dim = 3 * latent + 4
        self.corr_mlp = Mlp(
            config.corr_levels * (2 * config.corr_radius + 1) ** 2, config.hidden, latent
        )
        self.query_ref_token = nn.Parameter(torch.zeros(1, 2, self.in_dim))
        self.updateformer = UpdateFormer(config, self.in_dim, latent + 2)
        self.fmap_norm = nn.LayerNorm(latent)
        self.ffeat_norm = nn.GroupNorm(1, latent)
        self.ffeat_updater = nn.Sequential(nn.Linear(latent, latent), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(latent, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(latent, 1))

    def forward(self, queries: Tensor, features: Tensor) -> Tracks:  # (B, N, 2), (B, T, C, h, w)
        features = self.fmap_norm(features.movedim(2, -1)).movedim(-1, 2)
        B, T = features.shape[:2]
        start = (queries / self.config.stride)[:, None]
        coords = start.expand(-1, T, -1, -1)  # (B, T, N, 2)
        points = _sample(features[:, 0], start[:, 0])[:, None].expand(-1, T, -1, -1)
        pyramid = _pyramid(features, self.config.corr_levels)
        place = _sample(
            _position_map(self.in_dim, *features.shape[-2:]).to(features).expand(B, -1, -1, -1),
            start[:, 0],
        )
        tracks = []
        for _ in range(self.config.iterations):
            delta = self._delta(coords, points, pyramid, place)
            points = points + self._update_features(delta[..., 2:])
            coords = coords + delta[..., :2]
            coords = torch.cat([start, coords[:, 1:]], dim=1)
            tracks.append(coords * self.config.stride)
        visibility = self.vis_predictor(points)[..., 0].sigmoid()
        confidence = self.conf_predictor(points)[..., 0].sigmoid()
        return Tracks(tracks, visibility, confidence)

    def _delta(
        self, coords: Tensor, points: Tensor, pyramid: list[Tensor], place: Tensor
    ) -> Tensor:  # (B, T, N, latent + 2)
        B, T, N, _ = coords.shape
        corr = _correlate(points, coords, pyramid, self.config.corr_radius)
        corr = self.corr_mlp(corr.transpose(1, 2).flatten(0, 1))  # (B·N, T, latent)
        flow = coords - coords[:, :1]
        scaled = flow / self.config.max_scale
        x = torch.cat(
            [
                _embed_flow(flow, self.config.features // 2),
                scaled,
                scaled,
                corr.unflatten(0, (B, N)).transpose(1, 2),
                points,
            ],
            dim=-1,
        )
        mark = torch.cat(
            [self.query_ref_token[:, :1], self.query_ref_token[:, 1:].expand(-1, T - 1, -1)], dim=1
        )
        x = x + place[:, None] + mark[:, :, None]
        return self.updateformer(x.transpose(1, 2)).transpose(1, 2)

    def _update_features(self, delta: Tensor) -> Tensor:
        flat = delta.reshape(-1, delta.shape[-1])
        return self.ffeat_updater(self.ffeat_norm(flat)).view(delta.shape)


class TrackHead(nn.Module):
    """Feature extractor (a DPT at half resolution) and tracker."""

    def __init__(
        self, dim: int, config: TrackerConfig, layer_dims: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        self.stride = config.stride
        self.feature_extractor = Dpt(
            in_dims=dim,
            layer_dims=layer_dims,
            features=config.features,
            rectified_skip=True,
            token_norm=True,
            exact_sizes=True,
        )
        conv = nn.Conv2d(config.features, config.features, 3, padding=1)
        self.feature_extractor.scratch.add_module("output_conv1", conv)
        self.tracker = PointTracker(config)

    def features(
        self, tokens: list[Tensor], grid: tuple[int, int], image_size: tuple[int, int]
    ) -> Tensor:  # 4 × (B, T, N, C) -> (B, T, F, H / stride, W / stride)
        """Extract the feature maps of all frames."""
        B, T = tokens[0].shape[:2]
        x = self.feature_extractor([t.flatten(0, 1) for t in tokens], grid, image_size)
        x = self.feature_extractor.scratch.get_submodule("output_conv1")(x)
        x = resize_bilinear(x, (image_size[0] // self.stride, image_size[1] // self.stride))
        return x.unflatten(0, (B, T))

    def forward(
        self,
        tokens: list[Tensor],
        grid: tuple[int, int],
        image_size: tuple[int, int],
        queries: Tensor,  # (B, N, 2) pixels of the first frame
    ) -> Tracks:
        return self.tracker(queries, self.features(tokens, grid, image_size))


def _sample(features: Tensor, coords: Tensor) -> Tensor:  # (B, C, h, w), (B, N, 2) -> (B, N, C)
    """Sample features at positions in feature pixels, bilinear, border repeated."""
    h, w = features.shape[-2:]
    scale = coords.new_tensor([2 / max(w - 1, 1), 2 / max(h - 1, 1)])
    grid = (coords * scale - 1)[:, :, None]
    out = F.grid_sample(features, grid, align_corners=True, padding_mode="border")
    return out[..., 0].transpose(1, 2)


def _pyramid(features: Tensor, levels: int) -> list[Tensor]:
    out = [features]
    for _ in range(levels - 1):
        B = out[-1].shape[0]
        out.append(F.avg_pool2d(out[-1].flatten(0, 1), 2, stride=2).unflatten(0, (B, -1)))
    return out


def _correlate(
    points: Tensor,  # (B, T, N, C)
    coords: Tensor,  # (B, T, N, 2)
    pyramid: list[Tensor],
    radius: int,
) -> Tensor:  # (B, T, N, levels · (2 radius + 1)²)
    B, T, N, C = points.shape
    steps = torch.arange(-radius, radius + 1, device=coords.device, dtype=coords.dtype)
    # The first index moves x, the second y: the order that the public weights were trained with.
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
    out = []
    for level, features in enumerate(pyramid):
        h, w = features.shape[-2:]
        volume = (points @ features.flatten(3) / C**0.5).view(B * T * N, 1, h, w)
        at = coords.reshape(-1, 1, 1, 2) / 2**level + offsets
        scale = at.new_tensor([2 / max(w - 1, 1), 2 / max(h - 1, 1)])
        sampled = F.grid_sample(volume, at * scale - 1, align_corners=True)
        out.append(sampled.view(B, T, N, -1))
    return torch.cat(out, dim=-1)


def _embed_flow(flow: Tensor, channels: int) -> Tensor:  # (..., 2) -> (..., 2 · channels)
    """Encode displacements: sines and cosines interleaved, x first."""
    frequency = torch.arange(0, channels, 2, device=flow.device, dtype=torch.float32)
    angles = flow[..., None] * (frequency * (1000.0 / channels))  # (..., 2, channels / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


def _position_map(channels: int, height: int, width: int) -> Tensor:  # (1, channels, h, w)
    def encode(count: int) -> Tensor:
        steps = torch.arange(channels // 4, dtype=torch.float64) / (channels / 4)
        angles = torch.arange(count, dtype=torch.float64)[:, None] / 10000**steps
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float().T  # (channels / 2, count)

    x = encode(width)[:, None].expand(-1, height, -1)
    y = encode(height)[:, :, None].expand(-1, -1, width)
    return torch.cat([x, y])[None]

"""The network of MapAnything: encoder, optional geometric inputs, alternating attention, factored heads.

See ``mapanything.py`` for the paper and the conventions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.blocks import Block, image_size
from stream4d.models.encoders import DinoEncoder
from stream4d.models.heads import Dpt, resize_bilinear
from stream4d.models.mapanything_inputs import GeometricEncoders, Geometry, InputConfig

ResizeRule = Literal["fixed_mapping", "longest_side", "square"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapAnythingConfig:
    """Sizes of the network; the defaults are those of the v1.1 checkpoints."""

    dim: int = 1536
    """Channels of the encoder."""
    encoder_depth: int = 24
    encoder_heads: int = 24
    patch: int = 14
    patch_grid: int = 37
    swiglu: bool = True
    encoder_norm: bool = False
    """Norm the encoder's output (v1)."""
    class_tokens: bool = True
    """Let each view's class token take part in attention (v1.1)."""
    trunk_dim: int = 1536
    trunk_depth: int = 16
    trunk_heads: int = 24
    trunk_layer_scale: bool = True
    taps: tuple[int, int] = (7, 11)
    """Blocks of the trunk that the dense head reads, beside its input and its end."""
    dpt_layers: tuple[int, int, int, int] = (96, 192, 384, 768)
    dpt_features: int = 256
    pose_hidden: int = 784
    scale_hidden: int = 196
    inputs: InputConfig = field(default_factory=InputConfig)
    head_chunk: int = 2
    """Views that pass through the dense head together: bounds memory."""
    size: tuple[int, int] | None = None
    """(width, height) of the network's image; None leaves it to ``resize``."""
    resize: ResizeRule = "fixed_mapping"
    """A listed size of nearest aspect ratio, the frame's own aspect ratio (``longest_side``), or a ``square``."""
    resolution: int = 518
    """Longer side of the network's image; 518 or 504 for ``fixed_mapping``."""
    inputs_are_metric: bool = True
    """Given depth and poses are in metres: the network then takes their scale too. Say no for poses of any scale."""
    confidence_from: Literal["network", "views"] = "network"
    """The network's own confidence, or the share of other frames of the window that see the same depth."""
    mask_edges: bool = True
    """Leave out pixels on jumps of depth, which lie between two surfaces."""


V1 = MapAnythingConfig(
    dim=1024,
    encoder_heads=16,
    swiglu=False,
    encoder_norm=True,
    class_tokens=False,
    trunk_dim=768,
    trunk_depth=24,
    trunk_heads=12,
    trunk_layer_scale=False,
    taps=(11, 17),
)
"""Sizes of the first checkpoints."""


class TrunkOutput(NamedTuple):
    """Tokens after attention over all views. B is kept."""

    taps: list[Tensor]
    """2 × (B, T, N, C): patch tokens after the tapped blocks, normed."""
    views: Tensor
    """(B, T, N, C) at the end."""
    scale: Tensor
    """(B, C): the scale token at the end."""


class MapAnythingOutput(NamedTuple):
    """Raw predictions, up to ``scale``; poses take a view's camera to the first view's. B is kept."""

    rays: Tensor
    """(B, T, H, W, 3) unit ray of each pixel in its camera."""
    ray_distance: Tensor
    """(B, T, H, W) distance along the ray."""
    confidence: Tensor
    """(B, T, H, W) > 1."""
    mask_logits: Tensor
    """(B, T, H, W): positive where the pixel has a depth at all (not sky, not a mirror)."""
    translation: Tensor
    """(B, T, 3)."""
    quat_xyzw: Tensor
    """(B, T, 4), unit."""
    scale: Tensor
    """(B,) metres per unit."""


class Trunk(nn.Module):
    """Alternating attention with one scale token: even blocks over all views, odd ones within each."""

    view_pos_table: Tensor
    """(1, C) marks the first view; there is no other code of place or order."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__()
        self.taps = config.taps
        dim = config.trunk_dim
        self.proj_embed: nn.Module = nn.Identity()
        if config.dim != dim:
            self.proj_embed = nn.Linear(config.dim, dim)
        self.register_buffer("view_pos_table", torch.zeros(1, dim))
        self.self_attention_blocks = nn.ModuleList(
            Block(
                dim,
                config.trunk_heads,
                layer_scale=1e-5 if config.trunk_layer_scale else None,
                swiglu=config.swiglu,
            )
            for _ in range(config.trunk_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(
        self,
        x: Tensor,  # (B, T, N + specials, C): patches first
        scale_token: Tensor,  # (C,)
        patches: int,
    ) -> TrunkOutput:
        B, T = x.shape[:2]
        x = self.proj_embed(x)
        x = torch.cat([x[:, :1] + self.view_pos_table, x[:, 1:]], dim=1)
        scale = self.proj_embed(scale_token).expand(B, 1, -1).to(x.dtype)
        taps = []
        for index, block in enumerate(self.self_attention_blocks):
            if index % 2 == 0:
                wide = block(torch.cat([x.flatten(1, 2), scale], dim=1))
                x, scale = wide[:, :-1].unflatten(1, (T, -1)), wide[:, -1:]
            else:
                x = block(x.flatten(0, 1)).unflatten(0, (B, T))
            if index in self.taps:
                taps.append(self.norm(x[:, :, :patches]))
        return TrunkOutput(taps, self.norm(x[:, :, :patches]), self.norm(scale)[:, 0])


class DenseHead(nn.Module):
    """DPT trunk and three convolutions: rays, distance, confidence and mask."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__()
        features = config.dpt_features
        self.dpt = Dpt(
            in_dims=(config.dim, config.trunk_dim, config.trunk_dim, config.trunk_dim),
            layer_dims=config.dpt_layers,
            features=features,
            rectified_skip=False,
        )
        self.conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.conv2 = nn.Sequential(
            nn.Conv2d(features // 2, features // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(features // 2, 6, 1),
        )

    def forward(self, tokens: list[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Return (B, 6, H, W): ray, log distance, log (confidence - 1), mask logit."""
        return self.conv2(resize_bilinear(self.conv1(self.dpt(tokens, grid, size)), size))


class ResConvBlock(nn.Module):
    """Three 1×1 convolutions with a skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv1 = nn.Conv2d(dim, dim, 1)
        self.res_conv2 = nn.Conv2d(dim, dim, 1)
        self.res_conv3 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.res_conv1(x))
        y = F.relu(self.res_conv2(y))
        return x + F.relu(self.res_conv3(y))


class PoseHead(nn.Module):
    """Patch tokens of a view → translation and quaternion."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, hidden, 1)
        self.res_conv = nn.ModuleList(ResConvBlock(hidden) for _ in range(2))
        self.more_mlps = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.fc_t = nn.Linear(hidden, 3)
        self.fc_rot = nn.Linear(hidden, 4)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, N, C) -> (B, 7)
        x = self.proj(tokens.transpose(1, 2)[..., None])
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean(dim=(2, 3)))
        return torch.cat([self.fc_t(x), self.fc_rot(x)], dim=-1)


class ScaleHead(nn.Module):
    """Scale token → logarithm of metres per unit."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden)
        self.mlp = nn.Sequential(
            *(nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU()) for _ in range(2))
        )
        self.output_proj = nn.Linear(hidden, 1)

    def forward(self, token: Tensor) -> Tensor:  # (B, C) -> (B, 1)
        return self.output_proj(self.mlp(self.proj(token)))


class MapAnythingNet(nn.Module):
    """The whole network."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = DinoEncoder(
            patch=config.patch,
            dim=config.dim,
            depth=config.encoder_depth,
            heads=config.encoder_heads,
            grid=config.patch_grid,
            swiglu=config.swiglu,
            final_norm=config.encoder_norm,
        )
        self.geometry = GeometricEncoders(config.inputs, config.patch, config.dim)
        self.fusion_norm_layer = nn.LayerNorm(config.dim, eps=1e-6)
        self.scale_token = nn.Parameter(torch.zeros(config.dim))
        self.info_sharing = Trunk(config)
        self.dense_head = DenseHead(config)
        self.pose_head = PoseHead(config.trunk_dim, config.pose_hidden)
        self.scale_head = ScaleHead(config.trunk_dim, config.scale_hidden)

    def forward(
        self,
        images: Tensor,  # (B, T, 3, H, W), ImageNet-normalised
        given: Geometry | None = None,
    ) -> MapAnythingOutput:
        B, T = images.shape[:2]
        size = image_size(images)
        grid = (size[0] // self.config.patch, size[1] // self.config.patch)
        tokens = self.encoder(images.flatten(0, 1)).unflatten(0, (B, T))
        fused = self.fuse(tokens[:, :, 1:], given)
        x = torch.cat([fused, tokens[:, :, :1]], dim=2) if self.config.class_tokens else fused
        out = self.info_sharing(x, self.scale_token, grid[0] * grid[1])
        with torch.autocast(images.device.type, enabled=False):
            return self._heads(fused, out, grid, size)

    def fuse(self, patches: Tensor, given: Geometry | None) -> Tensor:
        """Add what is known of the geometry to the image's tokens: (B, T, N, C)."""
        if given is not None:
            with torch.autocast(patches.device.type, enabled=False):
                patches = patches + self.geometry(given)
        return self.fusion_norm_layer(patches)

    def _heads(
        self, fused: Tensor, out: TrunkOutput, grid: tuple[int, int], size: tuple[int, int]
    ) -> MapAnythingOutput:
        shape = fused.shape[:2]
        levels = [x.flatten(0, 1) for x in (fused, *out.taps, out.views)]

        def chunks() -> Iterator[Tensor]:
            for start in range(0, len(levels[0]), self.config.head_chunk):
                part = [x[start : start + self.config.head_chunk].float() for x in levels]
                yield self.dense_head(part, grid, size)

        dense = torch.cat(list(chunks())).unflatten(0, shape).movedim(2, -1)
        pose = self.pose_head(levels[-1].float()).unflatten(0, shape)
        return MapAnythingOutput(
            rays=F.normalize(dense[..., :3], dim=-1),
            ray_distance=dense[..., 3].exp(),
            confidence=1 + dense[..., 4].exp(),
            mask_logits=dense[..., 5],
            translation=pose[..., :3],
            quat_xyzw=F.normalize(pose[..., 3:], dim=-1),
            scale=self.scale_head(out.scale.float())[:, 0].exp().clamp(min=1e-8),
        )

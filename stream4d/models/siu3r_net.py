"""The network of SIU3R: DUSt3R's trunk that knows the lens, Gaussian heads, adapter and unified queries.

See ``siu3r.py`` for the paper and what is made of the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.blocks import image_size
from stream4d.models.dust3r_net import Dust3rConfig, PointHead, TwoViewTrunk
from stream4d.models.heads import Dpt, exp_of_norm, resize_bilinear
from stream4d.models.pose_encoding import matrix_from_quat_xyzw
from stream4d.models.siu3r_adapter import VitAdapter
from stream4d.models.siu3r_queries import QueryOutput, UnifiedQueries

MAX_SCALE = 0.3
"""Largest standard deviation of a Gaussian."""
SCALE_UNIT = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Siu3rConfig:
    """Sizes of the network; the defaults are those of the public checkpoint."""

    trunk: Dust3rConfig = field(default_factory=Dust3rConfig)
    adapter_layers: tuple[int, int, int, int] = (5, 11, 17, 23)
    """Blocks of the encoder that the adapter reads."""
    adapter_width: int = 64
    adapter_heads: int = 16
    adapter_points: int = 4
    query_dim: int = 256
    mask_dim: int = 256
    query_heads: int = 8
    pixel_hidden: int = 1024
    pixel_layers: int = 6
    query_hidden: int = 2048
    query_layers: int = 9
    queries: int = 100
    classes: int = 20
    """The 20 classes of ScanNet; told from a checkpoint."""
    sh_degree: int = 4
    """Degree of the spherical harmonics of a Gaussian's colour."""
    resolution: int = 256
    """Side of the network's square image."""
    default_focal: float = 318 / 256
    """Focal length over the image's side, where none is given."""
    semantics: Literal["classes", "instances", "panoptic"] = "classes"
    """What is stored for a pixel: its class, the number of its object, or class · 1000 + object."""
    score_threshold: float = 0.5
    """Queries less sure of their class than this are dropped."""
    fused_classes: tuple[int, ...] = (0, 1)
    """Classes that have no single objects (wall, floor)."""


class Gaussians(NamedTuple):
    """Pixel-aligned 3D Gaussians of both views, in the first view's camera, up to scale."""

    means: Tensor
    """(..., 3)."""
    opacities: Tensor
    """(...) in [0, 1]."""
    scales: Tensor
    """(..., 3) standard deviations along the axes."""
    quats_xyzw: Tensor
    """(..., 4), unit."""
    harmonics: Tensor
    """(..., 3, K) spherical harmonics of red, green, blue."""

    @property
    def covariances(self) -> Tensor:
        """(..., 3, 3)."""
        half = matrix_from_quat_xyzw(self.quats_xyzw) * self.scales[..., None, :]
        return half @ half.mT


def unpack_gaussians(means: Tensor, raw: Tensor, sh_degree: int) -> Gaussians:
    """Activate raw parameters (..., 8 + 3K): opacity, scale, quaternion, harmonics (colour first)."""
    opacity, scale, quat, sh = raw.split([1, 3, 4, raw.shape[-1] - 8], dim=-1)
    return Gaussians(
        means=means,
        opacities=opacity[..., 0].sigmoid(),
        scales=(SCALE_UNIT * F.softplus(scale)).clamp(max=MAX_SCALE),
        quats_xyzw=F.normalize(quat, dim=-1),
        harmonics=sh.unflatten(-1, (3, -1)) * harmonics_gain(sh_degree).to(sh),
    )


def harmonics_gain(degree: int) -> Tensor:  # ((degree + 1)²,)
    """Return the factor of each harmonic: 1, and less and less for finer ones, so that views agree on colour."""
    gains = [torch.ones(1)]
    gains += [torch.full((2 * d + 1,), 0.1 * 0.25**d) for d in range(1, degree + 1)]
    return torch.cat(gains)


class Siu3rOutput(NamedTuple):
    """Raw predictions for a pair of views. B is kept."""

    points: Tensor
    """(B, 2, H, W, 3) in the first view's camera."""
    gaussians: Tensor
    """(B, 2, H, W, 8 + 3K), see `unpack_gaussians`."""
    queries: QueryOutput


class Encoding(NamedTuple):
    """What one image becomes before it meets another."""

    tokens: Tensor
    """(B, N + 1, C): patches and the lens."""
    maps: list[Tensor]
    """4 × (B, C, h, w): the adapter's maps."""


class Backbone(TwoViewTrunk):
    """DUSt3R's trunk with one more token: the lens."""

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__(config)
        self.intrinsic_encoder = nn.Linear(9, config.encoder_dim)

    def places(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """Return the (N + 1, 2) positions; the lens comes last, at the start of a row below the image."""
        patches = self.encoder.positions(*size, device)
        below = torch.tensor([[size[0] // self.encoder.patch_embed.patch, 0]], device=device)
        return torch.cat([patches, below])

    def encode(
        self,
        images: Tensor,  # (B, 3, H, W) in [0, 1]
        K: Tensor,  # (B, 3, 3), divided by the image's size
        layers: Sequence[int],
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the normed tokens and the patch tokens after some blocks."""
        x = self.encoder.patch_embed(images)
        x = torch.cat([x, self.intrinsic_encoder(K.flatten(1))[:, None]], dim=1)
        rope = self.encoder.rope(self.places(image_size(images), images.device))
        kept = []
        for index, block in enumerate(self.encoder.blocks):
            x = block(x, rope)
            if index in layers:
                kept.append(x[:, :-1])
        return self.encoder.norm(x), kept


class GaussianHead(nn.Module):
    """DPT head of a Gaussian's parameters; colour comes straight from the image."""

    def __init__(self, config: Dust3rConfig, channels: int) -> None:
        super().__init__()
        dim, features = config.decoder_dim, config.dpt_features
        self.dpt = Dpt(
            in_dims=(config.encoder_dim, dim, dim, dim),
            layer_dims=config.dpt_layers,
            features=features,
            rectified_skip=False,
        )
        self.input_merger = nn.Sequential(nn.Conv2d(3, features, 7, padding=3), nn.ReLU())
        self.head = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1, bias=False),
            nn.Identity(),
            nn.ReLU(),
            nn.Identity(),
            nn.Conv2d(features, channels, 1),
        )

    def forward(self, tokens: Sequence[Tensor], images: Tensor) -> Tensor:  # -> (B, C, H, W)
        size = image_size(images)
        x = self.dpt(tokens, (size[0] // 16, size[1] // 16), (0, 0))
        return self.head(resize_bilinear(x, size) + self.input_merger(images))


class Siu3rNet(nn.Module):
    """The whole network. ``encode`` once per image, ``pair`` once per pair."""

    def __init__(self, config: Siu3rConfig) -> None:
        super().__init__()
        self.config = config
        trunk = config.trunk
        self.backbone = Backbone(trunk)
        self.adapter = VitAdapter(
            trunk.encoder_dim, config.adapter_width, config.adapter_heads, config.adapter_points
        )
        self.mask2former = UnifiedQueries(
            in_dim=trunk.encoder_dim,
            dim=config.query_dim,
            mask_dim=config.mask_dim,
            heads=config.query_heads,
            pixel_hidden=config.pixel_hidden,
            pixel_layers=config.pixel_layers,
            hidden=config.query_hidden,
            layers=config.query_layers,
            queries=config.queries,
            classes=config.classes,
        )
        self.downstream_head1 = PointHead(trunk, channels=3)
        self.downstream_head2 = PointHead(trunk, channels=3)
        channels = 8 + 3 * (config.sh_degree + 1) ** 2
        self.gaussian_param_head1 = GaussianHead(trunk, channels)
        self.gaussian_param_head2 = GaussianHead(trunk, channels)

    def forward(self, images: Tensor, K: Tensor) -> Siu3rOutput:  # (B, 2, 3, H, W), (B, 2, 3, 3)
        first, second = (self.encode(images[:, i], K[:, i]) for i in (0, 1))
        return self.pair(images, first, second)

    def encode(self, images: Tensor, K: Tensor) -> Encoding:  # (B, 3, H, W), (B, 3, 3)
        """Encode images on their own."""
        tokens, layers = self.backbone.encode(images, K, self.config.adapter_layers)
        with torch.autocast(images.device.type, enabled=False):
            return Encoding(tokens, self.adapter(images.float(), [x.float() for x in layers]))

    def pair(self, images: Tensor, first: Encoding, second: Encoding) -> Siu3rOutput:
        """Predict a pair from the encodings of its images (B, 2, 3, H, W)."""
        depth = self.config.trunk.decoder_depth
        places = self.backbone.places(image_size(images), images.device)
        keep = (0, depth // 2, depth * 3 // 4, depth)
        kept = self.backbone.decode(first.tokens, second.tokens, places, places, keep)
        with torch.autocast(images.device.type, enabled=False):
            tokens = [[x[:, :-1].float() for x in view] for view in kept]
            maps = [
                torch.stack(pair, dim=1).flatten(0, 1)
                for pair in zip(first.maps, second.maps, strict=True)
            ]
            return Siu3rOutput(
                points=self._points(tokens, image_size(images)),
                gaussians=self._gaussians(tokens, images),
                queries=self.mask2former(maps, views=2),
            )

    def _points(self, tokens: Sequence[Sequence[Tensor]], size: tuple[int, int]) -> Tensor:
        grid = (size[0] // 16, size[1] // 16)
        raw = [self.downstream_head1(tokens[0], grid), self.downstream_head2(tokens[1], grid)]
        return exp_of_norm(torch.stack(raw, dim=1).movedim(2, -1))

    def _gaussians(self, tokens: Sequence[Sequence[Tensor]], images: Tensor) -> Tensor:
        raw = [
            self.gaussian_param_head1(tokens[0], images[:, 0]),
            self.gaussian_param_head2(tokens[1], images[:, 1]),
        ]
        return torch.stack(raw, dim=1).movedim(2, -1)

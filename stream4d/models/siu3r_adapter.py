"""SIU3R's ViT-Adapter: a small convolutional pyramid that gathers what the transformer saw, at four scales.

Chen et al., "Vision Transformer Adapter for Dense Predictions", ICLR 2023, without its injectors: the transformer
does not feel it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.deformable import DeformableAttention, Shape, places_of


def conv_norm(dim: int, out: int, stride: int) -> list[nn.Module]:
    """Return a 3×3 convolution, batch norm and ReLU."""
    conv = nn.Conv2d(dim, out, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


class SpatialPrior(nn.Module):
    """Image → maps at strides 4, 8, 16 and 32."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *conv_norm(3, width, 2),
            *conv_norm(width, width, 1),
            *conv_norm(width, width, 1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*conv_norm(width, 2 * width, 2))
        self.conv3 = nn.Sequential(*conv_norm(2 * width, 4 * width, 2))
        self.conv4 = nn.Sequential(*conv_norm(4 * width, 4 * width, 2))
        for index, channels in enumerate((width, 2 * width, 4 * width, 4 * width), start=1):
            self.add_module(f"fc{index}", nn.Conv2d(channels, dim, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        x1 = self.stem(images)
        x2 = self.conv2(x1)
        x3 = self.conv3(x2)
        x4 = self.conv4(x3)
        return [self.get_submodule(f"fc{i}")(x) for i, x in enumerate((x1, x2, x3, x4), start=1)]


class DepthwiseConv(nn.Module):
    """3×3 convolution per channel on each level of a pyramid given as tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, shapes: Sequence[Shape]) -> Tensor:  # (B, N, C)
        levels = x.split([h * w for h, w in shapes], dim=1)
        maps = [
            self.dwconv(level.transpose(1, 2).unflatten(2, shape))
            for level, shape in zip(levels, shapes, strict=True)
        ]
        return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)


class ConvMlp(nn.Module):
    """Feed-forward with a depthwise convolution in the middle."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, shapes: Sequence[Shape]) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), shapes)))


class Extractor(nn.Module):
    """The pyramid's tokens read the transformer's."""

    def __init__(self, dim: int, heads: int, points: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, heads, levels=1, points=points)
        self.ffn = ConvMlp(dim, dim // 4)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(
        self, x: Tensor, features: Tensor, shapes: Sequence[Shape], grid: Shape
    ) -> Tensor:  # (B, N, C), (B, M, C)
        places = places_of(shapes, x.device)
        x = x + self.attn(self.query_norm(x), places, self.feat_norm(features), [grid])
        return x + self.ffn(self.ffn_norm(x), shapes)


class Interaction(nn.Module):
    """One extractor, and two more at the end."""

    def __init__(self, dim: int, heads: int, points: int, extra: int) -> None:
        super().__init__()
        self.extractor = Extractor(dim, heads, points)
        if extra:
            self.extra_extractors = nn.Sequential(
                *(Extractor(dim, heads, points) for _ in range(extra))
            )

    def forward(self, x: Tensor, features: Tensor, shapes: Sequence[Shape], grid: Shape) -> Tensor:
        x = self.extractor(x, features, shapes, grid)
        for extractor in getattr(self, "extra_extractors", ()):
            x = extractor(x, features, shapes, grid)
        return x


class VitAdapter(nn.Module):
    """Image and four layers of the encoder → maps at strides 4, 8, 16 and 32."""

    def __init__(self, dim: int, width: int, heads: int, points: int, patch: int = 16) -> None:
        super().__init__()
        self.patch = patch
        self.level_embed = nn.Parameter(torch.zeros(3, dim))
        self.spm = SpatialPrior(width, dim)
        self.interactions = nn.Sequential(
            *(Interaction(dim, heads, points, extra=2 if i == 3 else 0) for i in range(4))
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        for index in range(1, 5):
            self.add_module(f"norm{index}", nn.BatchNorm2d(dim))

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W)
        layers: Sequence[Tensor],  # 4 × (B, N, C) patch tokens
    ) -> list[Tensor]:  # 4 × (B, C, h, w)
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        pyramid = self.spm(images)
        shapes = [(int(m.shape[-2]), int(m.shape[-1])) for m in pyramid[1:]]
        x = torch.cat(
            [m.flatten(2).transpose(1, 2) + self.level_embed[i] for i, m in enumerate(pyramid[1:])],
            dim=1,
        )
        for interaction, features in zip(self.interactions, layers, strict=True):
            x = interaction(x, features, shapes, grid)
        levels = x.split([h * w for h, w in shapes], dim=1)
        maps = [
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(levels, shapes, strict=True)
        ]
        maps = [self.up(maps[0]) + pyramid[0], *maps]
        out = []
        for index, (own, tokens) in enumerate(zip(maps, layers, strict=True), start=1):
            seen = tokens.transpose(1, 2).unflatten(2, grid)
            if seen.shape != own.shape:
                seen = F.interpolate(
                    seen, size=own.shape[-2:], mode="bilinear", align_corners=False
                )
            out.append(self.get_submodule(f"norm{index}")(own + seen))
        return out

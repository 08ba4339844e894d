"""Heads of Depth Anything 3: dense depth with rays, and cameras from tokens and into them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stream4d.models.blocks import Block, Mlp
from stream4d.models.da3_config import Da3Config
from stream4d.models.heads import Dpt, fusion_chain, resize_bilinear, uv_map


class DenseHead(Dpt):
    """DPT head of depth and confidence, with a second chain of fusions for rays, or depth and sky."""

    def __init__(self, config: Da3Config) -> None:
        width = config.dim if config.is_mono else 2 * config.dim
        super().__init__(
            in_dims=width,
            layer_dims=config.dpt_layers,
            features=config.dpt_features,
            rectified_skip=False,
            token_norm=not config.is_mono,
            uv_embed=not config.is_mono,
            exact_sizes=True,
        )
        features = config.dpt_features
        self.scratch.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.scratch.output_conv2 = self._last(features, 1 if config.is_mono else 2)
        if config.is_mono:
            self.scratch.sky_output_conv2 = self._last(features, 1)

    @staticmethod
    def _last(features: int, channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, channels, 1)
        )

    def forward(
        self, tokens: Sequence[Tensor], grid: tuple[int, int], image_size: tuple[int, int]
    ) -> Tensor:  # 4 × (B, N, C) -> (B, 2, H, W), not activated
        return self.to_image(self.fuse(self.pyramid(tokens, grid, image_size)), image_size)

    def to_image(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Finish the main chain at the image's size."""
        x = resize_bilinear(self.scratch.get_submodule("output_conv1")(x), size)
        if self.uv_embed:
            x = x + uv_map(x, size)
        out = self.scratch.get_submodule("output_conv2")(x)
        if hasattr(self.scratch, "sky_output_conv2"):
            out = torch.cat([out, self.scratch.get_submodule("sky_output_conv2")(x)], dim=1)
        return out


class RayHead(DenseHead):
    """Dense head that also predicts a map of rays from the finest of four auxiliary levels."""

    def __init__(self, config: Da3Config) -> None:
        super().__init__(config)
        features = config.dpt_features
        for name, fusion in fusion_chain(features, rectified_skip=False).items():
            self.scratch.add_module(f"{name}_aux", fusion)
        half = features // 2
        self.scratch.output_conv1_aux = nn.Sequential(
            *(nn.Conv2d(*pair, 3, padding=1) for pair in [(features, half), (half, features)] * 2),
            nn.Conv2d(features, half, 3, padding=1),
        )
        self.scratch.output_conv2_aux = nn.Sequential(
            nn.Conv2d(half, 32, 3, padding=1),
            nn.Identity(),
            ChannelNorm(32),
            nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(32, 7, 1),
        )

    def with_rays(
        self, tokens: Sequence[Tensor], grid: tuple[int, int], image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return what ``forward`` does, and (B, 7, 8·rows, 8·columns) rays and confidence."""
        levels = self.pyramid(tokens, grid, image_size)
        x = self.scratch.get_submodule("output_conv1_aux")(self.fuse(levels, "_aux"))
        rays = self.scratch.get_submodule("output_conv2_aux")(x + uv_map(x, image_size))
        return self.to_image(self.fuse(levels), image_size), rays


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class CameraDecoder(nn.Module):
    """Camera token → pose encoding, camera-to-world."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU()
        )
        self.fc_t = nn.Linear(dim, 3)
        self.fc_qvec = nn.Linear(dim, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim, 2), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T, C) -> (B, T, 9)
        x = self.backbone(tokens)
        return torch.cat([self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)], dim=-1)


class CameraEncoder(nn.Module):
    """Given cameras → camera tokens."""

    def __init__(self, config: Da3Config) -> None:
        super().__init__()
        dim, heads = config.dim, config.camera_encoder_heads
        self.pose_branch = Mlp(9, dim // 2, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.Sequential(
            *(
                Block(dim, heads, eps=1e-5, layer_scale=0.01)
                for _ in range(config.camera_encoder_depth)
            )
        )
        self.trunk_norm = nn.LayerNorm(dim)

    def forward(self, encoding: Tensor) -> Tensor:  # (B, T, 9) camera-to-world -> (B, T, C)
        return self.trunk_norm(self.trunk(self.token_norm(self.pose_branch(encoding))))

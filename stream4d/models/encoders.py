"""The two image encoders behind all families: CroCo's (rotary positions) and DINOv2's (learned positions)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.blocks import Block, PatchEmbed, image_size
from stream4d.models.rope import Rope, grid_positions, rope_2d

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CrocoEncoder(nn.Module):
    """ViT with RoPE2D and no class token (DUSt3R, MonST3R, MUSt3R, SIU3R)."""

    def __init__(
        self,
        *,
        patch: int = 16,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        rope_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.rope_scale = rope_scale
        self.patch_embed = PatchEmbed(patch, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def positions(self, H: int, W: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the (N, 2) patch indices of an image of H × W pixels."""
        return grid_positions(H // self.patch_embed.patch, W // self.patch_embed.patch, device)

    def rope(self, positions: Tensor) -> Rope:  # (N, 2)
        """Return the rotary table of this encoder's heads."""
        return rope_2d(positions, self.head_dim, scale=self.rope_scale)

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) in [-1, 1] -> (B, N, C), normed
        x = self.patch_embed(images)
        rope = self.rope(self.positions(*image_size(images), images.device))
        for block in self.blocks:
            x = block(x, rope)
        return self.norm(x)


class DinoEncoder(nn.Module):
    """DINOv2 ViT: class token, optional registers, learned positions resized to the image (bicubic).

    ``interpolate_offset`` is DINOv2's historic 0.1 pixel (resize by scale factor) or 0 (resize by size).
    Families that change what happens between blocks (Depth Anything 3) call ``embed`` and run ``blocks`` themselves.
    """

    def __init__(
        self,
        *,
        patch: int = 14,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        registers: int = 0,
        grid: int = 37,
        swiglu: bool = False,
        final_norm: bool = True,
        norm_eps: float = 1e-6,
        interpolate_offset: float = 0.1,
        antialias: bool = False,
        qk_norm_from: int | None = None,
    ) -> None:
        super().__init__()
        self.interpolate_offset = interpolate_offset
        self.antialias = antialias
        self.registers = registers
        self.patch_embed = PatchEmbed(patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, dim))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                layer_scale=1.0,
                swiglu=swiglu,
                qk_norm=qk_norm_from is not None and index >= qk_norm_from,
            )
            for index in range(depth)
        )
        self.norm: nn.Module = nn.LayerNorm(dim, eps=norm_eps) if final_norm else nn.Identity()

    def embed(self, images: Tensor) -> Tensor:  # (B, 3, H, W), ImageNet-normalised
        """Return the tokens that enter the first block: class, registers, patches."""
        rows, columns = (side // self.patch_embed.patch for side in images.shape[-2:])
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.resized_positions(rows, columns)
        if self.registers:
            register = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], register, x[:, 1:]], dim=1)
        return x

    def resized_positions(self, rows: int, columns: int) -> Tensor:  # (1, 1 + rows·columns, C)
        """Resize the learned position map to a grid of patches."""
        grid = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (grid, grid):
            return self.pos_embed
        table = self.pos_embed[:, 1:].float().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
        offset = self.interpolate_offset
        if offset:
            factor = ((rows + offset) / grid, (columns + offset) / grid)
            table = F.interpolate(
                table, scale_factor=factor, mode="bicubic", antialias=self.antialias
            )
        else:
            table = F.interpolate(
                table, size=(rows, columns), mode="bicubic", antialias=self.antialias
            )
        table = table.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)
        return torch.cat([self.pos_embed[:, :1], table], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return all tokens after the final norm: (B, 1 + registers + N, C)."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def normalise_imagenet(images: Tensor) -> Tensor:  # (..., 3, H, W) in [0, 1]
    """Subtract ImageNet's mean and divide by its standard deviation, per channel."""
    mean = images.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = images.new_tensor(IMAGENET_STD)[:, None, None]
    return (images - mean) / std


def special_token_rope(
    rows: int, columns: int, specials: int, head_dim: int, device: torch.device | str
) -> Rope:
    """Rotary table of ``[specials, patches]`` where specials sit at (0, 0) and patches start at (1, 1)."""
    patches = grid_positions(rows, columns, device) + 1
    return rope_2d(torch.cat([patches.new_zeros(specials, 2), patches]), head_dim)

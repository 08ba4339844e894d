"""Heads that turn tokens into maps and cameras: DPT in its variants, linear pixel-shuffle, VGGT's camera head.

One `Dpt` trunk serves all families ("Vision Transformers for Dense Prediction", Ranftl et al. 2021). Its parameter
names are VGGT's; families with other names (DUSt3R's ``act_postprocess``, MapAnything's ``input_process``) rename
in their key map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.blocks import Block, KVCache, Mlp


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:  # (B, C, H, W)
    """Resize maps as all DPT heads do: bilinear with aligned corners.

    Maps of more than 2^31 elements are beyond torch's interpolate; callers keep chunks smaller.
    """
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class ResidualConvUnit(nn.Module):
    """Two 3×3 convolutions with a skip.

    ``rectified_skip`` adds relu(x) instead of x: in VGGT's code the first ReLU works in place and so changes the skip
    too, and its weights were trained that way.
    """

    def __init__(self, channels: int, rectified_skip: bool) -> None:
        super().__init__()
        self.rectified_skip = rectified_skip
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x)
        skip = active if self.rectified_skip else x
        return self.conv2(F.relu(self.conv1(active))) + skip


class FeatureFusion(nn.Module):
    """Add a finer level to a coarser one, refine, and upsample."""

    def __init__(self, channels: int, rectified_skip: bool, has_residual: bool = True) -> None:
        super().__init__()
        if has_residual:
            self.resConfUnit1 = ResidualConvUnit(channels, rectified_skip)
        self.resConfUnit2 = ResidualConvUnit(channels, rectified_skip)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        if residual is not None:
            x = x + self.resConfUnit1(residual)
        x = self.resConfUnit2(x)
        if size is None:
            size = (2 * x.shape[-2], 2 * x.shape[-1])
        return self.out_conv(resize_bilinear(x, size))


def fusion_chain(channels: int, rectified_skip: bool) -> dict[str, FeatureFusion]:
    """Make ``refinenet1`` … ``refinenet4``; the coarsest has nothing to be added to it."""
    return {
        f"refinenet{level}": FeatureFusion(channels, rectified_skip, has_residual=level < 4)
        for level in (1, 2, 3, 4)
    }


class Dpt(nn.Module):
    """Token maps of four layers → one feature map at eight times the patch grid.

    Args:
        in_dims: channels of the four token maps, or one number for all.
        layer_dims: channels after projection, fine to coarse.
        features: channels of the pyramid.
        rectified_skip: see `ResidualConvUnit`.
        token_norm: LayerNorm shared by the four token maps (VGGT).
        uv_embed: add the sin-cos map of image coordinates to the projected maps (VGGT).
        exact_sizes: upsample each level to the size of the next finer one (VGGT); otherwise by two, and crop the
            coarsest (DUSt3R). They agree where the patch grid is even.
    """

    def __init__(
        self,
        *,
        in_dims: int | Sequence[int],
        layer_dims: Sequence[int],
        features: int,
        rectified_skip: bool,
        token_norm: bool = False,
        uv_embed: bool = False,
        exact_sizes: bool = False,
    ) -> None:
        super().__init__()
        dims = [in_dims] * 4 if isinstance(in_dims, int) else list(in_dims)
        self.uv_embed = uv_embed
        self.exact_sizes = exact_sizes
        self.norm: nn.Module = nn.LayerNorm(dims[0]) if token_norm else nn.Identity()
        self.projects = nn.ModuleList(
            nn.Conv2d(dim, out, 1) for dim, out in zip(dims, layer_dims, strict=True)
        )
        a, b, _, d = layer_dims
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(a, a, 4, stride=4),
                nn.ConvTranspose2d(b, b, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(d, d, 3, stride=2, padding=1),
            ]
        )
        self.scratch = nn.Module()
        for level, dim in enumerate(layer_dims, start=1):
            conv = nn.Conv2d(dim, features, 3, padding=1, bias=False)
            self.scratch.add_module(f"layer{level}_rn", conv)
        for name, fusion in fusion_chain(features, rectified_skip).items():
            self.scratch.add_module(name, fusion)

    def pyramid(
        self, tokens: Sequence[Tensor], grid: tuple[int, int], image_size: tuple[int, int]
    ) -> list[Tensor]:  # 4 × (B, N, C) -> 4 × (B, F, h, w), fine to coarse
        """Project the token maps and bring them to strides 4, 8, 16 and 32 of a 16-pixel patch."""
        levels = []
        for index, x in enumerate(tokens):
            x = self.norm(x).transpose(1, 2).unflatten(2, grid)
            x = self.projects[index](x)
            if self.uv_embed:
                x = x + uv_map(x, image_size)
            x = self.resize_layers[index](x)
            levels.append(self.scratch.get_submodule(f"layer{index + 1}_rn")(x))
        return levels

    def fuse(self, levels: Sequence[Tensor], suffix: str = "") -> Tensor:
        """Run a chain of fusions from coarse to fine."""
        chain = [self.scratch.get_submodule(f"refinenet{i}{suffix}") for i in (1, 2, 3, 4)]
        size = (lambda k: tuple(levels[k].shape[-2:])) if self.exact_sizes else (lambda k: None)
        x = chain[3](levels[3], size=size(2))
        x = x[..., : levels[2].shape[-2], : levels[2].shape[-1]]
        x = chain[2](x, levels[2], size=size(1))
        x = chain[1](x, levels[1], size=size(0))
        return chain[0](x, levels[0])

    def forward(
        self, tokens: Sequence[Tensor], grid: tuple[int, int], image_size: tuple[int, int]
    ) -> Tensor:  # (B, F, 8·rows, 8·columns)
        return self.fuse(self.pyramid(tokens, grid, image_size))


def uv_map(x: Tensor, image_size: tuple[int, int], ratio: float = 0.1) -> Tensor:
    """Make VGGT's map of image coordinates for ``x`` (B, C, h, w): (1, C, h, w), times ``ratio``."""
    h, w = x.shape[-2:]
    H, W = image_size
    table = sincos_grid(w, h, W / H, x.shape[1]).to(x)
    return ratio * table.permute(2, 0, 1)[None]


def sincos_grid(
    width: int, height: int, aspect: float, channels: int, omega: float = 100.0
) -> Tensor:  # (height, width, channels)
    """Encode a centred grid whose diagonal has half-length 1: first half of the channels x, second half y."""
    diagonal = math.hypot(aspect, 1.0)

    def axis(span: float, count: int) -> Tensor:
        edge = span * (count - 1) / count
        return torch.linspace(-edge, edge, count, dtype=torch.float64).float()

    def encode(values: Tensor) -> Tensor:  # (n,) -> (n, channels / 2)
        steps = torch.arange(channels // 4, dtype=torch.float64) / (channels // 4)
        angles = values.double()[:, None] / omega**steps
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float()

    x = encode(axis(aspect / diagonal, width)).expand(height, width, -1)
    y = encode(axis(1.0 / diagonal, height))[:, None].expand(height, width, -1)
    return torch.cat([x, y], dim=-1)


class LinearHead(nn.Module):
    """One linear layer and a pixel shuffle: tokens straight to pixels."""

    def __init__(self, dim: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(dim, channels * patch * patch)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # -> (B, channels, H, W)
        x = self.proj(tokens).transpose(1, 2).unflatten(2, grid)
        return F.pixel_shuffle(x, self.patch)


def exp_of_norm(xyz: Tensor) -> Tensor:  # (..., 3)
    """Stretch vectors: same direction, length expm1(‖xyz‖) (DUSt3R's ``exp`` depth mode)."""
    length = xyz.norm(dim=-1, keepdim=True)
    return xyz / length.clamp(min=1e-8) * torch.expm1(length)


def signed_expm1(x: Tensor) -> Tensor:
    """Return sign(x) · expm1(|x|) (VGGT's ``inv_log``)."""
    return x.sign() * torch.expm1(x.abs())


class CameraHead(nn.Module):
    """VGGT's camera head: refines a pose encoding four times from the camera tokens of all frames.

    The encoding is [t (3), quaternion xyzw (4), vertical and horizontal field of view (2)] of world-to-camera.
    """

    def __init__(
        self, dim: int, *, trunk_depth: int = 4, heads: int = 16, iterations: int = 4
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.token_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.trunk = nn.ModuleList(
            Block(dim, heads, eps=1e-5, layer_scale=0.01) for _ in range(trunk_depth)
        )
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_branch = Mlp(dim, dim // 2, 9)

    def modulate(self, tokens: Tensor, pose: Tensor | None) -> Tensor:
        """Condition the tokens on the pose so far (adaptive LayerNorm with a gate)."""
        if pose is None:
            pose = self.empty_pose_tokens.expand(*tokens.shape[:2], -1)
        shift, scale, gate = self.poseLN_modulation(self.embed_pose(pose)).chunk(3, dim=-1)
        return gate * (self.adaln_norm(tokens) * (1 + scale) + shift) + tokens

    def run_trunk(
        self, x: Tensor, mask: Tensor | None = None, caches: Sequence[KVCache] | None = None
    ) -> Tensor:
        """Let the frames' camera tokens attend to each other (and, with caches, to those of past frames)."""
        for index, block in enumerate(self.trunk):
            x = block(x, mask=mask, cache=None if caches is None else caches[index])
        return x

    def forward(
        self,
        camera_tokens: Tensor,  # (B, T, C)
        mask: Tensor | None = None,
        caches: Sequence[Sequence[KVCache]] | None = None,
    ) -> list[Tensor]:  # per iteration (B, T, 9), activated
        """Refine the encodings.

        ``mask`` (T, T) limits which frames a frame sees; ``caches`` (iterations × trunk depth) stream frame by frame.
        """
        tokens = self.token_norm(camera_tokens)
        pose: Tensor | None = None
        outputs = []
        for step in range(self.iterations):
            past = None if caches is None else caches[step]
            x = self.run_trunk(self.modulate(tokens, pose), mask, past)
            delta = self.pose_branch(self.trunk_norm(x))
            pose = delta if pose is None else pose + delta
            outputs.append(torch.cat([pose[..., :7], F.relu(pose[..., 7:])], dim=-1))
        return outputs

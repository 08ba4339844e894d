"""What MapAnything may know beforehand: rays, depth and poses, how they are normalised and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.geometry.camera import pixel_rays
from stream4d.geometry.transforms import invert
from stream4d.models.pose_encoding import quat_xyzw_from_matrix
from stream4d.packets import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """Widths of the encoders of rays, depth and poses."""

    dense: tuple[int, int, int] = (588, 768, 1024)
    """Channels of the convolutional encoders."""
    flat: tuple[int, int, int] = (128, 256, 512)
    """Channels of the encoders of single vectors."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Geometry:
    """What is given of B × T views; zeros and False where nothing is."""

    rays: Tensor
    """(B, T, 3, H, W) unit ray of each pixel in its camera."""
    has_rays: Tensor
    """(B, T) bool."""
    ray_distance: Tensor
    """(B, T, 1, H, W) distance along the ray, 0 where unknown."""
    has_depth: Tensor
    """(B, T) bool."""
    quat_xyzw: Tensor
    """(B, T, 4) rotation of a view's camera to the first view's."""
    translation: Tensor
    """(B, T, 3) likewise."""
    has_pose: Tensor
    """(B, T) bool; False for all where the first view has none."""
    is_metric: Tensor
    """(B, T) bool: depth and translation are in metres."""

    def to(self, device: torch.device) -> Geometry:
        """Move all tensors."""
        return Geometry(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class GivenView(NamedTuple):
    """What is known of one view; None where nothing is."""

    rays: Array | None = None
    """(H, W, 3) unit ray of each pixel in the camera."""
    depth: Array | None = None
    """(H, W) z-depth, 0 where unknown; of use only with rays."""
    world_from_cam: Array | None = None
    """(4, 4)."""
    is_metric: bool = False
    """True where depth and pose are in metres."""


def collect(views: Sequence[GivenView], size: tuple[int, int]) -> Geometry | None:
    """Gather what is known of the views of one window (B = 1); None where nothing is.

    Poses count only where the first view has one: they are taken relative to it.
    """
    T, (H, W) = len(views), size
    rays, distance = np.zeros((T, 3, H, W), np.float32), np.zeros((T, 1, H, W), np.float32)
    pose = np.tile(np.eye(4), (T, 1, 1))
    first = views[0].world_from_cam
    has_rays = [v.rays is not None for v in views]
    has_depth = [v.rays is not None and v.depth is not None for v in views]
    has_pose = [first is not None and v.world_from_cam is not None for v in views]
    if not any(has_rays) and not any(has_pose):
        return None
    for t, view in enumerate(views):
        if view.rays is not None:
            rays[t] = np.moveaxis(view.rays, -1, 0)
        if view.rays is not None and view.depth is not None:
            distance[t, 0] = view.depth / np.maximum(view.rays[..., 2], 1e-6)
        # The first is the identity to the bit: what rounding leaves of its translation would count as a way.
        if t > 0 and first is not None and view.world_from_cam is not None:
            pose[t] = invert(first) @ view.world_from_cam
    R = torch.from_numpy(pose[None, :, :3, :3])
    return Geometry(
        rays=torch.from_numpy(rays)[None],
        has_rays=torch.tensor([has_rays]),
        ray_distance=torch.from_numpy(distance)[None],
        has_depth=torch.tensor([has_depth]),
        quat_xyzw=quat_xyzw_from_matrix(R).float(),
        translation=torch.from_numpy(pose[None, :, :3, 3]).float(),
        has_pose=torch.tensor([has_pose]),
        is_metric=torch.tensor([[v.is_metric for v in views]]),
    )


def unit_rays(K: Array, size: tuple[int, int]) -> Array:  # (3, 3), (H, W) -> (H, W, 3) float32
    """Return the unit ray through each pixel."""
    rays = pixel_rays(K, *size)
    return (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(np.float32)


class ConvBlock(nn.Module):
    """Two 3×3 convolutions and a 1×1 shortcut."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(dim, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv2(F.gelu(self.conv1(x))) + self.shortcut(x))


class DenseEncoder(nn.Module):
    """Map at the image's size → one token a patch."""

    def __init__(self, channels: int, config: InputConfig, patch: int, dim: int) -> None:
        super().__init__()
        a, b, c = config.dense
        self.patch = patch
        self.conv_in = nn.Conv2d(channels * patch * patch, a, 3, padding=1)
        self.encoder = nn.Sequential(ConvBlock(a, b), ConvBlock(b, c), nn.Conv2d(c, dim, 1))
        self.norm_layer = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, N, dim)
        x = self.encoder(self.conv_in(F.pixel_unshuffle(x, self.patch)))
        return self.norm_layer(x.flatten(2).transpose(1, 2))


class FlatEncoder(nn.Module):
    """Vector → one token."""

    def __init__(self, channels: int, config: InputConfig, dim: int) -> None:
        super().__init__()
        widths = (channels, *config.flat, dim)
        self.encoder = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.norm_layer = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder[:-1]:
            x = F.gelu(layer(x))
        return self.norm_layer(self.encoder[-1](x))


class GeometricEncoders(nn.Module):
    """All encoders of given geometry; their outputs are added up."""

    def __init__(self, config: InputConfig, patch: int, dim: int) -> None:
        super().__init__()
        self.ray_dirs_encoder = DenseEncoder(3, config, patch, dim)
        self.depth_encoder = DenseEncoder(1, config, patch, dim)
        self.depth_scale_encoder = FlatEncoder(1, config, dim)
        self.cam_rot_encoder = FlatEncoder(4, config, dim)
        self.cam_trans_encoder = FlatEncoder(3, config, dim)
        self.cam_trans_scale_encoder = FlatEncoder(1, config, dim)

    def forward(self, given: Geometry) -> Tensor:  # (B, T, N, dim)
        """Encode what is known; a zero where nothing is."""
        B, T = given.has_rays.shape
        depth, depth_factor = normalised_depth(given.ray_distance)
        translation, factor = normalised_translation(given.translation)
        metric_depth, metric_pose = (
            given.has_depth & given.is_metric,
            given.has_pose & given.is_metric,
        )
        parts = [
            (given.has_rays, self.ray_dirs_encoder, given.rays),
            (given.has_depth, self.depth_encoder, depth),
            (metric_depth, self.depth_scale_encoder, log(depth_factor)),
            (given.has_pose, self.cam_rot_encoder, given.quat_xyzw),
            (given.has_pose, self.cam_trans_encoder, translation),
            (metric_pose, self.cam_trans_scale_encoder, log(factor).expand(B, T, 1)),
        ]
        total = given.rays.new_zeros(1)
        for known, encoder, values in parts:
            if known.any():
                code = encoder(values.flatten(0, 1)).unflatten(0, (B, T))
                tokens = code if code.ndim == 4 else code[:, :, None]
                total = total + tokens * known[..., None, None]
        return total


def log(factor: Tensor) -> Tensor:
    """Return the logarithm of a scale factor; finite where there is none."""
    return torch.log(factor + 1e-8)


def normalised_depth(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Divide distances (B, T, 1, H, W) by the mean of the known ones and compress: log1p; and the factors (B, T, 1)."""
    known = distance > 0
    count = known.flatten(2).sum(-1, keepdim=True)
    factor = distance.flatten(2).sum(-1, keepdim=True) / count.clamp(min=1)
    scaled = distance / factor.clamp(min=1e-8)[..., None, None]
    return scaled.log1p(), factor


def normalised_translation(translation: Tensor) -> tuple[Tensor, Tensor]:
    """Divide translations (B, T, 3) by the mean length of those that are not zero; and the factors (B, 1, 1)."""
    length = translation.norm(dim=-1, keepdim=True)
    count = (length > 0).sum(dim=1, keepdim=True).clamp(min=1)
    factor = length.sum(dim=1, keepdim=True) / count
    return translation / factor.clamp(min=1e-8), factor

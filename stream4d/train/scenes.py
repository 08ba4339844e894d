"""Render clips of random scenes with exact ground truth, by analytic ray casting in pure torch.

::

    seed ─▶ World (numpy: lens, path, solids over time, materials) ─▶ cast ─▶ surfaces ─▶ shade ─▶ effects ─▶ ClipBatch

The same seed and options give the same clips on a device. Depth, pose, flow, occlusion, scene flow and motion
masks follow from the geometry alone, never from the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stream4d.train.casting import ROOM, Solids, cast
from stream4d.train.clip import ClipBatch, concatenate
from stream4d.train.labels import Motion, follow
from stream4d.train.options import SceneOptions
from stream4d.train.shading import Surfaces, shade
from stream4d.train.textures import make_atlas
from stream4d.train.worlds import KINDS, World, sample_world

__all__ = ["ClipBatch", "SceneOptions", "concatenate", "render_clips"]

_PIXELS_A_PASS = 1 << 25
"""Pixels that an accelerator renders at once (about 150 float32 maps of them are alive)."""


def _local_from_cam(world: World) -> np.ndarray:
    return np.linalg.inv(world.world_from_local) @ world.world_from_cam[:, :, None]


def _in_view(world: World, size: tuple[int, int]) -> np.ndarray:
    """Return (B, T, P + 1): the bounding sphere of an active solid meets the view frustum."""
    cam_from_world = np.linalg.inv(world.world_from_cam)
    placed = cam_from_world[:, :, None] @ world.world_from_local
    centre = placed[..., :3, 3]
    kinds = np.array(KINDS)
    radius = np.linalg.norm(placed[..., :3, :3], axis=(-2, -1))  # at least that of the box
    f = world.K[:, 0, 0]
    H, W = size
    inside = centre[..., 2] > -radius
    for axis, edge in ((0, W), (1, H)):
        low = (-0.5 - world.K[:, axis, 2]) / f
        high = (edge - 0.5 - world.K[:, axis, 2]) / f
        for bound, sign in ((low, 1.0), (high, -1.0)):
            slope = bound[:, None, None]
            distance = sign * (centre[..., axis] - slope * centre[..., 2]) / np.hypot(1, slope)
            inside &= distance > -radius
    return (inside & world.is_active[:, None]) | (kinds == ROOM)


@dataclass(frozen=True, slots=True)
class _Rays:
    """Normalised image coordinates of all pixels of N frames."""

    x: Tensor  # (N, 1, W)
    y: Tensor  # (N, H, 1)


def _pixel_rays(K: Tensor, frames: int, size: tuple[int, int]) -> _Rays:  # K (B, 3, 3)
    H, W = size
    u = torch.arange(W, device=K.device, dtype=torch.float32)
    v = torch.arange(H, device=K.device, dtype=torch.float32)
    x = (u - K[:, 0, 2, None]) / K[:, 0, 0, None]
    y = (v - K[:, 1, 2, None]) / K[:, 1, 1, None]
    return _Rays(
        x.repeat_interleave(frames, 0)[:, None], y.repeat_interleave(frames, 0)[:, :, None]
    )


def _render(
    world: World, atlas: Tensor, tiles: int, size: tuple[int, int], device: torch.device
) -> ClipBatch:
    """Render whole clips in one pass."""
    B, T = world.world_from_cam.shape[:2]
    H, W = size
    K = torch.from_numpy(world.K).float().to(device)
    local_from_cam = torch.from_numpy(_local_from_cam(world)[..., :3, :]).float()
    in_view = torch.from_numpy(_in_view(world, size)).flatten(0, 1)
    solids = Solids(KINDS, local_from_cam.flatten(0, 1).to(device), in_view)
    rays = _pixel_rays(K, T, size)
    depth, slot = cast(solids, rays.x, rays.y)
    surfaces = Surfaces.at(solids, rays.x, rays.y, depth, slot)
    rgb, is_sky = shade(world, surfaces, atlas, tiles, K)
    labels = follow(Motion.of(world, device), solids, surfaces, (B, T, H, W))
    valid = torch.ones_like(labels.occluded)
    known = torch.ones(B, dtype=torch.bool, device=device)
    return ClipBatch(
        rgb=rgb.view(3, B, T, H, W).permute(1, 2, 0, 3, 4).contiguous(),
        depth=depth.view(B, T, H, W),
        K=K[:, None].expand(B, T, 3, 3).contiguous(),
        world_from_cam=torch.from_numpy(world.world_from_cam).float().to(device),
        flow=labels.flow,
        flow_backward=labels.flow_backward,
        occluded=labels.occluded,
        occluded_backward=labels.occluded_backward,
        scene_flow=labels.scene_flow,
        motion_mask=labels.motion_mask,
        valid_depth=~is_sky.view(B, T, H, W),
        valid_flow=valid,
        valid_flow_backward=valid,
        valid_motion=torch.ones(B, T, H, W, dtype=torch.bool, device=device),
        has_pose=known,
        has_intrinsics=known,
        is_metric=~known,
    )


def _part(world: World, clips: slice) -> World:
    return World(**{name: getattr(world, name)[clips] for name in World.__slots__})


@lru_cache(maxsize=8)
def _atlas_image(
    index: int, tiles: int, photo_dir: str | None, share: float, device: torch.device
) -> Tensor:
    return make_atlas(index, tiles, photo_dir, share).image.to(device)


@torch.no_grad()
def render_clips(
    seed: int,
    batch: int,
    frames: int,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    options: SceneOptions | None = None,
) -> ClipBatch:
    """Render ``batch`` clips of ``frames`` frames at ``size`` = (H, W).

    Args:
        seed: the same seed, shape and options give the same clips.
        batch: number of clips.
        frames: frames per clip, at least 2.
        size: (H, W) in pixels.
        device: where to render; the batch stays there.
        options: what scenes look like.

    Raises:
        ConfigError: ``options.photo_dir`` is missing or holds something that is not an image.
        ValueError: fewer than one clip or two frames.
    """
    if batch < 1 or frames < 2:
        raise ValueError(f"need at least 1 clip of 2 frames, got {batch = }, {frames = }")
    options = options or SceneOptions()
    device = torch.device(device)
    world = sample_world(np.random.default_rng(seed), batch, frames, size, options)
    image = _atlas_image(
        seed % options.atlases, options.tiles, options.photo_dir, options.photo_share, device
    )
    step = 1 if device.type == "cpu" else max(1, _PIXELS_A_PASS // (frames * size[0] * size[1]))
    parts = [
        _render(_part(world, slice(start, start + step)), image, options.tiles, size, device)
        for start in range(0, batch, step)
    ]
    return concatenate(parts) if len(parts) > 1 else parts[0]

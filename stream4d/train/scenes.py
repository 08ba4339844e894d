"""Render clips of random scenes with exact ground truth, by analytic ray casting in pure torch.

::

    seed ─▶ World (numpy: lens, path, solids over time, materials) ─▶ cast ─▶ surfaces ─▶ shade ─▶ effects ─▶ ClipBatch

The same seed and options give the same clips on a device. Depth, pose, flow, occlusion, scene flow and motion
masks follow from the geometry alone, never from the pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stream4d.train.casting import Solids, cast, image_bounds
from stream4d.train.clip import ClipBatch, concatenate
from stream4d.train.effects import apply_effects
from stream4d.train.labels import Doubts, Motion, displacement, follow, settle
from stream4d.train.movers import KINDS
from stream4d.train.options import SceneOptions
from stream4d.train.shading import Surfaces, make_look, shade
from stream4d.train.textures import make_atlas
from stream4d.train.worlds import World, sample_world

__all__ = ["ClipBatch", "SceneOptions", "concatenate", "render_clips"]

_PIXELS_A_PASS = 1 << 23
"""Pixels that an accelerator renders at once (about 150 float32 maps of them are alive)."""
_PIXELS_IN_CACHE = 1 << 16
"""On a CPU, frames are shaded a few at a time, so that the maps stay in the cache."""


def _pixel_rays(
    K: Tensor, frames: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:  # K (B, 3, 3) -> (N, 1, W), (N, H, 1)
    """Return normalised image coordinates x and y of all pixels."""
    H, W = size
    u = torch.arange(W, device=K.device, dtype=torch.float32)
    v = torch.arange(H, device=K.device, dtype=torch.float32)
    x = (u - K[:, 0, 2, None]) / K[:, 0, 0, None]
    y = (v - K[:, 1, 2, None]) / K[:, 1, 1, None]
    return x.repeat_interleave(frames, 0)[:, None], y.repeat_interleave(frames, 0)[:, :, None]


def _gather_solids(world: World, size: tuple[int, int], device: torch.device) -> Solids:
    T = world.world_from_cam.shape[1]
    local_from_cam = np.linalg.inv(world.world_from_local) @ world.world_from_cam[:, :, None]
    cam_from_local = np.linalg.inv(world.world_from_cam)[:, :, None] @ world.world_from_local
    bounds = image_bounds(cam_from_local, world.K[:, None], size, world.is_active[:, None], KINDS)
    waves = torch.from_numpy(world.waves).float().to(device).repeat_interleave(T, 0)
    maps = torch.from_numpy(local_from_cam[..., :3, :]).float().flatten(0, 1).to(device)
    return Solids(KINDS, maps, bounds.reshape(-1, *bounds.shape[2:]), waves)


_FORWARD = ("flow", "occluded", "valid_flow")
_BACKWARD = ("flow_backward", "occluded_backward", "valid_flow_backward")
_VECTORS = {"flow": 2, "flow_backward": 2, "scene_flow": 3}
_MASKS = (
    "occluded",
    "occluded_backward",
    "valid_flow",
    "valid_flow_backward",
    "motion_mask",
    "is_sky",
)


def _empty(N: int, size: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """Allocate the maps that rendering fills, one row a frame."""
    maps = {name: torch.empty(N, *size, width, device=device) for name, width in _VECTORS.items()}
    maps |= {name: torch.empty(N, *size, dtype=torch.bool, device=device) for name in _MASKS}
    maps["rgb"] = torch.empty(N, 3, *size, device=device)
    maps["depth"] = torch.empty(N, *size, device=device)
    return maps


def _render(world: World, atlas: Tensor, tiles: int, out: dict[str, Tensor]) -> None:
    """Render whole clips in one pass into the maps of their frames."""
    T = world.world_from_cam.shape[1]
    N, H, W = out["depth"].shape
    device = out["depth"].device
    solids = _gather_solids(world, (H, W), device)
    x, y = _pixel_rays(torch.from_numpy(world.K).float().to(device), T, (H, W))
    depth, slot = cast(solids, x, y, bounded=True)
    out["depth"].copy_(depth)
    maps = (depth.reciprocal(), slot)
    look = make_look(world, solids, device)
    motion = Motion.of(world, device)
    doubts: dict[int, list[Doubts]] = {1: [], -1: []}
    count = N if device.type != "cpu" else max(1, _PIXELS_IN_CACHE // (H * W))
    for start in range(0, N, count):
        stop = min(start + count, N)
        some = slice(start, stop)
        frames = torch.arange(start, stop, device=device)
        surfaces = Surfaces.at(solids, frames, x[some], y[some], depth[some], slot[some])
        rgb, sky = shade(look, surfaces, atlas, tiles)
        out["rgb"][some] = rgb.view(3, -1, H, W).transpose(0, 1)
        out["is_sky"][some] = sky.view(-1, H, W)
        for names, step, at_end in ((_FORWARD, 1, stop % T == 0), (_BACKWARD, -1, start % T == 0)):
            if (
                count > 1 or not at_end
            ):  # a clip's last frame has no next one, its first none before
                labels, unsettled = follow(motion, surfaces, maps, step)
                doubts[step].append(unsettled)
                for name, values in zip(names, labels, strict=True):
                    out[name][some] = values
        out["scene_flow"][some] = displacement(motion, surfaces)
        out["motion_mask"][some] = motion.is_moving.index_select(0, surfaces.row).view(-1, H, W)
    settle(motion, solids, doubts[1], out["occluded"])
    settle(motion, solids, doubts[-1], out["occluded_backward"])


def _velocity(maps: dict[str, Tensor]) -> Tensor:
    """Return the image motion (B, T, H, W, 2) at each frame; the last one looks back."""
    return torch.cat((maps["flow"], -maps["flow_backward"][:, -1:]), 1)


def _package(world: World, out: dict[str, Tensor], seed: int, options: SceneOptions) -> ClipBatch:
    B, T = world.world_from_cam.shape[:2]
    device = out["depth"].device
    maps = {name: value.view(B, T, *value.shape[1:]) for name, value in out.items()}
    valid = ~maps.pop("is_sky")
    for name in (*_FORWARD, "scene_flow"):
        maps[name] = maps[name][:, :-1]
    for name in _BACKWARD:
        maps[name] = maps[name][:, 1:]
    if options.effects:
        maps["rgb"] = apply_effects(
            maps["rgb"],
            _velocity(maps),
            seed,
            blur_share=options.motion_blur_share,
            jpeg_share=options.jpeg_share,
        )
    known = torch.ones(B, dtype=torch.bool, device=device)
    K = torch.from_numpy(world.K).float().to(device)
    return ClipBatch(
        **maps,
        K=K[:, None].expand(B, T, 3, 3),
        world_from_cam=torch.from_numpy(world.world_from_cam).float().to(device),
        valid_depth=valid,
        valid_motion=torch.ones_like(maps["motion_mask"]),
        has_pose=known,
        has_intrinsics=known,
        is_metric=~known,
    )


def _part(world: World, clips: slice) -> World:
    return World(**{name: getattr(world, name)[clips] for name in World.__slots__})


@lru_cache(maxsize=4)
def _atlas_image(seed: int, options: SceneOptions, device: torch.device) -> Tensor:
    atlas = make_atlas(
        seed % options.atlases,
        options.tiles,
        options.photo_dir,
        options.photo_share,
        options.atlases,
    )
    return atlas.image.to(device)


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
    image = _atlas_image(seed % options.atlases, options, device)
    step = 1 if device.type == "cpu" else max(1, _PIXELS_A_PASS // (frames * size[0] * size[1]))
    out = _empty(batch * frames, size, device)
    for start in range(0, batch, step):
        part = slice(start, start + step)
        rows = {name: maps[part.start * frames : part.stop * frames] for name, maps in out.items()}
        _render(_part(world, part), image, options.tiles, rows)
    return _package(world, out, seed, options)

"""Exact motion labels: follow each surface point through the pose of its solid into the neighbouring frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stream4d.train.casting import Solids, cast
from stream4d.train.shading import Surfaces, look_up
from stream4d.train.worlds import World

_SAME_SURFACE = 1e-3
"""Relative depth difference below which two hits are the same point."""


@dataclass(frozen=True, slots=True)
class Motion:
    """Maps of B·T·(P + 1) solids from their unit frame into the neighbouring frames."""

    pixels_next: Tensor
    """(B·T·(P+1), 12) local → homogeneous pixels of the next frame."""
    pixels_previous: Tensor
    """(B·T·(P+1), 12) local → homogeneous pixels of the previous frame."""
    displacement: Tensor
    """(B·T·(P+1), 12) local → movement in the world to the next frame; exactly zero where static."""
    is_moving: Tensor
    """(B·T·(P+1),) bool."""
    K: Tensor
    """(B, 3, 3)."""

    @classmethod
    def of(cls, world: World, device: torch.device) -> Motion:
        """Compose the maps in float64."""
        cam_from_world = np.linalg.inv(world.world_from_cam)
        cam_from_local = (cam_from_world[:, :, None] @ world.world_from_local)[..., :3, :]
        pixels = world.K[:, None, None] @ cam_from_local  # (B, T, P + 1, 3, 4)
        after = np.concatenate([pixels[:, 1:], pixels[:, -1:]], 1)
        before = np.concatenate([pixels[:, :1], pixels[:, :-1]], 1)
        step = np.diff(world.world_from_local, axis=1)[..., :3, :]
        step = np.concatenate([step, step[:, -1:]], 1)

        def table(maps: np.ndarray) -> Tensor:
            return torch.from_numpy(maps).float().reshape(-1, 12).to(device)

        moving = torch.from_numpy(np.any(step != 0, axis=(-2, -1))).flatten().to(device)
        return cls(
            table(after),
            table(before),
            table(step),
            moving,
            torch.from_numpy(world.K).float().to(device),
        )


@dataclass(frozen=True, slots=True)
class Labels:
    """Motion labels of B clips; shapes as in ``ClipBatch``."""

    flow: Tensor
    flow_backward: Tensor
    occluded: Tensor
    occluded_backward: Tensor
    scene_flow: Tensor
    motion_mask: Tensor


def _apply(table: Tensor, row: Tensor, q: list[Tensor]) -> list[Tensor]:
    m = look_up(table, row)
    return [
        torch.addcmul(m[4 * i + 3], m[4 * i], q[0])
        .addcmul_(m[4 * i + 1], q[1])
        .addcmul_(m[4 * i + 2], q[2])
        for i in range(3)
    ]


def _hidden(
    K: Tensor,
    solids: Solids,
    target: Tensor,
    slot: Tensor,
    maps: tuple[Tensor, Tensor],
    pixel: list[Tensor],
    z: Tensor,
) -> Tensor:
    """Return whether points are invisible in their target frames.

    Where all four pixels around a point show its own solid at its own inverse depth, it is seen. Everywhere
    else a ray is cast to the very spot.

    Args:
        K: (N, 3, 3) of all frames.
        solids: of all frames.
        target: (M,) frame of each point.
        slot: (M,) solid of each point.
        maps: inverse depth and slot of all frames, (N, H, W).
        pixel: u and v in the target frame, (M,) each.
        z: (M,) depth in the target frame.
    """
    inverse_depth, slots = maps
    H, W = slots.shape[1:]
    u, v = pixel
    inside = (u >= -0.5) & (u <= W - 0.5) & (v >= -0.5) & (v <= H - 0.5) & (z > 0)
    u0 = u.clamp(0, W - 1.001).nan_to_num_(0)
    v0 = v.clamp(0, H - 1.001).nan_to_num_(0)
    left, top = u0.long(), v0.long()
    corner = (target * H + top) * W + left
    same = slots.flatten().index_select(0, corner) == slot
    for step in (1, W, W + 1):
        same &= slots.flatten().index_select(0, corner + step) == slot
    flat = inverse_depth.flatten()
    a, b = u0 - left, v0 - top
    upper = torch.lerp(flat.index_select(0, corner), flat.index_select(0, corner + 1), a)
    lower = torch.lerp(flat.index_select(0, corner + W), flat.index_select(0, corner + W + 1), a)
    seen = same & ((torch.lerp(upper, lower, b) * z - 1).abs_() < 3 * _SAME_SURFACE)
    unsure = (inside & ~seen).nonzero()[:, 0]
    hidden = ~inside
    if len(unsure):
        frame = target[unsure]
        k = look_up(K.flatten(1), frame)
        x = (u[unsure] - k[2]) / k[0]
        y = (v[unsure] - k[5]) / k[4]
        first, _ = cast(solids.at(frame), x[:, None, None], y[:, None, None])
        hidden[unsure] = first[:, 0, 0] < z[unsure] * (1 - _SAME_SURFACE)
    return hidden


def follow(
    motion: Motion, solids: Solids, surfaces: Surfaces, shape: tuple[int, int, int, int]
) -> Labels:
    """Compute all motion labels of B clips from the surfaces that their pixels see."""
    B, T, H, W = shape
    device = surfaces.depth.device
    per_frame = H * W
    inverse_depth = surfaces.depth.reciprocal().view(B * T, H, W)
    slots = surfaces.slot.view(B * T, H, W)
    K = motion.K.repeat_interleave(T, 0)
    u = torch.arange(W, device=device, dtype=torch.float32).expand(B, T - 1, H, W)
    v = torch.arange(H, device=device, dtype=torch.float32)[:, None].expand(B, T - 1, H, W)
    frame = torch.arange(B * T, device=device).view(B, T)

    def part(values: Tensor, frames: slice) -> Tensor:
        return values.view(B, T, per_frame)[:, frames].flatten()

    def towards(table: Tensor, source: slice, target: slice) -> tuple[Tensor, Tensor]:
        row = part(surfaces.row, source)
        q = [part(component, source) for component in surfaces.q]
        pu, pv, z = _apply(table, row, q)
        pu, pv = pu / z, pv / z
        index = frame[:, target].repeat_interleave(per_frame, 1).flatten()
        hidden = _hidden(
            K, solids, index, part(surfaces.slot, source), (inverse_depth, slots), [pu, pv], z
        )
        flow = torch.stack((pu.view_as(u) - u, pv.view_as(v) - v), -1)
        return flow, hidden.view(B, T - 1, H, W)

    early, late = slice(0, T - 1), slice(1, T)
    flow, occluded = towards(motion.pixels_next, early, late)
    back, occluded_back = towards(motion.pixels_previous, late, early)
    shift = _apply(
        motion.displacement, part(surfaces.row, early), [part(q, early) for q in surfaces.q]
    )
    mask = motion.is_moving.index_select(0, surfaces.row).view(B, T, H, W)
    return Labels(
        flow, back, occluded, occluded_back, torch.stack(shift, -1).view(B, T - 1, H, W, 3), mask
    )

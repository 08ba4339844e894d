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


def _corners(values: Tensor, corner: Tensor, width: int) -> list[Tensor]:
    """Return the values (N, H, W) at the pixel with this flat index, its right, lower and diagonal neighbour."""
    flat = values.flatten()
    return [flat.index_select(0, corner + step) for step in (0, 1, width, width + 1)]


def _judge_by_neighbours(
    maps: tuple[Tensor, Tensor],
    target: Tensor,
    slot: Tensor,
    pixel: list[Tensor],
    z: Tensor,
    room: int,
) -> tuple[Tensor, Tensor]:
    """Return which points are surely seen and which are surely hidden, (M,) bool each.

    Seen: the four pixels around the point show its own solid, and their inverse depth, linear across a plane,
    agrees. Hidden: all four show one other solid, nearer; solids are convex, so that it covers the point too.
    """
    inverse_depth, slots = maps
    H, W = slots.shape[1:]
    u = pixel[0].clamp(0, W - 1.001).nan_to_num_(0)
    v = pixel[1].clamp(0, H - 1.001).nan_to_num_(0)
    left, top = u.long(), v.long()
    corner = (target * H + top) * W + left
    first, *others = _corners(slots, corner, W)
    uniform = (first == others[0]) & (first == others[1]) & (first == others[2])
    d00, d01, d10, d11 = _corners(inverse_depth, corner, W)
    across = u.sub_(left)
    here = torch.lerp(torch.lerp(d00, d01, across), torch.lerp(d10, d11, across), v.sub_(top))
    own = first == slot
    seen = uniform & own & (here.mul_(z).sub_(1).abs_() < 3 * _SAME_SURFACE)
    farthest = torch.minimum(torch.minimum(d00, d01), torch.minimum(d10, d11))
    hidden = uniform & ~own & (first != room) & (farthest.mul_(z) > 1 + _SAME_SURFACE)
    return seen, hidden


def _cast_to_points(K: Tensor, solids: Solids, frame: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return the first depth (M,) along rays through single points; ``frame`` (M,) does not decrease."""
    N = len(K)
    count = torch.bincount(frame, minlength=N)
    width = int(count.max())
    place = torch.arange(len(frame), device=frame.device) - (count.cumsum(0) - count)[frame]
    x, y = torch.zeros(2, N, 1, width, device=K.device)
    x[frame, 0, place] = (u - K[frame, 0, 2]) / K[frame, 0, 0]
    y[frame, 0, place] = (v - K[frame, 1, 2]) / K[frame, 1, 1]
    depth, _ = cast(solids, x, y)
    return depth[frame, 0, place]


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

    What the neighbouring pixels do not settle (about the outlines) is settled by a ray to the very spot.

    Args:
        K: (N, 3, 3) of all frames.
        solids: of all frames.
        target: (M,) frame of each point, not decreasing.
        slot: (M,) solid of each point.
        maps: inverse depth and slot of all frames, (N, H, W).
        pixel: u and v in the target frame, (M,) each.
        z: (M,) depth in the target frame.
    """
    H, W = maps[1].shape[1:]
    u, v = pixel
    inside = (u >= -0.5) & (u <= W - 0.5) & (v >= -0.5) & (v <= H - 0.5) & (z > 0)
    seen, hidden = _judge_by_neighbours(maps, target, slot, pixel, z, len(solids.kinds) - 1)
    hidden |= ~inside
    unsure = (~(seen | hidden)).nonzero()[:, 0]
    if len(unsure):
        first = _cast_to_points(K, solids, target[unsure], u[unsure], v[unsure])
        hidden[unsure] = first < z[unsure] * (1 - _SAME_SURFACE)
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

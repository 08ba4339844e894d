"""Exact motion labels: follow each surface point through the pose of its solid into the neighbouring frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stream4d.train.casting import NEAR, TERRAIN, Solids, cast
from stream4d.train.movers import CONVEX_SLOTS, KINDS
from stream4d.train.shading import Surfaces, look_up
from stream4d.train.worlds import World

_TERRAIN_SLOT = KINDS.index(TERRAIN)
_SAME_SURFACE = 1e-3
"""Relative depth difference below which two hits are the same point."""
_SAME_GROUND = 2e-2
"""Likewise on terrain, whose hits are found by iteration: less exact far away at grazing angles."""


@dataclass(frozen=True, slots=True)
class Motion:
    """Maps of B·T·S solids from their unit frame into the neighbouring frames."""

    pixels_next: Tensor
    """(B·T·S, 12) local → homogeneous pixels of the next frame."""
    pixels_previous: Tensor
    """(B·T·S, 12) local → homogeneous pixels of the previous frame."""
    displacement: Tensor
    """(B·T·S, 12) local → movement in the world to the next frame; exactly zero where static."""
    is_moving: Tensor
    """(B·T·S,) bool."""
    K: Tensor
    """(B·T, 3, 3)."""
    length: int
    """T."""

    def neighbour(self, frames: Tensor, step: int) -> Tensor:
        """Return the frame after (1) or before (-1) each frame of a clip; at the ends, the frame itself."""
        t = frames % self.length
        return frames + ((t + step).clamp(0, self.length - 1) - t)

    @classmethod
    def of(cls, world: World, device: torch.device) -> Motion:
        """Compose the maps in float64."""
        T = world.world_from_cam.shape[1]
        cam_from_world = np.linalg.inv(world.world_from_cam)
        cam_from_local = (cam_from_world[:, :, None] @ world.world_from_local)[..., :3, :]
        pixels = world.K[:, None, None] @ cam_from_local  # (B, T, S, 3, 4)
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
            torch.from_numpy(world.K).float().to(device).repeat_interleave(T, 0),
            T,
        )


def _apply(table: Tensor, row: Tensor, q: tuple[Tensor, ...]) -> list[Tensor]:
    m = look_up(table, row)
    return [
        torch.addcmul(m[4 * i + 3], m[4 * i], q[0])
        .addcmul_(m[4 * i + 1], q[1])
        .addcmul_(m[4 * i + 2], q[2])
        for i in range(3)
    ]


def _slack(slot: Tensor) -> Tensor:
    """Return the relative depth difference that is forgiven on each solid (M,)."""
    return torch.full(slot.shape, _SAME_SURFACE, device=slot.device).masked_fill_(
        slot == _TERRAIN_SLOT, _SAME_GROUND
    )


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
    convex: int,
) -> tuple[Tensor, Tensor]:
    """Return which points are surely seen and which are surely hidden, (M,) bool each.

    Seen: the four pixels around the point show its own solid, and their inverse depth, linear across a plane,
    agrees. Hidden: all four show one other solid, nearer and convex (the first ``convex`` slots), so that it covers
    the point too.
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
    seen = uniform & own & (here.mul_(z).sub_(1).abs_() < 3 * _slack(slot))
    farthest = torch.minimum(torch.minimum(d00, d01), torch.minimum(d10, d11))
    hidden = uniform & ~own & (first < convex) & (farthest.mul_(z) > 1 + _SAME_SURFACE)
    return seen, hidden


def _cast_to_points(K: Tensor, solids: Solids, frame: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return the first depth (M,) along rays through single points; ``frame`` (M,) does not decrease."""
    n = len(K)
    count = torch.bincount(frame, minlength=n)
    width = int(count.max())
    place = torch.arange(len(frame), device=frame.device) - (count.cumsum(0) - count)[frame]
    x, y = torch.zeros(2, n, 1, width, device=K.device)
    x[frame, 0, place] = (u - K[frame, 0, 2]) / K[frame, 0, 0]
    y[frame, 0, place] = (v - K[frame, 1, 2]) / K[frame, 1, 1]
    depth, _ = cast(solids, x, y)
    return depth[frame, 0, place]


@dataclass(frozen=True, slots=True)
class Doubts:
    """Points that their neighbours in the target frame do not settle: those about outlines."""

    pixel: Tensor
    """(M,) index of the pixel that sees the point, among all N·H·W."""
    target: Tensor
    """(M,) frame that it is looked for in, not decreasing."""
    u: Tensor
    v: Tensor
    z: Tensor
    """(M,) where it is in that frame."""
    slack: Tensor
    """(M,) relative depth difference that is forgiven."""


def settle(motion: Motion, solids: Solids, doubts: list[Doubts], hidden: Tensor) -> None:
    """Cast a ray to the very spot of each doubtful point, and write into ``hidden`` (N, H, W) what it meets first."""
    parts = [d for d in doubts if len(d.pixel)]
    if not parts:
        return
    pixel, target, u, v, z, slack = (
        torch.cat([getattr(d, name) for d in parts]) for name in Doubts.__slots__
    )
    first = _cast_to_points(motion.K, solids, target, u, v)
    hidden.view(-1)[pixel] = first < z * (1 - slack)


def follow(
    motion: Motion, surfaces: Surfaces, maps: tuple[Tensor, Tensor], step: int
) -> tuple[tuple[Tensor, Tensor, Tensor], Doubts]:
    """Follow the surfaces of some frames into the next (step 1) or previous (step -1) ones.

    Args:
        motion: maps of all solids.
        surfaces: seen by n of the frames.
        maps: inverse depth and slot of all frames, (N, H, W).
        step: 1 or -1. At a clip's end the "neighbour" is the frame itself: drop that result.

    Returns:
        Flow (n, H, W, 2) in pixels; whether the point is hidden or outside there (n, H, W); and whether it is in
        front of that camera at all (n, H, W), without which its flow means nothing. Beside them the doubtful
        points, which count as seen until ``settle`` has decided.
    """
    n, H, W = surfaces.shape
    device = surfaces.depth.device
    table = motion.pixels_next if step == 1 else motion.pixels_previous
    pu, pv, z = _apply(table, surfaces.row, surfaces.q)
    in_front = z > NEAR
    z.clamp_(min=NEAR)
    pu, pv = pu.div_(z), pv.div_(z)
    target = motion.neighbour(surfaces.frames, step).repeat_interleave(H * W)
    seen, hidden = _judge_by_neighbours(maps, target, surfaces.slot, [pu, pv], z, CONVEX_SLOTS)
    inside = (pu >= -0.5) & (pu <= W - 0.5) & (pv >= -0.5) & (pv <= H - 0.5) & in_front
    hidden |= ~inside
    unsure = (~(seen | hidden)).nonzero()[:, 0]
    pixel = surfaces.frames[torch.div(unsure, H * W, rounding_mode="floor")] * (H * W) + unsure % (
        H * W
    )
    doubts = Doubts(
        pixel, target[unsure], pu[unsure], pv[unsure], z[unsure], _slack(surfaces.slot[unsure])
    )
    u = torch.arange(W, device=device, dtype=torch.float32)
    v = torch.arange(H, device=device, dtype=torch.float32)[:, None]
    flow = torch.stack((pu.view(n, H, W) - u, pv.view(n, H, W) - v), -1)
    return (flow, hidden.view(n, H, W), in_front.view(n, H, W)), doubts


def displacement(motion: Motion, surfaces: Surfaces) -> Tensor:
    """Return the movement in the world of the surface points until the next frame, (n, H, W, 3)."""
    shift = _apply(motion.displacement, surfaces.row, surfaces.q)
    return torch.stack(shift, -1).view(*surfaces.shape, 3)

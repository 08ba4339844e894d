"""Analytic ray casting: which primitive a camera ray meets first, and at which z-depth.

A camera ray is ``p(s) = s · (x, y, 1)`` with normalised image coordinates x, y, so the ray parameter *is* the
z-depth. In a primitive's own frame it is ``q(s) = o + s · d`` with ``o`` the same for a whole image and ``d``
linear in x and y. Every solid is ``|q_i| ≤ 1`` in some sense, so one affine map per frame holds pose, size, and
any stretching. The loop runs over primitives; each step is a handful of whole-image operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ELLIPSOID, BOX, CYLINDER, TERRAIN, ROOM = 0, 1, 2, 3, 4
NEAR = 0.05
"""Surfaces nearer than this z-depth are not seen."""
_ID_BITS = 6
_ID_MASK = (1 << _ID_BITS) - 1
"""Largest number of solids beside the room: the id lies in the low bits of the depth's float32 pattern."""
_MISS = 1e30
_CHUNK_ELEMENTS = 1 << 17
"""On a CPU, points are cast in chunks that keep the working set in the cache."""
_TERRAIN_STEPS, _TERRAIN_REFINEMENTS = 20, 3

Bounds = npt.NDArray[np.int32]
_CORNERS = np.array([[i, j, k, 1.0] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])


@dataclass(frozen=True, slots=True)
class Solids:
    """The primitives of N frames as affine maps. A slot has the same kind in every frame."""

    kinds: tuple[int, ...]
    """S kinds; the last one is ROOM, what the rays meet when they meet nothing else."""
    local_from_cam: Tensor
    """(N, S, 3, 4) float32: camera point → the primitive's unit frame."""
    bounds: Bounds
    """(N, S, 4) rows [0, 1) and columns [2, 3) of the image that the primitive cannot leave; empty where unseen."""
    waves: Tensor
    """(N, 4, 4) float32 height field of TERRAIN: rows of (kx, kz, phase, amplitude), see ``terrain_height``."""

    def at(self, frames: Tensor) -> Solids:  # (n,) int64
        """Return the solids of some frames."""
        rows = self.bounds[frames.cpu().numpy()]
        return Solids(self.kinds, self.local_from_cam[frames], rows, self.waves[frames])

    @property
    def in_view(self) -> Tensor:
        """(N, S) bool on the CPU: False where the primitive is absent or surely outside the image."""
        first, last = self.bounds[..., 0::2], self.bounds[..., 1::2]
        return torch.from_numpy((first < last).all(-1))


def image_bounds(
    cam_from_local: npt.NDArray[np.float64],  # (..., S, 4, 4)
    K: npt.NDArray[np.float64],  # (..., 3, 3)
    size: tuple[int, int],
    active: npt.NDArray[np.bool_],  # (..., S)
    kinds: tuple[int, ...],
) -> Bounds:  # (..., S, 4)
    """Return the rows and columns that each solid can cover: those of the projected corners of its box.

    Everything, where a corner lies behind the camera or the solid has no bounds (terrain and room).
    """
    H, W = size
    corner = np.einsum("...ij,kj->...ki", cam_from_local, _CORNERS)  # (..., S, 8, 4)
    z = corner[..., 2]
    seen = (
        np.einsum("...ij,...skj->...ski", K, corner[..., :3])[..., :2]
        / np.maximum(z, NEAR)[..., None]
    )
    low = np.clip(np.floor(seen.min(-2)), 0, [W, H])
    high = np.clip(np.ceil(seen.max(-2)) + 1, 0, [W, H])
    bounds = np.stack([low[..., 1], high[..., 1], low[..., 0], high[..., 0]], -1)
    whole = (z < NEAR).any(-1) | (np.asarray(kinds) >= TERRAIN)
    bounds[whole] = [0, H, 0, W]
    behind = (z < NEAR).all(-1) & (np.asarray(kinds) < TERRAIN)
    bounds[behind | ~active] = 0
    return bounds.astype(np.int32)


def _linear(row: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Evaluate ``row · (x, y, 1)`` for (n, 3) rows as a broadcast sum."""
    return row[:, 0, None, None] * x + (row[:, 1, None, None] * y + row[:, 2, None, None])


def _slab(d: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the ray enters and leaves ``|q_i| ≤ 1``."""
    inverse = d.add_(1e-12).reciprocal_()  # a ray exactly along a face must not give 0 · inf
    centre = inverse * -o[:, None, None]
    half = inverse.abs_()
    return centre - half, centre.add_(half)


def _box_interval(A: Tensor, o: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    enter, leave = _slab(_linear(A[:, 0], x, y), o[:, 0])
    for axis in (1, 2):
        other_enter, other_leave = _slab(_linear(A[:, axis], x, y), o[:, axis])
        torch.maximum(enter, other_enter, out=enter)
        torch.minimum(leave, other_leave, out=leave)
    return enter, leave


def _quadric_interval(
    A: Tensor, o: Tensor, x: Tensor, y: Tensor, axes: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return enter, leave and a penalty (0 where met) for ``Σ q_i² ≤ 1`` over some axes."""
    first = _linear(A[:, axes[0]], x, y)
    a = first.mul_(first)
    for axis in axes[1:]:
        d = _linear(A[:, axis], x, y)
        a.addcmul_(d, d)
    picked = list(axes)
    o_part = o[:, picked]
    b = _linear(torch.einsum("ni,nij->nj", o_part, A[:, picked]), x, y)
    c = (o_part * o_part).sum(-1) - 1
    discriminant = torch.addcmul(b * b, a, -c[:, None, None])
    penalty = discriminant.neg().clamp_(min=0).mul_(_MISS)
    root = discriminant.clamp_(min=0).sqrt_()
    a.reciprocal_()
    b.neg_()
    return (b - root).mul_(a), (b + root).mul_(a), penalty


def _ellipsoid(A: Tensor, o: Tensor, x: Tensor, y: Tensor) -> Tensor:
    enter, _, penalty = _quadric_interval(A, o, x, y, (0, 1, 2))
    return enter.add_(penalty)


def _box(A: Tensor, o: Tensor, x: Tensor, y: Tensor) -> Tensor:
    enter, leave = _box_interval(A, o, x, y)
    return enter.add_(leave.sub_(enter).neg_().clamp_(min=0).mul_(_MISS))


def _cylinder(A: Tensor, o: Tensor, x: Tensor, y: Tensor) -> Tensor:
    enter, leave, penalty = _quadric_interval(A, o, x, y, (0, 2))
    cap_enter, cap_leave = _slab(_linear(A[:, 1], x, y), o[:, 1])
    torch.maximum(enter, cap_enter, out=enter)
    torch.minimum(leave, cap_leave, out=leave)
    miss = leave.sub_(enter).neg_().clamp_(min=0).mul_(_MISS)
    return enter.add_(miss).add_(penalty)


_ENTRY: dict[int, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    ELLIPSOID: _ellipsoid,
    BOX: _box,
    CYLINDER: _cylinder,
}


def terrain_height(waves: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """Return the y of the ground, ``Σ a sin(kx x + kz z + φ)``, for waves (n, 4, 4) and x, z (n, h, w)."""
    height = torch.zeros_like(x)
    for wave in waves[..., None, None].unbind(1):
        kx, kz, phase, amplitude = wave.unbind(1)
        angle = torch.addcmul(phase.expand_as(x), kx, x).addcmul_(kz, z)
        height.addcmul_(amplitude, angle.sin_())
    return height


def _terrain(A: Tensor, o: Tensor, x: Tensor, y: Tensor, waves: Tensor) -> Tensor:
    """Walk along the rays by the distance that the steepest slope leaves free, then bisect by secants."""
    d = [_linear(A[:, axis], x, y) for axis in range(3)]
    start = o[..., None, None]
    amplitude = waves[:, :, 3].abs().sum(1)[:, None, None]
    slope = (waves[:, :, 3].abs() * waves[:, :, :2].norm(dim=-1)).sum(1)[:, None, None]
    pace = d[1].abs() + slope * (d[0] * d[0] + d[2] * d[2]).sqrt_()
    falling = d[1].clamp(min=1e-6)
    s = ((-amplitude - start[:, 1]) / falling).clamp_(min=NEAR)
    end = (amplitude - start[:, 1]) / falling

    def above(at: Tensor) -> Tensor:
        ground = terrain_height(waves, start[:, 0] + at * d[0], start[:, 2] + at * d[2])
        return ground.sub_(start[:, 1]).addcmul_(at, d[1], value=-1)

    for _ in range(_TERRAIN_STEPS):
        s = torch.minimum(torch.addcdiv(s, above(s).clamp_(min=0), pace), end)
    back = s * 0.999
    gap_back = above(back)
    for _ in range(_TERRAIN_REFINEMENTS):
        gap = above(s)
        change = gap * (s - back) / (gap_back - gap + 1e-12)
        back, gap_back = s, gap
        s = s + torch.maximum(torch.minimum(change, 0.02 * s), -0.02 * s)
    return torch.where(d[1] > 1e-5, s, _MISS)


def _pack(depth: Tensor, slot: int) -> Tensor:
    """Write the slot into the low bits: positive floats keep their order as integers."""
    return depth.view(torch.int32).bitwise_and_(~_ID_MASK).bitwise_or_(slot)


def _entry(solids: Solids, slot: int, frames: Tensor | slice, x: Tensor, y: Tensor) -> Tensor:
    """Return where rays (n, h, w) enter one solid; a very large depth where they miss it."""
    m = solids.local_from_cam[frames, slot]
    kind = solids.kinds[slot]
    if kind == TERRAIN:
        entry = _terrain(m[..., :3], m[..., 3], x, y, solids.waves[frames])
    else:
        entry = _ENTRY[kind](m[..., :3], m[..., 3], x, y)
    entry.add_((NEAR - entry).clamp_(min=0).mul_(_MISS))
    return entry.nan_to_num_(nan=_MISS, posinf=_MISS)


def _cast_chunk(solids: Solids, first: int, x: Tensor, y: Tensor) -> Tensor:
    frames = slice(first, first + len(x))
    room = len(solids.kinds) - 1
    m = solids.local_from_cam[frames, room]
    _, leave = _box_interval(m[..., :3], m[..., 3], x, y)
    packed = _pack(leave.clamp_(min=NEAR), room)
    for slot in range(room):
        rows = solids.in_view[frames, slot].nonzero()[:, 0]
        if not len(rows):
            continue
        if len(rows) == len(packed):
            bits = _pack(_entry(solids, slot, frames, x, y), slot)
            torch.minimum(packed, bits, out=packed)
        else:
            rows = rows.to(packed.device)
            bits = _pack(_entry(solids, slot, rows + first, x[rows], y[rows]), slot)
            packed[rows] = torch.minimum(packed[rows], bits)
    return packed


def _falling_rows(m: Tensor, x: Tensor, y: Tensor) -> tuple[int, int]:
    """Return the rows of one image in which some ray goes down (towards +y of the solid's frame)."""
    down = m[0, 1, 1] * y[0, :, 0] + (m[0, 1, 0] * x).max() + m[0, 1, 2]
    rows = (down > 0).nonzero()
    return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)


def _cast_image(solids: Solids, frame: int, x: Tensor, y: Tensor) -> Tensor:
    """Cast one image (1, H, W), each solid inside its bounds only."""
    here, room = slice(frame, frame + 1), len(solids.kinds) - 1
    m = solids.local_from_cam[here, room]
    _, leave = _box_interval(m[..., :3], m[..., 3], x, y)
    packed = _pack(leave.clamp_(min=NEAR), room)
    for slot, (top, bottom, left, right) in enumerate(solids.bounds[frame, :room].tolist()):
        if solids.kinds[slot] == TERRAIN and top < bottom:
            top, bottom = _falling_rows(solids.local_from_cam[here, slot], x, y)
        if top < bottom and left < right:
            part = packed[:, top:bottom, left:right]
            entry = _entry(solids, slot, here, x[:, :, left:right], y[:, top:bottom])
            torch.minimum(part, _pack(entry, slot), out=part)
    return packed


def cast(
    solids: Solids,
    x: Tensor,  # (N, H or 1, W)
    y: Tensor,  # (N, H, W or 1)
    *,
    bounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return z-depth (N, H, W) float32 and slot (N, H, W) int64 of the first surface along each ray.

    The depth is truncated to 17 bits after the binary point of its mantissa (relative error below 8e-6).

    Args:
        solids: of N frames.
        x: normalised image coordinate.
        y: normalised image coordinate.
        bounded: x and y are the raster that ``solids.bounds`` speaks of: on a CPU each solid is then tried
            inside its bounds only (an accelerator prefers few large kernels).
    """
    N = len(x)
    H, W = max(x.shape[1], y.shape[1]), max(x.shape[2], y.shape[2])
    if bounded and not x.is_cuda:
        parts = [_cast_image(solids, n, x[n : n + 1], y[n : n + 1]) for n in range(N)]
    else:
        step = N if x.is_cuda else max(1, _CHUNK_ELEMENTS // (H * W))
        parts = [
            _cast_chunk(solids, start, x[start : start + step], y[start : start + step])
            for start in range(0, N, step)
        ]
    packed = torch.cat(parts) if len(parts) > 1 else parts[0]
    slot = packed.bitwise_and(_ID_MASK).long()
    return packed.bitwise_and_(~_ID_MASK).view(torch.float32), slot

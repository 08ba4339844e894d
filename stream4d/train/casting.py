"""Analytic ray casting: which primitive a camera ray meets first, and at which z-depth.

A camera ray is ``p(s) = s · (x, y, 1)`` with normalised image coordinates x, y, so the ray parameter *is* the
z-depth. In a primitive's own frame it is ``q(s) = o + s · d`` with ``o`` the same for a whole image and ``d``
linear in x and y. Every solid is ``|q_i| ≤ 1`` in some sense, so one affine map per frame holds pose, size, and
any stretching. The loop runs over primitives; each step is a handful of whole-image operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ELLIPSOID, BOX, CYLINDER, ROOM = 0, 1, 2, 3
NEAR = 0.05
"""Surfaces nearer than this z-depth are not seen."""
_ID_BITS = 6
_ID_MASK = (1 << _ID_BITS) - 1
MAX_SOLIDS = _ID_MASK
"""Largest number of solids beside the room: the id lies in the low bits of the depth's float32 pattern."""
_MISS = 1e30
_CHUNK_ELEMENTS = 1 << 18
"""On a CPU, frames are cast in chunks that keep the working set in the cache."""


@dataclass(frozen=True, slots=True)
class Solids:
    """The primitives of N frames as affine maps. Slot p has the same kind in every frame; the last is the room."""

    kinds: tuple[int, ...]
    """P + 1 kinds; the last one is ROOM."""
    local_from_cam: Tensor
    """(N, P + 1, 3, 4) float32: camera point → the primitive's unit frame."""
    in_view: Tensor
    """(N, P + 1) bool on the CPU: False where the primitive is absent or surely outside the image."""


def _linear(row: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Evaluate ``row · (x, y, 1)`` for (n, 3) rows as a broadcast sum."""
    return row[:, 0, None, None] * x + (row[:, 1, None, None] * y + row[:, 2, None, None])


def _slab(d: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the ray enters and leaves ``|q_i| ≤ 1``."""
    inverse = d.reciprocal_()
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


def _pack(depth: Tensor, slot: int) -> Tensor:
    """Write the slot into the low bits: positive floats keep their order as integers."""
    return depth.view(torch.int32).bitwise_and_(~_ID_MASK).bitwise_or_(slot)


def _cast_chunk(solids: Solids, frames: slice, x: Tensor, y: Tensor) -> Tensor:
    A, o = solids.local_from_cam[frames, :, :, :3], solids.local_from_cam[frames, :, :, 3]
    room = len(solids.kinds) - 1
    _, leave = _box_interval(A[:, room], o[:, room], x, y)
    packed = _pack(leave.clamp_(min=NEAR), room)
    for slot, kind in enumerate(solids.kinds[:-1]):
        rows = solids.in_view[frames, slot].nonzero()[:, 0]
        if not len(rows):
            continue
        whole = len(rows) == len(packed)
        pick = slice(None) if whole else rows.to(packed.device)
        entry = _ENTRY[kind](A[pick, slot], o[pick, slot], x[pick], y[pick])
        entry.add_((NEAR - entry).clamp_(min=0).mul_(_MISS))
        entry.nan_to_num_(nan=_MISS, posinf=_MISS)
        bits = _pack(entry, slot)
        if whole:
            torch.minimum(packed, bits, out=packed)
        else:
            packed[pick] = torch.minimum(packed[pick], bits)
    return packed


def cast(
    solids: Solids,
    x: Tensor,  # (N, H or 1, W)
    y: Tensor,  # (N, H, W or 1)
) -> tuple[Tensor, Tensor]:
    """Return z-depth (N, H, W) float32 and slot (N, H, W) int64 of the first surface along each ray.

    The depth is truncated to 17 bits after the binary point of its mantissa (relative error below 8e-6).
    """
    N = len(x)
    H, W = max(x.shape[1], y.shape[1]), max(x.shape[2], y.shape[2])
    step = N if x.is_cuda else max(1, _CHUNK_ELEMENTS // (H * W))
    parts = []
    for start in range(0, N, step):
        frames = slice(start, min(start + step, N))
        parts.append(_cast_chunk(solids, frames, x[frames], y[frames]))
    packed = torch.cat(parts) if len(parts) > 1 else parts[0]
    slot = packed.bitwise_and(_ID_MASK).long()
    return packed.bitwise_and(~_ID_MASK).view(torch.float32), slot

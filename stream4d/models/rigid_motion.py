"""What the camera's motion leaves of dense flows: maps for the network's head, from ``camera_motion``'s closed form.

Nothing here is learned, nothing carries gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stream4d.models import _kernels_rigid as kernels
from stream4d.models.camera_motion import STEP, find_motion
from stream4d.packets import Array


class RigidFields(NamedTuple):
    """What rigid motions leave of the flows of B frame pairs; both directions share the batch of the maps."""

    maps: Tensor
    """(2B, 4, h, w), see ``_kernels_rigid.remains``: a → b, then b → a; or (B, 4, h, w), b → a alone."""
    rotation: Tensor
    """(B, 3, 3) a_from_b."""
    direction: Tensor
    """(B, 3) translation of a_from_b, unit length; zeros where nothing was found."""
    sigma: Tensor
    """(B, 2) 1σ of rotation and direction, radians."""
    focal: Tensor
    """(B,) pixels of the level."""


def rigid_fields(
    flow: Tensor,  # (2B, 2, h, w) pixels of the level: a → b, then b → a
    sigma: Tensor,  # (2B, 1, h, w) 1σ of the flow per axis, pixels of the level
    trip: Tensor,  # (2B, 1, h, w) miss of the way there and back, pixels of the level
    moving: Tensor,  # (2B, 1, h, w) what is known already of the probability of motion
    K: Tensor,  # (B, 3, 3) at the level
    is_known: Tensor,  # (B,) bool: K was given, not guessed
    *,
    both: bool = True,  # or only the maps of b → a
) -> RigidFields:
    """Fit every pair's camera motion; cells that come back where they began vote, movers less."""
    B, (h, w) = len(K), flow.shape[-2:]
    fields = flow.detach().float().cpu().numpy()
    cameras, known = K.detach().double().cpu().numpy(), is_known.tolist()
    voters = _voters(*(x[:B].detach() for x in (flow, sigma, trip, moving)))
    maps = np.empty((2 * B if both else B, 4, h, w), np.float32)
    motions = []
    for i, (start, moved, doubt, fair) in enumerate(voters):
        centre = cameras[i, :2, 2]
        start = start - centre
        end = start + moved
        chosen = ((end + centre >= 0) & (end + centre <= [w - 1, h - 1])).all(1) & fair
        motion = find_motion(
            start[chosen], end[chosen], doubt[chosen], cameras[i, 0, 0], focal_known=known[i]
        )
        R, t = motion.b_from_a, motion.direction
        if both:
            kernels.remains(fields[i], R, t, motion.focal, centre, maps[i])
        kernels.remains(fields[B + i], R.T.copy(), -R.T @ t, motion.focal, centre, maps[i - B])
        motions.append(motion)

    def stack(values: Sequence[Array | float]) -> Tensor:
        return torch.from_numpy(np.stack(values)).float().to(flow.device)

    return RigidFields(
        maps=torch.from_numpy(maps).to(flow.device),
        rotation=stack([m.b_from_a.T for m in motions]),
        direction=stack([-m.b_from_a.T @ m.direction for m in motions]),
        sigma=stack([m.sigma for m in motions]),
        focal=stack([m.focal for m in motions]),
    )


def _voters(
    flow: Tensor, sigma: Tensor, trip: Tensor, moving: Tensor
) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Yield per pair the cells that vote: pixels (n, 2), flow (n, 2), its 1σ (n,), and whether it comes back."""
    flow, sigma, trip, moving = (
        x[..., STEP // 2 :: STEP, STEP // 2 :: STEP] for x in (flow, sigma, trip, moving)
    )
    h, w = flow.shape[-2:]
    spread = (sigma + 0.3 * trip) / (1 - 0.9 * moving)
    fair = trip < 0.25 + 0.05 * torch.linalg.vector_norm(flow, dim=1, keepdim=True)
    y, x = STEP * np.mgrid[:h, :w].reshape(2, -1) + STEP // 2
    at = np.column_stack([x, y]).astype(np.float64)
    arrays = (x.flatten(2).cpu().numpy() for x in (flow.double(), spread.double(), fair))
    for moved, doubt, back in zip(*arrays, strict=True):
        yield at, moved.T, doubt[0], back[0]

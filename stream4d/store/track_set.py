"""Followed points by point instead of by slot, as the track benchmarks (TAP-Vid) hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stream4d.geometry.camera import rays
from stream4d.packets import Array


@dataclass(frozen=True, slots=True, eq=False)
class TrackSet:
    """M points over T frames."""

    id: Array
    """(M,) numbers, increasing."""
    query_frame: Array
    """(M,) frame at which each point was chosen, or the first of the range."""
    uv: Array
    """(M, T, 2) float32 pixels; NaN where the point is not followed, a guess where it is hidden."""
    visible: Array
    """(M, T) bool."""
    xyz_in_world: Array
    """(M, T, 3) float64; NaN where hidden or of unknown depth."""


def by_point(
    slots: Mapping[str, Array],  # (T, N, …) as stored, depth in world units
    K: Array,  # (T, 3, 3)
    world_from_cam: Array,  # (T, 4, 4)
    first: int,
) -> TrackSet:
    """Gather the slots of T frames, the first of them frame ``first``."""
    frame, slot = np.nonzero(slots["track_id"] >= 0)
    numbers, point = np.unique(slots["track_id"][frame, slot], return_inverse=True)
    M, T = len(numbers), len(K)
    uv = np.full((M, T, 2), np.nan, np.float32)
    visible, xyz = np.zeros((M, T), bool), np.full((M, T, 3), np.nan)
    uv[point, frame] = slots["track_uv"][frame, slot]
    visible[point, frame] = slots["track_visible"][frame, slot]
    for t in range(T):
        mine = frame == t
        at, depth = slots["track_uv"][t, slot[mine]], slots["track_depth"][t, slot[mine]]
        in_cam = rays(at.astype(np.float64), K[t]) * depth[:, None]
        xyz[point[mine], t] = in_cam @ world_from_cam[t, :3, :3].T + world_from_cam[t, :3, 3]
    query = np.full(M, T)
    np.minimum.at(query, point, frame)
    return TrackSet(numbers, first + query, uv, visible, xyz)

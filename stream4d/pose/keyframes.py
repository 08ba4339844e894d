"""When a frame becomes a keyframe, and what depth its new patches start from."""

from __future__ import annotations

import numpy as np

from stream4d.packets import Array
from stream4d.pose import track
from stream4d.pose.map import LocalMap
from stream4d.pose.record import Record

PARALLAX = 0.03
"""Median flow since the last keyframe that rotation does not explain, over the long side."""
OVERLAP = 0.6
"""Share of the last keyframe's patches still seen, below which a new one is due."""
INHERITED_SIGMA = 0.5
"""1σ of an inherited inverse depth, relative."""


def is_needed(local_map: LocalMap, record: Record, size: int) -> bool:
    """Tell whether this frame sees enough that is new."""
    newest = local_map.newest
    rows = np.flatnonzero(np.isfinite(local_map.var[newest]) & (local_map.host >= 0))
    own = np.flatnonzero(local_map.host == newest)
    rows = np.concatenate([rows, own])
    still = rows[np.isfinite(record.var[rows])]
    if len(still) < OVERLAP * len(rows) or len(still) < 20:
        return True
    uv_then = np.where(
        (local_map.host[still] == newest)[:, None],
        local_map.uv0[still],
        local_map.uv[newest, still],
    )
    turned = rotate_pixels(local_map, uv_then, record.pose, local_map.poses[newest])
    parallax = np.median(np.hypot(*(record.uv[still] - turned).T))
    total = np.median(np.hypot(*(record.uv[still] - uv_then).T))
    return bool(parallax > PARALLAX * size or total > 0.15 * size)


def rotate_pixels(local_map: LocalMap, uv: Array, pose: Array, reference: Array) -> Array:
    """Move pixels of the reference as the rotation between the two frames would."""
    cam = local_map.cam
    rays = np.column_stack([(uv - cam[2:]) / cam[:2], np.ones(len(uv))])
    q = rays @ (pose[:, :3] @ reference[:, :3].T).T
    return np.asarray(cam[:2] * q[:, :2] / np.maximum(q[:, 2:], 1e-6) + cam[2:])


def inherit_depth(
    local_map: LocalMap, record: Record, seen: Array, uv: Array
) -> tuple[Array, Array]:
    """Return inverse depth and its information for new patches at ``uv``, from the nearest patches seen."""
    _, z = track.project_rows(local_map, seen, record.pose)
    known = (z > 1e-6) & (local_map.rho_info[seen] * local_map.rho[seen] ** 2 > 25.0)
    if known.sum() < 3:
        rho = np.full(len(uv), float(np.median(local_map.rho[seen])) if len(seen) else 1.0)
        return rho, 1 / (2 * INHERITED_SIGMA * rho) ** 2
    here = local_map.rho[seen[known]] / z[known]
    distance = np.hypot(*(uv[:, None] - record.uv[seen[known]][None]).transpose(2, 0, 1))
    k = min(5, int(known.sum()))
    nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
    rho = np.median(here[nearest], axis=1)
    return rho, 1 / (INHERITED_SIGMA * rho) ** 2

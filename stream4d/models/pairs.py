"""What one pair of frames says by itself: cameras, depth and what moves; and which points hide others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stream4d.geometry.camera import make_K, pixel_grid, unproject
from stream4d.geometry.transforms import (
    invert,
    transform_points,
)
from stream4d.models.alignment import (
    PairSet,
)
from stream4d.models.pointmaps import estimate_focal, pose_by_pnp
from stream4d.packets import Array


class PairView(NamedTuple):
    """Cameras of two frames from the two directed pairs between them."""

    focals: tuple[float, ...]
    world_from_cam: Array
    """(2, 4, 4)."""
    depth: tuple[Array, Array]
    points: tuple[Array, Array]
    """(H, W, 3) each, in the world."""


class Directed(NamedTuple):
    """One directed pair in numpy."""

    points_i: Array
    points_j: Array
    confidence_i: Array
    confidence_j: Array


def view_pair(forward: Directed, backward: Directed) -> PairView:
    """Solve two frames from their pair in both directions (DUSt3R's PairViewer).

    Each frame's focal length comes from its own pointmap; the pose from PnP in the more confident direction.
    """
    H, W = forward.confidence_i.shape
    # Wide limits: only nonsense (an untrained network) reaches them.
    focals = tuple(
        estimate_focal(d.points_i, min_focal=0.1, max_focal=20.0) for d in (forward, backward)
    )
    cameras = [make_K(f, f, W / 2, H / 2) for f in focals]
    scores = [float(d.confidence_i.mean() * d.confidence_j.mean()) for d in (forward, backward)]
    j_from_i = pose_by_pnp(forward.points_j, forward.confidence_j, cameras[1], every_pixel=True)
    i_from_j = pose_by_pnp(backward.points_j, backward.confidence_j, cameras[0], every_pixel=True)
    j_from_i = np.eye(4) if j_from_i is None else j_from_i
    i_from_j = np.eye(4) if i_from_j is None else i_from_j
    if scores[0] > scores[1]:
        depth = forward.points_i[..., 2], transform_points(j_from_i, forward.points_j)[..., 2]
        poses = np.stack([np.eye(4), invert(j_from_i)])
    else:
        depth = transform_points(i_from_j, backward.points_j)[..., 2], backward.points_i[..., 2]
        poses = np.stack([invert(i_from_j), np.eye(4)])
    points = tuple(
        transform_points(pose, unproject(z.astype(np.float64), K))
        for pose, z, K in zip(poses, depth, cameras, strict=True)
    )
    return PairView(focals, poses, depth, (points[0], points[1]))


def relative_motion(
    pairs: PairSet, scale: float = 0.35
) -> tuple[Array, dict[tuple[int, int], PairView]]:
    """Find what moves as MonST3R does: ego flow against optical flow, stretched to [0, 1] in each pair.

    Being relative, it finds motion in static clips too; `residual_motion` is the absolute test.

    Returns:
        (n, H, W) bool, and what each pair (i, j), i < j, says by itself.
    """
    edges = [(int(i), int(j)) for i, j in pairs.edges]
    data = directed(pairs)
    index = {e: k for k, e in enumerate(edges)}
    H, W = data[0].confidence_i.shape
    total = np.zeros((pairs.frames, H, W))
    count = np.zeros(pairs.frames)
    views = {}
    assert pairs.flow_ij is not None
    for i, j in edges:
        if i > j or (j, i) not in index:
            continue
        views[i, j] = view = view_pair(data[index[i, j]], data[index[j, i]])
        K = [make_K(f, f, W / 2, H / 2) for f in view.focals]
        i_from_j = invert(view.world_from_cam[0]) @ view.world_from_cam[1]
        for a, b, matrix, side in ((i, j, invert(i_from_j), 0), (j, i, i_from_j, 1)):
            flow = pairs.flow_ij[index[a, b]].numpy().transpose(1, 2, 0)
            ego = ego_flow_between(view.depth[side], K[side], K[1 - side], matrix)
            error = np.linalg.norm(ego - flow, axis=-1)
            total[a] += (error - error.min()) / max(float(np.ptp(error)), 1e-9)
            count[a] += 1
    return total / np.maximum(count, 1)[:, None, None] > scale, views


def ego_flow_between(depth: Array, K_a: Array, K_b: Array, b_from_a: Array) -> Array:
    """Return the (H, W, 2) flow that a camera motion causes on static geometry; depth is clamped above zero."""
    H, W = depth.shape
    in_b = transform_points(b_from_a, unproject(depth.astype(np.float64), K_a))
    z = np.where(np.abs(in_b[..., 2]) < 1e-8, 1e-8, in_b[..., 2])
    u = K_b[0, 0] * in_b[..., 0] / z + K_b[0, 2]
    v = K_b[1, 1] * in_b[..., 1] / z + K_b[1, 2]
    return np.stack([u, v], axis=-1) - pixel_grid(H, W)


def directed(pairs: PairSet) -> list[Directed]:
    """Return the pairs one by one, as numpy arrays."""
    parts = (pairs.points_i, pairs.points_j, pairs.confidence_i, pairs.confidence_j)
    return [Directed(*row) for row in zip(*(x.numpy() for x in parts), strict=True)]


def lower_confidence_in_front(
    points: Array,  # (n, H, W, 3) in the world
    depth: Array,  # (n, H, W)
    K: Array,  # (n, 3, 3)
    cam_from_world: Array,  # (n, 4, 4)
    confidence: Array,  # (n, H, W)
    *,
    tolerance: float = 0.001,
    floor: float = 0.0,
) -> Array:
    """Take the confidence from points that lie in front of what another, more confident view sees there."""
    out = confidence.copy()
    n, H, W = confidence.shape
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            in_j = transform_points(cam_from_world[j], points[i])
            z = in_j[..., 2]
            with np.errstate(divide="ignore", invalid="ignore"):
                uv = (in_j @ K[j].T)[..., :2] / z[..., None]
            u, v = (
                np.rint(np.nan_to_num(x, posinf=-1e6, neginf=-1e6)).astype(int)
                for x in (uv[..., 0], uv[..., 1])
            )
            inside = (z > 0) & (u >= 0) & (u < W) & (v >= 0) & (v < H)
            at = v[inside], u[inside]
            bad = np.zeros((H, W), bool)
            bad[inside] = (z[inside] < (1 - tolerance) * depth[j][at]) & (
                out[i][inside] < out[j][at]
            )
            out[i][bad] = np.minimum(out[i][bad], floor)
    return out

"""Which pixels of depth maps are to be trusted: those off the edges of surfaces, and those that other views confirm.

On an edge between two surfaces a predicted depth is a mixture of both. A pixel is on an edge where depth jumps and the
surface's direction changes too; a slanted plane has only the first.
"""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.geometry.camera import unproject
from stream4d.geometry.transforms import invert, transform_points
from stream4d.packets import Array

_AROUND = np.ones((3, 3), np.uint8)


def on_edge(
    points: Array,  # (H, W, 3) in the camera frame
    valid: Array,  # (H, W) bool
    depth_ratio: float = 0.03,
    angle_deg: float = 5.0,
) -> Array:  # (H, W) bool
    """Mark pixels where depth jumps and normals turn."""
    normals, has_normal = surface_normals(points, valid)
    return depth_edge(points[..., 2], valid, depth_ratio) & normal_edge(
        normals, has_normal, angle_deg
    )


NEAREST = 0.04
"""Points nearer than this to another camera are not looked up there."""


def multiview_confidence(
    depth: Array,  # (T, H, W)
    valid: Array,  # (T, H, W) bool
    K: Array,  # (T, 3, 3)
    world_from_cam: Array,  # (T, 4, 4)
    tolerance: float = 0.02,
) -> Array:  # (T, H, W) in [0, 1]
    """Return, for each pixel, the share of the views it falls into that see the depth it should have there.

    The tolerance is that part of the depth, plus as much of the unit of length. A pixel that falls into no view has 0;
    where that is so for a whole frame, nothing speaks against it: 1.
    """
    out = np.zeros(depth.shape, np.float32)
    for i, own in enumerate(depth):
        world = transform_points(world_from_cam[i], unproject(own.astype(np.float64), K[i]))
        known = valid[i] & (own > 0)
        agree, seen = np.zeros(own.shape), np.zeros(own.shape)
        for j, other in enumerate(depth):
            if i == j:
                continue
            in_j = transform_points(invert(world_from_cam[j]), world)
            inside, error = _difference(in_j, other, K[j])
            inside &= known
            seen += inside
            agree += inside & (error < tolerance * (1 + in_j[..., 2]))
        out[i] = agree / np.maximum(seen, 1) if seen.any() else 1.0
    return out


def _difference(in_cam: Array, depth: Array, K: Array) -> tuple[Array, Array]:
    """Tell which points fall into a view, and how far their z is from the nearest pixel's depth."""
    H, W = depth.shape
    z = in_cam[..., 2]
    uv = (in_cam @ np.asarray(K, np.float64).T)[..., :2] / np.maximum(z, 1e-6)[..., None]
    u, v = uv[..., 0], uv[..., 1]
    inside = (u >= 0) & (u < W) & (v >= 0) & (v < H) & (z > NEAREST)
    at = [np.clip(np.rint(x), 0, n - 1).astype(int) for x, n in ((v, H), (u, W))]
    return inside, np.abs(z - depth[at[0], at[1]])


def depth_edge(depth: Array, valid: Array, ratio: float) -> Array:
    """Mark pixels whose 3×3 neighbourhood spans more than ``ratio`` of their depth."""
    highest = cv2.dilate(np.where(valid, depth, -np.inf), _AROUND)
    lowest = cv2.erode(np.where(valid, depth, np.inf), _AROUND)
    # Where no neighbour is known, infinities meet: no edge.
    with np.errstate(invalid="ignore", over="ignore"):
        return highest - lowest > ratio * depth


def normal_edge(normals: Array, has_normal: Array, angle_deg: float) -> Array:
    """Mark pixels next to one whose normal differs from a neighbour's by more than an angle, or has no neighbour."""
    least = np.ones(has_normal.shape)
    padded = np.pad(normals, ((1, 1), (1, 1), (0, 0)), mode="edge")
    known = np.pad(has_normal, 1, mode="edge")
    H, W = has_normal.shape
    for dy in range(3):
        for dx in range(3):
            cosine = (normals * padded[dy : dy + H, dx : dx + W]).sum(-1)
            either = has_normal | known[dy : dy + H, dx : dx + W]
            least = np.where(either, np.minimum(least, cosine), least)
    turns = least < np.cos(np.radians(angle_deg))
    return cv2.dilate(turns.astype(np.uint8), _AROUND) > 0


def surface_normals(points: Array, valid: Array) -> tuple[Array, Array]:
    """Return unit normals (H, W, 3) towards the camera from the four neighbours, and where there are any."""
    H, W = valid.shape
    padded = np.pad(points.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    known = np.pad(valid, 1)
    around = [(0, 1), (1, 0), (2, 1), (1, 2)]  # up, left, down, right
    edges = [padded[y : y + H, x : x + W] - points for y, x in around]
    usable = [known[y : y + H, x : x + W] for y, x in around]
    total, has_any = np.zeros((H, W, 3)), np.zeros((H, W), bool)
    for k in range(4):
        both = usable[k] & usable[(k + 1) % 4] & valid
        total += np.where(both[..., None], _unit(np.cross(edges[k], edges[(k + 1) % 4])), 0)
        has_any |= both
    return _unit(total), has_any


def _unit(vectors: Array) -> Array:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-12)

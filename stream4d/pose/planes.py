"""The two readings of a view of one plane: homographies R + t nᵀ, taken apart and put together again.

All but two of the ways to take a homography apart put the plane behind the camera. Ma, Soatto, Košecká and Sastry, "An
Invitation to 3-D Vision", 2003, section 5.3.
"""

from __future__ import annotations

import numpy as np

from stream4d.geometry.transforms import project_to_so3
from stream4d.packets import Array

STEEPEST = 0.2
"""Cosine between viewing ray and normal below which a plane is seen too much from its side to be read."""
REWEIGHTINGS = 8


def plane_of(points: Array) -> tuple[Array, float]:  # (n, 3) -> (3,)
    """Return the vector n with n · X = 1 on the plane of most points, and the median of |n · X − 1|."""
    weight = np.ones(len(points))
    normal: Array = np.zeros(3)
    off: Array = np.ones(len(points))
    for _ in range(REWEIGHTINGS):
        normal = np.linalg.lstsq(points * weight[:, None], weight, rcond=None)[0]
        off = np.abs(points @ normal - 1)
        weight = 1 / np.sqrt(np.maximum(off, 0.01))
    return normal, float(np.median(off))


def homography(pose: Array, normal: Array) -> Array:
    """Return how a camera (3, 4) sees the plane n · X = 1, from the view at the origin; middle singular value 1."""
    H = pose[:, :3] + np.outer(pose[:, 3], normal)
    H = H / np.linalg.svd(H, compute_uv=False)[1]
    return H if np.linalg.det(H) > 0 else -H


def rescaled(H: Array, scale: float) -> Array:
    """Return the homography of rays that a homography of the same pixels is under ``scale`` times the focal length."""
    squeeze = np.array([1 / scale, 1 / scale, 1.0])
    H = squeeze[:, None] * H / squeeze
    return np.asarray(H / np.linalg.svd(H, compute_uv=False)[1])


def normals(H: Array) -> list[Array]:
    """Return the unit normals of planes before the camera that explain a homography, one or two."""
    _, sigma, Vt = np.linalg.svd(H)
    longer, shorter = max(sigma[0] ** 2 - 1, 0.0), max(1 - sigma[2] ** 2, 0.0)
    if longer + shorter < 1e-9:
        return []
    out = []
    for sign in (1, -1):
        kept = np.sqrt(shorter) * Vt[0] + sign * np.sqrt(longer) * Vt[2]  # keeps its length
        normal = np.cross(Vt[1], kept / np.sqrt(longer + shorter))
        normal *= np.sign(normal[2])
        if normal[2] > STEEPEST:
            out.append(normal)
    return out


def camera_before(H: Array, normal: Array) -> Array:
    """Return the (3, 4) pose that, before the plane with this unit normal at distance 1, is nearest to a homography."""
    a = np.cross(normal, [0.0, 1.0, 0.0] if abs(normal[1]) < 0.9 else [1.0, 0.0, 0.0])
    a /= np.linalg.norm(a)
    b = np.cross(normal, a)
    Ha, Hb = H @ a, H @ b
    R = project_to_so3(np.column_stack([Ha, Hb, np.cross(Ha, Hb)]) @ np.stack([a, b, normal]))
    return np.column_stack([R, (H - R) @ normal])


def inverse_depths(rays: Array, pose: Array, normal: Array) -> Array:  # (n, 3) -> (n,)
    """Return inverse depths at which rays of a camera (3, 4) meet the plane normal · X = 1."""
    turned = pose[:, :3] @ normal  # turned · (Y − t) = 1
    return np.asarray(rays @ turned / (1 + turned @ pose[:, 3]))

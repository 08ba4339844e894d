"""Cameras from a predicted map of rays: slower than Depth Anything 3's camera head, and more accurate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stream4d.geometry.transforms import rigid
from stream4d.packets import Array

ITERATIONS = 20


class RayCamera(NamedTuple):
    """The camera that a map of rays belongs to."""

    scene_from_cam: Array
    """(4, 4)."""
    K: Array
    """(3, 3) of the image of the size asked for."""


def camera_from_rays(
    rays: Array,  # (h, w, 6) direction and origin in the scene, not normalised
    confidence: Array,  # (h, w)
    size: tuple[int, int],  # (H, W) of the image that K is for
) -> RayCamera | None:
    """Fit a pinhole camera: directions are d ~ R K⁻¹ p, origins all the camera's centre.

    The homography A = R K⁻¹ is found by a direct linear transform that is solved again and again with less weight
    on rays far off, and split by QR into a rotation and an upper triangle. None where no camera fits.
    """
    h, w = confidence.shape
    H, W = size
    y, x = np.mgrid[:h, :w] + 0.5
    # Pixels of the full image: the middle of a coarse cell lies at (x · W / w, y · H / h).
    pixels = np.stack([x / w * W, y / h * H, np.ones((h, w))], axis=-1).reshape(-1, 3)
    # Coordinates near one keep the fit well-conditioned.
    normal = np.diag([2 / W, 2 / H, 1.0])
    direction = rays[..., :3].reshape(-1, 3).astype(np.float64)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-12
    weight = confidence.reshape(-1).astype(np.float64)
    if not (np.isfinite(direction).all() and np.isfinite(weight).all()):
        return None
    A = _fit_homography(pixels @ normal, direction, weight) @ normal
    R, K = _split(A)
    if not (np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0):
        return None
    centre = weight @ rays[..., 3:].reshape(-1, 3).astype(np.float64) / weight.sum()
    return RayCamera(rigid(R, centre), K)


def _fit_homography(points: Array, directions: Array, confidence: Array) -> Array:
    """Find A with directions ~ A · points, robustly (reweighted, L1 beyond the usual error)."""
    weight = confidence
    for _ in range(ITERATIONS):
        A = _solve(points, directions, weight)
        mapped = points @ A.T
        if (mapped * directions).sum() < 0:
            A, mapped = -A, -mapped
        cosine = (mapped * directions).sum(1) / (np.linalg.norm(mapped, axis=1) + 1e-12)
        error = np.arccos(np.clip(cosine, -1, 1))
        usual = 1.4826 * np.median(error) + 1e-6
        weight = confidence / np.maximum(1.0, error / usual)
    return A


def _solve(points: Array, directions: Array, weight: Array) -> Array:
    """Minimise the weighted cross products of directions and A · points over all A of length 1."""
    zero = np.zeros_like(points)
    x, y, z = (directions[:, i, None] * points for i in range(3))
    rows = np.stack([[zero, -z, y], [z, zero, -x], [-y, x, zero]])  # (3, 3, N, 3)
    rows = rows.transpose(2, 0, 1, 3).reshape(len(points), 3, 9) * weight[:, None, None]
    rows = rows.reshape(-1, 9)
    return np.linalg.eigh(rows.T @ rows)[1][:, 0].reshape(3, 3)


def _split(A: Array) -> tuple[Array, Array]:
    """Split A = λ R K⁻¹ into the rotation and the intrinsics (without skew)."""
    Q, upper = np.linalg.qr(A)
    sign = np.sign(np.diag(upper))
    Q, upper = Q * sign, sign[:, None] * upper
    if np.linalg.det(Q) < 0:
        Q = -Q
    with np.errstate(divide="ignore", invalid="ignore"):
        K = np.linalg.inv(upper) if np.linalg.det(upper) else np.full((3, 3), np.nan)
        K = K / K[2, 2]
    K[0, 1] = 0
    return Q, K

"""Cameras from a predicted map of rays: slower than Depth Anything 3's camera head, and more accurate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stream4d.geometry.transforms import rigid
from stream4d.packets import Array

TRIALS = 100
PER_TRIAL = 8
"""Rays that a trial's homography is fitted to."""
TRUSTED = 0.3
"""Share of the rays, the most confident ones, that trials draw from."""
INLIER = 0.2
"""Rays further off than this, on the plane at distance 1, do not count."""
FLAT = 1e-4
"""Rays with a smaller z cannot be brought to the plane at distance 1."""


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

    The homography A = R K⁻¹ is split by QR into a rotation and an upper triangle. (The official code splits it by QL,
    which is R K⁻¹ only where the principal point is the middle of the image; with noise the two trade a degree of
    rotation against a pixel.) None where no camera fits.
    """
    A = ray_homography(rays, confidence)
    if A is None:
        return None
    R, K = _split(A)
    H, W = size
    # The image's corners at ±1 become pixels.
    K = np.array([[W / 2, 0, W / 2], [0, H / 2, H / 2], [0, 0, 1.0]]) @ K
    if not (np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0):
        return None
    return RayCamera(rigid(R, centre_of_rays(rays, confidence)), K)


def centre_of_rays(rays: Array, confidence: Array) -> Array:  # (3,)
    """Return where the rays begin: the mean origin, weighted by confidence."""
    weight = confidence.reshape(-1).astype(np.float64)
    centre: Array = weight @ rays[..., 3:].reshape(-1, 3).astype(np.float64) / weight.sum()
    return centre


def ray_homography(
    rays: Array,  # (h, w, 6)
    confidence: Array,  # (h, w)
    draws: Array | None = None,  # (trials, 8) which of the trusted rays each trial takes
) -> Array | None:  # (3, 3)
    """Find A with directions ~ A · p, p from -1 to 1 over the image, as Depth Anything 3 does.

    RANSAC over direct linear transforms on the plane at distance 1, weighted by confidence. The draws are random but
    the same each time. None where rays are not finite or too few agree.
    """
    h, w = confidence.shape
    direction = rays[..., :3].reshape(-1, 3).astype(np.float64)
    weight = confidence.reshape(-1).astype(np.float64)
    if not (np.isfinite(direction).all() and np.isfinite(weight).all()):
        return None
    y, x = (np.mgrid[:h, :w] + 0.5) * np.array([2 / h, 2 / w])[:, None, None] - 1
    pixels = np.stack([x, y], axis=-1).reshape(-1, 2)
    usable = np.abs(direction[:, 2]) > FLAT
    plane = direction[:, :2] / np.where(usable, direction[:, 2], 1.0)[:, None]
    weight = np.where(usable, weight, 0.0)
    if draws is None:
        draws = _draws(max(PER_TRIAL, int(len(weight) * TRUSTED)))
    A = _consensus(pixels, plane, weight, draws)
    return A if A is None or np.linalg.det(A) >= 0 else -A


def _draws(among: int) -> Array:
    """Draw the rays of all trials: (trials, 8) without repetition inside a trial."""
    random = np.random.default_rng(0)
    return np.stack([random.permutation(among)[:PER_TRIAL] for _ in range(TRIALS)])


def _consensus(pixels: Array, plane: Array, weight: Array, draws: Array) -> Array | None:
    """Return the homography of the trial that most weight agrees with, fitted again to all that agree."""
    best = np.argsort(-weight, kind="stable")[draws]
    trials = _fit_homographies(pixels[best], plane[best], weight[best])
    mapped = np.concatenate([pixels, np.ones_like(pixels[:, :1])], axis=1) @ trials.mT
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.linalg.norm(mapped[..., :2] / mapped[..., 2:] - plane, axis=-1)
    agrees = off < INLIER
    agrees = agrees[np.argmax((agrees * weight).sum(1))]
    if agrees.sum() < 4:
        return None
    A: Array = _fit_homographies(pixels[None, agrees], plane[None, agrees], weight[None, agrees])[0]
    return A if np.isfinite(A).all() else None


def _fit_homographies(source: Array, target: Array, weight: Array) -> Array:
    """Fit (B, 3, 3) with target ~ A · source to (B, N, 2) points by weighted direct linear transforms."""
    one, zero = np.ones_like(source[..., :1]), np.zeros((*source.shape[:2], 3))
    p = np.concatenate([source, one], axis=-1)
    u, v = target[..., :1], target[..., 1:]
    rows = np.concatenate(
        [np.concatenate([-p, zero, u * p], -1), np.concatenate([zero, -p, v * p], -1)], axis=1
    )
    rows = rows * np.sqrt(np.concatenate([weight, weight], axis=1))[..., None]
    A = np.linalg.svd(rows)[2][:, -1].reshape(-1, 3, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        return A / A[:, 2:, 2:]


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

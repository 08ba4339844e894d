"""Slow twins of the kernels: the textbook in a few lines of numpy."""

from __future__ import annotations

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array


def umeyama(
    source: Array, target: Array, weights: Array | None = None, *, with_scale: bool = True
) -> Array:
    """Return the similarity (4, 4) that takes ``source`` (N, 3) to ``target`` in weighted least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991.
    """
    w = np.ones(len(source)) if weights is None else weights
    w = w / w.sum()
    mean_s, mean_t = w @ source, w @ target
    A, B = source - mean_s, target - mean_t
    U, D, Vt = np.linalg.svd((B * w[:, None]).T @ A)
    S = np.diag([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    R = U @ S @ Vt
    scale = (D * np.diag(S)).sum() / (w @ (A**2).sum(-1)) if with_scale else 1.0
    return transforms.similarity(scale, R, mean_t - scale * R @ mean_s)


def residual_lengths(s: Array, t: Array, T: Array) -> Array:
    """Twin of ``geometry._kernels.residual_lengths``."""
    return np.linalg.norm(t - transforms.transform_points(T, s), axis=1)


def weighted_sums(s: Array, t: Array, w: Array, T: Array, scale: float, frame: Array) -> Array:
    """Twin of ``geometry._kernels.weighted_sums``."""
    s, t = (s - frame[:3]) * frame[6], (t - frame[3:6]) * frame[7]
    valid = np.isfinite(s.sum(-1) + t.sum(-1) + w) & (w > 0)
    s, t, w = s[valid], t[valid], w[valid]
    near, total = 0.0, w.sum()
    if scale > 0:
        sq = ((t - transforms.transform_points(T, s)) ** 2).sum(-1)
        near = w[sq < scale**2].sum()
        w = w * (scale**2 / (scale**2 + sq)) ** 2
    cross = np.einsum("n,ni,nj->ij", w, t, s).ravel()
    square = (w * (s**2).sum(-1)).sum()
    return np.concatenate([[w.sum()], w @ s, w @ t, cross, [square, near, total]])


def patch_pixel(cam: Array, ray: Array, rho: float, target: Array, host: Array) -> Array:
    """Return the pixel (2,) at which ``target`` (3, 4) sees a patch of ``host`` (3, 4); NaN behind it."""
    R = target[:, :3] @ host[:, :3].T
    q = R @ ray + rho * (target[:, 3] - R @ host[:, 3])
    return cam[:2] * q[:2] / q[2] + cam[2:] if q[2] > 1e-4 else np.full(2, np.nan)


def moved(pose: Array, xi: Array) -> Array:
    """Apply a left twist to a camera-from-world (3, 4): rotation by exp, translation added."""
    out = transforms.so3_exp(xi[3:]) @ pose
    out[:, 3] += xi[:3]
    return out


def differences(function, n: int, step: float = 1e-6) -> Array:  # type: ignore[no-untyped-def]
    """Return the Jacobian of ``function`` of n numbers at zero, by central differences."""
    columns = []
    for i in range(n):
        e = np.zeros(n)
        e[i] = step
        columns.append((function(e) - function(-e)) / (2 * step))
    return np.stack(columns, axis=-1)

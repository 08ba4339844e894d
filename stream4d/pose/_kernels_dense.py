# mypy: disable-error-code="no-untyped-def"
"""Numba kernel of the dense depth filter and motion test (words as in ``_kernels_parts.py``)."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.pose._kernels_parts import bilinear


@njit(cache=True, nogil=True)
def _read_map(image, u, v):
    """Read a map of inverse depth between pixels: bilinear on a surface, nearest at an edge."""
    x, y = int(u), int(v)
    a, b, c, d = image[y, x], image[y, x + 1], image[y + 1, x], image[y + 1, x + 1]
    low, high = min(min(a, b), min(c, d)), max(max(a, b), max(c, d))
    fx, fy = u - x, v - y
    if high > 1.1 * low:
        return image[y + (1 if fy > 0.5 else 0), x + (1 if fx > 0.5 else 0)]
    return (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy


@njit(cache=True, nogil=True)
def dense_step(
    cam,
    R,
    t,
    flow,
    back,
    sigma,
    rho_before,
    info_before,
    guess,
    settings,
    rho,
    info,
    evidence,
    source,
):
    """Carry the depth filter one frame on and test each pixel for motion of its own.

    ``back`` (H, W, 2) leads from this frame to the one before, ``flow`` and ``sigma`` from there to here; ``R``, ``t``
    take the camera before to this one. ``guess`` (H, W) is the inverse depth where nothing is known. ``settings`` is
    (floor px², forgetting, guess σ, mover σ px). Writes inverse depth and its information, ``evidence``: log likelihood
    ratio of moving to static, and ``source`` (H, W, 2): where each pixel was before, NaN where it was not seen.
    """
    H, W = rho.shape
    floor, forget, guess_sigma, mover_sq = settings[0], settings[1], settings[2], settings[3] ** 2
    for y in range(H):
        for x in range(W):
            u, v = x + back[y, x, 0], y + back[y, x, 1]
            fresh = 1.0 / (guess_sigma * guess[y, x]) ** 2
            rho[y, x], info[y, x], evidence[y, x] = guess[y, x], fresh, 0.0
            source[y, x, 0] = source[y, x, 1] = np.nan
            if not (u >= 0.0 and v >= 0.0 and u < W - 1.0 and v < H - 1.0):
                continue
            nx, ny = int(u + 0.5), int(v + 0.5)
            gap_u = back[y, x, 0] + bilinear(flow[:, :, 0], u, v)
            gap_v = back[y, x, 1] + bilinear(flow[:, :, 1], u, v)
            gap = gap_u * gap_u + gap_v * gap_v
            spread = sigma[ny, nx]
            if not (gap < 1.0 + 0.01 * (back[y, x, 0] ** 2 + back[y, x, 1] ** 2)) or not (
                spread < 4.0
            ):
                continue
            source[y, x, 0], source[y, x, 1] = u, v
            r0 = _read_map(rho_before, u, v)
            i0 = info_before[ny, nx] * forget
            a, b = (u - cam[2]) / cam[0], (v - cam[3]) / cam[1]
            q0 = R[0, 0] * a + R[0, 1] * b + R[0, 2] + r0 * t[0]
            q1 = R[1, 0] * a + R[1, 1] * b + R[1, 2] + r0 * t[1]
            q2 = R[2, 0] * a + R[2, 1] * b + R[2, 2] + r0 * t[2]
            if q2 < 1e-6:
                continue
            m, n = q0 / q2, q1 / q2
            ru, rv = cam[0] * m + cam[2] - x, cam[1] * n + cam[3] - y
            eu, ev = cam[0] * (t[0] - m * t[2]) / q2, cam[1] * (t[1] - n * t[2]) / q2
            var = 1.0 / i0
            noise = spread * spread + floor
            # residual covariance: noise * I + var * e eT; a mover adds mover_sq * I
            ee, re = eu * eu + ev * ev, ru * eu + rv * ev
            rr = ru * ru + rv * rv
            along = noise + var * ee
            square = (
                (rr - re * re / ee) / noise + re * re / (ee * along) if ee > 1e-12 else rr / noise
            )
            moving, moving_along = noise + mover_sq, along + mover_sq
            if ee > 1e-12:
                other = (rr - re * re / ee) / moving + re * re / (ee * moving_along)
            else:
                other = rr / moving
            ratio = 0.5 * (square - other - math.log(moving * moving_along / (noise * along)))
            evidence[y, x] = min(max(ratio, -2.0), 4.0)
            # Kalman update along the epipolar line, weaker where the pixel seems to move
            keep = 9.0 / (9.0 + square)
            gain = var / along * keep
            r1 = max(r0 - gain * re, 0.1 * r0)
            i1 = i0 + keep * ee / noise
            z = (R[2, 0] * a + R[2, 1] * b + R[2, 2]) + r1 * t[2]
            if z < 1e-6:
                continue
            rho[y, x] = r1 / z
            info[y, x] = i1 * z * z

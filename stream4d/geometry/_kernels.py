# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of the geometry package: sums for weighted Umeyama, residuals, RANSAC over triplets.

They see contiguous float64 arrays, a boolean mask and scalars; ``align.py`` checks and allocates. Kernels stay in
this one file: numba's cache does not notice edits elsewhere.
"""

from __future__ import annotations

import math

from numba import njit

from stream4d.geometry.compiling import COMPILED


@njit(**COMPILED)
def residual_lengths(source, target, T, out):
    """Write |target − T source| of each pair into ``out``."""
    for n in range(len(source)):
        x, y, z = source[n, 0], source[n, 1], source[n, 2]
        dx = target[n, 0] - (T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3])
        dy = target[n, 1] - (T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3])
        dz = target[n, 2] - (T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3])
        out[n] = math.sqrt(dx * dx + dy * dy + dz * dz)


@njit(**COMPILED)
def weighted_sums(source, target, weights, T, scale, frame, sums):
    """Accumulate what Umeyama needs, each pair reweighted by its residual under ``T``.

    ``scale`` > 0: Geman–McClure with that scale; ≤ 0: no reweighting. ``frame`` (8) is a shift of the sources, a shift
    of the targets and two factors that bring both near 1. ``sums`` (19): total weight, Σw s (3), Σw t (3),
    Σw t sᵀ (9), Σw |s|², weight within ``scale``, weight of all. Pairs with a NaN or no weight are left out.
    """
    sq_scale = scale * scale
    # scalars stay in registers; an array of sums would be written back for every pair
    w0 = sx = sy = sz = ta = tb = tc = ss = near = total = 0.0
    ax = ay = az = bx = by = bz = cx = cy = cz = 0.0
    f, g = frame[6], frame[7]
    for n in range(len(source)):
        w = float(weights[n])
        x, y, z = (
            (source[n, 0] - frame[0]) * f,
            (source[n, 1] - frame[1]) * f,
            (source[n, 2] - frame[2]) * f,
        )
        a, b, c = (
            (target[n, 0] - frame[3]) * g,
            (target[n, 1] - frame[4]) * g,
            (target[n, 2] - frame[5]) * g,
        )
        if not (w > 0.0 and math.isfinite(w + x + y + z + a + b + c)):
            continue
        total += w
        if sq_scale > 0.0:
            dx = a - (T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3])
            dy = b - (T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3])
            dz = c - (T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3])
            sq = dx * dx + dy * dy + dz * dz
            if sq < sq_scale:
                near += w
            share = sq_scale / (sq_scale + sq)
            w *= share * share
        w0 += w
        sx, sy, sz = sx + w * x, sy + w * y, sz + w * z
        a, b, c = w * a, w * b, w * c
        ta, tb, tc = ta + a, tb + b, tc + c
        ax, ay, az = ax + a * x, ay + a * y, az + a * z
        bx, by, bz = bx + b * x, by + b * y, bz + b * z
        cx, cy, cz = cx + c * x, cy + c * y, cz + c * z
        ss += w * (x * x + y * y + z * z)
    values = (w0, sx, sy, sz, ta, tb, tc, ax, ay, az, bx, by, bz, cx, cy, cz, ss, near, total)
    for i in range(19):
        sums[i] = values[i]

# mypy: disable-error-code="no-untyped-def"
"""Kernels that fit a similarity to what several cameras see of the patches of another time.

Similarities and tangents are those of ``_kernels_similarity``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from stream4d.geometry._kernels_algebra import solve_positive
from stream4d.geometry.compiling import COMPILED
from stream4d.pose._kernels_similarity import move_similarity


@njit(**COMPILED)
def similarity_system(
    cam, rays, rho, rho_var, poses, patch, frame, uv, info, S, scale_sq, A, g, out
):
    """Build the 7×7 system of the similarity S that carries patches into the world of cameras that see them.

    A patch is a ray with z = 1 and an inverse depth in its own camera frame; S is world-from-that-frame; ``poses``
    (K, 3, 4) are camera-from-world. The covariance of each residual holds the measurement and the patch's own depth.
    ``out`` (M) receives squared errors in σ². Returns the robust (Geman–McClure) cost.
    """
    A[:] = 0.0
    g[:] = 0.0
    J, M, d = np.empty((2, 7)), np.empty((3, 3)), np.empty(3)
    q, column, cost = np.empty(3), np.empty(3), 0.0
    for m in range(len(patch)):
        n, P = patch[m], poses[frame[m]]
        ray = rays[n]
        for i in range(3):
            d[i] = P[i, 0] * S[0, 3] + P[i, 1] * S[1, 3] + P[i, 2] * S[2, 3] + P[i, 3]
            for j in range(3):
                M[i, j] = P[i, 0] * S[0, j] + P[i, 1] * S[1, j] + P[i, 2] * S[2, j]
            q[i] = M[i, 0] * ray[0] + M[i, 1] * ray[1] + M[i, 2] * ray[2] + rho[n] * d[i]
        if q[2] < 1e-6:
            out[m] = 1e6
            cost += scale_sq
            continue
        iz = 1.0 / q[2]
        x, y = q[0] * iz, q[1] * iz
        fx, fy = cam[0] * iz, cam[1] * iz
        ru, rv = cam[0] * x + cam[2] - uv[m, 0], cam[1] * y + cam[3] - uv[m, 1]
        # covariance of the residual: the measurement's, and the depth's along its own direction
        eu, ev = fx * (d[0] - x * d[2]), fy * (d[1] - y * d[2])
        a, b, c = info[m, 0], info[m, 1], info[m, 2]
        wu, wv = a * eu + b * ev, b * eu + c * ev
        shrink = rho_var[n] / (1.0 + rho_var[n] * (eu * wu + ev * wv))
        a, b, c = a - shrink * wu * wu, b - shrink * wu * wv, c - shrink * wv * wv
        sq = ru * ru * a + 2.0 * ru * rv * b + rv * rv * c
        out[m] = sq
        w = scale_sq / (scale_sq + sq)
        cost += w * sq
        w *= w
        for j in range(7):
            for i in range(3):
                if j < 3:
                    column[i] = rho[n] * M[i, j]
                elif j == 3:
                    column[i] = M[i, 2] * ray[1] - M[i, 1] * ray[2]
                elif j == 4:
                    column[i] = M[i, 0] * ray[2] - M[i, 2] * ray[0]
                elif j == 5:
                    column[i] = M[i, 1] * ray[0] - M[i, 0] * ray[1]
                else:
                    column[i] = M[i, 0] * ray[0] + M[i, 1] * ray[1] + M[i, 2] * ray[2]
            J[0, j] = fx * (column[0] - x * column[2])
            J[1, j] = fy * (column[1] - y * column[2])
        for j in range(7):
            pu, pv = w * (a * J[0, j] + b * J[1, j]), w * (b * J[0, j] + c * J[1, j])
            g[j] += pu * ru + pv * rv
            for i in range(7):
                A[i, j] += J[0, i] * pu + J[1, i] * pv
    return cost


@njit(**COMPILED)
def fit_similarity(cam, rays, rho, rho_var, poses, patch, frame, uv, info, S, schedule, out, A):
    """Refine S in place while the robust scale anneals through ``schedule``; A (7, 7) receives the information."""
    g, step, factor = np.empty(7), np.empty(7), np.empty((7, 7))
    for scale_sq in schedule:
        similarity_system(
            cam, rays, rho, rho_var, poses, patch, frame, uv, info, S, scale_sq, A, g, out
        )
        for i in range(7):
            step[i] = -g[i]
            for j in range(7):
                factor[i, j] = A[i, j]
            factor[i, i] += 1e-9 * (1.0 + A[i, i])
        if not solve_positive(factor, step):
            return False
        move_similarity(S, step)
    similarity_system(
        cam, rays, rho, rho_var, poses, patch, frame, uv, info, S, schedule[-1], A, g, out
    )
    return True

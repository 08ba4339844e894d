# mypy: disable-error-code="no-untyped-def"
"""Numba kernels that fit one camera to the patches it sees (words as in ``_kernels_parts.py``)."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.geometry._kernels_algebra import solve_positive
from stream4d.geometry.compiling import COMPILED, VECTORISED
from stream4d.pose._kernels_parts import move_pose

NEAREST, BEHIND_SQ = 1e-6, 1e6
"""Depth times inverse depth before a camera from which it sees a point, and the squared error of those behind, σ²."""
RIDGE = 2e-9
"""Information that holds what no patch tells."""


@njit(**COMPILED)
def world_rays(rays, poses, host, directions, centres):
    """Write each ray's direction and its camera's centre, in the world; ``host`` (n,) says which camera it is of."""
    for n in range(len(rays)):
        P = poses[host[n]]
        for i in range(3):
            directions[n, i] = P[0, i] * rays[n, 0] + P[1, i] * rays[n, 1] + P[2, i] * rays[n, 2]
            centres[n, i] = -(P[0, i] * P[0, 3] + P[1, i] * P[1, 3] + P[2, i] * P[2, 3])


@njit(**COMPILED)
def columns(dirs, centres, rho, rho_var, uv, info):
    """Return n patches (13, n), each quantity in a row, so that loops over patches go on vectors."""
    out = np.empty((13, len(rho)))
    for n in range(len(rho)):
        out[0:3, n], out[3:6, n], out[6, n], out[7, n] = dirs[n], centres[n], rho[n], rho_var[n]
        out[8:10, n], out[10:13, n] = uv[n], info[n]
    return out


@njit(**COMPILED)
def _row(pose, i):
    return pose[i, 0], pose[i, 1], pose[i, 2], pose[i, 3]


@njit(**VECTORISED)
def _whitened_rows(cam, seen, pose, scale_sq, M, errors):
    """Write what n patches say of a camera in units of σ: derivatives by its twist and residuals, ``M`` (7, 2, n).

    The 2×2 covariance of each residual holds the measurement and the patch's own depth, so that a patch of unknown
    depth constrains only across its epipolar line. ``errors`` (n) receives squared errors in σ². Returns the cost.
    """
    cost = 0.0
    fx, fy, px, py = cam[0], cam[1], cam[2], cam[3]
    # in scalars: an array that might share memory with ``M`` would be read again for every patch
    (a0, a1, a2, ta), (b0, b1, b2, tb), (c0, c1, c2, tc) = (
        _row(pose, 0),
        _row(pose, 1),
        _row(pose, 2),
    )
    for n in range(seen.shape[1]):
        x, y, z, cx, cy, cz, r = (
            seen[0, n], seen[1, n], seen[2, n], seen[3, n], seen[4, n], seen[5, n], seen[6, n],
        )  # fmt: skip
        d0, d1 = a0 * cx + a1 * cy + a2 * cz + ta, b0 * cx + b1 * cy + b2 * cz + tb
        d2 = c0 * cx + c1 * cy + c2 * cz + tc
        q0, q1 = a0 * x + a1 * y + a2 * z + r * d0, b0 * x + b1 * y + b2 * z + r * d1
        q2 = c0 * x + c1 * y + c2 * z + r * d2
        is_behind = q2 < NEAREST
        iz = 1.0 / (NEAREST if is_behind else q2)
        x, y, a, b = q0 * iz, q1 * iz, fx * iz, fy * iz
        u, v = fx * x + px - seen[8, n], fy * y + py - seen[9, n]
        eu, ev = a * (d0 - x * d2), b * (d1 - y * d2)
        # Woodbury: (C + v e eT)^-1 = W - W e eT W / (1/v + eT W e), with W = C^-1
        xx, xy, yy = seen[10, n], seen[11, n], seen[12, n]
        pu, pv = xx * eu + xy * ev, xy * eu + yy * ev
        share = seen[7, n] / (1.0 + seen[7, n] * (eu * pu + ev * pv))
        xx -= share * pu * pu
        xy -= share * pu * pv
        yy -= share * pv * pv
        square = BEHIND_SQ if is_behind else u * u * xx + 2.0 * u * v * xy + v * v * yy
        errors[n] = square
        cost += scale_sq if is_behind else scale_sq * square / (scale_sq + square)
        w = 0.0 if is_behind else scale_sq / (scale_sq + square)  # times its root: Geman-McClure
        s0 = math.sqrt(max(xx, 1e-30))
        s1 = xy / s0
        s2 = w * math.sqrt(max(yy - s1 * s1, 0.0))
        s0, s1 = w * s0, w * s1
        # the pixel's derivatives by q are (a, 0, -a x) and (0, b, -b y)
        ju, jv = a * r, b * r
        M[0, 0, n], M[0, 1, n] = s0 * ju, 0.0
        M[1, 0, n], M[1, 1, n] = s1 * jv, s2 * jv
        M[2, 0, n], M[2, 1, n] = -s0 * ju * x - s1 * jv * y, -s2 * jv * y
        ju, jv = -a * x * q1, -b * (q2 + y * q1)
        M[3, 0, n], M[3, 1, n] = s0 * ju + s1 * jv, s2 * jv
        ju, jv = a * (q2 + x * q0), b * y * q0
        M[4, 0, n], M[4, 1, n] = s0 * ju + s1 * jv, s2 * jv
        ju, jv = -a * q1, b * q0
        M[5, 0, n], M[5, 1, n] = s0 * ju + s1 * jv, s2 * jv
        M[6, 0, n], M[6, 1, n] = s0 * u + s1 * v, s2 * v
    return cost


@njit(**VECTORISED)
def _product(a, b):
    total = 0.0
    for n in range(len(a)):
        total += a[n] * b[n]
    return total


@njit(**COMPILED)
def pose_normal_equations(cam, seen, pose, scale_sq, M, A, g, errors):
    """Build the 6×6 system of one pose from patches (see ``columns``); returns the robust cost.

    ``errors`` (n) receives squared errors in σ²; ``M`` (7, 2, n) is overwritten.
    """
    cost = _whitened_rows(cam, seen, pose, scale_sq, M, errors)
    rows = M.reshape(7, -1)
    for i in range(6):
        g[i] = _product(rows[i], rows[6])
        for j in range(i, 6):
            A[i, j] = A[j, i] = _product(rows[i], rows[j])
    return cost


@njit(**COMPILED)
def refine_pose(cam, dirs, centres, rho, rho_var, uv, info, pose, schedule, errors):
    """Move ``pose`` (3, 4) to fit the patches; ``schedule`` lists the robust scale (σ²) of each iteration.

    Returns the 6×6 information at the end; ``errors`` (n) receives squared errors in σ².
    """
    seen = columns(dirs, centres, rho, rho_var, uv, info)
    A, g, step = np.zeros((6, 6)), np.zeros(6), np.zeros(6)
    rows = np.empty((7, 2, len(rho)))
    damping, last, before = 1e-6, -1.0, pose.copy()
    for k in range(len(schedule)):
        cost = pose_normal_equations(cam, seen, pose, schedule[k], rows, A, g, errors)
        same = k > 0 and schedule[k] == schedule[k - 1]
        if same and cost > last * (1 + 1e-9):
            pose[:] = before
            damping = damping * 30 + 1e-4
            pose_normal_equations(cam, seen, pose, schedule[k], rows, A, g, errors)
        else:
            last = cost
            damping = damping * 0.3
        M = A.copy()
        for i in range(6):
            M[i, i] += damping * A[i, i] + RIDGE
            step[i] = -g[i]
        if not solve_positive(M, step):
            break
        before[:] = pose
        move_pose(pose, step)
        if same and np.max(np.abs(step)) < 1e-8:
            break
    pose_normal_equations(cam, seen, pose, schedule[len(schedule) - 1], rows, A, g, errors)
    return A

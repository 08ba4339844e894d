# mypy: disable-error-code="no-untyped-def"
"""Numba kernels that fit one camera to the patches it sees (words as in ``_kernels_parts.py``)."""

from __future__ import annotations

import numpy as np
from numba import njit

from stream4d.geometry._kernels_algebra import solve_positive
from stream4d.geometry.compiling import COMPILED
from stream4d.pose._kernels_parts import move_pose, robust


@njit(**COMPILED)
def world_rays(rays, poses, host, directions, centres):
    """Write each ray's direction and its camera's centre, in the world; ``host`` (n,) says which camera it is of."""
    for n in range(len(rays)):
        P = poses[host[n]]
        for i in range(3):
            directions[n, i] = P[0, i] * rays[n, 0] + P[1, i] * rays[n, 1] + P[2, i] * rays[n, 2]
            centres[n, i] = -(P[0, i] * P[0, 3] + P[1, i] * P[1, 3] + P[2, i] * P[2, 3])


@njit(**COMPILED)
def pose_normal_equations(cam, dirs, centres, rho, rho_var, uv, info, pose, scale_sq, A, g, out):
    """Build the 6×6 system of one pose; ``out`` (N) receives squared errors in σ². Returns the robust cost.

    The 2×2 covariance of each residual holds the measurement and the patch's own depth, so that a patch of unknown
    depth constrains only across its epipolar line.
    """
    A[:] = 0.0
    g[:] = 0.0
    J = np.empty((2, 6))
    cost = 0.0
    q, d = np.empty(3), np.empty(3)
    for n in range(len(rho)):
        for i in range(3):
            d[i] = (
                pose[i, 0] * centres[n, 0]
                + pose[i, 1] * centres[n, 1]
                + pose[i, 2] * centres[n, 2]
                + pose[i, 3]
            )
            q[i] = (
                pose[i, 0] * dirs[n, 0]
                + pose[i, 1] * dirs[n, 1]
                + pose[i, 2] * dirs[n, 2]
                + rho[n] * d[i]
            )
        if q[2] < 1e-6:
            out[n] = 1e6
            cost += scale_sq
            continue
        iz = 1.0 / q[2]
        x, y = q[0] * iz, q[1] * iz
        ru, rv = cam[0] * x + cam[2] - uv[n, 0], cam[1] * y + cam[3] - uv[n, 1]
        au, av = cam[0] * iz, cam[1] * iz
        eu, ev = au * (d[0] - x * d[2]), av * (d[1] - y * d[2])
        # Woodbury: (C + v e eT)^-1 = W - W e eT W / (1/v + eT W e), with W = C^-1
        w00, w01, w11 = info[n, 0], info[n, 1], info[n, 2]
        pu, pv = w00 * eu + w01 * ev, w01 * eu + w11 * ev
        share = rho_var[n] / (1.0 + rho_var[n] * (eu * pu + ev * pv))
        w00 -= share * pu * pu
        w01 -= share * pu * pv
        w11 -= share * pv * pv
        sq = ru * ru * w00 + 2 * ru * rv * w01 + rv * rv * w11
        out[n] = sq
        cost += scale_sq * sq / (scale_sq + sq)
        w = robust(sq, scale_sq)
        r = rho[n]
        J[0, 0], J[0, 1], J[0, 2] = au * r, 0.0, -au * x * r
        J[1, 0], J[1, 1], J[1, 2] = 0.0, av * r, -av * y * r
        J[0, 3], J[0, 4], J[0, 5] = -au * x * q[1], au * (q[2] + x * q[0]), -au * q[1]
        J[1, 3], J[1, 4], J[1, 5] = -av * (q[2] + y * q[1]), av * y * q[0], av * q[0]
        for i in range(6):
            wu = w * (J[0, i] * w00 + J[1, i] * w01)
            wv = w * (J[0, i] * w01 + J[1, i] * w11)
            g[i] += wu * ru + wv * rv
            for j in range(i, 6):
                A[i, j] += wu * J[0, j] + wv * J[1, j]
    for i in range(6):
        for j in range(i):
            A[i, j] = A[j, i]
    return cost


@njit(**COMPILED)
def _quadratic(A, x):
    total = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            total += x[i] * A[i, j] * x[j]
    return total


@njit(**COMPILED)
def refine_pose(cam, dirs, centres, rho, rho_var, uv, info, pose, prior, schedule, errors):
    """Move ``pose`` (3, 4) to fit the patches; ``schedule`` lists the robust scale (σ²) of each iteration.

    ``prior`` (6, 6) is the information of staying at the initial pose. Returns the 6×6 information at the end.
    """
    A = np.zeros((6, 6))
    g = np.zeros(6)
    moved = np.zeros(6)
    step = np.zeros(6)
    damping = 1e-6
    before = pose.copy()
    last = -1.0
    for k in range(len(schedule)):
        cost = pose_normal_equations(
            cam, dirs, centres, rho, rho_var, uv, info, pose, schedule[k], A, g, errors
        )
        cost += _quadratic(prior, moved)
        same = k > 0 and schedule[k] == schedule[k - 1]
        if same and cost > last * (1 + 1e-9):
            pose[:] = before
            moved -= step
            damping = damping * 30 + 1e-4
            pose_normal_equations(
                cam, dirs, centres, rho, rho_var, uv, info, pose, schedule[k], A, g, errors
            )
        else:
            last = cost
            damping = damping * 0.3
        M = A + prior
        for i in range(6):
            M[i, i] += damping * A[i, i] + 1e-9
        for i in range(6):
            step[i] = -g[i]
            for j in range(6):
                step[i] -= prior[i, j] * moved[j]
        if not solve_positive(M, step):
            break
        before[:] = pose
        move_pose(pose, step)
        moved += step
        if same and np.max(np.abs(step)) < 1e-8:
            break
    pose_normal_equations(
        cam, dirs, centres, rho, rho_var, uv, info, pose, schedule[len(schedule) - 1], A, g, errors
    )
    return A

# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of bundle adjustment: the window's normal equations and cost, Schur complement, depths alone.

Words as in ``_kernels_parts.py``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from stream4d.geometry.compiling import COMPILED
from stream4d.pose._kernels_parts import carry, relate, robust, square, weigh


@njit(**COMPILED)
def refine_depths(
    cam, rays, host, poses, obs_patch, obs_frame, obs_uv, obs_info, rho, rho_info, prior, prior_info
):
    """Fit the inverse depth of each patch to its observations with all poses held; Gauss–Newton, robust.

    Observations are sorted by patch. ``rho_info`` receives the information (1/variance) of each.
    """
    R, t, q = np.empty((3, 3)), np.empty(3), np.empty(3)
    start = 0
    total = len(obs_patch)
    while start < total:
        n = obs_patch[start]
        stop = start
        while stop < total and obs_patch[stop] == n:
            stop += 1
        info = 0.0
        for iteration in range(5):
            info, grad = prior_info[n], prior_info[n] * (rho[n] - prior[n])
            scale_sq = 100.0 if iteration < 2 else 16.0
            for k in range(start, stop):
                relate(poses[obs_frame[k]], poses[host[n]], R, t)
                carry(R, t, rays[n], rho[n], q)
                if q[2] < 1e-6:
                    continue
                x, y = q[0] / q[2], q[1] / q[2]
                ru = cam[0] * x + cam[2] - obs_uv[k, 0]
                rv = cam[1] * y + cam[3] - obs_uv[k, 1]
                ju = cam[0] * (t[0] - x * t[2]) / q[2]
                jv = cam[1] * (t[1] - y * t[2]) / q[2]
                wu, wv = weigh(obs_info[k], ju, jv)
                w = robust(square(obs_info[k], ru, rv), scale_sq)
                info += w * (wu * ju + wv * jv)
                grad += w * (wu * ru + wv * rv)
            if info <= 0:
                break
            step = -grad / info
            limit = 0.5 * abs(rho[n]) + 1e-3
            rho[n] += min(max(step, -limit), limit)
            if rho[n] < 1e-4:
                rho[n] = 1e-4
        rho_info[n] = info
        start = stop


@njit(**COMPILED)
def bundle_jacobians(cam, ray, rho, R, t, uv, Ji, Jj, Jr, Jf, res):
    """Write residual and its derivatives by host twist, target twist, inverse depth and log focal. False: behind."""
    q0 = R[0, 0] * ray[0] + R[0, 1] * ray[1] + R[0, 2] * ray[2] + rho * t[0]
    q1 = R[1, 0] * ray[0] + R[1, 1] * ray[1] + R[1, 2] * ray[2] + rho * t[1]
    q2 = R[2, 0] * ray[0] + R[2, 1] * ray[1] + R[2, 2] * ray[2] + rho * t[2]
    if q2 < 1e-4:
        return False
    iz = 1.0 / q2
    x, y = q0 * iz, q1 * iz
    res[0], res[1] = cam[0] * x + cam[2] - uv[0], cam[1] * y + cam[3] - uv[1]
    # D: 2×3 derivative of the pixel by q
    au, av = cam[0] * iz, cam[1] * iz
    for i in range(2):
        a, m = (au, x) if i == 0 else (av, y)
        d0, d1, d2 = (a, 0.0, -a * m) if i == 0 else (0.0, a, -a * m)
        Jj[i, 0], Jj[i, 1], Jj[i, 2] = d0 * rho, d1 * rho, d2 * rho
        Jj[i, 3] = d2 * q1 - d1 * q2
        Jj[i, 4] = d0 * q2 - d2 * q0
        Jj[i, 5] = d1 * q0 - d0 * q1
        e0 = d0 * R[0, 0] + d1 * R[1, 0] + d2 * R[2, 0]
        e1 = d0 * R[0, 1] + d1 * R[1, 1] + d2 * R[2, 1]
        e2 = d0 * R[0, 2] + d1 * R[1, 2] + d2 * R[2, 2]
        Ji[i, 0], Ji[i, 1], Ji[i, 2] = -e0 * rho, -e1 * rho, -e2 * rho
        Ji[i, 3] = -(e2 * ray[1] - e1 * ray[2])
        Ji[i, 4] = -(e0 * ray[2] - e2 * ray[0])
        Ji[i, 5] = -(e1 * ray[0] - e0 * ray[1])
        Jr[i] = d0 * t[0] + d1 * t[1] + d2 * t[2]
        Jf[i] = (cam[i] * m) - e0 * ray[0] - e1 * ray[1]
    return True


@njit(**COMPILED)
def bundle_cost(
    cam, rays, host, poses, rho, obs_patch, obs_frame, obs_uv, obs_info, scale_sq, prior, prior_info
):
    """Return the robust cost of the whole window."""
    R, t, q = np.empty((3, 3)), np.empty(3), np.empty(3)
    cost = 0.0
    for n in range(len(rho)):
        cost += prior_info[n] * (rho[n] - prior[n]) ** 2
    for k in range(len(obs_patch)):
        n = obs_patch[k]
        relate(poses[obs_frame[k]], poses[host[n]], R, t)
        carry(R, t, rays[n], rho[n], q)
        if q[2] < 1e-4:
            cost += scale_sq
            continue
        ru = cam[0] * q[0] / q[2] + cam[2] - obs_uv[k, 0]
        rv = cam[1] * q[1] / q[2] + cam[3] - obs_uv[k, 1]
        sq = square(obs_info[k], ru, rv)
        cost += scale_sq * sq / (scale_sq + sq)
    return cost


@njit(**COMPILED)
def bundle_system(
    cam,
    rays,
    host,
    poses,
    column,
    rho,
    obs_patch,
    obs_frame,
    obs_uv,
    obs_info,
    scale_sq,
    prior,
    prior_info,
    H,
    b,
    E,
    C,
    gr,
):
    """Build the normal equations: H (D, D), b (D) of poses and focal; E (N, D), C (N), gr (N) of inverse depths.

    ``column`` (F) is the first column of a pose in H, or −1 where the pose is held; the last column is log focal.
    """
    H[:] = 0.0
    b[:] = 0.0
    E[:] = 0.0
    D = len(b)
    for n in range(len(rho)):
        C[n] = prior_info[n]
        gr[n] = prior_info[n] * (rho[n] - prior[n])
    Ji, Jj = np.empty((2, 6)), np.empty((2, 6))
    Jr, Jf, res = np.empty(2), np.empty(2), np.empty(2)
    J = np.empty((2, 13))
    where = np.empty(13, np.int64)
    R, t = np.empty((3, 3)), np.empty(3)
    for k in range(len(obs_patch)):
        n, f = obs_patch[k], obs_frame[k]
        h = host[n]
        relate(poses[f], poses[h], R, t)
        if not bundle_jacobians(cam, rays[n], rho[n], R, t, obs_uv[k], Ji, Jj, Jr, Jf, res):
            continue
        w = robust(square(obs_info[k], res[0], res[1]), scale_sq)
        size = 0
        for owner in range(2):
            first = column[h] if owner == 0 else column[f]
            if first < 0:
                continue
            for i in range(6):
                where[size] = first + i
                J[0, size] = Ji[0, i] if owner == 0 else Jj[0, i]
                J[1, size] = Ji[1, i] if owner == 0 else Jj[1, i]
                size += 1
        where[size], J[0, size], J[1, size] = D - 1, Jf[0], Jf[1]
        size += 1
        wu, wv = weigh(obs_info[k], Jr[0], Jr[1])
        C[n] += w * (wu * Jr[0] + wv * Jr[1])
        gr[n] += w * (wu * res[0] + wv * res[1])
        for i in range(size):
            wu, wv = weigh(obs_info[k], w * J[0, i], w * J[1, i])
            b[where[i]] += wu * res[0] + wv * res[1]
            E[n, where[i]] += wu * Jr[0] + wv * Jr[1]
            for j in range(size):
                H[where[i], where[j]] += wu * J[0, j] + wv * J[1, j]


@njit(**COMPILED)
def schur(H, b, E, C, gr, damping, S, s):
    """Eliminate the inverse depths: S = H − Eᵀ C⁻¹ E, s = b − Eᵀ C⁻¹ gr, with Levenberg damping on both blocks."""
    D = len(b)
    S[:] = H
    s[:] = b
    for i in range(D):
        S[i, i] += damping * H[i, i] + 1e-9
    used = np.empty(D, np.int64)
    for n in range(len(C)):
        if C[n] <= 1e-12:
            continue
        inv = 1.0 / (C[n] * (1.0 + damping))
        count = 0
        for i in range(D):
            if E[n, i] != 0.0:
                used[count] = i
                count += 1
        for i in range(count):
            ei = E[n, used[i]] * inv
            s[used[i]] -= ei * gr[n]
            for j in range(i, count):
                S[used[i], used[j]] -= ei * E[n, used[j]]
    for i in range(D):
        for j in range(i):
            S[i, j] = S[j, i]

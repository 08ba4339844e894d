# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of bundle adjustment: the window's normal equations and cost, depths alone.

Words as in ``_kernels_parts.py``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.geometry.compiling import COMPILED, VECTORISED
from stream4d.pose._kernels_parts import carry, move_pose, relate, robust, square, weigh


@njit(**COMPILED)
def relate_all(poses):
    """Return rotation (F, F, 3, 3) and translation (F, F, 3) to each camera (first) from each other one."""
    F = len(poses)
    R, t = np.empty((F, F, 3, 3)), np.empty((F, F, 3))
    for f in range(F):
        for h in range(F):
            relate(poses[f], poses[h], R[f, h], t[f, h])
    return R, t


@njit(**COMPILED)
def refine_depths(
    cam, rays, host, poses, obs_patch, obs_frame, obs_uv, obs_info, rho, rho_info, prior, prior_info
):
    """Fit the inverse depth of each patch to its observations with all poses held; Gauss–Newton, robust.

    Observations are sorted by patch. ``rho_info`` receives the information (1/variance) of each.
    """
    R, t = relate_all(poses)
    q = np.empty(3)
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
                shift = t[obs_frame[k], host[n]]
                carry(R[obs_frame[k], host[n]], shift, rays[n], rho[n], q)
                if q[2] < 1e-6:
                    continue
                x, y = q[0] / q[2], q[1] / q[2]
                ru = cam[0] * x + cam[2] - obs_uv[k, 0]
                rv = cam[1] * y + cam[3] - obs_uv[k, 1]
                ju = cam[0] * (shift[0] - x * shift[2]) / q[2]
                jv = cam[1] * (shift[1] - y * shift[2]) / q[2]
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
def target_rows(cam, ray, rho, R, t, uv, M, Jr):
    """Write what a pixel (two rows) says of the camera that sees it; False: behind that camera.

    ``M`` (2, 8): derivatives by the camera's twist and by log focal, and the residual; ``Jr`` (2): by inverse depth.
    """
    p0 = R[0, 0] * ray[0] + R[0, 1] * ray[1]
    p1 = R[1, 0] * ray[0] + R[1, 1] * ray[1]
    p2 = R[2, 0] * ray[0] + R[2, 1] * ray[1]
    q0 = p0 + R[0, 2] * ray[2] + rho * t[0]
    q1 = p1 + R[1, 2] * ray[2] + rho * t[1]
    q2 = p2 + R[2, 2] * ray[2] + rho * t[2]
    if q2 < 1e-4:
        return False
    x, y = q0 / q2, q1 / q2
    # the pixel's derivatives by q are (a, 0, -a x) and (0, b, -b y)
    a, b = cam[0] / q2, cam[1] / q2
    M[0, 0], M[0, 1], M[0, 2] = a * rho, 0.0, -a * x * rho
    M[0, 3], M[0, 4], M[0, 5] = -a * x * q1, a * (q2 + x * q0), -a * q1
    M[1, 0], M[1, 1], M[1, 2] = 0.0, b * rho, -b * y * rho
    M[1, 3], M[1, 4], M[1, 5] = -b * (q2 + y * q1), b * y * q0, b * q0
    M[0, 6], M[1, 6] = cam[0] * x - a * (p0 - x * p2), cam[1] * y - b * (p1 - y * p2)
    M[0, 7], M[1, 7] = cam[0] * x + cam[2] - uv[0], cam[1] * y + cam[3] - uv[1]
    Jr[0], Jr[1] = a * (t[0] - x * t[2]), b * (t[1] - y * t[2])
    return True


@njit(**COMPILED)
def of_host(R, t, g, out):
    """Turn a derivative by the target's twist, ``g`` (6), into that by the host's: minus the transposed adjoint.

    A left twist of the host is, after ``R`` and ``t`` to the target, minus its adjoint of the target.
    """
    c0 = g[3] + g[1] * t[2] - g[2] * t[1]
    c1 = g[4] + g[2] * t[0] - g[0] * t[2]
    c2 = g[5] + g[0] * t[1] - g[1] * t[0]
    for i in range(3):
        out[i] = -(R[0, i] * g[0] + R[1, i] * g[1] + R[2, i] * g[2])
        out[3 + i] = -(R[0, i] * c0 + R[1, i] * c1 + R[2, i] * c2)


@njit(**COMPILED)
def bundle_cost(
    cam, rays, host, poses, rho, obs_patch, obs_frame, obs_uv, obs_info, scale_sq, prior, prior_info
):
    """Return the robust cost of the whole window."""
    R, t = relate_all(poses)
    q = np.empty(3)
    cost = 0.0
    for n in range(len(rho)):
        cost += prior_info[n] * (rho[n] - prior[n]) ** 2
    for k in range(len(obs_patch)):
        n = obs_patch[k]
        carry(R[obs_frame[k], host[n]], t[obs_frame[k], host[n]], rays[n], rho[n], q)
        if q[2] < 1e-4:
            cost += scale_sq
            continue
        ru = cam[0] * q[0] / q[2] + cam[2] - obs_uv[k, 0]
        rv = cam[1] * q[1] / q[2] + cam[3] - obs_uv[k, 1]
        sq = square(obs_info[k], ru, rv)
        cost += scale_sq * sq / (scale_sq + sq)
    return cost


@njit(**VECTORISED)
def bundle_system(
    cam, rays, host, poses, column, rho, obs_patch, obs_frame, obs_uv, obs_info, scale_sq,
    prior, prior_info, H, b, E, C, gr,
):  # fmt: skip
    """Build the normal equations: H (D, D), b (D) of poses and focal; E (N, D), C (N), gr (N) of inverse depths.

    ``column`` (F) is the first column of a pose in H, or −1 where the pose is held; the last column is log focal.
    What all observations of a pair of cameras say of the target's twist is added up first: what they say of the
    host's follows from it.
    """
    H[:] = 0.0
    b[:] = 0.0
    E[:] = 0.0
    last = len(b) - 1
    for n in range(len(rho)):
        C[n] = prior_info[n]
        gr[n] = prior_info[n] * (rho[n] - prior[n])
    R, t = relate_all(poses)
    pairs = np.zeros((len(poses), len(poses), 7, 8))
    M, Jr, g, back = np.empty((2, 8)), np.empty(2), np.empty(6), np.empty(6)
    for k in range(len(obs_patch)):
        n, f = obs_patch[k], obs_frame[k]
        h = host[n]
        if not target_rows(cam, rays[n], rho[n], R[f, h], t[f, h], obs_uv[k], M, Jr):
            continue
        w = robust(square(obs_info[k], M[0, 7], M[1, 7]), scale_sq)
        xx, xy, yy = w * obs_info[k, 0], w * obs_info[k, 1], w * obs_info[k, 2]
        wu, wv = xx * Jr[0] + xy * Jr[1], xy * Jr[0] + yy * Jr[1]
        C[n] += wu * Jr[0] + wv * Jr[1]
        gr[n] += wu * M[0, 7] + wv * M[1, 7]
        E[n, last] += wu * M[0, 6] + wv * M[1, 6]
        for i in range(6):
            g[i] = wu * M[0, i] + wv * M[1, i]
        if column[f] >= 0:
            for i in range(6):
                E[n, column[f] + i] += g[i]
        if column[h] >= 0:
            of_host(R[f, h], t[f, h], g, back)
            for i in range(6):
                E[n, column[h] + i] += back[i]
        pair = pairs[f, h]
        for i in range(7):
            wu, wv = xx * M[0, i] + xy * M[1, i], xy * M[0, i] + yy * M[1, i]
            for j in range(8):
                pair[i, j] += wu * M[0, j] + wv * M[1, j]
    for f in range(len(poses)):
        for h in range(len(poses)):
            if pairs[f, h, 4, 4] > 0.0:  # turning about y moves every pixel
                add_pair(pairs[f, h], R[f, h], t[f, h], column[f], column[h], H, b)


@njit(**COMPILED)
def add_pair(pair, R, t, f, h, H, b):
    """Add what a pair of cameras says to the equations; ``f`` and ``h`` are the first columns of target and host.

    ``pair`` (7, 8): products, over all observations, of the derivatives by the target's twist and log focal among
    themselves and with the residual.
    """
    last = len(b) - 1
    H[last, last] += pair[6, 6]
    b[last] += pair[6, 7]
    crossed, own = np.empty((6, 6)), np.empty(6)
    for i in range(6):
        of_host(R, t, pair[i], own)  # symmetric: row i is column i
        for j in range(6):
            crossed[j, i] = own[j]
        if f >= 0:
            b[f + i] += pair[i, 7]
            H[f + i, last] += pair[i, 6]
            H[last, f + i] += pair[i, 6]
            for j in range(6):
                H[f + i, f + j] += pair[i, j]
    if h < 0:
        return
    for i in range(6):
        of_host(R, t, crossed[i], own)
        for j in range(6):
            H[h + i, h + j] += own[j]
            if f >= 0:
                H[h + i, f + j] += crossed[i, j]
                H[f + j, h + i] += crossed[i, j]
    of_host(R, t, pair[:, 7].copy(), own)
    for i in range(6):
        b[h + i] += own[i]
    of_host(R, t, pair[6], own)
    for i in range(6):
        H[h + i, last] += own[i]
        H[last, h + i] += own[i]


@njit(**VECTORISED)
def take_step(step, free, damping, E, C, gr, poses, rho, cam, rays):
    """Move the free poses, the inverse depths as follows from that, and the focal length, in place.

    ``step`` (D) holds the poses' left twists and the change of log focal, as far as which it is taken: returned.
    """
    for i in range(len(free)):
        move_pose(poses[free[i]], step[6 * i : 6 * i + 6])
    for n in range(len(rho)):
        if C[n] > 1e-12:
            pull = gr[n]
            for i in range(len(step)):
                pull += E[n, i] * step[i]
            limit = 0.5 * abs(rho[n]) + 1e-3
            rho[n] -= min(max(pull / (C[n] * (1.0 + damping)), -limit), limit)
        rho[n] = max(rho[n], 1e-4)
    log_focal = min(max(step[-1], -0.2), 0.2)
    zoom = math.exp(log_focal)
    for i in range(2):
        cam[i] *= zoom
        for n in range(len(rays)):
            rays[n, i] /= zoom
    return log_focal

# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of the offline refinement: normal equations over all keyframes, sites eliminated as they come.

Words as in ``_kernels_parts.py``. A *site* is a patch of a host keyframe; what is seen of it lies together:
observations ``start[n]`` … ``start[n + 1] − 1``. Each observation has a measured pixel (``uv``, inverse covariance
``info``) and the log depth that the stored map has there (``logd``, weight ``logd_info``, 0 where there is none).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.geometry.compiling import COMPILED
from stream4d.pose._kernels_bundle import of_host, target_rows
from stream4d.pose._kernels_parts import carry, relate, robust, square, weigh

MAX_SEEN = 64
"""Observations of one site at most."""


@njit(**COMPILED)
def depth_jacobians(ray, rho, R, t, Ji, Jj):
    """Write the derivatives of the log depth in the target by host and target twist; returns it, and that by rho."""
    q0 = R[0, 0] * ray[0] + R[0, 1] * ray[1] + R[0, 2] * ray[2] + rho * t[0]
    q1 = R[1, 0] * ray[0] + R[1, 1] * ray[1] + R[1, 2] * ray[2] + rho * t[1]
    q2 = R[2, 0] * ray[0] + R[2, 1] * ray[1] + R[2, 2] * ray[2] + rho * t[2]
    iz = 1.0 / q2
    Jj[0], Jj[1], Jj[2] = 0.0, 0.0, iz * rho
    Jj[3], Jj[4], Jj[5] = iz * q1, -iz * q0, 0.0
    of_host(R, t, Jj, Ji)
    return math.log(q2 / rho), iz * t[2] - 1.0 / rho


@njit(**COMPILED)
def workspace():
    """Make the arrays that ``site_rows`` writes in between: allocating them for every observation would cost most."""
    return np.empty((3, 3)), np.empty(3), np.empty(6), np.empty((2, 8)), np.empty(2)


@njit(**COMPILED)
def site_rows(cam, ray, rho, P, Q, uv, info, logd, logd_info, scales, room, J, r, w):
    """Write the rows of one observation: J (3, 14) by host, target, inverse depth, log focal; r (3); w (3) = xx xy yy.

    The third row is the depth's, scaled so that its weight is one. ``room`` is from ``workspace``. False: behind the
    camera.
    """
    R, t, Ji, M, Jr = room
    relate(P, Q, R, t)
    if not target_rows(cam, ray, rho, R, t, uv, M, Jr):
        return False
    g = robust(square(info, M[0, 7], M[1, 7]), scales[0])
    for i in range(3):
        w[i] = g * info[i]
    for i in range(2):
        of_host(R, t, M[i], Ji)
        r[i], J[i, 12], J[i, 13] = M[i, 7], Jr[i], M[i, 6]
        for j in range(6):
            J[i, j], J[i, 6 + j] = Ji[j], M[i, j]
    r[2] = 0.0
    for j in range(14):
        J[2, j] = 0.0
    if logd_info > 0.0:
        value, by_rho = depth_jacobians(ray, rho, R, t, Ji, M[0])
        e = value - logd
        s = math.sqrt(logd_info * robust(logd_info * e * e, scales[1]))
        for j in range(6):
            J[2, j], J[2, 6 + j] = s * Ji[j], s * M[0, j]
        J[2, 12], r[2] = s * by_rho, s * e
    return True


@njit(**COMPILED)
def global_cost(
    cam, rays, host, poses, rho, start, frame, uv, info, logd, logd_info, prior, prior_info, scales,
    out,
):  # fmt: skip
    """Return the robust cost; ``out`` (N) receives that of each site."""
    R, t, q = np.empty((3, 3)), np.empty(3), np.empty(3)
    total = 0.0
    for n in range(len(rho)):
        e = math.log(rho[n] / prior[n])
        cost = prior_info[n] * e * e
        for k in range(start[n], start[n + 1]):
            relate(poses[frame[k]], poses[host[n]], R, t)
            carry(R, t, rays[n], rho[n], q)
            if q[2] < 1e-4:
                cost += scales[0]
                continue
            ru = cam[0] * q[0] / q[2] + cam[2] - uv[k, 0]
            rv = cam[1] * q[1] / q[2] + cam[3] - uv[k, 1]
            sq = square(info[k], ru, rv)
            cost += scales[0] * sq / (scales[0] + sq)
            if logd_info[k] > 0.0:
                e = math.log(q[2] / rho[n]) - logd[k]
                sq = logd_info[k] * e * e
                cost += scales[1] * sq / (scales[1] + sq)
        out[n] = cost
        total += cost
    return total


@njit(**COMPILED)
def add_pair(J, r, w, h, f, S, s, E0, E):
    """Add one observation to the upper triangle of S and to s; returns what it adds for the inverse depth.

    ``h`` and ``f`` are the first columns of host and target; ``E0`` and ``E`` (6) receive their coupling with the
    inverse depth.
    """
    last = len(s) - 1
    x, y, z = w[0] * J[0, 12] + w[1] * J[1, 12], w[1] * J[0, 12] + w[2] * J[1, 12], J[2, 12]
    for i in range(12):
        a, b = w[0] * J[0, i] + w[1] * J[1, i], w[1] * J[0, i] + w[2] * J[1, i]
        c = J[2, i]
        row = h + i if i < 6 else f + i - 6
        s[row] += a * r[0] + b * r[1] + c * r[2]
        S[row, last] += a * J[0, 13] + b * J[1, 13]
        if i < 6:
            E0[i] += x * J[0, i] + y * J[1, i] + z * c
            for j in range(i, 6):
                S[row, h + j] += a * J[0, j] + b * J[1, j] + c * J[2, j]
            for j in range(6, 12):
                value = a * J[0, j] + b * J[1, j] + c * J[2, j]
                if h < f:
                    S[row, f + j - 6] += value
                else:
                    S[f + j - 6, row] += value
        else:
            E[i - 6] += x * J[0, i] + y * J[1, i] + z * c
            for j in range(i, 12):
                S[row, f + j - 6] += a * J[0, j] + b * J[1, j] + c * J[2, j]
    a, b = weigh(w, J[0, 13], J[1, 13])
    s[last] += a * r[0] + b * r[1]
    S[last, last] += a * J[0, 13] + b * J[1, 13]
    C = x * J[0, 12] + y * J[1, 12] + z * z
    return C, x * r[0] + y * r[1] + z * r[2], x * J[0, 13] + y * J[1, 13]


@njit(**COMPILED)
def eliminate(E, columns, m, inv, g, Ef, S, s):
    """Take one inverse depth out of the upper triangle of S and out of s."""
    last = len(s) - 1
    for a in range(m):
        fa = columns[a]
        for i in range(6):
            x = E[a, i] * inv
            if x == 0.0:
                continue
            s[fa + i] -= x * g
            S[fa + i, last] -= x * Ef
            for j in range(i, 6):
                S[fa + i, fa + j] -= x * E[a, j]
            for b in range(m):
                fb = columns[b]
                if fb > fa:
                    for j in range(6):
                        S[fa + i, fb + j] -= x * E[b, j]
    S[last, last] -= Ef * Ef * inv
    s[last] -= Ef * g * inv


@njit(**COMPILED)
def global_system(
    cam, rays, host, poses, rho, start, frame, uv, info, logd, logd_info, prior, prior_info, scales,
    damping, S, s,
):  # fmt: skip
    """Add every site's Schur complement to the upper triangle of S (D, D) and to s (D).

    A keyframe has 6 columns; the last column is log focal.
    """
    J, r, w = np.empty((3, 14)), np.empty(3), np.empty(3)
    room = workspace()
    E = np.empty((MAX_SEEN + 1, 6))
    columns = np.empty(MAX_SEEN + 1, np.int64)
    for n in range(len(rho)):
        m = start[n + 1] - start[n] + 1
        E[:m] = 0.0
        columns[0] = 6 * host[n]
        e = math.log(rho[n] / prior[n])
        C, g, Ef = prior_info[n] / rho[n] ** 2, prior_info[n] * e / rho[n], 0.0
        for a in range(1, m):
            k = start[n] + a - 1
            columns[a] = 6 * frame[k]
            if site_rows(
                cam, rays[n], rho[n], poses[frame[k]], poses[host[n]], uv[k], info[k], logd[k], logd_info[k],
                scales, room, J, r, w,
            ):  # fmt: skip
                more = add_pair(J, r, w, columns[0], columns[a], S, s, E[0], E[a])
                C, g, Ef = C + more[0], g + more[1], Ef + more[2]
        if C > 1e-12:
            eliminate(E, columns, m, 1.0 / (C * (1.0 + damping)), g, Ef, S, s)


@njit(**COMPILED)
def move_sites(
    cam, rays, host, poses, rho, start, frame, uv, info, logd, logd_info, prior, prior_info, scales,
    damping, step, out, rho_info,
):  # fmt: skip
    """Write the inverse depths (N) that belong to a step (D) of poses and focal, and their information (N).

    Poses and focal are those before the step.
    """
    last = len(step) - 1
    J, r, w = np.empty((3, 14)), np.empty(3), np.empty(3)
    room = workspace()
    for n in range(len(rho)):
        h = 6 * host[n]
        C, g = prior_info[n] / rho[n] ** 2, prior_info[n] * math.log(rho[n] / prior[n]) / rho[n]
        for k in range(start[n], start[n + 1]):
            f = 6 * frame[k]
            if not site_rows(
                cam, rays[n], rho[n], poses[frame[k]], poses[host[n]], uv[k], info[k], logd[k], logd_info[k],
                scales, room, J, r, w,
            ):  # fmt: skip
                continue
            u, v, d = r[0], r[1], r[2]
            for i in range(6):
                u += J[0, i] * step[h + i] + J[0, 6 + i] * step[f + i]
                v += J[1, i] * step[h + i] + J[1, 6 + i] * step[f + i]
                d += J[2, i] * step[h + i] + J[2, 6 + i] * step[f + i]
            u += J[0, 13] * step[last]
            v += J[1, 13] * step[last]
            a, b = weigh(w, J[0, 12], J[1, 12])
            g += a * u + b * v + J[2, 12] * d
            C += a * J[0, 12] + b * J[1, 12] + J[2, 12] ** 2
        rho_info[n] = C
        if C <= 1e-12:
            out[n] = rho[n]
            continue
        change = -g / (C * (1.0 + damping))
        limit = 0.5 * rho[n]
        out[n] = max(rho[n] + min(max(change, -limit), limit), 1e-6)


@njit(**COMPILED)
def settle(
    cam, rays, host, poses, rho, start, frame, uv, info, logd, logd_info, prior, prior_info,
    scales, iterations, rho_info,
):  # fmt: skip
    """Fit the inverse depths (N, in place) with all cameras held; ``rho_info`` receives their information.

    Gauss–Newton on each site by itself, the step bounded to half of what there is.
    """
    R, t, q = np.empty((3, 3)), np.empty(3), np.empty(3)
    for n in range(len(rho)):
        value = rho[n]
        for _ in range(iterations):
            C = prior_info[n] / value**2
            g = prior_info[n] * math.log(value / prior[n]) / value
            for k in range(start[n], start[n + 1]):
                relate(poses[frame[k]], poses[host[n]], R, t)
                carry(R, t, rays[n], value, q)
                if q[2] < 1e-4:
                    continue
                x, y = q[0] / q[2], q[1] / q[2]
                ru, rv = cam[0] * x + cam[2] - uv[k, 0], cam[1] * y + cam[3] - uv[k, 1]
                ju = cam[0] * (t[0] - x * t[2]) / q[2]
                jv = cam[1] * (t[1] - y * t[2]) / q[2]
                a, b = weigh(info[k], ju, jv)
                w = robust(square(info[k], ru, rv), scales[0])
                C += w * (a * ju + b * jv)
                g += w * (a * ru + b * rv)
                if logd_info[k] > 0.0:
                    e = math.log(q[2] / value) - logd[k]
                    j = t[2] / q[2] - 1.0 / value
                    w = logd_info[k] * robust(logd_info[k] * e * e, scales[1])
                    C += w * j * j
                    g += w * j * e
            rho_info[n] = C
            if C <= 1e-12:
                break
            limit = 0.5 * value
            value = max(value + min(max(-g / C, -limit), limit), 1e-6)
        rho[n] = value

# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of one rigid camera motion in a dense flow: both robust fits, and what remains of a flow.

Points are pixels relative to the principal point: ``start`` and ``end`` (n, 2), with ``information`` (n,), the inverse
variance of a flow per axis. ``R`` and ``t`` take points of the first camera to the second; ``focal`` is in the same
pixels. float64.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.geometry._kernels_algebra import so3_exp, solve_positive
from stream4d.geometry.compiling import COMPILED

MEDIAN_OF_ONE, MEDIAN_OF_TWO = 0.455, 1.386
"""Medians of χ² with one and with two degrees of freedom: the median error says how much 1σ is too small."""


@njit(**COMPILED)
def _weight(sq, scale):
    """Return the Geman–McClure weight of a squared error in σ²."""
    w = scale / (scale + sq)
    return w * w


@njit(**COMPILED)
def rotation_system(start, end, information, R, focal, scale, A, g, square):
    """Write the normal equations ``A`` (3, 3), ``g`` (3) of a left rotation vector, and squared errors (n,) in σ²."""
    A[:], g[:] = 0.0, 0.0
    J = np.empty((2, 3))
    for n in range(len(start)):
        a, b = start[n, 0] / focal, start[n, 1] / focal
        z = R[2, 0] * a + R[2, 1] * b + R[2, 2]
        if z < 1e-3:
            square[n] = math.inf
            continue
        x = (R[0, 0] * a + R[0, 1] * b + R[0, 2]) / z
        y = (R[1, 0] * a + R[1, 1] * b + R[1, 2]) / z
        u, v = end[n, 0] - focal * x, end[n, 1] - focal * y
        square[n] = information[n] * (u * u + v * v)
        w = _weight(square[n], scale) * information[n]
        J[0, 0], J[0, 1], J[0, 2] = -focal * x * y, focal * (1 + x * x), -focal * y
        J[1, 0], J[1, 1], J[1, 2] = -focal * (1 + y * y), focal * x * y, focal * x
        for i in range(3):
            g[i] += w * (J[0, i] * u + J[1, i] * v)
            for j in range(3):
                A[i, j] += w * (J[0, i] * J[0, j] + J[1, i] * J[1, j])


@njit(**COMPILED)
def _turn(phi, R):
    """Apply a left rotation vector."""
    dR = np.empty((3, 3))
    so3_exp(phi, dR)
    for j in range(3):
        a, b, c = R[0, j], R[1, j], R[2, j]
        for i in range(3):
            R[i, j] = dR[i, 0] * a + dR[i, 1] * b + dR[i, 2] * c


@njit(**COMPILED)
def fit_rotation(start, end, information, focal, rounds, R):
    """Improve the rotation that explains most of the flow, one step per round; ``rounds`` are robust scales in σ²."""
    A, g, square = np.empty((3, 3)), np.empty(3), np.empty(len(start))
    spread = 1.0
    for scale in rounds:
        rotation_system(start, end, information, R, focal, scale * spread, A, g, square)
        spread = max(1.0, np.median(square) / MEDIAN_OF_TWO)
        floor = 1e-9 * (A[0, 0] + A[1, 1] + A[2, 2] + 1e-9)
        for i in range(3):
            A[i, i] += floor
        if not solve_positive(A, g):
            return
        _turn(g, R)


@njit(**COMPILED)
def _sampson(E, a, b, c, d):
    """Return the Sampson distance of the rays (a, b, 1) and (c, d, 1), and the length of its gradient."""
    p = E[0, 0] * a + E[0, 1] * b + E[0, 2]
    q = E[1, 0] * a + E[1, 1] * b + E[1, 2]
    r = E[2, 0] * a + E[2, 1] * b + E[2, 2]
    s = E[0, 0] * c + E[1, 0] * d + E[2, 0]
    t = E[0, 1] * c + E[1, 1] * d + E[2, 1]
    length = math.sqrt(p * p + q * q + s * s + t * t) + 1e-12
    return (c * p + d * q + r) / length, length


@njit(**COMPILED)
def essential(R, t, E):
    """Write [t]× R."""
    for j in range(3):
        E[0, j] = t[1] * R[2, j] - t[2] * R[1, j]
        E[1, j] = t[2] * R[0, j] - t[0] * R[2, j]
        E[2, j] = t[0] * R[1, j] - t[1] * R[0, j]


@njit(**COMPILED)
def epipolar_system(start, end, information, R, t, tangent, focal, scale, A, g, square):
    """Write the normal equations ``A`` (6, 6), ``g`` (6) of the Sampson distances in pixels; their squares in σ² (n,).

    Unknowns: left rotation vector, step of ``t`` along both rows of ``tangent`` (2, 3), change of log focal.
    """
    E, J = np.empty((3, 3)), np.empty(6)
    essential(R, t, E)
    A[:], g[:] = 0.0, 0.0
    wider = 1.0 + 1e-5
    for n in range(len(start)):
        a, b = start[n, 0] / focal, start[n, 1] / focal
        c, d = end[n, 0] / focal, end[n, 1] / focal
        distance, length = _sampson(E, a, b, c, d)
        r = focal * distance
        square[n] = information[n] * r * r
        w = _weight(square[n], scale) * information[n]
        # the first camera's ray in the second's axes
        x = R[0, 0] * a + R[0, 1] * b + R[0, 2]
        y = R[1, 0] * a + R[1, 1] * b + R[1, 2]
        z = R[2, 0] * a + R[2, 1] * b + R[2, 2]
        # e = end · (t × q): its gradient is (q·t) end - (q·end) t for the rotation, q × end for t
        k, qt, qe = focal / length, x * t[0] + y * t[1] + z * t[2], x * c + y * d + z
        J[0], J[1], J[2] = k * (qt * c - qe * t[0]), k * (qt * d - qe * t[1]), k * (qt - qe * t[2])
        m0, m1, m2 = y - z * d, z * c - x, x * d - y * c
        for i in range(2):
            J[3 + i] = k * (tangent[i, 0] * m0 + tangent[i, 1] * m1 + tangent[i, 2] * m2)
        moved, _ = _sampson(E, a / wider, b / wider, c / wider, d / wider)
        J[5] = (wider * focal * moved - r) / 1e-5
        for i in range(6):
            g[i] -= w * J[i] * r
            for j in range(i + 1):
                A[i, j] += w * J[i] * J[j]
    for i in range(6):
        for j in range(i):
            A[j, i] = A[i, j]


@njit(**COMPILED)
def tangent_plane(t, out):
    """Write two unit vectors (2, 3) that are perpendicular to ``t``, of unit length, and to each other."""
    k = 0
    for i in range(1, 3):
        if abs(t[i]) < abs(t[k]):
            k = i
    i, j = (k + 1) % 3, (k + 2) % 3
    length = math.sqrt(t[i] * t[i] + t[j] * t[j])
    out[0, k], out[0, i], out[0, j] = 0.0, t[j] / length, -t[i] / length  # t × axis k
    for i in range(3):
        a, b = (i + 1) % 3, (i + 2) % 3
        out[1, i] = t[a] * out[0, b] - t[b] * out[0, a]


@njit(**COMPILED)
def _step(R, t, tangent, step, focal):
    """Apply an update of ``epipolar_system``, of bounded length; return the focal length."""
    _turn(step[:3], R)
    a, b = min(max(step[3], -0.5), 0.5), min(max(step[4], -0.5), 0.5)
    length = 0.0
    for i in range(3):
        t[i] += a * tangent[0, i] + b * tangent[1, i]
        length += t[i] * t[i]
    for i in range(3):
        t[i] /= math.sqrt(length)
    return focal * math.exp(min(max(step[5], -0.3), 0.3))


@njit(**COMPILED)
def fit_motion(start, end, information, R, t, state, rounds, A, square):
    """Improve a motion in place, one step per round; ``rounds`` are robust scales in σ².

    ``state`` (4): the focal length and the spread, by how much σ² is too small, both also improved; the focal length's
    first guess and the information of its logarithm, infinite where it is known. ``A`` (6, 6) and ``square`` (n) are
    the last normal equations and squared errors.
    """
    tangent, g, damped = np.empty((2, 3)), np.empty(6), np.empty((6, 6))
    for scale in rounds:
        tangent_plane(t, tangent)
        scale *= state[1]
        epipolar_system(start, end, information, R, t, tangent, state[0], scale, A, g, square)
        state[1] = max(1.0, np.median(square) / MEDIAN_OF_ONE)
        if math.isinf(state[3]):
            A[5, :], A[:, 5], g[5], A[5, 5] = 0.0, 0.0, 0.0, 1.0
        else:
            prior = state[3] * state[1]
            A[5, 5] += prior
            g[5] -= prior * math.log(state[0] / state[2])
        damped[:] = A
        for i in range(6):
            damped[i, i] += 1e-4 * A[i, i] + 1e-9
        if not solve_positive(damped, g):
            return
        state[0] = _step(R, t, tangent, g, state[0])


@njit(**COMPILED)
def baseline_moments(start, end, information, R, focal, M):
    """Write Σ w n nᵀ of the normals n = end × R start, whose least eigenvector is the best ``t`` for this rotation."""
    M[:] = 0.0
    for n in range(len(start)):
        a, b = start[n, 0] / focal, start[n, 1] / focal
        c, d = end[n, 0] / focal, end[n, 1] / focal
        x = R[0, 0] * a + R[0, 1] * b + R[0, 2]
        y = R[1, 0] * a + R[1, 1] * b + R[1, 2]
        z = R[2, 0] * a + R[2, 1] * b + R[2, 2]
        p, q, r = d * z - y, x - c * z, c * y - d * x
        w = information[n]
        M[0, 0] += w * p * p
        M[0, 1] += w * p * q
        M[0, 2] += w * p * r
        M[1, 1] += w * q * q
        M[1, 2] += w * q * r
        M[2, 2] += w * r * r
    M[1, 0], M[2, 0], M[2, 1] = M[0, 1], M[0, 2], M[1, 2]


@njit(**COMPILED)
def _finite(x):
    """Return zero for what float32 cannot hold."""
    return x if abs(x) < 3e38 else 0.0


@njit(**COMPILED)
def remains(flow, R, t, focal, centre, out):
    """Write what a rigid motion leaves of a flow (2, h, w): ``out`` (4, h, w).

    Sampson distance, length of the flow without rotation (both in pixels), parallax along the epipolar line in pixels
    (positive in front of the camera), and its inverse depth where ``t`` has length 1; zeros where a flow is broken.
    """
    h, w = flow.shape[1:]
    E = np.empty((3, 3))
    essential(R, t, E)
    for i in range(h):
        b = (i - centre[1]) / focal
        for j in range(w):
            a = (j - centre[0]) / focal
            c, d = a + flow[0, i, j] / focal, b + flow[1, i, j] / focal
            distance, _ = _sampson(E, a, b, c, d)
            x = R[0, 0] * a + R[0, 1] * b + R[0, 2]
            y = R[1, 0] * a + R[1, 1] * b + R[1, 2]
            z = max(R[2, 0] * a + R[2, 1] * b + R[2, 2], 1e-3)
            x, y = x / z, y / z
            u, v = c - x, d - y
            # where the point goes as its inverse depth grows: along (t - t_z p), by 1 / (1 + rho t_z)
            p, q = t[0] - t[2] * x, t[1] - t[2] * y
            length = math.sqrt(p * p + q * q) + 1e-9
            along = (u * p + v * q) / length
            below = length - along * t[2]
            out[0, i, j] = _finite(focal * abs(distance))
            out[1, i, j] = _finite(focal * math.sqrt(u * u + v * v))
            out[2, i, j] = _finite(focal * along)
            out[3, i, j] = _finite(z * along / below if below > 1e-6 else 0.0)

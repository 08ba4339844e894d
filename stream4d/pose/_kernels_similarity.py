# mypy: disable-error-code="no-untyped-def"
"""Kernels of the group Sim(3): logarithm, relative similarity, adjoint, steps.

A similarity is ``[scale * R | t]`` as (3, 4). Tangents are (rho, phi, sigma) and move it from the right: ``S exp(xi)``.
Numba's cache notices edits in a kernel's own file only: after a change here delete ``pose/__pycache__``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.geometry._kernels_algebra import so3_exp
from stream4d.geometry.compiling import COMPILED

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
"""Exact to rounding for rotations up to π and scales up to e: the integrand is entire."""


@njit(**COMPILED)
def _cross(a, b, out):
    out[0] = a[1] * b[2] - a[2] * b[1]
    out[1] = a[2] * b[0] - a[0] * b[2]
    out[2] = a[0] * b[1] - a[1] * b[0]


@njit(**COMPILED)
def _rotation_vector(R, out):
    """Write the logarithm of a rotation, angle in [0, π]."""
    out[0] = 0.5 * (R[2, 1] - R[1, 2])
    out[1] = 0.5 * (R[0, 2] - R[2, 0])
    out[2] = 0.5 * (R[1, 0] - R[0, 1])
    sine = math.sqrt(out[0] * out[0] + out[1] * out[1] + out[2] * out[2])
    cosine = 0.5 * (R[0, 0] + R[1, 1] + R[2, 2] - 1.0)
    angle = math.atan2(sine, cosine)
    if sine > 1e-6:
        for i in range(3):
            out[i] *= angle / sine
    elif cosine < 0.0:  # half a turn: the axis is the largest column of R + 1
        k = 0
        for i in range(1, 3):
            if R[i, i] > R[k, k]:
                k = i
        length = math.sqrt(2.0 * (R[k, k] + 1.0))
        for i in range(3):
            out[i] = angle * (R[i, k] + (1.0 if i == k else 0.0)) / length


@njit(**COMPILED)
def _solve3(A, b, out):
    """Write A⁻¹ b by Cramer's rule."""
    c0 = A[1, 1] * A[2, 2] - A[1, 2] * A[2, 1]
    c1 = A[1, 2] * A[2, 0] - A[1, 0] * A[2, 2]
    c2 = A[1, 0] * A[2, 1] - A[1, 1] * A[2, 0]
    det = A[0, 0] * c0 + A[0, 1] * c1 + A[0, 2] * c2
    out[0] = (
        b[0] * c0
        + A[0, 1] * (A[1, 2] * b[2] - A[2, 2] * b[1])
        + A[0, 2] * (b[1] * A[2, 1] - A[1, 1] * b[2])
    ) / det
    out[1] = (
        A[0, 0] * (b[1] * A[2, 2] - A[1, 2] * b[2])
        + b[0] * c1
        + A[0, 2] * (A[1, 0] * b[2] - b[1] * A[2, 0])
    ) / det
    out[2] = (
        A[0, 0] * (A[1, 1] * b[2] - b[1] * A[2, 1])
        + A[0, 1] * (b[1] * A[2, 0] - A[1, 0] * b[2])
        + b[0] * c2
    ) / det


@njit(**COMPILED)
def similarity_log(S, out):
    """Write the (7,) logarithm of a (3, 4) similarity."""
    det = (
        S[0, 0] * (S[1, 1] * S[2, 2] - S[1, 2] * S[2, 1])
        - S[0, 1] * (S[1, 0] * S[2, 2] - S[1, 2] * S[2, 0])
        + S[0, 2] * (S[1, 0] * S[2, 1] - S[1, 1] * S[2, 0])
    )
    scale = det ** (1.0 / 3.0)
    phi, W, R = np.empty(3), np.zeros((3, 3)), np.empty((3, 3))
    _rotation_vector(S[:, :3] / scale, phi)
    sigma = math.log(scale)
    for k in range(len(_NODES)):
        so3_exp(phi * _NODES[k], R)
        W += _WEIGHTS[k] * math.exp(sigma * _NODES[k]) * R
    _solve3(W, S[:, 3], out[:3])
    out[3:6] = phi
    out[6] = sigma


@njit(**COMPILED)
def between(A, B, out):
    """Write A⁻¹ B of two (3, 4) similarities."""
    sq = A[0, 0] * A[0, 0] + A[1, 0] * A[1, 0] + A[2, 0] * A[2, 0]
    for i in range(3):
        for j in range(4):
            total = 0.0
            for k in range(3):
                total += A[k, i] * (B[k, j] - (A[k, 3] if j == 3 else 0.0))
            out[i, j] = total / sq


@njit(**COMPILED)
def adjoint_of(S, out):
    """Write the 7×7 with ``S exp(xi) S⁻¹ = exp(out xi)``."""
    sq = S[0, 0] * S[0, 0] + S[1, 0] * S[1, 0] + S[2, 0] * S[2, 0]
    scale = math.sqrt(sq)
    out[:] = 0.0
    column, crossed = np.empty(3), np.empty(3)
    for j in range(3):
        for i in range(3):
            column[i] = S[i, j] / scale
        _cross(S[:, 3], column, crossed)
        for i in range(3):
            out[i, j] = S[i, j]
            out[3 + i, 3 + j] = column[i]
            out[i, 3 + j] = crossed[i]
    for i in range(3):
        out[i, 6] = -S[i, 3]
    out[6, 6] = 1.0


@njit(**COMPILED)
def inverse_right_jacobian(r, out):
    """Write 1 + ad/2 + ad²/12: ``log(exp(r) exp(xi)) ≈ r + out xi``."""
    ad = np.zeros((7, 7))
    for i in range(3):
        ad[i, i] = r[6]
        ad[i, 6] = -r[i]
    for top, v in ((0, 3), (3, 3)):
        ad[top, top + 1] -= r[v + 2]
        ad[top, top + 2] += r[v + 1]
        ad[top + 1, top] += r[v + 2]
        ad[top + 1, top + 2] -= r[v]
        ad[top + 2, top] -= r[v + 1]
        ad[top + 2, top + 1] += r[v]
    ad[0, 4], ad[0, 5], ad[1, 5] = -r[2], r[1], -r[0]
    ad[1, 3], ad[2, 3], ad[2, 4] = r[2], -r[1], r[0]
    for i in range(7):
        for j in range(7):
            total = 0.0
            for k in range(7):
                total += ad[i, k] * ad[k, j]
            out[i, j] = 0.5 * ad[i, j] + total / 12.0
        out[i, i] += 1.0


@njit(**COMPILED)
def add_product(A, B, sign, out, transposed):
    """Add ``sign * A B`` (or ``Aᵀ B``) of 7×7 matrices."""
    for i in range(7):
        for j in range(7):
            total = 0.0
            for k in range(7):
                total += (A[k, i] if transposed else A[i, k]) * B[k, j]
            out[i, j] += sign * total


@njit(**COMPILED)
def move_similarity(S, xi):
    """Apply a right tangent: rotation and scale by exp, translation to first order, which is a valid retraction."""
    R = np.empty((3, 3))
    so3_exp(xi[3:6], R)
    grow = math.exp(xi[6])
    for i in range(3):
        a, b, c = S[i, 0], S[i, 1], S[i, 2]
        S[i, 3] += a * xi[0] + b * xi[1] + c * xi[2]
        for j in range(3):
            S[i, j] = grow * (a * R[0, j] + b * R[1, j] + c * R[2, j])

# mypy: disable-error-code="no-untyped-def"
"""What the kernels of the pose chain share: reading an image, relating cameras, weighing residuals.

Kernels see arrays and scalars only; callers check and allocate. Shared words: ``cam`` is (fx, fy, cx, cy); poses are
camera-from-world as (n, 3, 4); a patch is a ray with z = 1 in its host camera and an inverse depth ``rho``, so that
``q = R (dir + rho * centre) + rho * t`` is rho times the point in another camera. Numba's cache notices edits in a
kernel's own file only: after a change here delete ``pose/__pycache__`` (a test tells).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from stream4d.geometry._kernels_algebra import so3_exp
from stream4d.geometry.compiling import COMPILED


@njit(**COMPILED)
def bilinear(image, u, v):
    x, y = int(u), int(v)
    fx, fy = u - x, v - y
    top = image[y, x] * (1.0 - fx) + image[y, x + 1] * fx
    bottom = image[y + 1, x] * (1.0 - fx) + image[y + 1, x + 1] * fx
    return top * (1.0 - fy) + bottom * fy


@njit(**COMPILED)
def relate(P, Q, R, t):
    """Write the camera-P-from-camera-Q rotation and translation of two camera-from-world poses."""
    for i in range(3):
        for j in range(3):
            R[i, j] = P[i, 0] * Q[j, 0] + P[i, 1] * Q[j, 1] + P[i, 2] * Q[j, 2]
    for i in range(3):
        t[i] = P[i, 3] - R[i, 0] * Q[0, 3] - R[i, 1] * Q[1, 3] - R[i, 2] * Q[2, 3]


@njit(**COMPILED)
def carry(R, t, ray, rho, q):
    """Write q = R ray + rho t."""
    for i in range(3):
        q[i] = R[i, 0] * ray[0] + R[i, 1] * ray[1] + R[i, 2] * ray[2] + rho * t[i]


@njit(**COMPILED)
def move_pose(pose, xi):
    """Apply a left twist: rotation by exp, translation to first order, which is a valid retraction."""
    dR = np.empty((3, 3))
    so3_exp(xi[3:6], dR)
    for j in range(4):
        a, b, c = pose[0, j], pose[1, j], pose[2, j]
        for i in range(3):
            pose[i, j] = dR[i, 0] * a + dR[i, 1] * b + dR[i, 2] * c
    for i in range(3):
        pose[i, 3] += xi[i]


@njit(**COMPILED)
def robust(sq, scale_sq):
    """Return the Geman–McClure weight of a squared error in σ²; scale_sq anneals from large to small (GNC)."""
    w = scale_sq / (scale_sq + sq)
    return w * w


@njit(**COMPILED)
def square(info, u, v):
    """Return the squared error in σ² of a residual; ``info`` is (xx, xy, yy) of its inverse covariance."""
    return u * u * info[0] + 2.0 * u * v * info[1] + v * v * info[2]


@njit(**COMPILED)
def weigh(info, u, v):
    return info[0] * u + info[1] * v, info[1] * u + info[2] * v

# mypy: disable-error-code="no-untyped-def"
"""What the kernels of the pose chain share: reading an image, relating cameras, weighing residuals.

Kernels see arrays and scalars only; callers check and allocate. Shared words: ``cam`` is (fx, fy, cx, cy); poses are
camera-from-world as (n, 3, 4); a patch is a ray with z = 1 in its host camera and an inverse depth ``rho``, so that
``q = R (dir + rho * centre) + rho * t`` is rho times the point in another camera. Numba's cache notices edits in a
kernel's own file only: after a change here delete ``pose/__pycache__`` (a test tells).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def bilinear(image, u, v):
    x, y = int(u), int(v)
    fx, fy = u - x, v - y
    top = image[y, x] * (1.0 - fx) + image[y, x + 1] * fx
    bottom = image[y + 1, x] * (1.0 - fx) + image[y + 1, x + 1] * fx
    return top * (1.0 - fy) + bottom * fy


@njit(cache=True, nogil=True)
def relate(P, Q, R, t):
    """Write the camera-P-from-camera-Q rotation and translation of two camera-from-world poses."""
    for i in range(3):
        for j in range(3):
            R[i, j] = P[i, 0] * Q[j, 0] + P[i, 1] * Q[j, 1] + P[i, 2] * Q[j, 2]
    for i in range(3):
        t[i] = P[i, 3] - R[i, 0] * Q[0, 3] - R[i, 1] * Q[1, 3] - R[i, 2] * Q[2, 3]


@njit(cache=True, nogil=True)
def carry(R, t, ray, rho, q):
    """Write q = R ray + rho t."""
    for i in range(3):
        q[i] = R[i, 0] * ray[0] + R[i, 1] * ray[1] + R[i, 2] * ray[2] + rho * t[i]


@njit(cache=True, nogil=True)
def so3_exp(phi, out):
    """Write Rodrigues' rotation of ``phi`` into ``out``."""
    x, y, z = phi[0], phi[1], phi[2]
    sq = x * x + y * y + z * z
    if sq < 1e-12:
        a, b = 1.0 - sq / 6.0, 0.5 - sq / 24.0
    else:
        angle = math.sqrt(sq)
        a, b = math.sin(angle) / angle, (1.0 - math.cos(angle)) / sq
    out[0, 0], out[0, 1], out[0, 2] = 1 - b * (y * y + z * z), b * x * y - a * z, b * x * z + a * y
    out[1, 0], out[1, 1], out[1, 2] = b * x * y + a * z, 1 - b * (x * x + z * z), b * y * z - a * x
    out[2, 0], out[2, 1], out[2, 2] = b * x * z - a * y, b * y * z + a * x, 1 - b * (x * x + y * y)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def robust(sq, scale_sq):
    """Return the Geman–McClure weight of a squared error in σ²; scale_sq anneals from large to small (GNC)."""
    w = scale_sq / (scale_sq + sq)
    return w * w


@njit(cache=True, nogil=True)
def square(info, u, v):
    """Return the squared error in σ² of a residual; ``info`` is (xx, xy, yy) of its inverse covariance."""
    return u * u * info[0] + 2.0 * u * v * info[1] + v * v * info[2]


@njit(cache=True, nogil=True)
def weigh(info, u, v):
    return info[0] * u + info[1] * v, info[1] * u + info[2] * v


@njit(cache=True, nogil=True)
def factorise(A):
    """Overwrite the upper triangle of A, symmetric positive, with its Cholesky factor; False where it is not positive.

    Rows are contiguous, zeros are skipped. A library's threads would cost more than they save, and numba's own
    ``np.linalg`` needs scipy.
    """
    n = len(A)
    for k in range(n):
        if not A[k, k] > 0.0:
            return False
        pivot = 1.0 / math.sqrt(A[k, k])
        for j in range(k, n):
            A[k, j] *= pivot
        for i in range(k + 1, n):
            f = A[k, i]
            if f != 0.0:
                for j in range(i, n):
                    A[i, j] -= f * A[k, j]
    return True


@njit(cache=True, nogil=True)
def substitute(A, b):
    """Overwrite b with the solution, A from ``factorise``."""
    n = len(b)
    for k in range(n):
        b[k] /= A[k, k]
        for j in range(k + 1, n):
            b[j] -= A[k, j] * b[k]
    for k in range(n - 1, -1, -1):
        for j in range(k + 1, n):
            b[k] -= A[k, j] * b[j]
        b[k] /= A[k, k]


@njit(cache=True, nogil=True)
def solve_positive(A, b):
    """Overwrite b (n,) with A⁻¹ b, and A with its factor; False where A is not positive."""
    if not factorise(A):
        return False
    substitute(A, b)
    return True


@njit(cache=True, nogil=True)
def solve_columns(A, B):
    """Overwrite B (n, m) with A⁻¹ B, and A with its factor; False where A is not positive."""
    if not factorise(A):
        return False
    for c in range(B.shape[1]):
        substitute(A, B[:, c])
    return True

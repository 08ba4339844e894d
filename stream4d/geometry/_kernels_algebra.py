# mypy: disable-error-code="no-untyped-def"
"""Small linear algebra inside other kernels: rotations and symmetric positive systems.

Numba's cache notices edits in a kernel's own file only: after a change here delete the ``__pycache__`` of those who
import it (a test tells).
"""

from __future__ import annotations

import math

from numba import njit

from stream4d.geometry.compiling import COMPILED


@njit(**COMPILED)
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


@njit(**COMPILED)
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


@njit(**COMPILED)
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


@njit(**COMPILED)
def solve_positive(A, b):
    """Overwrite b (n,) with A⁻¹ b, and A with its factor; False where A is not positive."""
    if not factorise(A):
        return False
    substitute(A, b)
    return True


@njit(**COMPILED)
def solve_columns(A, B):
    """Overwrite B (n, m) with A⁻¹ B, and A with its factor; False where A is not positive."""
    if not factorise(A):
        return False
    for c in range(B.shape[1]):
        substitute(A, B[:, c])
    return True

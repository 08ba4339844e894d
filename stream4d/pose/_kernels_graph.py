# mypy: disable-error-code="no-untyped-def"
"""Kernels of the pose graph: errors of edges, the Gauss–Newton system, elimination along the chain.

Similarities and tangents are those of ``_kernels_similarity``; an edge (a, b) measures a-from-b.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from stream4d.geometry._kernels_algebra import solve_columns
from stream4d.geometry.compiling import COMPILED
from stream4d.pose._kernels_similarity import (
    add_product,
    adjoint_of,
    between,
    inverse_right_jacobian,
    similarity_log,
)


@njit(**COMPILED)
def edge_error(poses, a, b, measured, error, expected):
    """Write the (7,) error log(measured⁻¹ Sa⁻¹ Sb) and the expected Sa⁻¹ Sb."""
    difference = np.empty((3, 4))
    between(poses[a], poses[b], expected)
    between(measured, expected, difference)
    similarity_log(difference, error)


@njit(**COMPILED)
def edge_costs(poses, edges, measured, information, chi):
    """Write the squared Mahalanobis length (E,) of all edges' errors."""
    error, expected = np.empty(7), np.empty((3, 4))
    for e in range(len(edges)):
        edge_error(poses, edges[e, 0], edges[e, 1], measured[e], error, expected)
        chi[e] = 0.0
        for i in range(7):
            for j in range(7):
                chi[e] += error[i] * information[e, i, j] * error[j]


@njit(**COMPILED)
def _add_weighted(M, v, out):
    """Add Mᵀ v; written out, since ``@`` in a kernel would need scipy."""
    for i in range(7):
        for j in range(7):
            out[i] += M[j, i] * v[j]


@njit(**COMPILED)
def edge_system(poses, edges, measured, information, weight, free, D, off, g):
    """Add the Gauss–Newton system: diagonal blocks D (n, 7, 7), off-diagonal ``off`` (E, 7, 7), gradient g (n, 7).

    Nodes that are not free take part in no block. ``weight`` (E,) are the robust weights.
    """
    error, expected, inverse = np.empty(7), np.empty((3, 4)), np.empty((3, 4))
    unit = np.zeros((3, 4))
    unit[0, 0] = unit[1, 1] = unit[2, 2] = 1.0
    Jb, Ja, adjoint = np.empty((7, 7)), np.empty((7, 7)), np.empty((7, 7))
    info, half = np.empty((7, 7)), np.empty((7, 7))
    for e in range(len(edges)):
        a, b = edges[e]
        edge_error(poses, a, b, measured[e], error, expected)
        inverse_right_jacobian(error, Jb)
        between(expected, unit, inverse)
        adjoint_of(inverse, adjoint)
        Ja[:] = 0.0
        add_product(Jb, adjoint, -1.0, Ja, False)
        for i in range(7):
            for j in range(7):
                info[i, j] = weight[e] * information[e, i, j]
        half[:] = 0.0
        add_product(info, Jb, 1.0, half, False)
        if free[b]:
            add_product(Jb, half, 1.0, D[b], True)
            _add_weighted(half, error, g[b])
        if free[a] and free[b]:
            add_product(Ja, half, 1.0, off[e], True)
        if free[a]:
            half[:] = 0.0
            add_product(info, Ja, 1.0, half, False)
            add_product(Ja, half, 1.0, D[a], True)
            _add_weighted(half, error, g[a])


@njit(**COMPILED)
def reduce_chain(D, B, g, junction, dense, rhs, solved):
    """Eliminate all nodes but the junctions from a block-tridiagonal system.

    ``B`` (n, 7, 7) couples node i with i + 1; ``junction`` (n,) numbers the nodes that stay, −1 elsewhere; the first
    and the last node are junctions. Adds what remains to ``dense`` (7J, 7J) and ``rhs`` (7J); ``solved`` (n, 7, 15)
    keeps what ``expand_chain`` needs. Overwrites D and g. Returns False where a block is not positive.
    """
    left, n = 0, len(D)
    C = B[0].copy()  # couples the junction on the left with the node in hand
    for i in range(1, n):
        if junction[i] >= 0:
            r, c = 7 * junction[left], 7 * junction[i]
            dense[r : r + 7, c : c + 7] += C
            dense[c : c + 7, r : r + 7] += C.T
            left = i
            C = B[i].copy()
            continue
        block = solved[i]
        block[:, :7] = B[i]
        block[:, 7:14] = C.T
        block[:, 14] = g[i]
        if not solve_columns(D[i], block):
            return False
        add_product(B[i], block[:, :7], -1.0, D[i + 1], True)
        add_product(C, block[:, 7:14], -1.0, D[left], False)
        for r in range(7):
            for c in range(7):
                g[i + 1, r] -= B[i, c, r] * block[c, 14]
                g[left, r] -= C[r, c] * block[c, 14]
        carried = np.zeros((7, 7))
        add_product(C, block[:, :7], -1.0, carried, False)
        C = carried
    for i in range(n):
        if junction[i] >= 0:
            r = 7 * junction[i]
            dense[r : r + 7, r : r + 7] += D[i]
            rhs[r : r + 7] += g[i]
    return True


@njit(**COMPILED)
def expand_chain(solved, junction, at_junctions, x):
    """Write the solution x (n, 7) at all nodes from that at the junctions (7J,)."""
    n = len(x)
    left = np.empty(n, np.int64)
    for i in range(n):
        left[i] = i if junction[i] >= 0 else left[i - 1]
        if junction[i] >= 0:
            x[i] = at_junctions[7 * junction[i] : 7 * junction[i] + 7]
    for i in range(n - 1, -1, -1):
        if junction[i] >= 0:
            continue
        for r in range(7):
            total = solved[i, r, 14]
            for c in range(7):
                total -= solved[i, r, c] * x[i + 1, c] + solved[i, r, 7 + c] * x[left[i], c]
            x[i, r] = total

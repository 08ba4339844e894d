# mypy: disable-error-code="no-untyped-def"
"""Numba kernel of the completion of dense maps (words as in ``_kernels_parts.py``)."""

from __future__ import annotations

from numba import njit

from stream4d.geometry.compiling import VECTORISED


@njit(**VECTORISED)
def relax(sums, weight, across, down, over, sweeps, out):
    """Do sweeps of successive over-relaxation on ``out`` (h, w): every second cell, then the others.

    Lowers the sum of weight · (out - sums / weight)² and of the conductances times the squared differences of
    neighbours: ``across[i, j]`` lies between columns j - 1 and j, ``down[i, j]`` between rows i - 1 and i.
    """
    h, w = out.shape
    for sweep in range(2 * sweeps):
        for i in range(h):
            for j in range((i + sweep) & 1, w, 2):
                total, pull = weight[i, j], sums[i, j]
                if j > 0:
                    total += across[i, j]
                    pull += across[i, j] * out[i, j - 1]
                if j < w - 1:
                    total += across[i, j + 1]
                    pull += across[i, j + 1] * out[i, j + 1]
                if i > 0:
                    total += down[i, j]
                    pull += down[i, j] * out[i - 1, j]
                if i < h - 1:
                    total += down[i + 1, j]
                    pull += down[i + 1, j] * out[i + 1, j]
                out[i, j] += over * (pull / total - out[i, j])


@njit(**VECTORISED)
def halve(sums, weight, across, down, half_sums, half_weight, half_across, half_down):
    """Write the same on a grid of half as many cells to each side, rounded up.

    What was measured in four cells adds up; between the middles of two wide cells lie conductors in a row, and two
    such rows side by side.
    """
    h, w = sums.shape
    for i in range(half_sums.shape[0]):
        top, low = 2 * i, min(2 * i + 1, h - 1)
        for j in range(half_sums.shape[1]):
            left, right = 2 * j, min(2 * j + 1, w - 1)
            half_sums[i, j] = half_weight[i, j] = 0.0
            for y in range(top, low + 1):
                for x in range(left, right + 1):
                    half_sums[i, j] += sums[y, x]
                    half_weight[i, j] += weight[y, x]
            before, above = max(left - 1, 0), max(top - 1, 0)
            half_across[i, j] = _in_a_row(
                across[top, before], across[top, left], across[top, right]
            ) + _in_a_row(across[low, before], across[low, left], across[low, right])
            half_down[i, j] = _in_a_row(
                down[above, left], down[top, left], down[low, left]
            ) + _in_a_row(down[above, right], down[top, right], down[low, right])


@njit(**VECTORISED)
def _in_a_row(a, b, c):
    """Return what conducts through half of ``a``, ``b``, and half of ``c``."""
    return 1.0 / (0.5 / a + 1.0 / b + 0.5 / c)

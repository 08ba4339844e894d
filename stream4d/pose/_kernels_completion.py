# mypy: disable-error-code="no-untyped-def"
"""Numba kernel of the completion of dense maps (words as in ``_kernels_parts.py``)."""

from __future__ import annotations

from numba import njit

from stream4d.geometry.compiling import VECTORISED


@njit(**VECTORISED)
def relax(sums, weight, across, down, over, out):
    """Do one sweep of successive over-relaxation on ``out`` (h, w): every second cell, then the others.

    Lowers the sum of weight · (out - sums / weight)² and of the conductances times the squared differences of
    neighbours: ``across[i, j]`` lies between columns j - 1 and j, ``down[i, j]`` between rows i - 1 and i.
    """
    h, w = out.shape
    for colour in range(2):
        for i in range(h):
            for j in range((i + colour) & 1, w, 2):
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

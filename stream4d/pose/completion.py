"""Completion of dense maps: what was measured spreads along surfaces into what was not.

A membrane is hung on the measurements: the sum of their weighted squared errors and of the squared differences of
neighbours, times what conducts between them (Levin, Lischinski, Weiss, "Colorization using optimization", 2004, with
the measurements' own weights). Solved from coarse to fine (cascadic multigrid, Bornemann & Deuflhard 1996).
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.pose import _kernels_completion

LEVELS = 5
"""Grids, each half as fine as the one before: the coarsest cell is 16 pixels wide."""
SWEEPS, OVER_RELAXATION = 6, 1.6
"""Sweeps on each grid, and how far each goes beyond the balance of a cell's neighbours."""
LEAST_CONDUCTANCE = 1e-3
"""Even an island whose edges let nothing pass takes the value of what surrounds it."""


class _Level(NamedTuple):
    """One grid: all (h, w)."""

    sums: Array
    weight: Array
    across: Array
    down: Array


def complete(value: Array, weight: Array, across: Array, down: Array) -> Array:
    """Return the map (h, w) that keeps near ``value`` where that has ``weight`` and varies little elsewhere.

    ``across[i, j]`` is what conducts between columns j - 1 and j, ``down[i, j]`` between rows i - 1 and i, in units of
    the weights.
    """
    levels = [_Level(value * weight, weight, across + LEAST_CONDUCTANCE, down + LEAST_CONDUCTANCE)]
    while len(levels) < LEVELS and min(levels[-1].weight.shape) >= 8:
        levels.append(_coarser(levels[-1]))
    top = levels[-1]
    out = np.full(top.weight.shape, top.sums.sum() / max(float(top.weight.sum()), 1e-12))
    for level in reversed(levels):
        if out.shape != level.weight.shape:
            out = cv2.resize(out, level.weight.shape[::-1], interpolation=cv2.INTER_LINEAR)
        _kernels_completion.relax(*level, OVER_RELAXATION, SWEEPS, out)
    return np.asarray(out)


def _coarser(level: _Level) -> _Level:
    """Halve the grid."""
    h, w = level.weight.shape
    coarse = _Level(*np.empty((4, -(-h // 2), -(-w // 2))))
    _kernels_completion.halve(*level, *coarse)
    return coarse

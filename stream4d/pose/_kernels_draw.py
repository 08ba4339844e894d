# mypy: disable-error-code="no-untyped-def"
"""Numba kernels between the image, (H, W), and the grid of every ``step``-th pixel, (h, w)."""

from __future__ import annotations

import numpy as np
from numba import njit

from stream4d.geometry.compiling import VECTORISED


@njit(**VECTORISED)
def gradient_moments(grey, step, out):
    """Write the means of the gradient's products (xx, xy, yy) over each pixel's cell of the grid, ``out`` (3, h, w).

    Gradients are central differences of a grey image; the image's border has none.
    """
    H, W = grey.shape
    sums, size = np.empty((3, W), np.float32), np.float32(step * step)
    half = np.float32(0.5)
    for i in range(out.shape[1]):
        sums[:] = np.float32(0)
        for y in range(max(i * step, 1), min((i + 1) * step, H - 1)):
            top, row, low = grey[y - 1], grey[y], grey[y + 1]
            for x in range(1, W - 1):
                gx = half * (np.float32(row[x + 1]) - np.float32(row[x - 1]))
                gy = half * (np.float32(low[x]) - np.float32(top[x]))
                sums[0, x] += gx * gx
                sums[1, x] += gx * gy
                sums[2, x] += gy * gy
        for k in range(3):
            for j in range(out.shape[2]):
                out[k, i, j] = sums[k, j * step : (j + 1) * step].sum() / size


@njit(**VECTORISED)
def _widen(values, step, out):
    """Read a map (h, w) at every pixel of its rows, linearly, into ``out`` (h, W)."""
    h, w = values.shape
    one, W = np.float32(1), out.shape[1]
    for i in range(h):
        for j in range(w):
            left, right = values[i, j], values[i, min(j + 1, w - 1)]
            for x in range(j * step, min((j + 1) * step, W)):
                part = np.float32(x - j * step) / np.float32(step)
                out[i, x] = (one - part) * left + part * right


@njit(**VECTORISED)
def enlarge(values, step, out):
    """Read a float32 map of the grid (h, w) at every pixel, bilinearly, into ``out`` (H, W)."""
    wide = np.empty((values.shape[0], out.shape[1]), np.float32)
    _widen(values, step, wide)
    for y in range(out.shape[0]):
        i, part = y // step, np.float32(y % step) / np.float32(step)
        top, low, row = wide[i], wide[min(i + 1, len(wide) - 1)], out[y]
        for x in range(len(row)):
            row[x] = (np.float32(1) - part) * top[x] + part * low[x]


@njit(**VECTORISED)
def along(slope, offset, guide, step, out):
    """Write ``slope * guide + offset`` of an image (H, W), its coefficients on the grid (h, w), all float32."""
    steep, level = np.empty_like(out), np.empty_like(out)
    enlarge(slope, step, steep)
    enlarge(offset, step, level)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            out[y, x] = steep[y, x] * guide[y, x] + level[y, x]

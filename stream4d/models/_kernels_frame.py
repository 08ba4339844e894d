# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of the temporal model for one frame: its normalised image, bounded sums, points of a depth map.

They are fused twins of torch expressions, for inference on a CPU, as those of ``_kernels_flow.py``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.geometry.compiling import VECTORISED
from stream4d.models._kernels_flow import CELL, exponentials

BLOCK = 512
"""Values that are worked on together in the nearest cache."""


@njit(**VECTORISED)
def squash(values, added):
    """Replace values (N), bits of bfloat16, by tanh(value + added), the sum in float32."""
    sums, e = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bits, words = sums.view(np.int32), e.view(np.int32)
    one = np.float32(1)
    for start in range(0, len(values), BLOCK):
        n = min(BLOCK, len(values) - start)
        first, second = values[start : start + n], added[start : start + n]
        for i in range(n):
            bits[i] = np.int32(first[i]) << 16
            words[i] = np.int32(second[i]) << 16
        for i in range(n):
            sums[i] += e[i]
            e[i] = np.float32(-2) * abs(sums[i])
        exponentials(e, n)
        for i in range(n):
            e[i] = math.copysign((one - e[i]) / (one + e[i]), sums[i])
        for i in range(n):
            first[i] = np.uint16((words[i] + 0x7FFF + ((words[i] >> 16) & 1)) >> 16)


@njit(**VECTORISED)
def normalise_frame(image, grey, patches, colour):
    """Bring the grey mean of an image (H, W, 3) to zero and its deviation to one: ``grey`` (H, W).

    ``patches`` (H/4, W/4, 48) takes the colours of each cell, normalised alike, channel by channel; ``colour``
    (3, H/4, W/4) the cells' mean colours as they are.
    """
    H, W, _ = image.shape
    total, squares = 0.0, 0.0
    third = np.float32(1 / 3)
    for y in range(H):
        row, square = 0.0, 0.0
        for x in range(W):
            value = (image[y, x, 0] + image[y, x, 1] + image[y, x, 2]) * third
            grey[y, x] = value
            row += value
            square += (value - np.float32(0.5)) ** np.int32(2)  # near the mean: nothing cancels
        total += row
        squares += square
    mean = total / (H * W)
    deviation = np.sqrt(max(squares / (H * W) - (mean - 0.5) ** 2, 0.0))
    gain, shift = np.float32(1 / (deviation + 1e-3)), np.float32(mean)
    for y in range(H):
        for x in range(W):
            grey[y, x] = (grey[y, x] - shift) * gain
    share = np.float32(1 / CELL**2)
    for y in range(H // CELL):
        for x in range(W // CELL):
            for c in range(3):
                total32 = np.float32(0)
                for v in range(CELL):
                    for u in range(CELL):
                        value = image[CELL * y + v, CELL * x + u, c]
                        total32 += value
                        patches[y, x, CELL**2 * c + CELL * v + u] = (value - shift) * gain
                colour[c, y, x] = total32 * share


@njit(**VECTORISED)
def lift(depth, rays, origin, out):
    """Lift a depth map (H, W) to points (H, W, 3): depth · rays (3, 3) (x, y, 1)ᵀ + origin (3)."""
    H, W = depth.shape
    for y in range(H):
        for c in range(3):
            start, step = rays[c, 1] * np.float32(y) + rays[c, 2], rays[c, 0]
            for x in range(W):
                out[y, x, c] = depth[y, x] * (start + step * np.float32(x)) + origin[c]

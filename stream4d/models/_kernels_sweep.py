# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of the epipolar sweep: census, costs along epipolar lines, semi-global aggregation, the winner.

Costs are (H, W, L) with the L steps along a pixel's line innermost: the loops over them have no branches and run on
vectors of 16-bit integers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

RADIUS = 3
"""Of the census window: 7×7 pixels without the middle are 48 bits."""
OUTSIDE = np.int16(20)
"""Cost of a pixel that is out of view: a bit less than that of a random one (24)."""
FAR = np.int16(1 << 12)
"""More than any path of costs reaches."""
BEHIND = np.float32(1e-3)


@njit(cache=True, nogil=True, error_model="numpy")
def census(grey, out):
    """Write which of a pixel's 48 neighbours are brighter as bits: ``grey`` (H, W) uint8, ``out`` (H, W) uint64."""
    H, W = grey.shape
    for y in range(H):
        for x in range(W):
            middle, bits = grey[y, x], np.uint64(0)
            for dy in range(-RADIUS, RADIUS + 1):
                row = min(max(y + dy, 0), H - 1)
                for dx in range(-RADIUS, RADIUS + 1):
                    if dy != 0 or dx != 0:
                        brighter = grey[row, min(max(x + dx, 0), W - 1)] > middle
                        bits = (bits << np.uint64(1)) | np.uint64(brighter)
            out[y, x] = bits


@njit(cache=True, nogil=True, inline="always")
def count_ones(bits):
    """Return the number of ones among 64 bits (Warren, Hacker's Delight, 5-1)."""
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    pairs = np.uint64(0x3333333333333333)
    bits = (bits & pairs) + ((bits >> np.uint64(2)) & pairs)
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (bits * np.uint64(0x0101010101010101)) >> np.uint64(56)


@njit(cache=True, nogil=True, error_model="numpy")
def line_costs(first, second, M, t, steps, out):
    """Compare each pixel with those along its epipolar line: ``out`` (H, W, L) int16, bits that differ.

    Args:
        first, second: census (H, W) of both images.
        M, t: K R K⁻¹ and K t of second_from_first, float32: pixel (x, y) lies at M (x, y, 1) + w t for inverse depth w.
        steps: (L,) float32 inverse depths, in units of 1 / |t|.
    """
    H, W = first.shape
    L = len(steps)
    half = np.float32(0.5)
    for y in range(H):
        fy = np.float32(y)
        for x in range(W):
            fx = np.float32(x)
            px = M[0, 0] * fx + M[0, 1] * fy + M[0, 2]
            py = M[1, 0] * fx + M[1, 1] * fy + M[1, 2]
            pz = M[2, 0] * fx + M[2, 1] * fy + M[2, 2]
            own, row = first[y, x], out[y, x]
            for k in range(L):
                z = pz + steps[k] * t[2]
                u, v = (px + steps[k] * t[0]) / z + half, (py + steps[k] * t[1]) / z + half
                cost = OUTSIDE
                if z > BEHIND and u >= 0 and v >= 0 and u < W and v < H:
                    cost = np.int16(count_ones(own ^ second[int(v), int(u)]))
                row[k] = cost


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _go_on(before, cost, contrast, small, large, after, total):
    """Take a path one pixel on: ``after`` = ``cost`` + the cheapest way from ``before``; both (L + 2,), FAR ends."""
    L = len(cost)
    least = before[1]
    for k in range(2, L + 1):
        least = min(least, before[k])
    jump = np.int16(max(small + 1, large * 8 // (8 + contrast)))
    for k in range(L):
        near = np.int16(min(before[k], before[k + 2]) + small)
        way = min(min(before[k + 1], near), np.int16(least + jump))
        value = np.int16(cost[k] + way - least)
        after[k + 1] = value
        total[k] += value


@njit(cache=True, nogil=True, error_model="numpy")
def aggregate(costs, grey, small, large, out):
    """Add up the cheapest paths to every pixel and step from left, right, above and below (Hirschmüller 2008, eq. 13).

    ``costs`` and ``out`` (H, W, L) int16, ``out`` zero before; ``small`` (int16) is paid for one step of change between
    neighbours, ``large`` for more, less where the image ``grey`` (H, W) uint8 changes too.
    """
    H, W, L = costs.shape
    path = np.full((2, W, L + 2), FAR, np.int16)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        for j in range(H):
            y = H - 1 - j if dy < 0 else j
            for i in range(W):
                x = W - 1 - i if dx < 0 else i
                is_first = i == 0 if dx != 0 else j == 0
                old, new = path[(i + 1) % 2, 0], path[i % 2, 0]
                if dx == 0:
                    old, new = path[(j + 1) % 2, x], path[j % 2, x]
                if is_first:
                    for k in range(L):
                        new[k + 1] = costs[y, x, k]
                        out[y, x, k] += costs[y, x, k]
                else:
                    contrast = np.int16(abs(np.int16(grey[y, x]) - np.int16(grey[y - dy, x - dx])))
                    _go_on(old, costs[y, x], contrast, small, large, new, out[y, x])


@njit(cache=True, nogil=True, error_model="numpy")
def cheapest(costs, M, t, steps, out):
    """Write the flow (H, W, 2) to the cheapest step, between steps by a parabola; see ``line_costs``."""
    H, W, L = costs.shape
    apart = steps[1] - steps[0]
    for y in range(H):
        for x in range(W):
            row = costs[y, x]
            best = 0
            for k in range(1, L):
                if row[k] < row[best]:
                    best = k
            w = steps[best]
            if 0 < best < L - 1:
                left, right = np.float32(row[best - 1]), np.float32(row[best + 1])
                bend = left + right - np.float32(2) * np.float32(row[best])
                if bend > 0:
                    w += np.float32(0.5) * (left - right) / bend * apart
            fx, fy = np.float32(x), np.float32(y)
            z = max(M[2, 0] * fx + M[2, 1] * fy + M[2, 2] + w * t[2], BEHIND)
            out[y, x, 0] = (M[0, 0] * fx + M[0, 1] * fy + M[0, 2] + w * t[0]) / z - fx
            out[y, x, 1] = (M[1, 0] * fx + M[1, 1] * fy + M[1, 2] + w * t[1]) / z - fy


@njit(cache=True, nogil=True, error_model="numpy")
def costs_of_flow(first, second, flow, out):
    """Write how many census bits differ along a flow (H, W, 2), to the nearest pixel: ``out`` (H, W) float32."""
    H, W = first.shape
    for y in range(H):
        for x in range(W):
            u, v = flow[y, x, 0] + np.float32(x + 0.5), flow[y, x, 1] + np.float32(y + 0.5)
            out[y, x] = OUTSIDE
            if u >= 0 and v >= 0 and u < W and v < H:
                out[y, x] = count_ones(first[y, x] ^ second[int(v), int(u)])

# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of the temporal model: flow fields and feature maps of one direction of a frame pair.

They are the fused twins of torch expressions, for inference on a CPU (``fused.py`` calls them; ``sampling.py``,
``matching.py``, ``flow_net.py`` and ``flow_propagation.py`` hold the expressions). Maps are float32; (h, w, C) keeps
channels together.
Inner loops run over pixels, sub-pixels or channels without branches, so that the compiler can use vectors.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.geometry.compiling import VECTORISED

ZERO, ONE = np.float32(0), np.float32(1)
LOG2_E = np.float32(1.4426950408889634)
LOWEST = np.float32(-87)
C0, C1, C2, C3, C4, C5 = (
    np.float32(c)
    for c in (0.999999923, 0.693142171, 0.240171588, 0.055278135, 0.00918687438, 0.000938116473)
)
CELL = 4
"""Pixels along the side of a cell: maps of features are at a quarter of the resolution."""


@njit(**VECTORISED, inline="always")
def exponentials(x, n):
    """Replace the first n values of ``x``, all ≤ 0, by their exponentials.

    2^f by a polynomial on (-1, 0] (relative error 8e-8), 2^k by adding k to the bits of the exponent. Unlike calls of
    the C library, this runs on vectors.
    """
    bits = x.view(np.int32)
    for i in range(n):
        t = max(x[i], LOWEST) * LOG2_E
        k = np.int32(t)
        f = t - np.float32(k)
        x[i] = C0 + f * (C1 + f * (C2 + f * (C3 + f * (C4 + f * C5))))
        bits[i] += k << 23


@njit(**VECTORISED)
def trust_of_cells(flow, back, grey, other, limits, out):
    """Sum up per cell how far a flow (H, W, 2) can be trusted: ``out`` (5, H/4, W/4).

    Its maps: trust, likeness of the images (``grey`` and, at the flow's end, ``other``, (H, W) each), their difference,
    mean flow (2). ``back`` is the flow of the other direction; ``limits``: pixels and share of the length by which a
    round trip may miss, contrast.
    """
    H, W = grey.shape
    trip, alike, apart = np.empty(W, np.float32), np.empty(W, np.float32), np.empty(W, np.float32)
    seen = np.empty(W, np.float32)
    right, bottom = np.float32(W - 1), np.float32(H - 1)
    share = np.float32(1 / CELL**2)
    out[:] = ZERO
    for y in range(H):
        row = y // CELL
        for x in range(W):
            u, v = flow[y, x, 0], flow[y, x, 1]
            px, py = np.float32(x) + u, np.float32(y) + v
            ax, ay = min(max(px, ZERO), right), min(max(py, ZERO), bottom)
            seen[x] = ONE if ax == px and ay == py else ZERO
            x0, y0 = np.int32(ax), np.int32(ay)
            x1, y1 = min(x0 + 1, W - 1), min(y0 + 1, H - 1)
            fx, fy = ax - np.float32(x0), ay - np.float32(y0)
            w01, w10, w11 = fx * (ONE - fy), (ONE - fx) * fy, fx * fy
            w00 = (ONE - fx) * (ONE - fy)
            du = u + w00 * back[y0, x0, 0] + w01 * back[y0, x1, 0]
            du += w10 * back[y1, x0, 0] + w11 * back[y1, x1, 0]
            dv = v + w00 * back[y0, x0, 1] + w01 * back[y0, x1, 1]
            dv += w10 * back[y1, x0, 1] + w11 * back[y1, x1, 1]
            g = (
                w00 * other[y0, x0]
                + w01 * other[y0, x1]
                + w10 * other[y1, x0]
                + w11 * other[y1, x1]
            )
            limit = limits[0] + limits[1] * np.sqrt(u * u + v * v)
            trip[x] = -(du * du + dv * dv) / (limit * limit)
            apart[x] = abs(g - grey[y, x])
            alike[x] = -((apart[x] / limits[2]) ** np.int32(2))
        exponentials(trip, W)
        exponentials(alike, W)
        for cell in range(W // CELL):
            for x in range(CELL * cell, CELL * cell + CELL):
                like = alike[x] * seen[x] * share
                out[0, row, cell] += trip[x] * like
                out[1, row, cell] += like
                out[2, row, cell] += apart[x] * share
                out[3, row, cell] += flow[y, x, 0] * share
                out[4, row, cell] += flow[y, x, 1] * share


@njit(**VECTORISED)
def roughness(flow, mean_u, mean_v, out):
    """Measure how much a flow (H, W, 2) varies inside each cell around its smooth mean: ``out`` (H/4, W/4).

    The mean over a cell of log(1 + |du| + |dv|), du and dv against the bilinear interpolation of the cells' means.
    """
    h, w = out.shape
    product = np.empty(w)
    row_u, row_v = np.empty(w, np.float32), np.empty(w, np.float32)
    for cy in range(h):
        product[:] = 1.0
        for sy in range(CELL):
            away = np.float32((sy + 0.5) / CELL - 0.5)
            near = max(cy - 1, 0) if away < 0 else min(cy + 1, h - 1)
            away = abs(away)
            for cx in range(w):
                row_u[cx] = mean_u[cy, cx] + away * (mean_u[near, cx] - mean_u[cy, cx])
                row_v[cx] = mean_v[cy, cx] + away * (mean_v[near, cx] - mean_v[cy, cx])
            y = CELL * cy + sy
            for sx in range(CELL):
                side = np.float32((sx + 0.5) / CELL - 0.5)
                step = -1 if side < 0 else 1
                side = abs(side)
                for cx in range(w):
                    n = min(max(cx + step, 0), w - 1)
                    du = flow[y, CELL * cx + sx, 0] - row_u[cx] - side * (row_u[n] - row_u[cx])
                    dv = flow[y, CELL * cx + sx, 1] - row_v[cx] - side * (row_v[n] - row_v[cx])
                    product[cx] *= ONE + abs(du) + abs(dv)
        for cx in range(w):
            out[cy, cx] = math.log(product[cx]) / CELL**2


@njit(**VECTORISED)
def likeness(colour, dilation, scale, out):
    """Compare each cell's colour (3, h, w) with its 3×3 neighbours at a distance: ``out`` (9, h, w), 0 outside."""
    _, h, w = colour.shape
    gain = np.float32(1 / (3 * scale))
    out[:] = ZERO
    out[4] = ONE
    for k in range(4):  # the other four are the same pairs, seen from the other end
        dy, dx = (k // 3 - 1) * dilation, (k % 3 - 1) * dilation
        first, last = max(0, -dx), min(w, w - dx)
        if first >= last:
            continue
        for y in range(max(0, -dy), min(h, h - dy)):
            row = out[k, y, first:last]
            for x in range(first, last):
                apart = abs(colour[0, y + dy, x + dx] - colour[0, y, x])
                apart += abs(colour[1, y + dy, x + dx] - colour[1, y, x])
                apart += abs(colour[2, y + dy, x + dx] - colour[2, y, x])
                apart *= gain
                row[x - first] = -apart * apart
            exponentials(row, last - first)
            out[8 - k, y + dy, first + dx : last + dx] = row


@njit(**VECTORISED)
def spread(affinity, dilation, cells, own, weight, mended):
    """Run one pass of propagation in place: ``weight`` (h, w) and ``mended`` (2, h, w).

    ``affinity`` (9, h, w) is that of the distance; ``cells`` (5, h, w) as ``trust_of_cells`` gives them; ``own`` is the
    weight of a cell's first flow.
    """
    _, h, w = affinity.shape
    packed, sums = np.empty((3, h, w), np.float32), np.zeros((3, h, w), np.float32)
    for y in range(h):
        for x in range(w):
            packed[0, y, x] = weight[y, x] * mended[0, y, x]
            packed[1, y, x] = weight[y, x] * mended[1, y, x]
            packed[2, y, x] = weight[y, x]
    for k in range(9):
        dy, dx = (k // 3 - 1) * dilation, (k % 3 - 1) * dilation
        for y in range(max(0, -dy), min(h, h - dy)):
            for x in range(max(0, -dx), min(w, w - dx)):
                a = affinity[k, y, x]
                sums[0, y, x] += a * packed[0, y + dy, x + dx]
                sums[1, y, x] += a * packed[1, y + dy, x + dx]
                sums[2, y, x] += a * packed[2, y + dy, x + dx]
    for y in range(h):
        for x in range(w):
            trust, kept = cells[0, y, x], np.float32(9) * own * cells[1, y, x]
            arriving = (ONE - trust) / (sums[2, y, x] + kept)
            for i in range(2):
                start = cells[3 + i, y, x]
                mended[i, y, x] = trust * start + arriving * (sums[i, y, x] + kept * start)
            weight[y, x] = max(trust, min(sums[2, y, x] / np.float32(9), ONE))


@njit(**VECTORISED)
def missed_trips(flow, back, out):
    """Write the length by which going along ``flow`` (2, h, w) and back misses the start; beyond the view is zero."""
    _, h, w = flow.shape
    for y in range(h):
        for x in range(w):
            u, v = flow[0, y, x], flow[1, y, x]
            du, dv = u, v
            px, py = np.float32(x) + u, np.float32(y) + v
            if px > -ONE and py > -ONE and px < w and py < h:
                x0, y0 = math.floor(px), math.floor(py)
                for cy in range(max(y0, 0), min(y0 + 2, h)):
                    wy = ONE - abs(py - np.float32(cy))
                    for cx in range(max(x0, 0), min(x0 + 2, w)):
                        share = wy * (ONE - abs(px - np.float32(cx)))
                        du += share * back[0, cy, cx]
                        dv += share * back[1, cy, cx]
            out[y, x] = np.sqrt(max(du * du + dv * dv, np.float32(1e-12)))


@njit(**VECTORISED)
def follow(target, flow, room, out):
    """Sample ``target`` (h, w, C) at each cell plus its flow (2, h, w), zeros beyond the view.

    ``out`` (h + 2 room, w + 2 room, C) has a margin of zeros.
    """
    h, w, C = target.shape
    out[:] = ZERO
    for y in range(h):
        for x in range(w):
            px, py = np.float32(x) + flow[0, y, x], np.float32(y) + flow[1, y, x]
            if not (px > -ONE and py > -ONE and px < w and py < h):
                continue
            x0, y0 = math.floor(px), math.floor(py)
            for cy in range(max(y0, 0), min(y0 + 2, h)):
                wy = ONE - abs(py - np.float32(cy))
                for cx in range(max(x0, 0), min(x0 + 2, w)):
                    share = wy * (ONE - abs(px - np.float32(cx)))
                    for c in range(C):
                        out[y + room, x + room, c] += share * target[cy, cx, c]


@njit(**VECTORISED)
def correlate(start, moved, out):
    """Correlate each cell of ``start`` (h, w, C) with its neighbours in ``moved`` (h + 2r, w + 2r, C).

    ``out`` (h, w, (2r+1)² + 1): a quarter of each dot product, and last the mean absolute difference.
    """
    h, w, C = start.shape
    room = (moved.shape[0] - h) // 2
    side = 2 * room + 1
    for y in range(h):
        for x in range(w):
            for k in range(side * side):
                near = moved[y + k // side, x + k % side]
                dot = ZERO
                for c in range(C):
                    dot += start[y, x, c] * near[c]
                out[y, x, k] = dot / np.float32(4)
            apart = ZERO
            for c in range(C):
                apart += abs(start[y, x, c] - moved[y + room, x + room, c])
            out[y, x, side * side] = apart / np.float32(C)

# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of the temporal model: a flow at a quarter of the resolution, brought to the whole.

They are fused twins of torch expressions, for inference on a CPU, as those of ``_kernels_flow.py``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from stream4d.geometry.compiling import VECTORISED
from stream4d.models._kernels_flow import CELL, ONE, ZERO, exponentials


@njit(**VECTORISED, inline="always")
def blend(weights, v, c, out):
    """Write Σ_k weights[16 k + s] · v[k, c] into ``out`` (16), k the 9 neighbours. Written out: one loop of vectors."""
    v0, v1, v2, v3, v4 = v[0, c], v[1, c], v[2, c], v[3, c], v[4, c]
    v5, v6, v7, v8 = v[5, c], v[6, c], v[7, c], v[8, c]
    for s in range(16):
        upper = weights[s] * v0 + weights[16 + s] * v1 + weights[32 + s] * v2
        middle = weights[48 + s] * v3 + weights[64 + s] * v4 + weights[80 + s] * v5
        out[s] = (
            upper + middle + weights[96 + s] * v6 + weights[112 + s] * v7 + weights[128 + s] * v8
        )


def widen(row, out):
    """Copy a row to float32; bfloat16 comes as the bits of uint16."""
    out[:] = row if row.dtype != np.uint16 else (row.astype(np.uint32) << 16).view(np.float32)


@overload(widen, inline="always")
def _widen(row, out):
    def bfloat16(row, out):
        bits = out.view(np.int32)
        for i in range(len(row)):
            bits[i] = np.int32(row[i]) << 16

    def float32(row, out):
        for i in range(len(row)):
            out[i] = row[i]

    return bfloat16 if row.dtype == types.uint16 else float32


@njit(**VECTORISED, inline="always")
def softmax_of_neighbours(logits, weights, total):
    """Turn the logits of one cell (9 · 16, neighbour by neighbour) into weights over ``total`` (16)."""
    widen(logits, weights)
    for s in range(16):
        top = max(max(weights[s], weights[16 + s]), weights[32 + s])
        top = max(max(top, weights[48 + s]), max(weights[64 + s], weights[80 + s]))
        total[s] = max(max(top, weights[96 + s]), max(weights[112 + s], weights[128 + s]))
    for k in range(9):
        for s in range(16):
            weights[16 * k + s] -= total[s]
    exponentials(weights, 144)
    for s in range(16):
        upper = weights[s] + weights[16 + s] + weights[32 + s]
        middle = weights[48 + s] + weights[64 + s] + weights[80 + s]
        total[s] = upper + middle + weights[96 + s] + weights[112 + s] + weights[128 + s]


@njit(**VECTORISED, inline="always")
def gather(values, y, x, out):
    """Read the 3×3 neighbours in ``values`` (h, w, C) into ``out`` (9, C), the border repeated."""
    h, w, C = values.shape
    for k in range(9):
        ny, nx = min(max(y + k // 3 - 1, 0), h - 1), min(max(x + k % 3 - 1, 0), w - 1)
        for c in range(C):
            out[k, c] = values[ny, nx, c]


@njit(**VECTORISED)
def upsample(logits, values, out):
    """Bring ``values`` (h, w, C) to (C, 4h, 4w) by convex combinations of neighbours: logits (h, w, 144)."""
    h, w, C = values.shape
    weights, near = np.empty(144, np.float32), np.empty((9, C), np.float32)
    total, result = np.empty(16, np.float32), np.empty(16, np.float32)
    for y in range(h):
        for x in range(w):
            softmax_of_neighbours(logits[y, x], weights, total)
            gather(values, y, x, near)
            for c in range(C):
                blend(weights, near, c, result)
                for s in range(16):
                    result[s] /= total[s]
                for v in range(CELL):
                    row = out[c, CELL * y + v, CELL * x : CELL * x + CELL]
                    for u in range(CELL):
                        row[u] = result[CELL * v + u]


@njit(**VECTORISED)
def finish_flow(logits, values, smooth, tent, initial, out, log_sigma):
    """Bring a flow to full resolution: convex upsampling, and the detail of the initial flow where it is trusted.

    ``logits`` (h, w, 144); ``values`` (h, w, 4): the flow and the cells' initial flow, in pixels of the image;
    ``smooth`` (h, w, 3): trust, logit of the detail's gain, log of the error's scale, which are interpolated with
    ``tent`` (144); ``initial`` and ``out`` (H, W, 2); ``log_sigma`` (H, W).
    """
    h, w, _ = values.shape
    weights, total = np.empty(144, np.float32), np.empty(16, np.float32)
    near, even = np.empty((9, 4), np.float32), np.empty((9, 3), np.float32)
    u0, v0, u1, v1 = np.empty((4, 16), np.float32)
    trust, gain, scale = np.empty((3, 16), np.float32)
    for y in range(h):
        for x in range(w):
            softmax_of_neighbours(logits[y, x], weights, total)
            gather(values, y, x, near)
            gather(smooth, y, x, even)
            blend(weights, near, 0, u0)
            blend(weights, near, 1, v0)
            blend(weights, near, 2, u1)
            blend(weights, near, 3, v1)
            blend(tent, even, 0, trust)
            blend(tent, even, 1, scale)
            for s in range(16):
                gain[s] = -abs(scale[s])
            exponentials(gain, 16)
            for s in range(16):
                share = (ONE if scale[s] > ZERO else gain[s]) / (ONE + gain[s])
                gain[s] = trust[s] * share
            blend(tent, even, 2, scale)
            for s in range(16):
                keep = ONE / total[s]
                u0[s] = keep * (u0[s] - gain[s] * u1[s])
                v0[s] = keep * (v0[s] - gain[s] * v1[s])
            for v in range(CELL):
                first = initial[CELL * y + v, CELL * x : CELL * x + CELL]
                last = out[CELL * y + v, CELL * x : CELL * x + CELL]
                row = log_sigma[CELL * y + v, CELL * x : CELL * x + CELL]
                for u in range(CELL):
                    s = CELL * v + u
                    last[u, 0] = u0[s] + gain[s] * first[u, 0]
                    last[u, 1] = v0[s] + gain[s] * first[u, 1]
                    row[u] = scale[s]

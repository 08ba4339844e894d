# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of the temporal model's tokens: heads and their rotation, attention among few keys, pooling.

They are fused twins of torch expressions, for inference on a CPU, as those of ``_kernels_flow.py``. Tokens are
bfloat16: arrays hold their bits as uint16, arithmetic is float32.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from stream4d.models._kernels_flow import COMPILED, exponentials

LANES = 16
"""Values of a vector: maxima are taken lane by lane, which compilers do not see on their own."""
LOW = np.float32(-1e30)


@njit(**COMPILED, inline="always")
def narrow(bits, out, n):
    """Round the first n float32, given as ``bits``, to bfloat16: to the nearest, ties to even."""
    for i in range(n):
        out[i] = np.uint16((bits[i] + 0x7FFF + ((bits[i] >> 16) & 1)) >> 16)


@njit(**COMPILED)
def split_heads(tokens, cos, sin, turned, out):
    """Sort tokens (N, parts · heads · d) into ``out`` (parts, heads, N, d) and rotate the first ``turned`` parts.

    ``cos`` and ``sin`` (N, d) as ``blocks.apply_rope`` has them: each half of d turns its two quarters.
    """
    parts, heads, N, d = out.shape
    quarter = d // 4
    row = np.empty(d, np.float32)
    bits = row.view(np.int32)
    for n in range(N):
        for part in range(parts):
            for head in range(heads):
                start = (part * heads + head) * d
                values = tokens[n, start : start + d]
                if part >= turned:
                    out[part, head, n] = values
                    continue
                for i in range(d):
                    bits[i] = np.int32(values[i]) << 16
                for half in range(0, d, 2 * quarter):
                    for i in range(half, half + quarter):
                        k = i + quarter
                        a, b = row[i], row[k]
                        row[i] = a * cos[n, i] - b * sin[n, i]
                        row[k] = b * cos[n, k] + a * sin[n, k]
                narrow(bits, out[part, head, n], d)


@njit(**COMPILED)
def merge_heads(values, shares, out):
    """Bring heads (heads, N, d), each row times its share (heads, N), together again: ``out`` (N, heads · d)."""
    heads, N, d = values.shape
    row = np.empty(d, np.float32)
    bits = row.view(np.int32)
    for head in range(heads):
        for n in range(N):
            for i in range(d):
                bits[i] = np.int32(values[head, n, i]) << 16
            for i in range(d):
                row[i] *= shares[head, n]
            narrow(bits, out[n, head * d : head * d + d], d)


@njit(**COMPILED)
def pool_tokens(tokens, side, out):
    """Average tokens (h, w, C) over squares of ``side``, smaller ones at the border: ``out`` (h/side, w/side, C)."""
    h, w, C = tokens.shape
    total, value = np.empty(C, np.float32), np.empty(C, np.float32)
    sums, bits = total.view(np.int32), value.view(np.int32)
    for y in range(out.shape[0]):
        bottom = min(side * y + side, h)
        for x in range(out.shape[1]):
            right = min(side * x + side, w)
            total[:] = np.float32(0)
            for v in range(side * y, bottom):
                for u in range(side * x, right):
                    for c in range(C):
                        bits[c] = np.int32(tokens[v, u, c]) << 16
                    for c in range(C):
                        total[c] += value[c]
            share = np.float32(1 / ((bottom - side * y) * (right - side * x)))
            for c in range(C):
                total[c] *= share
            narrow(sums, out[y, x], C)


@njit(**COMPILED)
def weigh(scores, bias, gain, shares):
    """Replace scores (N, M), bits of bfloat16, by exp(gain · score + bias (M)) over their row's maximum.

    ``shares`` (N) takes one over each row's sum, which is what is left of a softmax.
    """
    N, M = scores.shape
    row = np.empty((M + LANES - 1) // LANES * LANES, np.float32)
    bits, tops = row.view(np.int32), np.empty(LANES, np.float32)
    row[M:] = LOW
    for n in range(N):
        for i in range(M):
            bits[i] = np.int32(scores[n, i]) << 16
        for i in range(M):
            row[i] = gain * row[i] + bias[i]
        tops[:] = LOW
        for i in range(0, len(row), LANES):
            for k in range(LANES):
                tops[k] = max(tops[k], row[i + k])
        top = tops[0]
        for k in range(1, LANES):
            top = max(top, tops[k])
        for i in range(M):
            row[i] -= top
        exponentials(row, M)
        total = np.float32(0)
        for i in range(M):
            total += row[i]
        shares[n] = np.float32(1) / total
        narrow(bits, scores[n], M)

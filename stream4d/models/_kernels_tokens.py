# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of the temporal model's tokens: heads and their rotation, attention among few keys, pooling, matching.

They are fused twins of torch expressions, for inference on a CPU, as those of ``_kernels_flow.py``. Tokens are
bfloat16: arrays hold their bits as uint16, arithmetic is float32.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from stream4d.geometry.compiling import VECTORISED
from stream4d.models._kernels_flow import exponentials

LANES = 16
"""Values of a vector: maxima are taken lane by lane, which compilers do not see on their own."""
LOW = np.float32(-1e30)


@njit(**VECTORISED, inline="always")
def narrow(bits, out, n):
    """Round the first n float32, given as ``bits``, to bfloat16: to the nearest, ties to even."""
    for i in range(n):
        out[i] = np.uint16((bits[i] + 0x7FFF + ((bits[i] >> 16) & 1)) >> 16)


@njit(**VECTORISED)
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


@njit(**VECTORISED)
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


@njit(**VECTORISED)
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


@njit(**VECTORISED)
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


@njit(**VECTORISED)
def best_of_rows(scores, top, best):
    """Write the maximum of each row of scores (N, M) and its first index: ``top`` and ``best`` (N)."""
    N, M = scores.shape
    whole = M // LANES * LANES
    tops = np.empty(LANES, np.float32)
    for n in range(N):
        tops[:] = LOW
        for i in range(0, whole, LANES):
            for k in range(LANES):
                tops[k] = max(tops[k], scores[n, i + k])
        highest = LOW
        for k in range(LANES):
            highest = max(highest, tops[k])
        for i in range(whole, M):
            highest = max(highest, scores[n, i])
        i = 0
        while i < M - 1 and scores[n, i] != highest:
            i += 1
        top[n], best[n] = highest, i


@njit(**VECTORISED)
def log_sums(scores, top, across, down):
    """Write logarithms of sums of exponentials of scores (N, M): of rows, ``across`` (N), and of columns, ``down`` (M).

    ``top`` (N): the maxima of the rows.
    """
    N, M = scores.shape
    row, sums = np.empty(M, np.float32), np.zeros(M, np.float32)
    highest = np.empty(M, np.float32)
    highest[:] = scores[0]
    for n in range(1, N):
        for i in range(M):
            highest[i] = max(highest[i], scores[n, i])
    for n in range(N):
        for i in range(M):
            row[i] = scores[n, i] - top[n]
        exponentials(row, M)
        total = np.float32(0)
        for i in range(M):
            total += row[i]
        across[n] = top[n] + np.log(total)
        for i in range(M):
            row[i] = scores[n, i] - highest[i]
        exponentials(row, M)
        for i in range(M):
            sums[i] += row[i]
    for i in range(M):
        down[i] = highest[i] + np.log(sums[i])


@njit(**VECTORISED)
def refine_matches(scores, top, best, across, down, flow, confidence):
    """Refine each row's best column inside the 3×3 cells around it, the border repeated, by a soft-argmax.

    ``flow`` (2, h, w) leads from a row's cell to there; ``confidence`` (h, w) is the dual softmax of the best column.
    """
    _, h, w = flow.shape
    near = np.empty(9, np.float32)
    for n in range(h * w):
        y, x = best[n] // w, best[n] % w
        highest = LOW
        for k in range(9):
            v, u = min(max(y + k // 3 - 1, 0), h - 1), min(max(x + k % 3 - 1, 0), w - 1)
            near[k] = scores[n, v * w + u]
            highest = max(highest, near[k])
        for k in range(9):
            near[k] -= highest
        exponentials(near, 9)
        total, to_x, to_y = np.float32(0), np.float32(0), np.float32(0)
        for k in range(9):
            v, u = min(max(y + k // 3 - 1, 0), h - 1), min(max(x + k % 3 - 1, 0), w - 1)
            total += near[k]
            to_x += near[k] * np.float32(u)
            to_y += near[k] * np.float32(v)
        flow[0, n // w, n % w] = to_x / total - np.float32(n % w)
        flow[1, n // w, n % w] = to_y / total - np.float32(n // w)
        confidence[n // w, n % w] = np.exp(2 * top[n] - across[n] - down[best[n]])

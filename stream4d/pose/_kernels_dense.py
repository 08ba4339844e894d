# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of dense depth and motion (words as in ``_kernels_parts.py``).

They work on a grid of every ``step``-th pixel, (h, w); flow and its 1σ are whole images, (H, W).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.pose._kernels_parts import bilinear

LOST_SIGMA = 4.0
"""1σ of flow, pixels, beyond which a pixel is not followed."""
BEHIND = 0.05
"""Depth over that in the first camera below which a point cannot be seen."""


@njit(cache=True, nogil=True)
def follow_link(flow, sigma, uv, var):
    """Carry positions ``uv`` (h, w, 2) one frame on, and add the flow's variance to ``var`` (h, w); NaN: lost."""
    H, W = sigma.shape
    for i in range(uv.shape[0]):
        for j in range(uv.shape[1]):
            u, v = uv[i, j, 0], uv[i, j, 1]
            s = math.inf
            if u >= 0.0 and v >= 0.0 and u < W - 1.0 and v < H - 1.0:
                s = sigma[int(v + 0.5), int(u + 0.5)]
            if not s < LOST_SIGMA:
                uv[i, j, 0] = uv[i, j, 1] = math.nan
                continue
            uv[i, j, 0] = u + bilinear(flow[:, :, 0], u, v)
            uv[i, j, 1] = v + bilinear(flow[:, :, 1], u, v)
            var[i, j] += s * s


@njit(cache=True, nogil=True)
def _offset(cam, P, a, b, rho, out):
    """Write pixel u, v and its derivative by rho of the ray (a, b, 1) seen from P (3, 4); False: behind it."""
    q2 = P[2, 0] * a + P[2, 1] * b + P[2, 2] + rho * P[2, 3]
    if q2 < BEHIND:
        return False
    m = (P[0, 0] * a + P[0, 1] * b + P[0, 2] + rho * P[0, 3]) / q2
    n = (P[1, 0] * a + P[1, 1] * b + P[1, 2] + rho * P[1, 3]) / q2
    out[0], out[1] = cam[0] * m + cam[2], cam[1] * n + cam[3]
    out[2] = cam[0] * (P[0, 3] - m * P[2, 3]) / q2
    out[3] = cam[1] * (P[1, 3] - n * P[2, 3]) / q2
    return True


@njit(cache=True, nogil=True)
def fit_pixels(cam, poses, uv, var, step, guess, guess_info, nearest, out):
    """Fit one inverse depth in [0, nearest] to all views of each pixel, and say how badly it fits.

    ``poses`` (K, 3, 4) take this camera to the others, which see the pixel at ``uv`` (K, h, w, 2) with variance
    ``var`` (K, h, w); NaN: not seen. ``out`` (5, h, w) receives inverse depth, its information, the squared errors in
    σ² per view, those across the epipolar line per view (both components where there is no baseline), and the number
    of views. Gauss–Newton; the guess counts as one more observation of inverse depth.
    """
    o = np.empty(4)
    for i in range(guess.shape[0]):
        for j in range(guess.shape[1]):
            a, b = (j * step - cam[2]) / cam[0], (i * step - cam[3]) / cam[1]
            rho, total = guess[i, j], guess_info[i, j]
            for _ in range(3):
                total, slope = guess_info[i, j], guess_info[i, j] * (rho - guess[i, j])
                for k in range(len(poses)):
                    u, v = uv[k, i, j, 0], uv[k, i, j, 1]
                    if not math.isnan(u) and _offset(cam, poses[k], a, b, rho, o):
                        total += (o[2] * o[2] + o[3] * o[3]) / var[k, i, j]
                        slope += (o[2] * (o[0] - u) + o[3] * (o[1] - v)) / var[k, i, j]
                rho = min(max(rho - slope / total, 0.0), nearest)
            square = across = 0.0
            count = 0
            for k in range(len(poses)):
                u, v = uv[k, i, j, 0], uv[k, i, j, 1]
                if math.isnan(u) or not _offset(cam, poses[k], a, b, rho, o):
                    continue
                du, dv = o[0] - u, o[1] - v
                length = o[2] * o[2] + o[3] * o[3]
                both, cross = du * du + dv * dv, du * o[3] - dv * o[2]
                square += both / var[k, i, j]
                across += (cross * cross / length if length > 1e-9 else 0.5 * both) / var[k, i, j]
                count += 1
            n = max(count, 1)
            out[0, i, j], out[1, i, j], out[2, i, j] = rho, total, square / n
            out[3, i, j], out[4, i, j] = across / n, count


@njit(cache=True, nogil=True)
def _read_map(image, u, v):
    """Read a map of inverse depth between pixels: bilinear on a surface, nearest at an edge."""
    x, y = int(u), int(v)
    a, b, c, d = image[y, x], image[y, x + 1], image[y + 1, x], image[y + 1, x + 1]
    low, high = min(min(a, b), min(c, d)), max(max(a, b), max(c, d))
    fx, fy = u - x, v - y
    if high > 1.1 * low:
        return image[y + (1 if fy > 0.5 else 0), x + (1 if fx > 0.5 else 0)]
    return (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy


@njit(cache=True, nogil=True)
def carry_maps(cam, P, flow, back, sigma, step, rho, info, logit, out):
    """Bring the maps (h, w) of the frame before to this one; ``out`` (3, h, w): inverse depth, information, log odds.

    ``P`` (3, 4) takes the camera before to this one; ``back`` leads from this frame to that one, ``flow`` and ``sigma``
    from there to here. NaN where a pixel was hidden: the round trip does not close.
    """
    H, W = sigma.shape
    h, w = rho.shape
    for i in range(h):
        for j in range(w):
            out[0, i, j] = out[1, i, j] = out[2, i, j] = math.nan
            bu, bv = back[i * step, j * step, 0], back[i * step, j * step, 1]
            u, v = j * step + bu, i * step + bv
            if not (u >= 0.0 and v >= 0.0 and u < W - 1.0 and v < H - 1.0):
                continue
            gap_u, gap_v = bu + bilinear(flow[:, :, 0], u, v), bv + bilinear(flow[:, :, 1], u, v)
            near = gap_u * gap_u + gap_v * gap_v < 1.0 + 0.01 * (bu * bu + bv * bv)
            if not near or not sigma[int(v + 0.5), int(u + 0.5)] < LOST_SIGMA:
                continue
            x, y = min(u / step, w - 1.001), min(v / step, h - 1.001)
            r = _read_map(rho, x, y)
            a, b = (u - cam[2]) / cam[0], (v - cam[3]) / cam[1]
            z = P[2, 0] * a + P[2, 1] * b + P[2, 2] + r * P[2, 3]
            if z < BEHIND:
                continue
            out[0, i, j] = r / z
            out[1, i, j] = info[int(y + 0.5), int(x + 0.5)] * z * z
            out[2, i, j] = bilinear(logit, x, y)


@njit(cache=True, nogil=True)
def smooth_rows(value, weight, keep):
    """Spread sums of ``value`` and ``weight`` (h, w) along each row, both ways, in place.

    ``keep[i, j]`` in [0, 1] is what passes between pixels j − 1 and j (Gastal & Oliveira, "Domain transform for
    edge-aware image and video processing", 2011, its recursive filter).
    """
    h, w = value.shape
    to_left_v, to_left_w = np.empty(w), np.empty(w)
    for i in range(h):
        v = n = 0.0
        for j in range(w - 1, -1, -1):
            to_left_v[j], to_left_w[j] = v, n  # what comes to j from its right
            v, n = keep[i, j] * (v + value[i, j]), keep[i, j] * (n + weight[i, j])
        v = n = 0.0
        for j in range(w):
            v, n = keep[i, j] * v + value[i, j], keep[i, j] * n + weight[i, j]
            value[i, j], weight[i, j] = v + to_left_v[j], n + to_left_w[j]

# mypy: disable-error-code="no-untyped-def"
"""Numba kernels of dense depth and motion (words as in ``_kernels_parts.py``).

They work on a grid of every ``step``-th pixel, (h, w); flow and its 1σ are whole images, (H, W), but for links.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.geometry.compiling import VECTORISED
from stream4d.pose._kernels_parts import bilinear

LOST_SIGMA = 4.0
"""1σ of flow, pixels, beyond which a pixel is not followed."""
LEAST_OVER_ONE = 1.0 + 1e-9
"""A position is kept so far from the end of a row that there is a pixel after it."""
BEHIND = 0.05
"""Depth over that in the first camera below which a point cannot be seen."""


@njit(**VECTORISED)
def find_doubts(flow, back, sigma, step, out):
    """Write the 1σ of the flow at each pixel of the grid, ``out`` (h, w); infinite: not to be followed.

    That is what has no known flow, and what the other frame's flow ``back`` does not lead home: it is hidden there.
    """
    H, W = sigma.shape
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            s = sigma[i * step, j * step]
            du, dv = flow[i * step, j * step, 0], flow[i * step, j * step, 1]
            u, v = j * step + du, i * step + dv
            if not s < LOST_SIGMA:
                s = math.inf
            elif u >= 0.0 and v >= 0.0 and u < W - 1.0 and v < H - 1.0:
                bu, bv = _read_flow(back, u, v)
                if not _comes_home(du, dv, bu, bv):
                    s = math.inf
            out[i, j] = s


@njit(**VECTORISED)
def follow_link(flow, doubts, step, uv, var):
    """Carry positions ``uv`` (h, w, 2) one frame on, and add the flow's variance to ``var`` (h, w); NaN: lost.

    ``flow`` (h, w, 2) is read between the grid's pixels, ``doubts`` (h, w) are as ``find_doubts`` writes them: both so
    few that they stay in the cache from frame to frame.
    """
    h, w = doubts.shape
    for i in range(h):
        for j in range(w):
            x, y = uv[i, j, 0] / step, uv[i, j, 1] / step
            s = math.inf
            if x >= 0.0 and y >= 0.0 and x <= w - 1.0 and y <= h - 1.0:
                s = doubts[int(y + 0.5), int(x + 0.5)]
            if not s < LOST_SIGMA:
                uv[i, j, 0] = uv[i, j, 1] = math.nan
                continue
            du, dv = _read_flow(flow, min(x, w - LEAST_OVER_ONE), min(y, h - LEAST_OVER_ONE))
            uv[i, j, 0] += du
            uv[i, j, 1] += dv
            var[i, j] += s * s


@njit(**VECTORISED)
def _read_flow(flow, u, v):
    """Read a flow (H, W, 2) between pixels, bilinearly."""
    x, y = int(u), int(v)
    fx, fy = u - x, v - y
    a, b, c, d = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
    top, low = flow[y], flow[y + 1]
    return (
        a * top[x, 0] + b * top[x + 1, 0] + c * low[x, 0] + d * low[x + 1, 0],
        a * top[x, 1] + b * top[x + 1, 1] + c * low[x, 1] + d * low[x + 1, 1],
    )


@njit(**VECTORISED)
def _comes_home(du, dv, bu, bv):
    """Say whether the way back undoes the way there, within a pixel or a tenth of it."""
    u, v = du + bu, dv + bv
    return u * u + v * v < 1.0 + 0.01 * (du * du + dv * dv)


@njit(**VECTORISED)
def _lines(cam, poses, uv, var, a, b, i, j, lines):
    """Write what each view asks of the inverse depth of the ray (a, b, 1), linear in it; returns how many views do.

    A row holds A, B of both components, z0 and z1, and the weight: the error in pixels is (A + rho B) / (z0 + rho z1).
    """
    n = 0
    for k in range(len(poses)):
        u, v = uv[k, i, j, 0] - cam[2], uv[k, i, j, 1] - cam[3]
        if math.isnan(u):
            continue
        P = poses[k]
        z = P[2, 0] * a + P[2, 1] * b + P[2, 2]
        lines[n, 0] = cam[0] * (P[0, 0] * a + P[0, 1] * b + P[0, 2]) - u * z
        lines[n, 1] = cam[0] * P[0, 3] - u * P[2, 3]
        lines[n, 2] = cam[1] * (P[1, 0] * a + P[1, 1] * b + P[1, 2]) - v * z
        lines[n, 3] = cam[1] * P[1, 3] - v * P[2, 3]
        lines[n, 4], lines[n, 5], lines[n, 6] = z, P[2, 3], 1.0 / var[k, i, j]
        n += 1
    return n


@njit(**VECTORISED)
def fit_pixels(cam, poses, uv, var, step, guess, guess_info, nearest, out):
    """Fit one inverse depth in [0, nearest] to all views of each pixel, and say how badly it fits.

    ``poses`` (K, 3, 4) take this camera to the others, which see the pixel at ``uv`` (K, h, w, 2) with variance
    ``var`` (K, h, w); NaN: not seen. ``out`` (5, h, w) receives inverse depth, its information, the squared errors in
    σ² per view, those across the epipolar line per view (both components where there is no baseline), and the number
    of views. The guess counts as one more observation; the errors' common denominators are set from the last round.
    """
    lines = np.empty((len(poses), 7))
    for i in range(guess.shape[0]):
        for j in range(guess.shape[1]):
            a, b = (j * step - cam[2]) / cam[0], (i * step - cam[3]) / cam[1]
            n = _lines(cam, poses, uv, var, a, b, i, j, lines)
            rho, total = guess[i, j], guess_info[i, j]
            for _ in range(2):
                total, slope = guess_info[i, j], -guess_info[i, j] * guess[i, j]
                for k in range(n):
                    z = max(lines[k, 4] + rho * lines[k, 5], BEHIND)
                    w = lines[k, 6] / (z * z)
                    total += w * (lines[k, 1] * lines[k, 1] + lines[k, 3] * lines[k, 3])
                    slope += w * (lines[k, 0] * lines[k, 1] + lines[k, 2] * lines[k, 3])
                rho = min(max(-slope / total, 0.0), nearest)
            square = across = 0.0
            for k in range(n):
                z = max(lines[k, 4] + rho * lines[k, 5], BEHIND)
                du, dv = (
                    (lines[k, 0] + rho * lines[k, 1]) / z,
                    (lines[k, 2] + rho * lines[k, 3]) / z,
                )
                eu, ev = lines[k, 1] - du * lines[k, 5], lines[k, 3] - dv * lines[k, 5]
                length, both, cross = eu * eu + ev * ev, du * du + dv * dv, du * ev - dv * eu
                square += both * lines[k, 6]
                far = length > 1e-9 * cam[0] * cam[0]
                across += (cross * cross / length if far else 0.5 * both) * lines[k, 6]
            out[0, i, j], out[1, i, j], out[2, i, j] = rho, total, square / max(n, 1)
            out[3, i, j], out[4, i, j] = across / max(n, 1), n


@njit(**VECTORISED)
def _read_map(image, u, v):
    """Read a map of inverse depth between pixels: bilinear on a surface, nearest at an edge."""
    x, y = int(u), int(v)
    a, b, c, d = image[y, x], image[y, x + 1], image[y + 1, x], image[y + 1, x + 1]
    low, high = min(min(a, b), min(c, d)), max(max(a, b), max(c, d))
    fx, fy = u - x, v - y
    if high > 1.1 * low:
        return image[y + (1 if fy > 0.5 else 0), x + (1 if fx > 0.5 else 0)]
    return (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy


@njit(**VECTORISED)
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
            fu, fv = _read_flow(flow, u, v)
            if (
                not _comes_home(bu, bv, fu, fv)
                or not sigma[int(v + 0.5), int(u + 0.5)] < LOST_SIGMA
            ):
                continue
            x, y = min(u / step, w - LEAST_OVER_ONE), min(v / step, h - LEAST_OVER_ONE)
            r = _read_map(rho, x, y)
            a, b = (u - cam[2]) / cam[0], (v - cam[3]) / cam[1]
            z = P[2, 0] * a + P[2, 1] * b + P[2, 2] + r * P[2, 3]
            if z < BEHIND:
                continue
            out[0, i, j] = r / z
            out[1, i, j] = info[int(y + 0.5), int(x + 0.5)] * z * z
            out[2, i, j] = bilinear(logit, x, y)


@njit(**VECTORISED)
def passing_rows(flow, grey, flow_gain, grey_gain, loss, out):
    """Write what passes from each pixel's left neighbour, ``out`` (h, w): e to minus ``loss`` and edges.

    Edges are differences of the flow (h, w, 2) and of the image, times their gains; what is NaN has none.
    """
    h, w = grey.shape
    for i in range(h):
        out[i, 0] = 0.0
        for j in range(1, w):
            edge = abs(flow[i, j, 0] - flow[i, j - 1, 0]) + abs(flow[i, j, 1] - flow[i, j - 1, 1])
            edge = flow_gain * edge + grey_gain * abs(grey[i, j] - grey[i, j - 1])
            out[i, j] = math.exp(-loss - (0.0 if math.isnan(edge) else edge))


@njit(**VECTORISED)
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

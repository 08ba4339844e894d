# mypy: disable-error-code="no-untyped-def"
"""Numba kernels that find a patch again in another image (words as in ``_kernels_parts.py``)."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from stream4d.geometry.compiling import VECTORISED
from stream4d.pose._kernels_parts import bilinear, carry, relate

HALF = 5
"""Patches are (2 HALF + 1) pixels wide."""
SIDE = 2 * HALF + 1
ALIKE = 0.6
"""Correlation below which a patch was not found."""
WEAK = 2.0 * SIDE * SIDE
"""Squared gradients summed over a patch, grey levels², below which a direction shows noise only: along a straight
edge a patch is not moved, for it would go anywhere."""


@njit(**VECTORISED)
def sample_template(image, u, v, warp, out):
    """Read a warped (SIDE + 2) square around (u, v) into ``out``; False where it leaves the image."""
    H, W = image.shape
    last = HALF + 1.0
    for i in range(4):  # a parallelogram is inside where its corners are
        dx, dy = last * (1 - 2 * (i % 2)), last * (1 - 2 * (i // 2))
        x = u + warp[0, 0] * dx + warp[0, 1] * dy
        y = v + warp[1, 0] * dx + warp[1, 1] * dy
        if not (x >= 0.0 and y >= 0.0 and x < W - 1.0 and y < H - 1.0):
            return False
    for i in range(SIDE + 2):
        dx, dy = -last, i - last
        x0 = u + warp[0, 0] * dx + warp[0, 1] * dy
        y0 = v + warp[1, 0] * dx + warp[1, 1] * dy
        for j in range(SIDE + 2):
            out[i, j] = bilinear(image, x0 + warp[0, 0] * j, y0 + warp[1, 0] * j)
    return True


@njit(**VECTORISED)
def inverse_of_strong(a, b, c):
    """Return the inverse (xx, xy, yy) of [[a, b], [b, c]] over its eigenvectors that show more than noise."""
    mean, half = 0.5 * (a + c), math.sqrt(0.25 * (a - c) ** 2 + b * b)
    strong, weak = mean + half, mean - half
    if weak > WEAK:
        det = a * c - b * b
        return c / det, -b / det, a / det
    # the unit eigenvector of the larger eigenvalue, from the better conditioned row
    x, y = (strong - c, b) if a > c else (b, strong - a)
    length = x * x + y * y
    if length < 1e-12:
        return 0.0, 0.0, 0.0
    return x * x / (length * strong), x * y / (length * strong), y * y / (length * strong)


@njit(**VECTORISED)
def follow(flow, sigma, uv, rows, moved, spread):
    """Write where flow (H, W, 2) leads the positions ``uv[rows]``, and its 1σ there; infinite outside the image."""
    H, W = sigma.shape
    for n in range(len(rows)):
        u, v = uv[rows[n], 0], uv[rows[n], 1]
        moved[n, 0], moved[n, 1], spread[n] = u, v, math.inf
        if u >= 0.0 and v >= 0.0 and u < W - 1.0 and v < H - 1.0:
            moved[n, 0] += bilinear(flow[:, :, 0], u, v)
            moved[n, 1] += bilinear(flow[:, :, 1], u, v)
            spread[n] = bilinear(sigma, u, v)


@njit(**VECTORISED)
def structure_tensors(image, uv, rows, out):
    """Write the sums (xx, xy, yy) of gradient products over a patch around ``uv[rows]``; zero outside the image."""
    H, W = image.shape
    for n in range(len(rows)):
        u, v = int(uv[rows[n], 0] + 0.5), int(uv[rows[n], 1] + 0.5)
        out[n] = 0.0
        if not (u > HALF and v > HALF and u < W - HALF - 1 and v < H - HALF - 1):
            continue
        a = b = c = 0.0
        for y in range(v - HALF, v + HALF + 1):
            for x in range(u - HALF, u + HALF + 1):
                gx = 0.5 * (float(image[y, x + 1]) - float(image[y, x - 1]))
                gy = 0.5 * (float(image[y + 1, x]) - float(image[y - 1, x]))
                a += gx * gx
                b += gx * gy
                c += gy * gy
        out[n, 0], out[n, 1], out[n, 2] = a, b, c


@njit(**VECTORISED)
def _read_patch(image, u, v, out):
    """Read the square of SIDE pixels around (u, v), all of which lie alike between those of the image."""
    x, y = int(u), int(v)
    fx, fy = u - x, v - y
    a, b, c, d = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
    for i in range(SIDE):
        top, low = image[y - HALF + i], image[y - HALF + i + 1]
        for j in range(SIDE):
            k = x - HALF + j
            out[SIDE * i + j] = a * top[k] + b * top[k + 1] + c * low[k] + d * low[k + 1]


@njit(**VECTORISED)
def align_patch(template, image, u, v, iterations, tensor):
    """Move (u, v) until ``image`` there looks like ``template`` (inverse compositional, gain and bias free).

    Baker & Matthews, "Lucas–Kanade 20 years on", 2004. Returns u, v, correlation (−1: failed), the residual's
    variance; ``tensor`` receives the sums (xx, xy, yy) of the template's gradient products.
    """
    H, W = image.shape
    n = SIDE * SIDE
    gx, gy, wanted, values = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    k = 0
    for i in range(SIDE):
        for j in range(SIDE):
            gx[k] = 0.5 * (template[i + 1, j + 2] - template[i + 1, j])
            gy[k] = 0.5 * (template[i + 2, j + 1] - template[i, j + 1])
            wanted[k] = template[i + 1, j + 1]
            k += 1
    # the free bias takes the mean of everything away
    mx, my, mean = gx.sum() / n, gy.sum() / n, wanted.sum() / n
    a = b = c = var_t = wanted_x = wanted_y = 0.0
    for k in range(n):
        gx[k] -= mx
        gy[k] -= my
        wanted[k] -= mean
        a += gx[k] * gx[k]
        b += gx[k] * gy[k]
        c += gy[k] * gy[k]
        var_t += wanted[k] * wanted[k]
        wanted_x += gx[k] * wanted[k]
        wanted_y += gy[k] * wanted[k]
    tensor[0], tensor[1], tensor[2] = a, b, c
    if a + c < 0.5 * n or var_t < n * 1.0:
        return u, v, -1.0, 0.0
    ia, ib, ic = inverse_of_strong(a, b, c)
    correlation, noise = -1.0, 0.0
    for _ in range(iterations):
        if not (u - HALF >= 0 and v - HALF >= 0 and u + HALF < W - 1 and v + HALF < H - 1):
            return u, v, -1.0, 0.0
        _read_patch(image, u, v, values)
        total = var = cross = along_x = along_y = 0.0
        for k in range(n):
            total += values[k]
            var += values[k] * values[k]
            cross += values[k] * wanted[k]
            along_x += values[k] * gx[k]
            along_y += values[k] * gy[k]
        var -= total * total / n
        if var < 1e-6:
            return u, v, -1.0, 0.0
        correlation = cross / math.sqrt(var * var_t)
        gain = math.sqrt(var_t / var)
        noise = 2 * var_t * (1 - correlation) / n  # of gain * values - wanted
        bx, by = gain * along_x - wanted_x, gain * along_y - wanted_y
        du, dv = ia * bx + ib * by, ib * bx + ic * by
        u -= du
        v -= dv
        if du * du + dv * dv < 1e-4:
            break
    return u, v, correlation, noise


@njit(**VECTORISED)
def _warp_of(cam, ray, rho, R, t, out):
    """Write the 2×2 that takes target pixel offsets to host offsets, for a patch facing its host. False: unusable."""
    q = np.empty(3)
    carry(R, t, ray, rho, q)
    if q[2] < 1e-6:
        return False
    x, y, z = q[0] / q[2], q[1] / q[2], q[2]
    a = cam[0] * (R[0, 0] - x * R[2, 0]) / (z * cam[0])
    b = cam[0] * (R[0, 1] - x * R[2, 1]) / (z * cam[1])
    c = cam[1] * (R[1, 0] - y * R[2, 0]) / (z * cam[0])
    d = cam[1] * (R[1, 1] - y * R[2, 1]) / (z * cam[1])
    det = a * d - b * c
    if det < 0.1 or det > 10.0:  # more than about 3 times nearer or farther: looks different
        return False
    out[0, 0], out[0, 1], out[1, 0], out[1, 1] = d / det, -b / det, -c / det, a / det
    return True


@njit(**VECTORISED)
def align_patches(
    hosts, target, todo, cam, uv0, rays, rho, host, host_from_world, pose, uv, quality
):
    """Refine ``uv`` (N, 2) of the patches in ``todo`` in the target image, coarse to fine, and grade them.

    ``hosts`` and ``target`` are pyramids (tuples of levels; pixel i of a level lies on pixel 2 i of the one below).
    ``quality`` (N, 5) receives correlation (−1:
    failed, ``uv`` is kept), the residual's variance and the template's structure tensor at the finest level.
    """
    template, tensor = np.empty((SIDE + 2, SIDE + 2)), np.empty(3)
    warp, R, t = np.empty((2, 2)), np.empty((3, 3)), np.empty(3)
    for n in todo:
        quality[n, 0] = -1.0
        h = host[n]
        relate(pose, host_from_world[h], R, t)
        if not _warp_of(cam, rays[n], rho[n], R, t, warp):
            continue
        # a target that sees the patch smaller is compared with the host at a coarser level
        shrink = math.sqrt(abs(warp[0, 0] * warp[1, 1] - warp[0, 1] * warp[1, 0]))
        u, v = uv[n, 0], uv[n, 1]
        good = True
        for level in range(1, -1, -1):
            s = 1.0 / (1 << level)
            extra = 1 if shrink > 1.6 else 0
            sh = 1.0 / (1 << (level + extra))
            hu, hv = uv0[n, 0] * sh, uv0[n, 1] * sh
            ok = sample_template(hosts[level + extra][h], hu, hv, warp / (1 << extra), template)
            if not ok:
                good = (
                    level == 1
                )  # the coarse level may leave the image where the fine one does not
                continue
            x, y, corr, noise = align_patch(template, target[level], u * s, v * s, 10, tensor)
            if corr < ALIKE:
                good = level == 1
                continue
            u, v = x / s, y / s
            quality[n, 1] = noise
            quality[n, 2:] = tensor
            if level == 0:
                quality[n, 0] = corr
        if good and quality[n, 0] > 0:
            uv[n, 0], uv[n, 1] = u, v
        else:
            quality[n, 0] = -1.0

"""Choosing patches in a keyframe and finding them again in a frame."""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.pose import _kernels_align
from stream4d.pose.map import LEVELS, LocalMap

MIN_CORRELATION = 0.75
"""Below this an alignment found something else."""
ALIGN_FLOOR_VAR = 0.1**2
"""px²: what the fixed window's model error leaves even where there is no image noise."""
NOISE_FLOOR = 1.0
"""Grey levels²: rounding and the camera's own noise."""
GRADIENT_NOISE = 1.0
"""Grey levels² per pixel of gradient that are noise: along a straight edge there is nothing else."""
NOISE_GAIN = 6.0
"""Residuals of neighbouring pixels are alike (they come from shape, not from the sensor): so many count as one."""
UNSTATED_SIGMA = 0.5
"""1σ of flow, pixels, from models that do not say."""
FLOW_FLOOR_VAR = 0.15**2
"""px²: reading the flow between pixels errs by this even where the flow is exact."""
CHAINED_MAX_VAR = 3.0**2
"""px²: a position chained through flow alone is given up beyond this."""
SEARCH_MAX_VAR = float(_kernels_align.HALF) ** 2
"""px²: alignment still looks for a position as uncertain as this; beyond half a patch it finds the neighbour."""
FEW = 0.5
"""Share of positions below which alignment looks for all, however unsure: a wide baseline leaves nothing better."""


def pyramid(rgb: Array) -> tuple[Array, ...]:
    """Return grey levels at full, half and quarter size, lightly smoothed so that gradients mean something.

    Pixel i of a level lies on pixel 2 i of the level below.
    """
    return levels_of(cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (3, 3), 0.7))


def levels_of(grey: Array) -> tuple[Array, ...]:
    """Return a grey image at full, half and quarter size."""
    levels = [np.asarray(grey)]
    for _ in range(LEVELS - 1):
        levels.append(np.asarray(cv2.pyrDown(levels[-1])))
    return tuple(levels)


def choose(
    grey: Array,  # (H, W) uint8
    n: int,
    *,
    avoid: Array,  # (M, 2) positions already taken
    allowed: Array | None,  # (H, W) bool
    spacing: float,
) -> Array:  # (n', 2) float64
    """Pick up to ``n`` textured pixels, spread over the image (best of each cell first), sub-pixel exact."""
    H, W = grey.shape
    mask = np.zeros((H, W), np.uint8)
    margin = _kernels_align.HALF + 3
    mask[margin : H - margin, margin : W - margin] = 255
    if allowed is not None:
        mask[~allowed] = 0
    for u, v in np.rint(avoid).astype(int):
        cv2.circle(mask, (int(u), int(v)), int(spacing), 0, -1)
    if n <= 0 or not mask.any():
        return np.zeros((0, 2))
    response = cv2.cornerMinEigenVal(grey, 7)
    response[mask == 0] = 0
    return _best_of_cells(response, n, spacing)


def _best_of_cells(response: Array, n: int, spacing: float) -> Array:
    """Take the strongest pixel of each grid cell; refuse those far weaker than the image's own level."""
    H, W = response.shape
    size = max(int(np.sqrt(H * W / max(n, 1) / 2)), int(0.7 * spacing), 4)
    rows, cols = -(-H // size), -(-W // size)
    padded = np.zeros((rows * size, cols * size), response.dtype)
    padded[:H, :W] = response
    cells = padded.reshape(rows, size, cols, size).transpose(0, 2, 1, 3).reshape(-1, size * size)
    best = np.argmax(cells, axis=1)
    strength = cells[np.arange(len(cells)), best]
    v = np.repeat(np.arange(rows), cols) * size + best // size
    u = np.tile(np.arange(cols), rows) * size + best % size
    usable = strength > max(0.003 * float(strength.max()), 1e-7)
    # not the strongest n: they crowd on the best textured surface, which may be a mover
    ranked = np.flatnonzero(usable)
    ranked = ranked[np.linspace(0, len(ranked) - 1, min(n, len(ranked))).astype(int)]
    return np.stack([u[ranked], v[ranked]], axis=-1).astype(np.float64)


def known_sigma(sigma: Array | None, flow: Array) -> Array:  # (H, W)
    """Return the stated 1σ of a flow (H, W, 2), the usual one where none is."""
    return np.full(flow.shape[:2], UNSTATED_SIGMA, np.float32) if sigma is None else sigma


def follow_flow(
    uv: Array, var: Array, flow: Array, sigma: Array | None
) -> tuple[Array, Array]:  # (N, 2), (N,)
    """Move tracked positions one frame along the flow; variances grow, lost ones become inf."""
    H, W = flow.shape[:2]
    rows = np.flatnonzero(np.isfinite(var))
    moved, spread = np.empty((len(rows), 2)), np.empty(len(rows))
    _kernels_align.follow(
        flow, known_sigma(sigma, flow), np.ascontiguousarray(uv, np.float64), rows, moved, spread
    )
    grown = var[rows] + spread**2 + FLOW_FLOOR_VAR
    inside = (moved >= 1).all(-1) & (moved[:, 0] <= W - 2) & (moved[:, 1] <= H - 2)
    sure = grown < SEARCH_MAX_VAR
    kept = sure if sure.sum() >= FEW * len(sure) else np.isfinite(grown)
    out_uv, out_var = uv.copy(), np.full_like(var, np.inf)
    out_uv[rows], out_var[rows] = moved, np.where(inside & kept, grown, np.inf)
    return out_uv, out_var


def align(
    local_map: LocalMap,
    target: tuple[Array, ...],
    pose: Array,  # (3, 4)
    uv: Array,  # (N, 2) where to start
    var: Array,  # (N,) how uncertain that is; inf: do not look
    *,
    min_correlation: float | Array = MIN_CORRELATION,  # (N,)
) -> tuple[Array, Array, Array]:  # (n,), (n, 2), (n, 3)
    """Refine positions by patch alignment with the hosts: which were found, where, and their inverse covariances.

    A position that moved farther than its start's uncertainty allows is not believed.
    """
    todo = np.flatnonzero(np.isfinite(var) & (local_map.host >= 0))
    found_uv = np.ascontiguousarray(uv, np.float64).copy()
    quality = np.full((len(uv), 5), -1.0)
    _kernels_align.align_patches(
        local_map.images, searched(target), todo, local_map.cam, local_map.uv0, local_map.rays,
        local_map.rho, local_map.host, local_map.poses, np.ascontiguousarray(pose), found_uv, quality,
    )  # fmt: skip
    moved = np.hypot(*(found_uv[todo] - uv[todo]).T)
    least = np.broadcast_to(min_correlation, var.shape)[todo]
    rows = todo[(quality[todo, 0] > least) & (moved < 3 * np.sqrt(var[todo]) + 1.0)]
    return rows, found_uv[rows], alignment_info(quality[rows, 1], quality[rows, 2:])


def searched(target: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the levels that alignment looks in, as float32: they are read so often that not to convert pays."""
    return tuple(level.astype(np.float32) for level in target[:2])


def alignment_info(noise: Array, tensor: Array) -> Array:  # (N,), (N, 3) -> (N, 3)
    """Return (floor + noise * tensor⁻¹)⁻¹, the information of aligned positions."""
    per_pixel = NOISE_GAIN * np.maximum(noise, NOISE_FLOOR)
    a, b, c = tensor.T
    smaller = 0.5 * (a + c - np.sqrt((a - c) ** 2 + 4 * b * b))
    # noise alone makes the tensor this large; a direction that was not searched is not known at all
    noise_only = GRADIENT_NOISE * _kernels_align.SIDE**2
    bias = np.where(smaller > _kernels_align.WEAK, noise_only, smaller)
    a, b, c = (a - bias) / per_pixel, b / per_pixel, (c - bias) / per_pixel
    # T (1 + floor T)^-1 for the symmetric T = [[a, b], [b, c]]
    f = ALIGN_FLOOR_VAR
    p, q, r = 1 + f * a, f * b, 1 + f * c
    det = p * r - q * q
    return np.stack([a * r - b * q, b * p - a * q, c * p - b * q], axis=-1) / det[:, None]


def isotropic(var: Array) -> Array:  # (N,) -> (N, 3)
    """Return the information of positions known equally well in all directions; zero where not seen."""
    info = np.zeros((*var.shape, 3))
    info[..., 0] = info[..., 2] = 1 / var
    return info


def flow_info(image: Array, uv: Array, var: Array) -> Array:  # (H, W), (N, 2), (N,) -> (N, 3)
    """Return the information of positions brought by flow: little along edges, where flow only guesses."""
    rows = np.flatnonzero(np.isfinite(var))
    tensor, out = np.empty((len(rows), 3)), np.zeros((*var.shape, 3))
    _kernels_align.structure_tensors(image, np.ascontiguousarray(uv, np.float64), rows, tensor)
    # T (T + weak)^-1 / var: 1 / var where there is texture
    a, b, c = tensor.T
    p, r = a + _kernels_align.WEAK, c + _kernels_align.WEAK
    det = p * r - b * b
    share = np.stack([a * r - b * b, b * p - a * b, c * p - b * b], axis=-1) / det[:, None]
    out[rows] = share / var[rows, None]
    return out

"""Dense depth and motion, carried from frame to frame.

Each pixel holds an inverse depth with its information (a Kalman filter along epipolar lines, as in Engel, Sturm,
Cremers, "Semi-dense visual odometry", 2013) and the log odds that its surface moves. The test is absolute: the
optical flow is compared with what the camera alone would cause, in units of its own uncertainty; there is nothing
relative to the image, so that a still scene gives an empty mask. Odds are carried along the flow, which gives
hysteresis.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.pose import _kernels_dense, track
from stream4d.pose.map import LocalMap

PIXEL_FLOOR = 0.25**2
"""px²: what pose and interpolation add to the flow's own uncertainty."""
FORGET = 0.97
"""Information kept from frame to frame: what warping costs."""
GUESS_SIGMA = 0.5
"""Relative 1σ of an inverse depth that was only spread from patches."""
MOVER_PX = 4.0
"""1σ of a mover's own flow."""
PRIOR_LOGIT = -3.0
KEEP_LOGIT = 0.85
"""How much of last frame's odds, above the prior, is carried on."""
LIMIT_LOGIT = 6.0
UNKNOWN_CONFIDENCE = 0.05
"""Chance that a depth within 10 % is hit without knowing anything."""
CELL = 8
"""Pixels per cell of the grid on which patches are spread."""


@dataclass(frozen=True, slots=True)
class Maps:
    """What the model says of one frame; flow is that from the frame before to this one."""

    flow: Array | None = None
    flow_backward: Array | None = None
    sigma: Array | None = None
    motion: Array | None = None
    depth: Array | None = None


@dataclass(slots=True, eq=False)
class DenseState:
    """The filter at one frame."""

    rho: Array
    """(H, W) float64 inverse depth."""
    info: Array
    """(H, W) its information."""
    logit: Array
    """(H, W) log odds that the surface moves."""


def first(guess: Array) -> DenseState:
    """Begin with nothing but a guess of inverse depth (H, W)."""
    return DenseState(guess, 1 / (GUESS_SIGMA * guess) ** 2, np.full(guess.shape, PRIOR_LOGIT))


def step(
    before: DenseState,
    maps: Maps,
    cam: Array,
    here_from_before: Array,
    guess: Array,
    *,
    has_scale: bool,
) -> DenseState:
    """Carry the filter to the next frame, ``here_from_before`` (3, 4) away."""
    H, W = guess.shape
    rho, info = np.empty((H, W)), np.empty((H, W))
    evidence, source = np.zeros((H, W), np.float32), np.empty((H, W, 2), np.float32)
    if maps.flow is None or maps.flow_backward is None:
        state = first(guess)
        logit = _model_evidence(maps.motion, H, W) + PRIOR_LOGIT
        return DenseState(state.rho, state.info, np.clip(logit, -LIMIT_LOGIT, LIMIT_LOGIT))
    sigma = maps.sigma if maps.sigma is not None else np.full((H, W), 0.5, np.float32)
    # before the first baseline, what looks like parallax must not look like motion
    floor = PIXEL_FLOOR if has_scale else 16 * PIXEL_FLOOR
    settings = np.array([floor, FORGET, GUESS_SIGMA, MOVER_PX])
    _kernels_dense.dense_step(
        cam, np.ascontiguousarray(here_from_before[:, :3]), np.ascontiguousarray(here_from_before[:, 3]),
        maps.flow, maps.flow_backward, sigma, before.rho, before.info, guess, settings, rho, info, evidence, source,
    )  # fmt: skip
    if not has_scale:
        rho, info = guess, 1 / (GUESS_SIGMA * guess) ** 2
    carried = cv2.remap(
        (before.logit - PRIOR_LOGIT).astype(np.float32),
        source[..., 0],
        source[..., 1],
        cv2.INTER_LINEAR,
    )
    seen = np.isfinite(source[..., 0])
    # a lone pixel proves nothing: evidence is averaged over the neighbourhood that moves together
    weight = cv2.blur(seen.astype(np.float32), (7, 7))
    shared = cv2.blur(np.where(seen, evidence, 0).astype(np.float32), (7, 7)) / np.maximum(
        weight, 0.1
    )
    logit = PRIOR_LOGIT + KEEP_LOGIT * np.where(seen, carried, 0) + shared
    logit = logit + _model_evidence(maps.motion, H, W)
    return DenseState(rho, info, np.clip(logit, -LIMIT_LOGIT, LIMIT_LOGIT).astype(np.float64))


def _model_evidence(motion: Array | None, H: int, W: int) -> Array:
    """Return the log odds that the model adds, taken down to half: its frames are not independent."""
    if motion is None:
        return np.zeros((H, W))
    p = np.clip(np.nan_to_num(motion, nan=0.05), 0.02, 0.98)
    return np.asarray(0.5 * (np.log(p / (1 - p)) - PRIOR_LOGIT), np.float64)


def motion_prob(state: DenseState) -> Array:
    """Return (H, W) float32 probabilities."""
    return np.asarray(1 / (1 + np.exp(-state.logit)), np.float32)


def depth_and_confidence(
    state: DenseState, guess: Array, rgb: Array, *, has_scale: bool
) -> tuple[Array, Array]:
    """Return depth (H, W) float32, smoothed along surfaces, and how likely it is within 10 %."""
    if not has_scale:
        return np.ones(guess.shape, np.float32), np.full(
            guess.shape, UNKNOWN_CONFIDENCE, np.float32
        )
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    moving = 1 / (1 + np.exp(-state.logit))
    rho = state.rho * (1 - moving) + guess * moving
    # relative information: what counts is the error in percent
    weight = np.minimum(state.info * state.rho**2, 1e6) * (1 - moving) + 0.1
    smooth, support = guided_mean(np.log(rho).astype(np.float32), weight.astype(np.float32), grey)
    sigma = 1 / np.sqrt(np.maximum(support, 1e-3)) + 0.02
    confidence = _erf(0.1 / (sigma * np.sqrt(2))) * (1 - 0.8 * moving)
    depth = np.exp(-smooth)
    return np.clip(depth, 1e-4, 1e5).astype(np.float32), np.clip(confidence, 0, 1).astype(
        np.float32
    )


def _erf(x: Array) -> Array:
    """Return the error function within 4e-4."""
    return np.asarray(np.tanh(x * (1.12838 + 0.10277 * x * x)))


def guided_mean(
    value: Array, weight: Array, guide: Array, radius: int = 4, eps: float = 2e-4
) -> tuple[Array, Array]:
    """Smooth ``value`` along edges of ``guide`` (weighted guided filter, He et al. 2013); also the mean weight."""
    size = (2 * radius + 1, 2 * radius + 1)
    total = cv2.blur(weight, size) + 1e-6
    mean_g = cv2.blur(weight * guide, size) / total
    mean_v = cv2.blur(weight * value, size) / total
    cov = cv2.blur(weight * guide * value, size) / total - mean_g * mean_v
    var = cv2.blur(weight * guide * guide, size) / total - mean_g * mean_g
    slope = cov / (var + eps)
    offset = mean_v - slope * mean_g
    a = cv2.blur(slope * total, size)
    b = cv2.blur(offset * total, size)
    norm = cv2.blur(total, size)
    return np.asarray((a * guide + b) / norm), total


def spread_patches(local_map: LocalMap, pose: Array) -> Array:
    """Return (H, W) inverse depth, spread from the patches seen from ``pose``; 1 everywhere before a start."""
    H, W = local_map.height, local_map.width
    rows = np.flatnonzero((local_map.host >= 0) & (local_map.rho_info * local_map.rho**2 > 25.0))
    if len(rows) < 3:
        return np.ones((H, W))
    uv, z = track.project_rows(local_map, rows, pose)
    near = (z > 1e-6) & (uv >= -CELL).all(-1) & (uv[:, 0] < W + CELL) & (uv[:, 1] < H + CELL)
    if near.sum() < 3:
        return np.full((H, W), float(np.median(local_map.rho[rows])))
    h, w = H // CELL + 1, W // CELL + 1
    weight, value = np.zeros((h, w), np.float32), np.zeros((h, w), np.float32)
    cell = np.clip((uv[near] / CELL).astype(int), 0, [w - 1, h - 1])
    np.add.at(weight, (cell[:, 1], cell[:, 0]), 1)
    np.add.at(value, (cell[:, 1], cell[:, 0]), local_map.rho[rows[near]] / z[near])
    mean = float(value.sum() / weight.sum())
    sum_w, sum_v = np.full_like(weight, 1e-9), np.full_like(weight, 1e-9 * mean)
    for scale in (1.0, 3.0, 9.0):  # wider kernels count only where narrower ones reach nothing
        share = 10.0 ** (-2 * np.log2(scale))
        sum_w += share * cv2.GaussianBlur(weight, (0, 0), scale)
        sum_v += share * cv2.GaussianBlur(value, (0, 0), scale)
    rho = cv2.resize(sum_v / sum_w, (W, H), interpolation=cv2.INTER_LINEAR)
    return np.maximum(rho, 1e-6).astype(np.float64)

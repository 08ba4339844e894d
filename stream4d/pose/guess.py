"""Inverse depth where nothing was measured: spread from the map's patches, and from the model's depth if it has one."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stream4d.geometry.flow import sample
from stream4d.packets import Array
from stream4d.pose import track
from stream4d.pose.map import LocalMap

CELL = 8
"""Pixels per cell of the grid on which patches are spread."""
SPREAD_SIGMA = 0.4
"""Relative 1σ of an inverse depth that was only spread from patches."""
KNOWN = 25.0
"""Information of log inverse depth above which a patch has a say: 1σ below 20 %."""
LEAST_MODEL_SIGMA = 0.1
"""A model's depth is never taken to be better than that, relative."""
FEWEST = 3
"""Patches from which a depth can be spread."""
MIN_PATCHES = 8
"""Patches from which the scale of a model's depth can be read."""
FARTHEST, NEAREST = 0.3, 4.0
"""Least and greatest inverse depth thought possible, over the least and the greatest that the patches show."""


@dataclass(frozen=True, slots=True, eq=False)
class Guess:
    """What is expected of a frame before its flow is looked at."""

    rho: Array
    """(h, w) inverse depth."""
    sigma: float
    """1σ of its logarithm."""
    limits: tuple[float, float]
    """Least and greatest inverse depth that are possible."""
    relief: Array | None = None
    """(h, w) log inverse depth as the model draws it, if it does; only its differences count."""

    @property
    def info(self) -> Array:
        """(h, w) information of ``rho``."""
        return np.asarray(1 / (self.sigma * self.rho) ** 2)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The patches of known depth that a frame shows."""

    uv: Array
    """(n, 2) pixels."""
    rho: Array
    """(n,) inverse depth in the frame's camera."""
    usual: float
    """Median inverse depth of the map, 1 where it has none."""
    shape: tuple[int, int]
    """H, W of the frame."""


def shown(local_map: LocalMap, pose: Array) -> Shown:
    """Return what the map shows of a frame with ``pose`` (3, 4)."""
    H, W = local_map.height, local_map.width
    rows = np.flatnonzero((local_map.host >= 0) & (local_map.rho_info * local_map.rho**2 > KNOWN))
    uv, z = track.project_rows(local_map, rows, pose)
    seen = (z > 1e-6) & (uv >= -CELL).all(-1) & (uv[:, 0] < W + CELL) & (uv[:, 1] < H + CELL)
    usual = float(np.median(local_map.rho[rows])) if len(rows) >= FEWEST else 1.0
    return Shown(uv[seen], local_map.rho[rows[seen]] / z[seen], usual, (H, W))


def guess_depth(
    patches: Shown,
    step: int,
    still: Array | None = None,  # (h, w) probability
    depth: Array | None = None,  # (H, W) the model's, any scale
    before: Array | None = None,  # (h, w) of the frame before, brought here; NaN where hidden
) -> Guess:
    """Return the guess on every ``step``-th pixel; before a start 1 everywhere, or the model's depth around 1."""
    H, W = patches.shape
    uv, weight = patches.uv, np.ones(len(patches.uv))
    if still is not None:
        inside = np.clip(uv / step, 0, [still.shape[1] - 1, still.shape[0] - 1])
        weight = np.maximum(sample(still, inside), 1e-3)
    spread = _spread(patches, weight, step)
    limits = FARTHEST * float(spread.min()), NEAREST * float(spread.max())
    guess = Guess(spread, SPREAD_SIGMA, limits)
    if depth is None:
        return guess
    there = sample(depth.astype(np.float64), np.clip(uv, 0, [W - 1, H - 1]))
    usable = np.isfinite(there) & (there > 0)
    relief = _relief(depth[::step, ::step])
    if usable.sum() < MIN_PATCHES:
        return _of_model(guess, relief, before)
    gap = np.log(there[usable] * patches.rho[usable])
    return _with_model(guess, relief, gap, weight[usable])


def _spread(patches: Shown, weight: Array, step: int) -> Array:  # (h, w)
    H, W = patches.shape
    size = (-(-W // step), -(-H // step))
    if len(patches.uv) < FEWEST:
        return np.full(size[::-1], patches.usual)
    h, w = H // CELL + 1, W // CELL + 1
    total, value = np.zeros((h, w), np.float32), np.zeros((h, w), np.float32)
    cell = np.clip((patches.uv / CELL).astype(int), 0, [w - 1, h - 1])
    np.add.at(total, (cell[:, 1], cell[:, 0]), weight)
    np.add.at(value, (cell[:, 1], cell[:, 0]), weight * patches.rho)
    mean = float(value.sum() / total.sum())
    sum_w, sum_v = np.full_like(total, 1e-9), np.full_like(total, 1e-9 * mean)
    for scale in (1.0, 3.0, 9.0):  # wider kernels count only where narrower ones reach nothing
        share = 10.0 ** (-2 * np.log2(scale))
        sum_w += share * cv2.GaussianBlur(total, (0, 0), scale)
        sum_v += share * cv2.GaussianBlur(value, (0, 0), scale)
    middle = 0.5 / CELL - 0.5  # where pixel 0 lies, in cells
    cell_of_grid = np.array([[step / CELL, 0, middle], [0, step / CELL, middle]])
    spread = cv2.warpAffine(
        sum_v / sum_w, cell_of_grid, size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return np.maximum(spread, 1e-6).astype(np.float64)


def _relief(depth: Array) -> Array:
    """Return log inverse depth; where the model has none, its median."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relief = -np.log(depth.astype(np.float64))
    known = np.isfinite(relief)
    return np.where(known, relief, np.median(relief[known]) if known.any() else 0.0)


def _with_model(guess: Guess, relief: Array, gap: Array, weight: Array) -> Guess:
    """Blend in the model's depth: its scale and its 1σ are read off the patches, per frame.

    ``gap`` (n,) holds the logarithms of the model's depth over the patches' depth.
    """
    scale = _weighted_median(gap, weight)
    sigma = max(1.48 * _weighted_median(np.abs(gap - scale), weight), LEAST_MODEL_SIGMA)
    trust = guess.sigma**2 / (guess.sigma**2 + sigma**2)
    blended = (1 - trust) * np.log(guess.rho) + trust * (scale + relief)
    both = (guess.sigma**-2 + sigma**-2) ** -0.5
    return Guess(np.clip(np.exp(blended), *guess.limits), both, guess.limits, relief)


def _of_model(guess: Guess, relief: Array, before: Array | None) -> Guess:
    """Return the model's depth at the scale of the frame before or, where nothing of that is seen, of the guess."""
    known = guess.rho if before is None or np.isnan(before).all() else before
    scale = np.nanmedian(np.log(known) - relief)
    rho = np.exp(scale + relief)
    return Guess(rho, SPREAD_SIGMA, (FARTHEST * rho.min(), NEAREST * rho.max()), relief)


def _weighted_median(values: Array, weight: Array) -> float:
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order[np.searchsorted(total, 0.5 * total[-1])]])

"""Robust weighted alignment of point sets in Sim(3) or SE(3).

Umeyama's closed form (IEEE PAMI 1991, eqs. 38–43) inside iteratively reweighted least squares whose robust scale
anneals from the spread of the points to that of the noise (graduated non-convexity). Where that leaves few inliers,
triplets are tried (RANSAC) and refined the same way. Most iterations look at a subset; the last looks at all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stream4d.geometry import _kernels
from stream4d.geometry.transforms import similarity

Array = npt.NDArray[Any]

SUBSET = 5_000
"""Pairs that the annealing looks at."""
NOISE_GAIN = 3.0
"""Robust scale over the residual's lower third: 3.7 standard deviations of one Gaussian coordinate."""
IN_FRAME = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
"""The subset is already shifted and scaled."""
FEW_INLIERS = 0.5
"""Below this share of weight, the least-squares start is distrusted and triplets are tried …"""
LARGE_RESIDUAL = 0.1
"""… and so it is where the residual is above this share of the points' own spread."""
TRIPLETS = 200
MIN_RANK = 1e-9
"""Second singular value over the first, squared lengths: below it the points lie on a line."""


@dataclass(frozen=True, slots=True)
class AlignmentResult:
    """``target ≈ transform @ source``, or why there is none."""

    ok: bool
    reason: str
    """Empty, or what was degenerate: "fewer than 3 points", "rank 0", "rank 1", "not finite"."""
    transform: Array
    """(4, 4) similarity; the identity where not ok."""
    scale: float
    inliers: float
    """Share of the weight within the robust scale."""
    residual: float
    """Residual length below which a third of the pairs lie, units of the target."""


def _failed(reason: str) -> AlignmentResult:
    return AlignmentResult(False, reason, np.eye(4), 1.0, 0.0, np.inf)


def align_points(
    source: Array,  # (..., 3)
    target: Array,  # (..., 3)
    weights: Array | None = None,  # (...) ≥ 0
    *,
    with_scale: bool = True,
) -> AlignmentResult:
    """Find the similarity (or rigid transform) that takes ``source`` to ``target``, outliers ignored.

    Pairs with a NaN, an infinity or no weight are left out. Never raises on degenerate data.
    """
    s, t = (np.ascontiguousarray(p).reshape(-1, 3) for p in (source, target))
    w = (
        np.ones(len(s), np.float32)
        if weights is None
        else np.ascontiguousarray(weights).reshape(-1)
    )
    if len(s) != len(t) or len(s) != len(w):
        raise ValueError(f"as many sources as targets and weights: {len(s)}, {len(t)}, {len(w)}")
    picked = _subset(s, t, w)
    if len(picked) < 3:
        return _failed("fewer than 3 points")
    problem = _Problem(s, t, w, picked, with_scale)
    result = problem.anneal(problem.closed_form(np.eye(4), 0.0))
    poor = result.inliers < FEW_INLIERS or result.residual > LARGE_RESIDUAL * problem.unit[1]
    if not result.ok or poor:
        other = problem.anneal(problem.best_triplet(), 0.0)
        # fewer outliers, or equally many but closer
        if other.ok and (
            not result.ok or other.inliers / other.residual > result.inliers / result.residual
        ):
            result = other
    return result


def _subset(s: Array, t: Array, w: Array) -> Array:
    """Return indices of valid pairs, evenly spread, about ``SUBSET`` of them where there are more."""
    candidates = np.arange(0, len(s), max(len(s) // SUBSET, 1))
    for _ in range(2):
        with np.errstate(invalid="ignore", over="ignore"):
            total = s[candidates].sum(-1) + t[candidates].sum(-1)
            valid = candidates[
                np.isfinite(total) & np.isfinite(w[candidates]) & (w[candidates] > 0)
            ]
        if len(valid) >= SUBSET // 6 or len(candidates) == len(s):
            break
        candidates = np.arange(len(s))  # few are valid: look at all
    return np.asarray(valid[:: max(len(valid) // SUBSET, 1)])


class _Problem:
    """One alignment, its points shifted and scaled to be near 1 so that no sum loses digits."""

    def __init__(self, s: Array, t: Array, w: Array, picked: Array, with_scale: bool) -> None:
        self.all = s, t, w
        s, t = s[picked].astype(np.float64), t[picked].astype(np.float64)
        self.shift = np.median(s, axis=0), np.median(t, axis=0)
        spread = [
            float(np.median(np.abs(p - c).sum(-1))) for p, c in zip((s, t), self.shift, strict=True)
        ]
        unit = [x if x > 0 and np.isfinite(x) else 1.0 for x in spread]
        self.unit = (unit[0], unit[1]) if with_scale else (max(unit), max(unit))
        self.frame = np.concatenate([*self.shift, [1 / self.unit[0], 1 / self.unit[1]]])
        self.s, self.t = (s - self.shift[0]) / self.unit[0], (t - self.shift[1]) / self.unit[1]
        self.w = np.ascontiguousarray(w[picked], np.float64)
        self.with_scale = with_scale
        self.sums, self.lengths = np.zeros(19), np.zeros(len(s))

    def closed_form(self, T: Array, scale: float, *, everything: bool = False) -> Array | str:
        """Return Umeyama's transform under the weights that ``T`` and the robust scale give, or what is wrong."""
        if everything:
            _kernels.weighted_sums(*self.all, T, scale, self.frame, self.sums)
        else:
            _kernels.weighted_sums(self.s, self.t, self.w, T, scale, IN_FRAME, self.sums)
        total = self.sums[0]
        if not np.isfinite(self.sums).all() or total <= 0:
            return "not finite"
        mean_s, mean_t = self.sums[1:4] / total, self.sums[4:7] / total
        cross = self.sums[7:16].reshape(3, 3) / total - np.outer(mean_t, mean_s)
        U, D, Vt = np.linalg.svd(cross)
        if D[0] < 1e-18:
            return "rank 0"
        if D[1] < MIN_RANK * D[0]:
            return "rank 1"
        sign = np.array([1.0, 1.0, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
        R = (U * sign) @ Vt
        variance = self.sums[16] / total - mean_s @ mean_s
        factor = float(D @ sign / variance) if self.with_scale else 1.0
        if not np.isfinite(factor) or factor <= 0:
            return "rank 0"
        return similarity(factor, R, mean_t - factor * R @ mean_s)

    def noise(self, T: Array) -> float:
        """Return the residual below which a third of the subset lies: two thirds may be outliers."""
        _kernels.residual_lengths(self.s, self.t, T, self.lengths)
        third = len(self.lengths) // 3
        return float(np.partition(self.lengths, third)[third])

    def anneal(self, start: Array | str, scale: float = 4.0) -> AlignmentResult:
        """Refine from ``start`` while the robust scale shrinks to the noise; ``scale`` 0: it is there already."""
        if isinstance(start, str):
            return _failed(start)
        T = start
        for _ in range(12):
            settled = NOISE_GAIN * self.noise(T) + 1e-12
            last, scale = scale, max(settled, 0.5 * scale)
            better = self.closed_form(T, scale)
            if isinstance(better, str):
                return _failed(better)
            moved, T = float(np.abs(better - T).max()), better
            if scale == last or (scale <= settled and moved < 1e-6):
                break
        better = self.closed_form(T, scale, everything=True)
        T = T if isinstance(better, str) else better
        inliers = float(self.sums[17] / self.sums[18])
        return self._in_original_units(T, inliers)

    def _in_original_units(self, T: Array, inliers: float) -> AlignmentResult:
        residual = self.noise(T) * self.unit[1]
        scale = float(np.cbrt(np.linalg.det(T[:3, :3])))
        R = T[:3, :3] / scale
        scale *= self.unit[1] / self.unit[0]
        t = T[:3, 3] * self.unit[1] + self.shift[1] - scale * R @ self.shift[0]
        if not np.isfinite(scale) or not np.isfinite(t).all():
            return _failed("not finite")
        return AlignmentResult(
            True, "", similarity(scale, R, t), scale, inliers, max(residual, 1e-300)
        )

    def best_triplet(self) -> Array | str:
        """Return the transform of the triplet that brings most of a sample near its target."""
        rng = np.random.default_rng(0)
        sample = rng.integers(len(self.s), size=min(500, len(self.s)))
        s, t = self.s[sample], self.t[sample]
        best: Array | str = "rank 1"
        best_median = np.inf
        for _ in range(TRIPLETS):
            i = rng.choice(len(s), 3, replace=len(s) < 3)
            T = _triplet(s[i], t[i], self.with_scale)
            if T is None:
                continue
            error = np.sort(np.linalg.norm(s @ T[:3, :3].T + T[:3, 3] - t, axis=1))
            third = float(
                error[len(error) // 3]
            )  # finds a third of inliers among two thirds of outliers
            if third < best_median:
                best, best_median = T, third
        return best


def _triplet(s: Array, t: Array, with_scale: bool) -> Array | None:
    """Return the similarity of three pairs, None where they are collinear."""
    a, b = s - s.mean(0), t - t.mean(0)
    U, D, Vt = np.linalg.svd(b.T @ a)
    if D[1] < 1e-6 * max(D[0], 1e-30):
        return None
    R = (U * [1.0, 1.0, np.sign(np.linalg.det(U) * np.linalg.det(Vt))]) @ Vt
    scale = np.sqrt((b**2).sum() / (a**2).sum()) if with_scale else 1.0
    if not 1e-3 < scale < 1e3:
        return None
    return similarity(scale, R, t.mean(0) - scale * R @ s.mean(0))

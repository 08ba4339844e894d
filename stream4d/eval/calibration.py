"""Is the camera right, and does the system know when it is wrong?

Focal error compares intrinsics at one resolution. Reliability compares a stated probability with how often it holds:
``PosedFrame.confidence`` promises that depth is within 10 % of the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array

CONFIDENT_WITHIN = 0.10
"""Relative depth error that ``PosedFrame.confidence`` speaks of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reliability:
    """Stated against observed probability."""

    stated: Array
    """(B,) mean confidence of each bin, NaN where the bin is empty."""
    observed: Array
    """(B,) share of pixels in the bin that are right, NaN where empty."""
    count: Array
    """(B,) pixels in the bin."""
    ece: float
    """Expected calibration error: mean |stated - observed|, weighted by count."""
    ause: float
    """Area between the error-by-confidence and the oracle sparsification curve, relative to the mean error."""


def focal_error_percent(K: Array, truth: Array) -> float:
    """Return the error of the focal length in percent, mean of x and y; both K at one resolution."""
    ratio = np.array([K[0, 0] / truth[0, 0], K[1, 1] / truth[1, 1]])
    return float(100 * np.mean(np.abs(ratio - 1)))


def reliability(confidence: Array, relative_error: Array, bins: int = 10) -> Reliability | None:
    """Compare confidence in [0, 1] with how often ``relative_error`` is below 10 %; None without pixels."""
    valid = np.isfinite(confidence) & np.isfinite(relative_error)
    confidence = confidence[valid].astype(np.float64)
    error = relative_error[valid].astype(np.float64)
    if len(confidence) == 0:
        return None
    right = error < CONFIDENT_WITHIN
    which = np.clip((confidence * bins).astype(int), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        stated = np.bincount(which, confidence, bins) / count
        observed = np.bincount(which, right, bins) / count
    gap = np.abs(stated - observed)[count > 0]
    return Reliability(
        stated=stated,
        observed=observed,
        count=count,
        ece=float(np.sum(gap * count[count > 0]) / count.sum()),
        ause=sparsification_area(confidence, error),
    )


def sparsification_area(confidence: Array, error: Array, steps: int = 20) -> float:
    """Return AUSE: remove the least confident pixels step by step, compare with removing the worst.

    Ilg et al., "Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow" (ECCV 2018). Errors are
    divided by their mean; 0 means that confidence orders pixels as the true error does.
    """
    mean = error.mean()
    if mean == 0:
        return 0.0
    by_confidence = np.cumsum(error[np.argsort(-confidence, kind="stable")])
    by_error = np.cumsum(np.sort(error))
    kept = np.maximum(1, (len(error) * np.arange(1, steps + 1) / steps).astype(int))
    gap = (by_confidence[kept - 1] - by_error[kept - 1]) / kept
    return float(gap.mean() / mean)

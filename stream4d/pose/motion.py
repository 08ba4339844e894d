"""Which pixels move: views of a pixel over several frames against one still point, and a vote among neighbours.

A still point has one inverse depth, not behind the camera, that explains where flow leads its pixel in all the frames
in hand. Over several frames this also finds what moves along its epipolar lines: the longer the baseline, the less do
its views agree on a depth. The test is absolute: errors are counted in units of their own uncertainty, of which only
the common factor is read off the image (from the pixels that fit best), so that a still scene gives an empty mask.
"""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.pose import _kernels_dense, _kernels_draw

PRIOR_LOGIT = -3.0
LIMIT_LOGIT = 6.0
KEEP_LOGIT, KEEP_WITH_MODEL = 0.85, 0.7
"""How much of last frame's odds, above the prior, is carried on; less with a model, which speaks anew of each frame."""
FIRST_VOTES = 3.0
"""Times that the votes on a first frame count: those of later frames add up."""
DOUBT = 16.0
"""Mean squared error, σ², at which a pixel is as likely to move as to be badly matched."""
SLOPE = 1.5
"""Errors of matching have tails like 1/error⁴, movers' errors are spread evenly: odds per log of the square."""
EVIDENCE = (-2.0, 4.0)
"""Least and most that one frame may say."""
BEST_SHARE, BEST_ACROSS = 30, 0.3
"""Percentile of the errors across epipolar lines that even many movers leave alone, and its value for unit noise."""
LEAST_NOISE = 0.15
"""Smallest factor on the variances: on smooth surfaces flow is better than it says."""
REACH = 8.0
"""Grid pixels over which votes spread where there is no edge."""
FLOW_EDGE = 1.0
"""Votes are divided by e for so many pixels of difference in flow per grid pixel."""
IMAGE_EDGE = 0.4
"""The same for the image, as a share of its range."""
TEXTURE_VAR = 0.05
"""px² of flow's error where the gradient's smaller moment is 1 grey level² per pixel (errors against exact flow)."""
TEXTURE_NOISE = 0.1
"""Moment, grey levels², below which there is only noise to match."""
MODEL_RELIABILITY = 0.75
"""Share of the model's log odds that counts: its errors repeat from frame to frame."""


def texture_variance(grey: Array, step: int) -> Array:  # (H, W) uint8 -> (h, w)
    """Return px² by which flow errs for want of texture (inverse of the smaller moment of the gradient).

    ``grey`` is lightly smoothed, so that its gradients are not noise.
    """
    H, W = grey.shape
    moments = np.empty((3, -(-H // step), -(-W // step)), np.float32)
    _kernels_draw.gradient_moments(grey, step, moments)
    side = 2 * round(4 / step) + 1  # a window of about 9 pixels, as flow's
    xx, xy, yy = (cv2.blur(moment, (side, side)) for moment in moments)
    half = 0.5 * (xx - yy)
    smaller = 0.5 * (xx + yy) - np.sqrt(half * half + xy * xy)
    smaller = np.maximum(smaller, 0.02 * TEXTURE_NOISE)
    return np.asarray(TEXTURE_VAR / smaller * (1 + TEXTURE_NOISE / smaller), np.float64)


def noise_scale(across: Array, count: Array) -> float:
    """Return the factor on all variances that makes the best-fitting pixels fit as they should."""
    some = across[::2, ::2][count[::2, ::2] > 0]
    if not len(some):
        return 1.0
    rank = int(BEST_SHARE / 100 * (len(some) - 1))
    return max(float(np.partition(some, rank)[rank]) / BEST_ACROSS, LEAST_NOISE)


def evidence(square: Array, count: Array, scale: float) -> Array:
    """Return the log odds (h, w) that the errors of one frame add; 0 where nothing was seen."""
    odds = SLOPE * np.log((1 + square / scale) / (1 + DOUBT))
    return np.where(count > 0, np.clip(odds, *EVIDENCE), 0.0)


def passing(flow: Array, grey: Array) -> tuple[Array, Array]:
    """Return (h, w) how much surfaces share with what is left of each pixel, and with what is above it."""
    return _from_left(flow, grey), np.ascontiguousarray(_from_left(flow.swapaxes(0, 1), grey.T).T)


def _from_left(flow: Array, grey: Array) -> Array:
    out = np.empty(grey.shape)
    _kernels_dense.passing_rows(flow, grey, 1 / FLOW_EDGE, 1 / IMAGE_EDGE, 1 / REACH, out)
    return out


def vote(odds: Array, weight: Array, shared: tuple[Array, Array]) -> Array:
    """Average ``odds`` (h, w) over what moves together: votes spread along surfaces (``passing``)."""
    value, total = odds * weight, weight.copy()
    across, down = shared[0], np.ascontiguousarray(shared[1].T)
    for _ in range(2):
        _kernels_dense.smooth_rows(value, total, across)
        value, total = np.ascontiguousarray(value.T), np.ascontiguousarray(total.T)
        _kernels_dense.smooth_rows(value, total, down)
        value, total = np.ascontiguousarray(value.T), np.ascontiguousarray(total.T)
    return np.asarray(value / np.maximum(total, 1e-12))


def update(carried: Array | None, votes: Array, motion: Array | None) -> Array:
    """Return the log odds (h, w) from those carried along (NaN: not seen before), this frame's, and the model's.

    In the first frame (None) the votes count as if they had been cast in several.
    """
    said = votes + _model_odds(motion)
    if carried is None:
        logit = PRIOR_LOGIT + FIRST_VOTES * said
    else:
        keep = KEEP_LOGIT if motion is None else KEEP_WITH_MODEL
        logit = PRIOR_LOGIT + keep * np.nan_to_num(carried - PRIOR_LOGIT, nan=0.0) + said
    return np.asarray(np.clip(logit, -LIMIT_LOGIT, LIMIT_LOGIT))


def _model_odds(motion: Array | None) -> Array | float:
    if motion is None:
        return 0.0
    p = np.clip(np.nan_to_num(motion, nan=0.05), 0.02, 0.98)
    return np.asarray(MODEL_RELIABILITY * (np.log(p / (1 - p)) - PRIOR_LOGIT))


def probability(logit: Array) -> Array:
    """Return probabilities of log odds, which must be finite."""
    odds = cv2.exp(-logit)  # four times as fast as numpy's
    odds += 1
    return np.asarray(np.reciprocal(odds, out=odds))

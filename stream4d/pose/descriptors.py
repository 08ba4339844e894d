"""ORB descriptors of corners and of chosen pixels, upright, and their matches.

Rublee et al., "ORB: an efficient alternative to SIFT or SURF", 2011; the ratio test is Lowe's, 2004.
"""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.packets import Array

PATCH_PX = 31.0
"""Diameter of the area that an ORB descriptor looks at."""
MIN_SIDE = 64
"""Images smaller than this have no room for descriptors."""
BYTES = 32
NOTHING = np.zeros((0, 2), np.float32), np.zeros((0, BYTES), np.uint8)
"""Pixels and descriptors of an image in which there is nothing to describe."""


def describe(grey: Array, uv: Array, corners: int) -> tuple[Array, Array]:
    """Return pixels (m, 2) float32 and descriptors (m, 32) of up to so many corners and of the pixels ``uv``."""
    if min(grey.shape) < MIN_SIDE:
        return NOTHING
    orb = cv2.ORB.create(corners)
    points = list(orb.detect(grey, None))
    for point in points:
        point.angle = 0.0  # video seldom turns upside down
    points += [cv2.KeyPoint(float(u), float(v), PATCH_PX, 0.0) for u, v in uv]
    kept, descriptors = orb.compute(grey, points)
    where = np.array([p.pt for p in kept], np.float32).reshape(-1, 2)
    return where, _bits(descriptors)


def describe_at(grey: Array, uv: Array) -> tuple[Array, Array]:
    """Return which of the pixels ``uv`` can be described (m,), and their descriptors (m, 32)."""
    if min(grey.shape) < MIN_SIDE or not len(uv):
        return np.zeros(0, np.int64), NOTHING[1]
    points = [
        cv2.KeyPoint(float(u), float(v), PATCH_PX, 0.0, 0.0, 0, i) for i, (u, v) in enumerate(uv)
    ]
    kept, descriptors = cv2.ORB.create().compute(grey, points)
    return np.array([p.class_id for p in kept], np.int64), _bits(descriptors)


def nearest(query: Array, known: Array, k: int) -> tuple[Array, Array]:
    """Return the ``k`` rows (m, k) of ``known`` that are nearest to each of ``query``, and their distances in bits."""
    bits, rows = cv2.batchDistance(query, known, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=k)
    return np.asarray(rows), np.asarray(bits)


def match(query: Array, known: Array, ratio: float) -> Array:
    """Return pairs (m, 2) of rows of ``query`` and ``known`` whose best match is ``ratio`` nearer than the second."""
    if not len(query) or len(known) < 2:
        return np.zeros((0, 2), np.int64)
    rows, bits = nearest(query, known, 2)
    clear = np.flatnonzero(bits[:, 0] < ratio * bits[:, 1])
    return np.stack([clear, rows[clear, 0]], axis=-1)


def _bits(descriptors: Array | None) -> Array:
    return NOTHING[1] if descriptors is None else np.asarray(descriptors)

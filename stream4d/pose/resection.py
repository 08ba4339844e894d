"""A camera's pose from points whose place is known and the pixels that see them, without a guess.

P3P (Ke & Roumeliotis, "An efficient algebraic solution to the perspective-three-point problem", 2017) in RANSAC.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stream4d.packets import Array

MIN_POINTS = 4
"""Three give the poses, the fourth chooses among them."""
ITERATIONS = 300
CONFIDENCE = 0.999


@dataclass(frozen=True, slots=True)
class Resection:
    """A pose and which points agree with it."""

    pose: Array
    """(3, 4) camera-from-world."""
    inliers: Array
    """(n,) bool."""


def resect(points: Array, uv: Array, K: Array, *, error_px: float) -> Resection | None:
    """Return the pose on which most points (n, 3) agree within ``error_px`` of their pixels (n, 2), or None."""
    finite = np.isfinite(points).all(-1) & np.isfinite(uv).all(-1)
    rows = np.flatnonzero(finite)
    if len(rows) < MIN_POINTS:
        return None
    try:
        ok, rotation, translation, found = cv2.solvePnPRansac(
            np.ascontiguousarray(points[rows], np.float64), np.ascontiguousarray(uv[rows], np.float64), K, None,
            iterationsCount=ITERATIONS, reprojectionError=error_px, confidence=CONFIDENCE,
            flags=cv2.SOLVEPNP_AP3P,
        )  # fmt: skip
    except cv2.error:  # an assertion inside, where all its samples were degenerate
        return None
    if not ok or found is None:
        return None
    pose = np.hstack([cv2.Rodrigues(rotation)[0], np.asarray(translation).reshape(3, 1)])
    if not np.isfinite(pose).all():
        return None
    inliers = np.zeros(len(points), bool)
    inliers[rows[found.ravel()]] = True
    return Resection(pose, inliers)

"""Essential matrices of corresponding rays, by OpenCV's solvers."""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.packets import Array


def essential_matrices(
    a: Array, b: Array, method: int, *, threshold: float, prob: float = 0.999, samples: int = 1000
) -> tuple[Array, Array]:  # -> (k, 3, 3), (n,) bool
    """Return the essential matrices, b' E a = 0, of rays (n, 2) or (n, 3) with z = 1, and which rays agree.

    Five rays have up to ten, more have one; there are none where all samples were degenerate. ``method`` is OpenCV's,
    ``threshold`` an epipolar distance at z = 1.
    """
    try:
        found, inlier = cv2.findEssentialMat(
            a[:, :2].copy(), b[:, :2].copy(), np.eye(3), method=method, prob=prob, threshold=threshold,
            maxIters=samples,
        )  # fmt: skip
    except cv2.error:  # an assertion inside
        found, inlier = None, None
    if found is None or inlier is None or len(found) % 3 or not np.isfinite(found).all():
        return np.zeros((0, 3, 3)), np.zeros(len(a), bool)
    return np.asarray(found).reshape(-1, 3, 3), np.asarray(inlier).ravel() > 0

"""Motion masks against ground truth: region similarity J, contour accuracy F, recall, static share.

J and F follow Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation"
(CVPR 2016): J is intersection over union, F the harmonic mean of precision and recall of the mask's boundary within
0.8 % of the image diagonal, J-recall the share of frames with J > 0.5. Pixels marked unknown take part in nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stream4d.packets import Array

MOVING, UNKNOWN = 255, 128
BOUNDARY_TOLERANCE = 0.008
"""Distance within which boundary pixels match, as a share of the image diagonal (DAVIS)."""
RECALL_J = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionScore:
    """Means over the frames that have a ground-truth mask."""

    j: float
    """Mean intersection over union."""
    f: float
    """Mean boundary F-measure."""
    j_recall: float
    """Share of frames with J > 0.5."""
    frames: int
    """Frames compared."""


def region_similarity(predicted: Array, truth: Array, known: Array | None = None) -> float:
    """Return J, intersection over union of two boolean masks; 1 where both are empty."""
    if known is not None:
        predicted, truth = predicted & known, truth & known
    union = np.count_nonzero(predicted | truth)
    return 1.0 if union == 0 else float(np.count_nonzero(predicted & truth) / union)


def boundary_f(predicted: Array, truth: Array, known: Array | None = None) -> float:
    """Return F, the boundary F-measure of two boolean masks; 1 where neither has a boundary."""
    if known is not None:
        predicted, truth = predicted & known, truth & known
    radius = int(np.ceil(BOUNDARY_TOLERANCE * np.hypot(*truth.shape)))
    disk = _disk(radius)
    ours, theirs = boundary(predicted), boundary(truth)
    precision = _matched_share(ours, theirs, disk)
    recall = _matched_share(theirs, ours, disk)
    if not ours.any() and not theirs.any():
        return 1.0
    if not ours.any() or not theirs.any() or precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def boundary(mask: Array) -> Array:
    """Mark pixels that differ from their right, lower or lower-right neighbour (one pixel wide)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    marked: Array = mask ^ padded[:-1, 1:]
    marked |= mask ^ padded[1:, :-1]
    marked |= mask ^ padded[1:, 1:]
    marked[-1, -1] = False
    return marked


def _disk(radius: int) -> Array:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    inside: Array = (x**2 + y**2 <= radius**2).astype(np.uint8)
    return inside


def _matched_share(boundary_a: Array, boundary_b: Array, disk: Array) -> float:
    total = np.count_nonzero(boundary_a)
    if total == 0:
        return 0.0
    near_b = cv2.dilate(boundary_b.astype(np.uint8), disk) > 0
    return np.count_nonzero(boundary_a & near_b) / total


class MotionScorer:
    """Accumulates J and F frame by frame, and the static share of every frame."""

    def __init__(self) -> None:
        self._j: list[float] = []
        self._f: list[float] = []
        self._static: list[float] = []

    def add_prediction(self, moving: Array) -> None:
        """Count one predicted mask; needs no ground truth."""
        self._static.append(1 - float(np.mean(moving)))

    def add(self, moving: Array, truth: Array) -> None:
        """Compare one boolean mask with a ground-truth mask of 0, 128 (unknown) and 255."""
        known = truth != UNKNOWN
        self._j.append(region_similarity(moving, truth == MOVING, known))
        self._f.append(boundary_f(moving, truth == MOVING, known))

    @property
    def static_share(self) -> float | None:
        """Mean share of pixels that are not masked as moving; 1 for an empty mask."""
        return float(np.mean(self._static)) if self._static else None

    def score(self) -> MotionScore | None:
        """Return the means, or None without ground truth."""
        if not self._j:
            return None
        return MotionScore(
            j=float(np.mean(self._j)),
            f=float(np.mean(self._f)),
            j_recall=float(np.mean(np.array(self._j) > RECALL_J)),
            frames=len(self._j),
        )

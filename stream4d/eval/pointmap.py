"""Reconstructed points against ground-truth points.

Accuracy is the distance from each reconstructed point to the nearest true one, completeness the reverse, Chamfer their
mean; precision and recall at a distance give the F-score (Knapitsch et al., "Tanks and Temples", 2017). Normal
consistency is the mean |cos| between the normals of nearest neighbours, both ways (as DUSt3R's successors report it on
7-Scenes and NRGBD). Clouds are placed in the ground truth's frame by a robust Sim(3) over pixels that both see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from stream4d.packets import Array

NORMAL_NEIGHBOURS = 30
"""Points in the plane fit of a normal."""
F_SCORE_SHARE = 0.01
"""Distance of the F-score as a share of the true cloud's diagonal, where no distance in metres is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointScore:
    """Distances between two clouds, metres."""

    accuracy_m: float
    """Mean distance reconstructed → true."""
    accuracy_median_m: float
    """Median of the same."""
    completeness_m: float
    """Mean distance true → reconstructed."""
    completeness_median_m: float
    """Median of the same."""
    chamfer_m: float
    """Mean of accuracy and completeness."""
    f_score: float
    """Harmonic mean of precision and recall at ``threshold_m``."""
    threshold_m: float
    """Distance that counts as a match."""
    normal_consistency: float | None
    """Mean |cos| of neighbouring normals, both ways; None for clouds too small to have normals."""


def score_points(predicted: Array, truth: Array, threshold_m: float | None = None) -> PointScore:
    """Compare two clouds (N, 3) and (M, 3) in one frame.

    Raises:
        ValueError: an empty cloud.
    """
    if len(predicted) == 0 or len(truth) == 0:
        raise ValueError(f"both clouds need points, got {len(predicted)} and {len(truth)}")
    if threshold_m is None:
        threshold_m = F_SCORE_SHARE * float(np.linalg.norm(np.ptp(truth, axis=0)))
    predicted_tree, truth_tree = cKDTree(predicted), cKDTree(truth)
    accuracy, to_truth = truth_tree.query(predicted)
    completeness, to_predicted = predicted_tree.query(truth)
    precision = float(np.mean(accuracy <= threshold_m))
    recall = float(np.mean(completeness <= threshold_m))
    both = precision + recall
    return PointScore(
        accuracy_m=float(accuracy.mean()),
        accuracy_median_m=float(np.median(accuracy)),
        completeness_m=float(completeness.mean()),
        completeness_median_m=float(np.median(completeness)),
        chamfer_m=float((accuracy.mean() + completeness.mean()) / 2),
        f_score=2 * precision * recall / both if both else 0.0,
        threshold_m=threshold_m,
        normal_consistency=_normal_consistency(
            normals(predicted, predicted_tree), normals(truth, truth_tree), to_truth, to_predicted
        ),
    )


def normals(points: Array, tree: cKDTree | None = None) -> Array | None:
    """Return (N, 3) unit normals by plane fits to the nearest neighbours; None for fewer than 3 points."""
    if len(points) < 3:
        return None
    tree = tree or cKDTree(points)
    _, neighbours = tree.query(points, k=min(NORMAL_NEIGHBOURS, len(points)))
    patches = points[neighbours].astype(np.float64)  # (N, k, 3)
    patches -= patches.mean(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(np.einsum("nki,nkj->nij", patches, patches))
    smallest: Array = vectors[:, :, 0]
    return smallest


def _normal_consistency(
    predicted: Array | None, truth: Array | None, to_truth: Array, to_predicted: Array
) -> float | None:
    if predicted is None or truth is None:
        return None
    forward = np.abs(np.einsum("ni,ni->n", predicted, truth[to_truth])).mean()
    backward = np.abs(np.einsum("ni,ni->n", truth, predicted[to_predicted])).mean()
    return float((forward + backward) / 2)


class PointSample:
    """Pairs of predicted and true points of the same pixels, a bounded number drawn over the whole sequence.

    Points stay in their cameras until the end, so that revised poses and scales apply to all of them.
    """

    def __init__(self, budget: int = 40_000, per_frame: int = 2_000, seed: int = 0) -> None:
        self._budget = budget
        self._per_frame = per_frame
        self._rng = np.random.default_rng(seed)
        self._chunks: dict[int, tuple[Array, Array]] = {}

    def add(self, index: int, predicted_in_cam: Array, truth_in_cam: Array) -> None:
        """Add one frame: two (H, W, 3) pointmaps in their own camera frames, NaN where unknown."""
        valid = np.isfinite(predicted_in_cam).all(axis=-1) & np.isfinite(truth_in_cam).all(axis=-1)
        ours, theirs = predicted_in_cam[valid], truth_in_cam[valid]
        if len(ours) == 0:
            return
        keep = self._rng.permutation(len(ours))[: self._per_frame]
        self._chunks[index] = ours[keep], theirs[keep]
        while sum(len(ours) for ours, _ in self._chunks.values()) > self._budget:
            self._per_frame //= 2
            # Kept points are in random order, so a prefix is a uniform draw.
            self._chunks = {
                i: (a[: self._per_frame], b[: self._per_frame])
                for i, (a, b) in self._chunks.items()
            }

    def in_world(
        self, ours: dict[int, Array], theirs: dict[int, Array], scale: dict[int, float]
    ) -> tuple[Array, Array]:
        """Return both clouds (N, 3) in their own worlds, for frames whose poses (4, 4) are given."""
        clouds: tuple[list[Array], list[Array]] = ([], [])
        for index, (predicted, truth) in self._chunks.items():
            if index not in ours or index not in theirs:
                continue
            for cloud, points, pose in (
                (clouds[0], predicted * scale.get(index, 1.0), ours[index]),
                (clouds[1], truth, theirs[index]),
            ):
                cloud.append(points @ pose[:3, :3].T + pose[:3, 3])
        if not clouds[0]:
            return np.zeros((0, 3)), np.zeros((0, 3))
        return np.concatenate(clouds[0]), np.concatenate(clouds[1])

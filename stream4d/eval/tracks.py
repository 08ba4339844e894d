"""Point tracks and object tracks against ground truth.

``score_point_tracks`` is TAP-Vid's measure (Doersch et al., "TAP-Vid: A Benchmark for Tracking Any Point in a Video",
NeurIPS 2022): positions in a 256 × 256 image, thresholds 1, 2, 4, 8 and 16 px, average Jaccard over them.
``score_objects`` gives the CLEAR measures (Bernardin and Stiefelhagen 2008): MOTA and identity switches for boxes or
points matched within a distance, frame by frame, keeping last frame's matches where they still hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from stream4d.packets import Array

THRESHOLDS_PX = (1, 2, 4, 8, 16)
RASTER = 256
"""TAP-Vid measures in an image resized to this many pixels a side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointTrackScore:
    """TAP-Vid's three figures, each in [0, 1]."""

    average_jaccard: float
    """Mean over thresholds of TP / (TP + FP + FN)."""
    within: float
    """Mean over thresholds of the share of visible points that are that near."""
    occlusion_accuracy: float
    """Share of points whose visibility is right."""


def score_point_tracks(
    predicted: Array,  # (N, T, 2)
    predicted_visible: Array,  # (N, T)
    truth: Array,  # (N, T, 2)
    truth_visible: Array,  # (N, T)
    query_frame: Array,  # (N,)
    size: tuple[int, int],  # (W, H)
) -> PointTrackScore:
    """Compare N tracks over T frames, pixels of a W × H image, "first" query mode.

    Only frames after each track's query frame count.
    """
    scale = np.array([RASTER / size[0], RASTER / size[1]])
    counted = np.arange(truth.shape[1])[None] > query_frame[:, None]
    distance = np.linalg.norm((predicted - truth) * scale, axis=-1)
    seen, said = truth_visible & counted, predicted_visible & counted
    within, jaccard = [], []
    for threshold in THRESHOLDS_PX:
        near = distance < threshold
        true_positive = int(np.count_nonzero(seen & said & near))
        # A point said to be visible that is hidden or far away is false; a visible one not found is missed.
        false_positive = int(np.count_nonzero(said & ~(seen & near)))
        visible = int(np.count_nonzero(seen))
        jaccard.append(true_positive / max(1, visible + false_positive))
        within.append(int(np.count_nonzero(seen & near)) / max(1, visible))
    agree = int(np.count_nonzero((truth_visible == predicted_visible) & counted))
    return PointTrackScore(
        average_jaccard=float(np.mean(jaccard)),
        within=float(np.mean(within)),
        occlusion_accuracy=agree / max(1, int(np.count_nonzero(counted))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectScore:
    """The CLEAR measures of multiple object tracking."""

    mota: float
    """1 - (misses + false positives + switches) / true objects; can be negative."""
    motp: float | None
    """Mean distance of matches."""
    misses: int
    """True objects without a match."""
    false_positives: int
    """Predicted objects without a match."""
    switches: int
    """Times that a true object changed its predicted identity."""


def score_objects(
    predicted: Sequence[Mapping[int, Array]],
    truth: Sequence[Mapping[int, Array]],
    max_distance: float,
) -> ObjectScore:
    """Compare objects frame by frame; each frame maps an identity to a position (any dimension)."""
    misses = false_positives = switches = objects = 0
    distances: list[float] = []
    last: dict[int, int] = {}  # true identity → predicted identity of its latest match
    for ours, theirs in zip(predicted, truth, strict=True):
        matches = _match(ours, theirs, last, max_distance)
        switches += sum(1 for t, p in matches.items() if t in last and last[t] != p)
        distances += [float(np.linalg.norm(ours[p] - theirs[t])) for t, p in matches.items()]
        misses += len(theirs) - len(matches)
        false_positives += len(ours) - len(matches)
        objects += len(theirs)
        last.update(matches)
    return ObjectScore(
        mota=1 - (misses + false_positives + switches) / max(1, objects),
        motp=float(np.mean(distances)) if distances else None,
        misses=misses,
        false_positives=false_positives,
        switches=switches,
    )


def _match(
    ours: Mapping[int, Array],
    theirs: Mapping[int, Array],
    last: Mapping[int, int],
    max_distance: float,
) -> dict[int, int]:
    """Keep last frame's pairs that still hold, then match the rest at least total distance."""
    kept: dict[int, int] = {}
    for t, p in last.items():
        if t in theirs and p in ours and np.linalg.norm(ours[p] - theirs[t]) <= max_distance:
            kept[t] = p
    free_t = [t for t in theirs if t not in kept]
    free_p = [p for p in ours if p not in kept.values()]
    if not free_t or not free_p:
        return kept
    cost = np.array([[np.linalg.norm(ours[p] - theirs[t]) for p in free_p] for t in free_t])
    # Forbidden pairs cost more than any set of allowed ones, so they are only taken to complete the assignment.
    forbidden = cost > max_distance
    rows, columns = linear_sum_assignment(np.where(forbidden, 1e6 + cost, cost))
    for row, column in zip(rows, columns, strict=True):
        if not forbidden[row, column]:
            kept[free_t[row]] = free_p[column]
    return kept

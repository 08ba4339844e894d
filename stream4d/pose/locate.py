"""One frame in a map that has depth: placed by its patches, or lost and searched for."""

from __future__ import annotations

import numpy as np

from stream4d.geometry.transforms import square
from stream4d.packets import Array
from stream4d.pose import keyframes, mapping, measure, relocalise, track
from stream4d.pose.anchoring import RECOGNISED, begin_segment, is_cut
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record

MIN_FOUND = 15
"""Patches that must be found again, and agree, for a lost camera to be found."""
MIN_INLIERS = 12
"""Patches that must agree with a pose for it to be believed."""
MIN_SHARE = 0.4
"""Share of the patches seen that must agree: across a cut some look right by chance, and a third of them agree."""
UNSURE_SQ = 16.0
"""Squared error, σ², beyond which a patch does not fit while the focal length is uncertain (more lets movers in)."""
LOST_AFTER = 12
"""Frames without a measured pose after which a new segment begins."""


def locate(progress: Progress, record: Record, previous: Record) -> None:
    """Place a frame in the map; it may become a keyframe, or be lost."""
    local_map = progress.map
    predicted = (progress.velocity @ square(previous.pose))[:3]
    fit = _place(progress, record, predicted, previous.pose)
    if fit is None:
        return
    inliers = fit.inliers
    least = MIN_SHARE * len(inliers) if progress.is_focal_sure else 0.0
    if inliers.sum() < max(MIN_INLIERS, least):
        _lose(progress, record, predicted)
        return
    progress.lost = 0
    outliers = record.rows[~(fit.errors < _tolerance(progress))]
    record.var[outliers] = np.inf
    local_map.misses[record.rows] = np.maximum(local_map.misses[record.rows] - 0.25, 0)
    local_map.misses[outliers] += 1
    before = square(previous.pose)
    progress.velocity = square(record.pose) @ np.linalg.inv(before)
    mapping.mature(progress, record)
    if keyframes.is_needed(local_map, record, progress.size):
        mapping.make_keyframe(progress, record)


def _tolerance(progress: Progress) -> float:
    """Return the squared error, σ², beyond which a patch was not seen.

    Under a focal length that is wrong good patches fit badly; were they left out, those that stay would confirm it.
    """
    return track.INLIER_SQ if progress.is_focal_sure else UNSURE_SQ


def _place(progress: Progress, record: Record, predicted: Array, before: Array) -> track.Fit | None:
    """Fit the frame's pose, aligning its patches on the way; None where the camera is lost."""
    fit = measure.best_fit(progress, record, predicted, before)
    share = measure.refine_positions(progress, record, fit.pose)
    if progress.lost or share < RECOGNISED:
        # flow of a blank or foreign image looks consistent: only what was recognised counts
        record.var[:] = np.inf
        if not _find_again(progress, record, predicted):
            _lose(progress, record, predicted)
            return None
        fit = measure.fit(progress, record, record.pose, track.WARM)
    else:
        fit = measure.best_fit(progress, record, fit.pose, predicted)
    if fit.inliers.sum() < 0.5 * len(record.rows):
        fresh = track.fit_pose_from_nothing(
            progress.map, record.rows, record.uv[record.rows], record.info[record.rows]
        )
        if fresh is not None and fresh.inliers.sum() > 1.2 * fit.inliers.sum():
            fit = measure.fit(progress, record, fresh.pose, track.WARM)
    measure.look_again(progress, record)
    return measure.fit(progress, record, fit.pose, track.WARM)


def _find_again(progress: Progress, record: Record, predicted: Array) -> bool:
    """Recover a lost camera: near where it was expected, else anywhere in the map."""
    local_map = progress.map
    for guess in (predicted, relocalise.find_pose(local_map, record.pyramid[0])):
        if guess is None:
            continue
        record.set_pose(guess, local_map, tracked=True)
        measure.look_again(progress, record)
        rows = np.flatnonzero(np.isfinite(record.var) & (local_map.host >= 0))
        if len(rows) >= MIN_FOUND:
            fit = measure.fit(progress, record, guess, track.COLD)
            if fit.inliers.sum() >= max(MIN_FOUND, 0.5 * len(rows)):
                return True
        record.var[:] = np.inf
    return False


def _lose(progress: Progress, record: Record, predicted: Array) -> None:
    """Let the frame float where it was expected; begin a new segment after too many, or at a cut."""
    progress.lost += 1
    record.set_pose(predicted, progress.map, tracked=False)
    progress.velocity = np.eye(4)
    if progress.lost > LOST_AFTER or (progress.lost == 1 and is_cut(progress, record)):
        begin_segment(progress, record, record.pose)

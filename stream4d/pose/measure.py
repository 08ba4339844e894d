"""What one frame says of its own place: patches carried by flow, aligned, searched again, and the pose they give."""

from __future__ import annotations

import numpy as np

from stream4d.geometry import camera
from stream4d.packets import Array
from stream4d.pose import patches, track
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record

LOOK_AGAIN_CORRELATION = 0.85
"""A patch that flow did not bring must look better than one that it did."""


def follow(progress: Progress, record: Record, previous: Record) -> None:
    """Carry the previous frame's tracks into this one by flow."""
    local_map = progress.map
    progress.tracked_before = int((np.isfinite(previous.var) & (local_map.host >= 0)).sum())
    if record.flow_here is None:
        record.uv, record.var = (
            previous.uv.copy(),
            np.where(np.isfinite(previous.var), patches.CHAINED_MAX_VAR, np.inf),
        )
    else:
        record.uv, record.var = patches.follow_flow(
            previous.uv, previous.var, record.flow_here, record.sigma_here
        )
    record.var[local_map.host < 0] = np.inf
    record.info = patches.flow_info(record.pyramid[0], record.uv, record.var)


def fit(progress: Progress, record: Record, pose: Array, schedule: Array) -> track.Fit:
    """Fit the record's pose to the patches it sees, and set it."""
    return _take(progress, record, _sightings(progress, record).fit(pose, schedule))


def best_fit(progress: Progress, record: Record, near: Array, other: Array) -> track.Fit:
    """Fit from two guesses, warm, and from one, cold; the lowest robust cost wins.

    Annealing from afar finds poses that were not guessed, but is drawn to movers that cover much of the view;
    warm starts stay with the surfaces that the map knows.
    """
    seen = _sightings(progress, record)
    fits = [seen.fit(near, track.WARM), seen.fit(near, track.COLD)]
    if fits[0].cost > 0.3 * len(fits[0].errors) * track.NORMAL_SCALE:
        fits.append(seen.fit(other, track.WARM))
    return _take(progress, record, min(fits, key=lambda one: one.cost))


def _sightings(progress: Progress, record: Record) -> track.Sightings:
    rows = record.rows = np.flatnonzero(np.isfinite(record.var) & (progress.map.host >= 0))
    return track.sightings(progress.map, rows, record.uv[rows], record.info[rows])


def _take(progress: Progress, record: Record, found: track.Fit) -> track.Fit:
    record.errors, record.information = found.errors, found.information
    record.set_pose(found.pose, progress.map, tracked=True)
    return found


def refine_positions(progress: Progress, record: Record, pose: Array) -> float:
    """Align the tracked patches; others stay where flow brought them, where that is sure. Returns the share aligned."""
    unsure = record.var >= patches.CHAINED_MAX_VAR
    found, uv, info = patches.align(
        progress.map, record.pyramid, pose, record.uv, record.var,
        min_correlation=np.where(unsure, LOOK_AGAIN_CORRELATION, patches.MIN_CORRELATION),
    )  # fmt: skip
    record.see(found, uv, info)
    record.var[record.var >= patches.CHAINED_MAX_VAR] = np.inf
    return len(found) / max(progress.tracked_before, 1)


def look_again(progress: Progress, record: Record) -> None:
    """Search for patches that flow did not bring, or not well: project them, align, keep what looks right."""
    local_map = progress.map
    unsure = ~(record.var <= patches.ALIGN_FLOOR_VAR)
    rows = np.flatnonzero((local_map.host >= 0) & unsure)
    rows = rows[local_map.rho_info[rows] * local_map.rho[rows] ** 2 > 100.0]
    uv, z = track.project_rows(local_map, rows, record.pose)
    rows, uv = rows[ok := camera.inside(uv, *progress.shape, 8.0) & (z > 0)], uv[ok]
    want = np.full(len(record.var), np.inf)
    want[rows] = 1.0
    everything = record.uv.copy()
    everything[rows] = uv
    record.see(
        *patches.align(
            local_map, record.pyramid, record.pose, everything, want,
            min_correlation=LOOK_AGAIN_CORRELATION,
        )
    )  # fmt: skip

"""What frames in hand say of places just chosen in the newest one: flow leads back through them.

Patches on what moves could otherwise hold the pose until their depth is known, and bend it: a depth that is free hides
much of a motion.
"""

from __future__ import annotations

import numpy as np

from stream4d.packets import Array
from stream4d.pose import motions, patches, start, track
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record, relative

FRAMES_BACK = 8
"""Frames through which flow is followed; its errors add up."""
USUAL = 0.9
"""Quantile of the errors of patches that are known to stand still, beyond which a place moves. How well flow fits
differs from clip to clip: one limit for all would let slow movers pass."""
LEAST_BACK = 3
"""Frames below which nothing is said: any two views of a point agree but for the epipolar line."""


def may_stand_still(progress: Progress, record: Record, uv: Array) -> Array:  # (n, 2) -> (n,) bool
    """Tell which places of a frame do not clearly move; all where too few frames were seen before it.

    A place moves where no depth explains its way through the frames before, their poses held, nearly as well as that
    of the patches that the map is seen by. That depth is not read: it is the one under which a mover that was missed
    would stand still.
    """
    before = _frames_back(progress, record)
    if len(before) < LEAST_BACK or not len(uv):
        return np.ones(len(uv), bool)
    known = record.uv[np.isfinite(record.var) & (progress.map.host >= 0)]
    error = _errors(progress, record, before, np.concatenate([known, uv]))
    usual, of_places = error[: len(known)], error[len(known) :]
    usual = usual[np.isfinite(usual)]
    # Under a wrong focal length what stands still does not fit either.
    know = progress.is_focal_sure and len(usual) > 0
    most = float(np.quantile(usual, USUAL)) if know else start.UNDECIDED
    return ~(of_places > np.clip(most, motions.CONSISTENT, start.UNDECIDED))


def _errors(progress: Progress, record: Record, before: list[Record], uv: Array) -> Array:  # (n,)
    """Return how well the best depth of each place explains its way back, σ²; NaN where too few frames saw it."""
    ways, poses = _ways(progress, record, before, uv)
    rho, none = np.full(len(uv), _usual_rho(progress, record)), np.zeros(len(uv))
    fitted = motions.Motion(progress.map.cam, ways.rays.copy(), poses, rho, none, none)
    motions.fit_depths(ways, fitted)
    enough = ways.seen.sum(0) >= max(LEAST_BACK, len(before) / 2)
    return np.where(enough, fitted.error, np.nan)


def _ways(
    progress: Progress, record: Record, before: list[Record], uv: Array
) -> tuple[motions.Tracks, Array]:
    """Return the ways of places back through frames, and these frames' poses (F + 1, 3, 4) from the newest one."""
    seen, infos, poses = [], [], [np.eye(3, 4)]
    at, var, later = uv, np.full(len(uv), patches.ALIGN_FLOOR_VAR), record
    for r in before:
        assert later.back_here is not None
        at, var = patches.follow_flow(at, var, later.back_here, later.sigma_here)
        seen.append(at)
        infos.append(patches.flow_info(r.pyramid[0], at, var))
        poses.append(track.relative_pose(relative(r, progress.map), record.pose))
        later = r
    ways = motions.Tracks(
        progress.map.K, uv, np.stack(seen), np.stack(infos), progress.size, focal_known=True
    )
    return ways, np.stack(poses)


def _usual_rho(progress: Progress, record: Record) -> float:
    """Return the median inverse depth at which a frame sees the map."""
    local_map = progress.map
    rows = np.flatnonzero(np.isfinite(record.var) & (local_map.host >= 0))
    _, z = track.project_rows(local_map, rows, record.pose)
    here = (local_map.rho[rows] / np.maximum(z, 1e-6))[z > 1e-6]
    return float(np.median(here)) if len(here) else 1.0


def _frames_back(progress: Progress, record: Record) -> list[Record]:
    """Return the frames before one, the newest first, as far back as flow and measured poses reach."""
    found: list[Record] = []
    later = record
    for r in reversed([r for r in progress.records if r.index < record.index][-FRAMES_BACK:]):
        if later.back_here is None or not r.is_tracked or r.segment != record.segment:
            break
        found.append(r)
        later = r
    return found

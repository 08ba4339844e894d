"""How the map grows: keyframes made and retired, patches added, depths sharpened, the window adjusted."""

from __future__ import annotations

import numpy as np

from stream4d.pose import (
    _kernels_bundle,
    hindsight,
    keyframes,
    patches,
    refine,
    selfcalibration,
    uncertainty,
)
from stream4d.pose.hanging import Hanging
from stream4d.pose.keyframe_view import view_of
from stream4d.pose.leaving import revise
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record

MAX_MISSES = 3
"""Frames more in which a patch was an outlier than in which it fitted, beyond which it goes."""


def mature(progress: Progress, record: Record) -> None:
    """Sharpen the depths of the newest keyframe's patches from all that has been seen of them, poses held."""
    local_map = progress.map
    newest = local_map.newest
    since = [r for r in progress.records if r.index > local_map.frame_index[newest]] + [record]
    young = np.flatnonzero(local_map.host == newest)
    poses = np.concatenate([local_map.poses, np.stack([r.pose for r in since])])
    seen = np.concatenate([local_map.var[:, young], np.stack([r.var[young] for r in since])])
    where = np.concatenate([local_map.uv[:, young], np.stack([r.uv[young] for r in since])])
    how = np.concatenate([local_map.info[:, young], np.stack([r.info[young] for r in since])])
    patch, frame = np.nonzero(np.isfinite(seen).T)
    rho, info = local_map.rho[young], local_map.rho_info[young]
    _kernels_bundle.refine_depths(
        local_map.cam, local_map.rays[young], local_map.host[young], poses, patch, frame,
        where[frame, patch], how[frame, patch], rho, info, local_map.prior[young], local_map.prior_info[young],
    )  # fmt: skip
    local_map.rho[young], local_map.rho_info[young] = rho, info


def enter(progress: Progress, record: Record, slot: int) -> None:
    """Put a frame into a free slot of the map as a keyframe."""
    record.keyframe = True
    progress.map.add_keyframe(
        slot, record.index, record.pose, record.pyramid, record.uv, record.var, record.info
    )
    progress.entered.append(record.index)


def make_keyframe(progress: Progress, record: Record) -> None:
    """Make the frame a keyframe, give it patches of its own, and adjust the window."""
    local_map = progress.map
    slot = _free_slot(progress)
    enter(progress, record, slot)
    local_map.drop_patches(local_map.misses > MAX_MISSES)
    record.var[local_map.host < 0] = np.inf
    fill(progress, record)
    adjust(progress)
    record.set_pose(local_map.poses[slot], local_map, tracked=True)


def retire(progress: Progress, slot: int) -> None:
    """Drop a keyframe for good: frames that hang on it get their final poses, the listener sees it once more."""
    revise(progress, slot)
    progress.listener.leaves(view_of(progress.map, slot, progress.segment))
    progress.map.drop(slot)


def settle_all(progress: Progress) -> None:
    """At the end: give the frames that still hang on a keyframe their final poses, show the listener the last ones."""
    if progress.started:
        for slot in progress.map.order:
            revise(progress, int(slot))
            progress.listener.leaves(view_of(progress.map, int(slot), progress.segment))


def _free_slot(progress: Progress) -> int:
    local_map = progress.map
    free = np.flatnonzero(local_map.frame_index < 0)
    if len(free):
        return int(free[0])
    oldest = int(local_map.order[0])
    retire(progress, oldest)
    for r in progress.records:
        r.var[local_map.rows(oldest)] = np.inf
    return oldest


def fill(progress: Progress, record: Record) -> None:
    """Host new patches in the newest keyframe where it has none and nothing moves, at their neighbours' depth."""
    local_map = progress.map
    slot = local_map.slot_of(record.index)
    seen = np.flatnonzero(np.isfinite(record.var))
    uv = patches.choose(
        record.pyramid[0], progress.config.patches, avoid=record.uv[seen],
        allowed=record.usable(), spacing=progress.size / 40,
    )  # fmt: skip
    uv = uv[hindsight.may_stand_still(progress, record, uv)]
    rho, info = keyframes.inherit_depth(local_map, record, seen, uv)
    rows = local_map.add_patches(slot, uv, rho, info)
    record.see_own(rows, uv[: len(rows)])


def adjust(progress: Progress) -> None:
    """Adjust the newest keyframes, the depths of their patches and, where it is not given, the focal length.

    Frames follow the keyframes between which they stand.
    """
    local_map = progress.map
    frames, way = Hanging(progress), local_map.way()
    held = 1
    if _is_focal_due(progress):
        selfcalibration.calibrate(progress)
    else:
        held = max(len(local_map.order) - progress.config.keyframes, 1)
        refine.adjust_map(local_map, local_map.order[held:])
    new_way = local_map.way()
    if held == 1 and min(way, new_way) > 1e-6:
        # nothing but inherited depths would hold the unit, and frames that have left keep it
        local_map.rescale(way / new_way)
    frames.follow(progress)
    uncertainty.spread(progress)


def _is_focal_due(progress: Progress) -> bool:
    """Count one more adjustment; tell whether it is one for the focal length."""
    if progress.focal_known or not progress.config.refine_focal:
        return False
    progress.focal.fresh += 1
    return not progress.focal.settled or progress.focal.fresh >= progress.config.keyframes

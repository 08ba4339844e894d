"""The focal length from bundle adjustment of the whole map, and from the best of its explanations."""

from __future__ import annotations

import numpy as np

from stream4d.geometry.transforms import square
from stream4d.packets import Array
from stream4d.pose import correction, focal, refine, rivals
from stream4d.pose.map import LocalMap
from stream4d.pose.progress import Progress
from stream4d.pose.record import relative, to_world_from_cam

INHERITED_SHARE = 1e-3
"""Of the information of inherited depths, what counts where the focal length is free: they came from their neighbours
under the focal length so far, and hundreds of them together would hold it."""
LOOKS = frozenset({7, 8, 9})
"""Keyframes whose evidence was not taken up yet at which other explanations are looked for: right after a start."""
MARGIN = 2 * focal.OVERCONFIDENCE
"""Cost, σ², by which another explanation must be better than the present one."""


def calibrate(progress: Progress) -> None:
    """Adjust all keyframes but the oldest, the depths of all patches, and the focal length.

    Before what the map says of the focal length is believed, other explanations of the map are looked at.
    """
    local_map, known = progress.map, progress.focal
    order, was_settled = local_map.order, known.settled
    before, hanging = _way(local_map, order), _Hanging(progress)
    taken_up = known.fresh >= progress.config.keyframes
    looked = not was_settled and (known.fresh in LOOKS or taken_up)
    _adjust(progress, _choose(progress) if looked else 0.0)
    if known.settled and not was_settled and not looked:
        _adjust(progress, _choose(progress))
    if taken_up:
        known.take_up(known.fresh / len(order))
    after = _way(local_map, order)
    if before > 1e-6 and after > 1e-6:
        _rescale(local_map, order, before / after)
    hanging.follow(progress)


def _adjust(progress: Progress, spread: float) -> None:
    """Adjust the map once, and hear what it says of the focal length; ``spread`` is a variance of log focal.

    Poses that were held would have been found with the focal length so far, and would hold it too; so would depths
    that new patches inherited. How far the focal length went is how far it may still have to go.
    """
    local_map, known = progress.map, progress.focal
    now = float(np.log(local_map.K[0, 0]))
    result = refine.adjust_map(
        local_map, local_map.order[1:], focal_info=known.held_info, focal_offset=known.mean - now,
        inherited=INHERITED_SHARE,
    )  # fmt: skip
    low, high = focal.limits(progress.size)
    new = min(max(now + float(np.log(result.focal_scale)), low), high)
    local_map.set_focal(float(np.exp(new - now)))
    known.weigh(new, result.focal_information, spread + (new - now) ** 2, progress.size)


def _choose(progress: Progress) -> float:
    """Take up the best explanation of the map; returns the variance of log focal over those nearly as good."""
    local_map, known = progress.map, progress.focal
    evidence = rivals.Evidence.of(
        local_map, inherited=INHERITED_SHARE, mean=known.mean, info=known.held_info
    )
    if not len(evidence.rows):
        return 0.0
    every = rivals.explain(evidence)
    present, best = every[0], min(every, key=lambda rival: rival.cost)
    if best.cost > present.cost - MARGIN:
        best = present
    local_map.set_focal(float(best.cam[0] / local_map.K[0, 0]))
    local_map.poses[:] = best.poses
    local_map.rho[evidence.rows], local_map.prior[evidence.rows] = best.rho, best.prior
    worse = np.array([max(rival.cost - best.cost, 0.0) for rival in every])
    likelihood = np.exp(-worse / (2 * focal.OVERCONFIDENCE))
    apart = np.array([rival.log_focal - best.log_focal for rival in every])
    return float((likelihood * apart**2).sum() / likelihood.sum())


class _Hanging:
    """Where frames stand that hang on keyframes, so that they can follow them through another explanation.

    A frame between two keyframes moves as they do; that it stood rigidly before one of them holds no longer.
    """

    def __init__(self, progress: Progress) -> None:
        local_map, departed = progress.map, progress.departed
        self._old = {
            int(local_map.frame_index[s]): square(local_map.poses[s]) for s in local_map.order
        }
        self._records = [square(relative(record, local_map)) for record in progress.records]
        self._departed = np.flatnonzero(np.isin(departed.reference, list(self._old)))
        references = departed.reference[self._departed]
        there = np.array([self._old[int(i)] for i in references]).reshape(-1, 4, 4)
        self._poses = square(departed.from_reference[self._departed]) @ there
        self._depths = _depths(local_map)

    def follow(self, progress: Progress) -> None:
        """Place the frames again, between the keyframes where they are now."""
        local_map, departed = progress.map, progress.departed
        new = {i: square(local_map.poses[local_map.slot_of(i)]) for i in self._old}
        moved = {i: new[i] @ np.linalg.inv(old) for i, old in self._old.items()}
        for record, pose in zip(progress.records, self._records, strict=True):
            here = new.get(record.index)
            here = correction.interpolated(moved, record.index) @ pose if here is None else here
            record.set_pose(here, local_map, tracked=record.is_tracked)
        mine = self._departed
        if len(mine):
            here = correction.interpolate(moved, departed.index[mine]) @ self._poses
            there = np.stack([new[int(i)] for i in departed.reference[mine]])
            departed.from_reference[mine] = (here @ np.linalg.inv(there))[:, :3]
            departed.focal[mine] = local_map.K[0, 0]
            stretch = self._stretch(local_map, departed.index[mine])
            departed.stretch[mine] *= stretch
            if progress.dense is not None and mine[-1] == len(departed.index) - 1:
                progress.dense.pose = here[-1, :3].copy()  # of the frame that left last
                progress.dense.rescale(float(stretch[-1]))

    def _stretch(self, local_map: LocalMap, frames: Array) -> Array:
        """Return the factors of depth of frames: those of the keyframes around them, medians over their patches."""
        ratio = np.log(_depths(local_map) / self._depths)
        order = local_map.order[np.isfinite(ratio[local_map.order]).any(axis=1)]
        if not len(order):
            return np.ones(len(frames))
        middle = np.nanmedian(ratio[order], axis=1)
        return np.exp(np.interp(frames, local_map.frame_index[order], middle))


def _depths(local_map: LocalMap) -> Array:  # (F, N)
    """Return the depths at which keyframes see patches, NaN where they do not."""
    out = np.full(local_map.var.shape, np.nan)
    rows = np.flatnonzero(local_map.host >= 0)
    points = local_map.world_points(rows)
    for slot in local_map.order:
        pose = local_map.poses[slot]
        z = points @ pose[2, :3] + pose[2, 3]
        out[slot, rows] = np.where((z > 0) & np.isfinite(local_map.var[slot, rows]), z, np.nan)
    return out


def _way(local_map: LocalMap, order: Array) -> float:
    """Return the length of the way through the older half of the keyframes."""
    centres = to_world_from_cam(local_map.poses[order[: max(len(order) // 2, 2)]])[:, :3, 3]
    return float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())


def _rescale(local_map: LocalMap, order: Array, scale: float) -> None:
    """Scale the map about its oldest keyframe."""
    first = local_map.poses[order[0]]
    centre = -first[:, :3].T @ first[:, 3]
    for slot in order:
        pose = local_map.poses[slot]
        pose[:, 3] = scale * pose[:, 3] + (scale - 1) * pose[:, :3] @ centre
        local_map.rescale_patches(int(slot), scale)

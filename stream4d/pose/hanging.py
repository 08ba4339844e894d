"""Frames between keyframes, when an adjustment moves these: they move as their neighbours do.

Were a frame held rigidly before one keyframe, the path would break at the next one.
"""

from __future__ import annotations

import numpy as np

from stream4d.geometry.transforms import square
from stream4d.packets import Array
from stream4d.pose import correction
from stream4d.pose.map import LocalMap
from stream4d.pose.progress import Progress
from stream4d.pose.record import relative


class Hanging:
    """Where frames stand before an adjustment; after it they follow the keyframes around them."""

    def __init__(self, progress: Progress) -> None:
        local_map, departed = progress.map, progress.departed
        self._old = {
            int(local_map.frame_index[s]): square(local_map.poses[s]) for s in local_map.order
        }
        self._records = [r for r in progress.records if r.segment == progress.segment]
        self._stood = [square(relative(record, local_map)) for record in self._records]
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
        mine, count = self._departed, len(self._records)
        held = np.array([record.index for record in self._records], np.int64)
        moves = correction.interpolate(moved, np.concatenate([held, departed.index[mine]]))
        for record, move, stood in zip(self._records, moves[:count], self._stood, strict=True):
            here = new.get(record.index, move @ stood)
            record.set_pose(here, local_map, tracked=record.is_tracked)
        if len(mine):
            here = moves[count:] @ self._poses
            there = np.stack([new[int(i)] for i in departed.reference[mine]])
            departed.from_reference[mine] = (here @ np.linalg.inv(there))[:, :3]
            departed.focal[mine] = local_map.K[0, 0]
            stretch = self._stretch(local_map, departed.index[mine])
            departed.stretch[mine] *= stretch
            if mine[-1] == len(departed.index) - 1:  # the frame that left last
                progress.densifier.move(here[-1, :3].copy(), float(stretch[-1]))

    def _stretch(self, local_map: LocalMap, frames: Array) -> Array:
        """Return the factors of depth of frames: those of the keyframes around them, medians over their patches."""
        ratio = np.log(_depths(local_map) / self._depths)
        order = local_map.order[np.isfinite(ratio[local_map.order]).any(axis=1)]
        if not len(order):
            return np.ones(len(frames))
        middle = [np.median(row[np.isfinite(row)]) for row in ratio[order]]  # nanmedian is slow
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

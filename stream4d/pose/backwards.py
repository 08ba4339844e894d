"""Frames from before the map began: placed in it one after another, back in time.

Where the view turns away from its anchor before there is parallax enough, a new anchor takes over, and all that is
known of the frames before it is how they were turned. They are still in hand when the map begins.
"""

from __future__ import annotations

import numpy as np

from stream4d.geometry.transforms import square
from stream4d.pose import inertia, measure, patches, track
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record

MIN_INLIERS = 15
"""Patches that must agree with the pose of a frame, as for a camera that was lost."""
MIN_SHARE = 0.5
"""Share of those found that must agree."""


def place_earlier(progress: Progress, first: int) -> None:
    """Place the frames in hand before frame ``first``, the newest first, as far back as the map is seen."""
    after = [r for r in progress.records if r.index >= first]
    earlier = [r for r in progress.records if r.index < first and r.segment == progress.segment]
    chain = after[:2]
    for record in reversed(earlier):
        if not _place(progress, record, chain):
            break
        chain = [record, chain[0]]
        earlier.pop()
    centre = -chain[0].pose[:, :3].T @ chain[0].pose[:, 3]
    for (
        record
    ) in earlier:  # how they are turned is still known: they stay where the last one stands
        pose = record.pose.copy()
        pose[:, 3] = -pose[:, :3] @ centre
        record.set_pose(pose, progress.map, tracked=record.is_tracked)


def _place(progress: Progress, record: Record, chain: list[Record]) -> bool:
    """Place one frame by what the next one, first in ``chain``, sees of the map; False where that does not hold."""
    following, local_map = chain[0], progress.map
    if following.back_here is None:
        return False
    turned_only = record.pose.copy()
    record.uv, record.var = patches.follow_flow(
        following.uv, following.var, following.back_here, following.sigma_here
    )
    record.var[local_map.host < 0] = np.inf
    record.info = patches.flow_info(record.pyramid[0], record.uv, record.var)
    step, predicted = None, following.pose
    if len(chain) > 1:
        step = track.relative_pose(following.pose, chain[1].pose)
        predicted = step @ square(following.pose)
    fit = measure.best_fit(progress, record, predicted, following.pose)
    measure.refine_positions(progress, record, fit.pose)
    fit = measure.best_fit(progress, record, fit.pose, predicted)
    measure.look_again(progress, record)
    fit = measure.fit(progress, record, fit.pose, track.WARM)
    if fit.inliers.sum() < max(MIN_INLIERS, MIN_SHARE * len(record.rows)):
        record.var[:] = np.inf
        record.set_pose(turned_only, local_map, tracked=record.is_tracked)
        return False
    record.var[record.rows[~fit.inliers]] = np.inf
    if step is not None:
        pose = inertia.steadied(fit.pose, fit.information, len(record.rows), predicted, step)
        record.set_pose(pose, local_map, tracked=True)
    return True

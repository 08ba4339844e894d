"""Before there is a map: an anchor frame, whose patches are followed until they show enough parallax to start."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from stream4d.geometry.transforms import project_to_so3, square
from stream4d.packets import Array
from stream4d.pose import (
    backwards,
    mapping,
    measure,
    patches,
    relocalise,
    start,
    track,
    turning,
    uncertainty,
)
from stream4d.pose.candidates import Candidates
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record

START_PARALLAX = 0.015
"""Median flow left after rotation, over the long side, at which a start is tried."""
START_QUALITY = 6.0
START_SHARE = (0.85, 0.5)
"""Share of tracks that must agree with a start, at most and at least. Over a short baseline and few frames movers
can pass for the scene; over a long one they cannot."""
PURE_SHARE, PURE_AFTER = 0.35, 4
"""Share that suffices after so many frames where hardly a track agrees with the start in part only."""
PURITY = 0.8
"""What agrees well with a start, over what does not clearly disagree, from which no other motion is mixed into it."""
FREE_PURITY = 0.86
"""The same where the focal length is free: a compromise of the scene and its movers comes nearer to being one body."""
CLEAR_MARGIN = 1.2
"""Score over that of the best other motion from which the two are told apart; a longer baseline may do it."""
THOROUGH_AFTER = frozenset({2, 4, 6, 8, 11, 15, 20, 26, 32, 39})
"""Frames after the anchor at which the scene is looked for among movers: the search is dear."""
START_STILL_PX = 0.5
START_EXPLAINED = 0.2
"""Share of tracks that rotation alone may explain exactly at a start: a camera that stands still before movers
shows a peak at zero, while a scene's depth leaves a range of parallax."""
START_FRAMES = 6
"""Frames after the anchor that a start is fitted to, and that become keyframes."""
MIN_KEPT = 0.4
"""Share of the anchor's patches below which a new anchor is due."""
RECOGNISED = 0.1
"""Share of the patches tracked before that must be recognised for the frame to count as seen."""
MIN_SEEN = 8
"""Patches below which a frame that nothing was fitted to counts as not tracked."""


def anchor(progress: Progress, record: Record, pose: Array) -> None:
    """Begin (again) from this frame: it becomes the only keyframe, its patches at infinity."""
    local_map = progress.map
    share = progress.focal.fresh / max(len(local_map.order), 1) if progress.started else 1.0
    progress.focal.take_up(share)
    for slot in local_map.order:
        if progress.started or progress.lost:
            mapping.retire(progress, int(slot))
        local_map.drop(int(slot))
    progress.departed.settle()
    progress.candidates = Candidates()
    for held in progress.records:
        held.var[:] = np.inf
    record.uv[:], record.var[:], record.info[:] = 0, np.inf, 0
    record.set_pose(pose, local_map, tracked=True)
    mapping.enter(progress, record, 0)
    progress.entered.clear()  # there is nothing to recognise before the map has depth
    uv = patches.choose(
        record.pyramid[0], local_map.per_frame, avoid=np.zeros((0, 2)),
        allowed=record.usable(), spacing=progress.size / 60,
    )  # fmt: skip
    rows = local_map.add_patches(0, uv, np.ones(len(uv)), np.full(len(uv), 1e-6))
    record.see_own(rows, uv)
    # A view with nothing to hold on to (black, blank, too small) says nothing of its pose.
    record.set_pose(pose, local_map, tracked=len(uv) >= MIN_SEEN)


def try_start(progress: Progress, record: Record) -> None:
    """Follow the anchor's patches; start the map once they show enough parallax."""
    local_map = progress.map
    origin = local_map.poses[0]
    last = progress.records[-1].pose
    seen = measure.refine_positions(progress, record, last) >= RECOGNISED
    if not seen and is_cut(progress, record):
        _cut(progress, record)
        return
    rows = np.flatnonzero(np.isfinite(record.var))
    total = int((local_map.host >= 0).sum())
    rotation, residual = track.rotation_between(
        local_map.cam, local_map.rays[rows], record.uv[rows], record.info[rows],
        track.relative_pose(last, origin),
    )  # fmt: skip
    pose = rotation.pose @ square(origin)
    # A product in which the last pose stands three times: where every frame begins anew, its rounding would triple
    # each time, and 35 frames make a singular matrix of 1e-16.
    pose[:, :3] = project_to_so3(pose[:, :3])
    pose[:, 3] = -pose[:, :3] @ (-origin[:, :3].T @ origin[:, 3])
    record.set_pose(pose, local_map, tracked=seen and len(rows) >= MIN_SEEN)
    record.rows, record.information = rows, rotation.information
    if len(rows) < MIN_KEPT * total or len(rows) < start.MIN_TRACKS:
        drifted = uncertainty.begin_anew(progress, record)
        anchor(progress, record, pose)
        local_map.covariance[0], local_map.focal_bias[0] = drifted
        record.is_tracked &= seen
        return
    parallax = np.nanquantile(residual, [0.25, 0.5]) / progress.size if len(rows) else np.zeros(2)
    explained = float((residual < START_STILL_PX).mean()) if len(rows) else 1.0
    if parallax[1] > START_PARALLAX and explained < START_EXPLAINED:
        # movers over nearly half the view put the median among them
        _start(progress, record, float(min(2 * parallax[0], parallax[1])))
    if not progress.started:
        turning.learn_focal(progress, record)


def _cut(progress: Progress, record: Record) -> None:
    """Begin anew from a frame that shows nothing of the one before.

    Where that one showed nothing of its own predecessor either, there is no scene to follow (noise, a slide show):
    neither counts as tracked, and no segment is counted.
    """
    before = progress.records[-1]
    if before.index != progress.map.frame_index[0]:
        begin_segment(progress, record, np.eye(3, 4))
        return
    anchor(progress, record, np.eye(3, 4))
    before.is_tracked = record.is_tracked = False


def begin_segment(progress: Progress, record: Record, pose: Array) -> None:
    """Begin a new segment from this frame: nothing of what was known holds any more."""
    anchor(progress, record, pose)
    progress.segment += 1
    record.segment = progress.segment
    progress.departed.forget()
    progress.started, progress.lost = False, 0


def is_cut(progress: Progress, record: Record) -> bool:
    """Tell whether the image shows another scene: it has texture, and the frame before had too."""
    before = progress.records[-1].pyramid[0]
    return relocalise.is_textured(record.pyramid[0]) and relocalise.is_textured(before)


def _start(progress: Progress, record: Record, parallax: float) -> None:
    local_map = progress.map
    first = int(local_map.frame_index[0])
    held = [r for r in progress.records if r.index > first] + [record]
    picks = np.unique(np.linspace(0, len(held) - 1, START_FRAMES).round().astype(int))
    chosen = [held[i] for i in picks]
    rows = np.flatnonzero(local_map.host == 0)
    look = functools.partial(
        start.start_map, local_map.K, local_map.uv0[rows], np.stack([r.uv[rows] for r in chosen]),
        np.stack([r.info[rows] for r in chosen]), size=progress.size,
        focal_known=progress.is_focal_sure,
    )  # fmt: skip
    so_far = _SoFar(
        len(held), parallax, progress.is_focal_sure, kept=len(record.rows) / max(len(rows), 1)
    )
    if len(held) not in THOROUGH_AFTER and not _is_believed(look(thorough=False), so_far):
        return
    begun = look(thorough=True, earlier=progress.candidates)
    if begun is not None:
        progress.candidates = begun.candidates
    if not _is_believed(begun, so_far):
        return
    _build_map(progress, begun, rows, chosen)
    for r in held:
        if not r.keyframe:
            measure.fit(progress, r, r.pose, track.COLD)
    if len(held) > 1:
        progress.velocity = square(record.pose) @ np.linalg.inv(square(held[-2].pose))
    mapping.fill(progress, record)
    uncertainty.spread(progress)
    backwards.place_earlier(progress, first)


def _build_map(progress: Progress, begun: start.Start, rows: Array, chosen: list[Record]) -> None:
    """Give the anchor's patches (``rows``) their depths, and make the frames of the start keyframes."""
    local_map = progress.map
    if not progress.focal_known:
        local_map.set_focal(begun.focal / local_map.K[0, 0])
        progress.focal.forget()  # the frames that turned are in the map
        progress.focal.fresh = len(chosen)
    origin = square(local_map.poses[0])
    local_map.rho[rows], local_map.rho_info[rows] = begun.rho, begun.rho_info
    local_map.prior[rows], local_map.prior_info[rows] = begun.rho, 1e-6
    local_map.drop_patches(rows[~begun.inlier])
    progress.entered.append(int(local_map.frame_index[0]))
    for k, r in enumerate(chosen):
        r.set_pose(begun.poses[k + 1] @ origin, local_map, tracked=True)
        mapping.enter(progress, r, k + 1)
    progress.started, progress.lost = True, 0
    progress.candidates = Candidates()
    progress.velocity = np.eye(4)


@dataclass(frozen=True, slots=True)
class _SoFar:
    """What a start is judged by besides itself."""

    frames: int
    """Since the anchor."""
    parallax: float
    """Of the long side, at most twice that of the lower quartile."""
    focal_known: bool
    kept: float
    """Share of the anchor's patches that are still seen."""

    @property
    def can_wait(self) -> bool:
        """False where the next frame will probably see too little of the anchor."""
        return bool(self.kept ** (1 + 1 / self.frames) > MIN_KEPT)

    @property
    def needed_share(self) -> float:
        """Share of tracks that must agree after so many frames with so much parallax."""
        most, least = START_SHARE
        if self.frames == 1:  # two views hold each track by a line only, however far apart they are
            return most
        longer = max(self.parallax - START_PARALLAX, 0.0)
        return max(most - 0.0125 * self.frames - 5.0 * longer, least)


def _is_believed(begun: start.Start | None, so_far: _SoFar) -> TypeGuard[start.Start]:
    """Tell whether the start is the scene's: enough of the view agrees with it, or what does is clearly one body."""
    if begun is None or begun.quality < START_QUALITY or begun.parallax < START_PARALLAX:
        return False
    needed = so_far.needed_share
    may_be_another = begun.margin < CLEAR_MARGIN and needed > min(START_SHARE)
    if may_be_another and so_far.can_wait:
        return False
    purity = PURITY if so_far.focal_known else FREE_PURITY
    if so_far.frames >= PURE_AFTER and begun.purity > purity:
        return begun.share > PURE_SHARE
    return begun.share > needed

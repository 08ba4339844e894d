"""How frames leave: with a pose fitted once more to the adjusted map, and later revisions of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stream4d.geometry.transforms import square
from stream4d.packets import Array, PosedFrame, PoseRevision
from stream4d.pose import dense, guess, inertia, track, uncertainty
from stream4d.pose.densify import Sight
from stream4d.pose.departed import NO_KEYFRAME
from stream4d.pose.progress import Progress
from stream4d.pose.record import FLOATING, Record, relative, to_world_from_cam

MIN_REFITTED = 12
"""Patches below which a leaving frame keeps the pose it had."""


def leave(progress: Progress) -> Callable[[], PosedFrame]:
    """Let the oldest frame in hand leave; returns what gives it once its maps are made."""
    local_map, record, *others = progress.map, *progress.records
    following = others[0] if others else None
    pose = _last_fit(progress, record, following)
    maps = progress.densifier.make(_sight(progress, record, pose))
    slot = local_map.slot_of(record.reference)
    hanging = track.relative_pose(pose, local_map.poses[slot] if slot >= 0 else np.eye(3, 4))
    covariance, own = _covariance(progress, record, pose)
    progress.departed.add(
        record.index, record.reference if slot >= 0 else NO_KEYFRAME, hanging, pose, own,
        local_map.K[0, 0],
    )  # fmt: skip
    progress.records.pop(0)
    K, flow, sigma = local_map.K.copy(), None, None
    if following is not None:
        flow, sigma = following.flow_here, following.sigma_here

    def frame() -> PosedFrame:
        depth, confidence, moving = maps.result()
        return PosedFrame(
            index=record.index, timestamp_ns=record.timestamp_ns, rgb=record.rgb,
            K=K, world_from_cam=to_world_from_cam(pose), pose_covariance=covariance,
            depth=depth, confidence=confidence, motion_prob=moving,
            flow=flow, flow_uncertainty=sigma,
            is_keyframe=record.keyframe, is_tracked=record.is_tracked, segment=record.segment,
        )  # fmt: skip

    return frame


def _sight(progress: Progress, record: Record, pose: Array) -> Sight:
    """Take all that the maps of the oldest frame in hand are made of."""
    ways: list[tuple[Record, Array | None]] = []
    if record.is_tracked:
        for r in progress.records[1 : 1 + max(dense.OFFSETS)]:
            if r.segment != record.segment:
                break
            there = track.relative_pose(relative(r, progress.map), pose) if r.is_tracked else None
            ways.append((r, there))
    patches = guess.shown(progress.map, pose)
    return Sight(record, pose, progress.map.cam.copy(), patches, ways, progress.started)


def _last_fit(progress: Progress, record: Record, following: Record | None) -> Array:
    """Return the pose fitted once more: the map was adjusted since the frame was placed."""
    pose = relative(record, progress.map)
    if not progress.started or record.keyframe or not record.is_tracked:
        return pose
    rows = np.flatnonzero(np.isfinite(record.var) & (progress.map.host >= 0))
    if len(rows) < MIN_REFITTED:
        return pose
    seen = track.sightings(progress.map, rows, record.uv[rows], record.info[rows])
    fit = seen.fit(pose, track.WARM)
    if following is None or not following.is_tracked or following.segment != record.segment:
        return fit.pose
    step = track.relative_pose(relative(following, progress.map), pose)
    return inertia.steadied(fit.pose, fit.information, len(rows), pose, step)


def _covariance(progress: Progress, record: Record, pose: Array) -> tuple[Array, Array]:
    """Return the covariance of a pose and the part that is not drift; a pose that was guessed is not known."""
    if not record.is_tracked:
        return FLOATING, FLOATING
    return uncertainty.of_frame(progress, record, pose)


def revise(progress: Progress, slot: int) -> None:
    """Tell the final poses of frames that left before their keyframe was done with, and the camera if it was found."""
    local_map, departed = progress.map, progress.departed
    index = int(local_map.frame_index[slot])
    mine = np.flatnonzero(departed.reference == index)
    if not len(mine):
        return
    reference = square(local_map.poses[slot])
    departed.pose[mine] = departed.from_reference[mine] @ reference
    departed.settle(index)
    K = scale = None
    if not progress.focal_known:
        K = np.repeat(local_map.K[None], len(mine), axis=0)
        K[:, [0, 1], [0, 1]] *= departed.focal[mine, None] / local_map.K[0, 0]
        scale = departed.stretch[mine]
        departed.stretch[mine] = 1.0
    progress.revisions.append(revision_of(departed.index[mine], departed.pose[mine], scale, K=K))


def revision_of(
    indices: Array, poses: Array, scale: Array | None = None, covariance: Array | None = None,
    K: Array | None = None,
) -> PoseRevision:  # fmt: skip
    """Return the revision that tells camera-from-world poses (n, 3, 4) of frames that have left."""
    return PoseRevision(
        indices=indices.copy(),
        world_from_cam=to_world_from_cam(poses),
        scale=np.ones(len(indices)) if scale is None else scale,
        pose_covariance=covariance,
        K=K,
    )

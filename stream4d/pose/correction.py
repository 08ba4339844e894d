"""A correction of the whole path, as loop closure finds it: of the map, the frames in hand and those that left."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose import uncertainty
from stream4d.pose.drift import similarity_adjoint
from stream4d.pose.keyframe_view import Correction, view_of
from stream4d.pose.leaving import revision_of
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record


def show_keyframes(progress: Progress) -> None:
    """Show the listener the keyframes that have entered, and do what it says."""
    for index in progress.entered:
        slot = progress.map.slot_of(index)
        if slot < 0:
            continue
        answer = progress.listener.enters(view_of(progress.map, slot, progress.segment))
        apply(progress, answer or {}, progress.listener.take_drift())
    progress.entered.clear()


def apply(
    progress: Progress, correction: Correction, drift: Mapping[int, Array] | None = None
) -> None:
    """Bend the path: ``correction`` holds frame index → Sim(3) new-world-from-old-world.

    Frames between two that are listed get the interpolation of their corrections, frames outside the nearest one's.
    Frames in hand follow their keyframe; frames that have left are told anew as a ``PoseRevision`` with the change of
    their depth's scale. Frames of earlier segments stay. ``drift`` holds frame index → (7, 7), what is left of the
    drift there; it may come without a correction.
    """
    if correction:
        _bend(progress, correction)
    if drift:
        _settle(progress, drift)


def _settle(progress: Progress, drift: Mapping[int, Array]) -> None:
    """State the drift that is left, of keyframes and of frames that have left."""
    listed = np.array(sorted(drift))
    left = np.stack([drift[int(i)] for i in listed])
    local_map, departed = progress.map, progress.departed
    for slot in local_map.order:
        local_map.covariance[slot] = _between(listed, left, local_map.frame_index[[slot]])[0]
        local_map.focal_bias[slot] = 0  # is in it
    mine = departed.index >= listed[0]
    if not mine.any():
        return
    at = np.where(departed.reference >= 0, departed.reference, departed.index)[mine]
    covariance = uncertainty.of_drift(_between(listed, left, at)) + departed.own[mine]
    lost = departed.is_lost[mine]
    covariance[lost] = departed.own[mine][lost]
    progress.revisions.append(
        revision_of(departed.index[mine], departed.pose[mine], covariance=covariance)
    )


def _between(listed: Array, values: Array, frames: Array) -> Array:  # (k,), (k, 7, 7), (n,)
    """Return the values of frames between those that are listed, the nearest one's outside."""
    after = np.clip(np.searchsorted(listed, frames), 1, max(len(listed) - 1, 1))
    before, after = after - 1, np.minimum(after, len(listed) - 1)
    span = np.maximum(listed[after] - listed[before], 1)
    share = np.clip((frames - listed[before]) / span, 0, 1)[:, None, None]
    return np.asarray((1 - share) * values[before] + share * values[after])


def _bend(progress: Progress, correction: Correction) -> None:
    _correct_departed(progress, correction)
    of_map = progress.map.frame_index[progress.map.frame_index >= 0]
    by_frame = dict(zip(of_map.tolist(), interpolate(correction, of_map), strict=True))
    _correct_map(progress, by_frame)
    mine = [record for record in progress.records if record.segment == progress.segment]
    own = interpolate(correction, np.array([record.index for record in mine], np.intp))
    for record, S in zip(mine, own, strict=True):
        _correct_record(record, by_frame.get(record.reference, S))
    newest = by_frame[int(progress.map.frame_index.max())]
    progress.velocity[:3, 3] *= transforms.scale_of(newest)


def interpolate(correction: Correction, frames: Array) -> Array:  # (n,) -> (n, 4, 4)
    """Return the similarities of frames between those that are listed, the nearest one's outside."""
    listed = np.array(sorted(correction))
    S = np.stack([np.asarray(correction[int(i)], np.float64) for i in listed])
    before = np.clip(np.searchsorted(listed, frames, side="right") - 1, 0, len(listed) - 1)
    out = S[before]
    after = np.minimum(before + 1, len(listed) - 1)
    between = (frames > listed[before]) & (after > before) & (S[after] != S[before]).any((1, 2))
    a, b = before[between], after[between]
    share = (frames[between] - listed[a]) / (listed[b] - listed[a])
    way = transforms.sim3_log(S[b] @ transforms.invert(S[a]))
    out[between] = transforms.sim3_exp(share[:, None] * way) @ S[a]
    return np.asarray(out)


def corrected_pose(pose: Array, S: Array) -> Array:
    """Return the camera-from-world (..., 3, 4) of cameras whose world was moved by the similarity ``S`` (..., 4, 4)."""
    scale, R, t = transforms.decompose(S)
    turned = pose[..., :3] @ np.swapaxes(R, -1, -2)
    moved = scale[..., None] * pose[..., 3] - (turned @ t[..., None])[..., 0]
    return np.concatenate([turned, moved[..., None]], axis=-1)


def _correct_map(progress: Progress, by_frame: dict[int, Array]) -> None:
    local_map = progress.map
    for slot in local_map.order:
        S = by_frame[int(local_map.frame_index[slot])]
        scale = transforms.scale_of(S)
        local_map.poses[slot] = corrected_pose(local_map.poses[slot], S)
        move = similarity_adjoint(S)
        local_map.covariance[slot] = move @ local_map.covariance[slot] @ move.T
        local_map.focal_bias[slot] = move @ local_map.focal_bias[slot]
        local_map.rescale_patches(slot, float(scale))


def _correct_record(record: Record, S: Array) -> None:
    scale = float(transforms.scale_of(S))
    record.pose = corrected_pose(record.pose, S)
    record.from_reference[:3, 3] *= scale
    unit = np.diag([scale, scale, scale, 1.0, 1.0, 1.0])
    record.information = np.linalg.inv(unit) @ record.information @ np.linalg.inv(unit)


def _correct_departed(progress: Progress, correction: Correction) -> None:
    departed = progress.departed
    if not len(departed.index):
        return
    # frames that hang on a keyframe stay rigid with it
    S = interpolate(
        correction, np.where(departed.reference >= 0, departed.reference, departed.index)
    )
    scales = transforms.scale_of(S)
    mine = np.flatnonzero((np.eye(4) != S).any((1, 2)))
    departed.pose[mine] = corrected_pose(departed.pose[mine], S[mine])
    departed.from_reference[..., 3] *= scales[:, None]
    progress.densifier.move(departed.pose[-1].copy(), float(scales[-1]))
    if len(mine):
        progress.revisions.append(
            revision_of(departed.index[mine], departed.pose[mine], scales[mine])
        )

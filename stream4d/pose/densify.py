"""The dense depth and motion of a frame as it leaves, with the frames that follow it in hand."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.pose import dense, motion, track
from stream4d.pose.guess import guess_depth
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record, relative


def densify(progress: Progress, record: Record, pose: Array) -> tuple[Array, Array, Array]:
    """Return depth, confidence and probability of motion, each (H, W) float32, of the oldest frame in hand.

    ``pose`` (3, 4) is that with which it leaves.
    """
    H, W = record.rgb.shape[:2]
    step, cam = dense.grid_step(H, W), progress.map.cam
    carried = _carried(progress, record, pose)
    still = (
        None
        if carried is None
        else 1 - motion.probability(np.nan_to_num(carried[2], nan=motion.PRIOR_LOGIT))
    )
    before = None if carried is None else carried[0]
    guess = guess_depth(progress.map, pose, step, still, record.prior_depth, before)
    links = _links(progress, record, pose)
    grey = cv2.cvtColor(record.rgb, cv2.COLOR_RGB2GRAY)
    fitted = dense.fit(cam, links, motion.texture_variance(grey, step), guess, step)
    guide = grey.astype(np.float32) / 255
    passing = motion.passing(_flow(links, H, W)[::step, ::step], guide[::step, ::step])
    votes = motion.vote(fitted.odds, fitted.seen + 1e-3, passing)
    said = None if record.motion is None else record.motion[::step, ::step]
    logit = motion.update(None if carried is None else carried[2], votes, said)
    if not progress.started:  # no baseline yet
        fitted = dataclasses.replace(fitted, rho=guess.rho, info=guess.info)
    rho, info = dense.fuse(fitted, carried, motion.probability(logit))
    state = dense.DenseState(rho, info, logit, pose, record.segment)
    progress.dense = state
    depth, confidence = dense.draw(state, guess, guide, passing, step)
    sharp = dense.guided_mean(logit, np.ones_like(logit), guide, step)
    return depth, confidence, motion.probability(sharp)


def _carried(progress: Progress, record: Record, pose: Array) -> Array | None:
    before = progress.dense
    if before is None or not _follows(progress, record):
        return None
    flow, back, sigma = record.flow_here, record.back_here, record.sigma_here
    if flow is None or back is None:
        return None
    here = track.relative_pose(pose, before.pose)
    return dense.carry(before, progress.map.cam, here, flow, back, sigma)


def _links(progress: Progress, record: Record, pose: Array) -> list[dense.Link]:
    """Return the ways from this frame to those that follow it or, where none does, to the one before."""
    links: list[dense.Link] = []
    if not record.is_tracked:
        return links
    at = next(i for i, r in enumerate(progress.records) if r is record)
    for r in progress.records[at + 1 : at + 1 + max(dense.OFFSETS)]:
        there = track.relative_pose(relative(r, progress.map), pose) if r.is_tracked else None
        link = r.link_here(there) if r.segment == record.segment else None
        if link is None:
            break
        links.append(link)
    flow, back = record.flow_here, record.back_here
    if not links and flow is not None and back is not None and _follows(progress, record):
        assert progress.dense is not None
        there = track.relative_pose(progress.dense.pose, pose)
        links.append(dense.Link(back, dense.doubts_of(back, flow, record.sigma_here), there))
    return links


def _follows(progress: Progress, record: Record) -> bool:
    return progress.dense is not None and progress.dense.segment == record.segment


def _flow(links: list[dense.Link], H: int, W: int) -> Array:
    return links[0].flow if links else np.zeros((H, W, 2), np.float32)

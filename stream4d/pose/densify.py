"""The dense depth and motion of frames as they leave, made in a thread while the chain places the next ones."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.pose import dense, motion, track
from stream4d.pose.guess import Shown, guess_depth
from stream4d.pose.record import Record

Drawn = tuple[Array, Array, Array]
"""Depth, confidence and probability of motion of a frame, each (H, W) float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """What the maps of a frame are made of, taken as it leaves: what the chain does afterwards changes none of it."""

    record: Record
    """The frame."""
    pose: Array
    """(3, 4) with which it leaves."""
    cam: Array
    """(4,) fx, fy, cx, cy."""
    patches: Shown
    ways: list[tuple[Record, Array | None]]
    """The frames that follow it by flow, and their poses (3, 4) seen from it; None where they were not measured."""
    has_depth: bool
    """False while there is no baseline yet."""


class Densifier:
    """Makes maps in the order in which frames leave; each begins with what was known of the one before."""

    def __init__(self, before: dense.DenseState | None = None) -> None:
        self._before = before
        self._thread = ThreadPoolExecutor(1, "densify")

    def make(self, sight: Sight) -> Future[Drawn]:
        """Begin to make the maps of the next frame."""
        return self._thread.submit(self._make, sight)

    def move(self, pose: Array, scale: float) -> None:
        """Correct the frame that left last: its pose (3, 4), and all lengths times ``scale``."""
        self._thread.submit(self._move, pose, scale)

    def state(self) -> dense.DenseState | None:
        """Return what is known of the frame that left last; waits for its maps."""
        return self._thread.submit(lambda: self._before).result()

    def _make(self, sight: Sight) -> Drawn:
        self._before, drawn = _densify(sight, self._before)
        return drawn

    def _move(self, pose: Array, scale: float) -> None:
        if self._before is not None:
            self._before.move(pose, scale)


def _densify(sight: Sight, before: dense.DenseState | None) -> tuple[dense.DenseState, Drawn]:
    """Return what is known of a frame, and its maps, from what was known of the one ``before``."""
    record = sight.record
    step = dense.grid_step(*record.rgb.shape[:2])
    if before is not None and before.segment != record.segment:
        before = None
    carried = None if before is None else _carried(sight, before)
    still = (
        None
        if carried is None
        else 1 - motion.probability(np.nan_to_num(carried[2], nan=motion.PRIOR_LOGIT))
    )
    guess = guess_depth(
        sight.patches, step, still, record.prior_depth, None if carried is None else carried[0]
    )
    links = _links(sight, before)
    grey = cv2.cvtColor(record.rgb, cv2.COLOR_RGB2GRAY)
    fitted = dense.fit(
        sight.cam, links, motion.texture_variance(record.pyramid[0], step), guess, step
    )
    guide = grey.astype(np.float32) / 255
    small = guide[::step, ::step]
    flow = links[0].flow if links else np.zeros((*small.shape, 2), np.float32)
    passing = motion.passing(flow, small)
    votes = motion.vote(fitted.odds, fitted.seen + 1e-3, passing)
    said = None if record.motion is None else record.motion[::step, ::step]
    logit = motion.update(None if carried is None else carried[2], votes, said)
    if not sight.has_depth:
        fitted = dataclasses.replace(fitted, rho=guess.rho, info=guess.info)
    rho, info = dense.fuse(fitted, carried, motion.probability(logit))
    state = dense.DenseState(rho, info, logit, sight.pose, record.segment)
    depth, confidence = dense.draw(state, guess, guide, passing, step)
    sharp = dense.guided_mean(logit, np.ones_like(logit), guide, step)
    return state, (depth, confidence, motion.probability(sharp))


def _carried(sight: Sight, before: dense.DenseState) -> Array | None:
    record = sight.record
    if record.flow_here is None or record.back_here is None:
        return None
    here = track.relative_pose(sight.pose, before.pose)
    return dense.carry(
        before, sight.cam, here, record.flow_here, record.back_here, record.sigma_here
    )


def _links(sight: Sight, before: dense.DenseState | None) -> list[dense.Link]:
    """Return the ways from a frame to those that follow it or, where none does, to the one before."""
    links = []
    for following, pose in sight.ways:
        link = following.link_here(pose)
        if link is None:
            break
        links.append(link)
    record = sight.record
    if links or before is None or not record.is_tracked:
        return links
    flow, back = record.flow_here, record.back_here
    if flow is not None and back is not None:
        there = track.relative_pose(before.pose, sight.pose)
        links.append(dense.Link(*dense.way_of(back, flow, record.sigma_here), there))
    return links

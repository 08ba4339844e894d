"""What frames in hand say of places just chosen: those that move are told from those that stand still."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.config import ChainConfig
from stream4d.geometry.transforms import invert
from stream4d.packets import Array, Frame
from stream4d.pose import hindsight, patches
from stream4d.pose.dense import Maps
from stream4d.pose.keyframe_view import NullListener
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record
from tests.synthetic import BIG_MOVERS, Scene

SCENE = Scene("walk", balls=BIG_MOVERS, width=192, height=144)
FRAMES = 8
STRIDE = 2
"""Frames of the scene from one to the next: it moves slowly."""


def held(count: int) -> tuple[Progress, Record]:
    """Return a run that holds ``count`` frames with their exact poses and flow, and the frame after them."""
    progress: Progress | None = None
    for t in range(count + 1):
        frame = Frame(index=t, timestamp_ns=t, rgb=SCENE.rgb(STRIDE * t), K=SCENE.K)
        if progress is None:
            progress = Progress.begin(frame, ChainConfig(), NullListener())
        record = Record.of(frame, patches.pyramid(frame.rgb), progress.map)
        now = STRIDE * t
        if t:
            there, back = (SCENE.flow(*ab)[0] for ab in ((now - STRIDE, now), (now, now - STRIDE)))
            sigma = np.full(there.shape[:2], 0.1, np.float32)
            record.take(Maps(flow=there, flow_backward=back, sigma=sigma), None)
        record.pose = invert(SCENE.world_from_cam(now))[:3]
        if t == count:
            return progress, record
        progress.records.append(record)
    raise AssertionError


def places(record: Record) -> tuple[Array, Array]:
    """Return places of texture (n, 2) and which of them are on a mover, clear of its edge."""
    uv = patches.choose(
        record.pyramid[0], 200, avoid=np.zeros((0, 2)), allowed=None, spacing=4
    ).round()
    mask: Array = SCENE.moving(STRIDE * record.index)
    u, v = uv.astype(int).T
    around = np.stack([mask[v + dv, u + du] for du in (-5, 0, 5) for dv in (-5, 0, 5)])
    clear = np.asarray(around.all(0) | ~around.any(0))
    return uv[clear], np.asarray(around.all(0))[clear]


def test_movers_are_told_from_what_stands_still() -> None:
    progress, record = held(FRAMES)
    uv, moving = places(record)
    still = hindsight.may_stand_still(progress, record, uv)
    assert moving.sum() > 15
    assert (
        still[~moving].mean() > 0.8
    )  # others were hidden behind a mover, where this flow claims to be sure
    assert still[moving].mean() < 0.1


@pytest.mark.parametrize("count", [0, hindsight.LEAST_BACK - 1])
def test_too_few_frames_say_nothing(count: int) -> None:
    progress, record = held(count)
    uv, _ = places(record)
    assert hindsight.may_stand_still(progress, record, uv).all()


def test_frames_without_a_measured_pose_are_not_asked() -> None:
    progress, record = held(FRAMES)
    progress.records[-2].is_tracked = False
    uv, _ = places(record)
    assert hindsight.may_stand_still(progress, record, uv).all()


def test_no_places_are_no_error() -> None:
    progress, record = held(FRAMES)
    assert hindsight.may_stand_still(progress, record, np.zeros((0, 2))).shape == (0,)

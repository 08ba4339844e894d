"""Packets check their shapes, name the culprit, and print shapes instead of numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stream4d.packets import Frame, PosedFrame, PoseRevision, Prediction, Window


def make_frame(index: int = 0) -> Frame:
    return Frame(index=index, timestamp_ns=index, rgb=np.zeros((4, 6, 3), np.uint8))


def make_posed(**changes: object) -> PosedFrame:
    values: dict[str, object] = {
        "index": 0,
        "timestamp_ns": 0,
        "rgb": np.zeros((4, 6, 3), np.uint8),
        "K": np.eye(3),
        "world_from_cam": np.eye(4),
        "pose_covariance": np.eye(6),
        "depth": np.ones((4, 6), np.float32),
        "confidence": np.ones((4, 6), np.float32),
        "motion_prob": np.zeros((4, 6), np.float32),
    }
    return PosedFrame(**{**values, **changes})  # type: ignore[arg-type]


def test_wrong_shape_names_the_field() -> None:
    with pytest.raises(ValueError, match=r"PosedFrame\.depth must be \(4, 6\), got \(6, 4\)"):
        make_posed(depth=np.ones((6, 4)))
    with pytest.raises(ValueError, match=r"Frame\.K must be \(3, 3\)"):
        dataclasses.replace(make_frame(), K=np.eye(4))
    with pytest.raises(ValueError, match=r"Prediction\.flow must be \(1, 4, 6, 2\)"):
        Prediction(flow=np.zeros((2, 4, 6, 2)), depth=np.ones((2, 4, 6)))
    with pytest.raises(ValueError, match=r"PoseRevision\.scale must be \(2,\)"):
        PoseRevision(indices=np.arange(2), world_from_cam=np.zeros((2, 4, 4)), scale=np.ones(3))


def test_packets_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_frame().index = 3  # type: ignore[misc]


def test_repr_prints_shapes() -> None:
    assert "rgb=uint8(4, 6, 3)" in repr(make_frame())


def test_window_knows_its_new_frames() -> None:
    frames = tuple(make_frame(i) for i in range(4))
    window = Window(index=1, frames=frames, overlap=3)
    assert [f.index for f in window.new_frames] == [3]
    assert window.rgb.shape == (4, 4, 6, 3)
    with pytest.raises(ValueError, match="overlap"):
        Window(index=0, frames=frames, overlap=4)
    with pytest.raises(ValueError, match="empty"):
        Window(index=0, frames=(), overlap=0)

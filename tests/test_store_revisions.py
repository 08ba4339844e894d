"""Poses that change after they were stored: rows replaced, depth scaled, cameras told, kills survived."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stream4d.geometry import camera
from stream4d.store.reader import open_store
from tests.stores import (
    assert_same,
    interrupted,
    posed,
    revision,
    writer,
)


def test_revisions_change_poses_and_scale_depth(tmp_path: Path) -> None:
    with writer(tmp_path / "a.zarr") as sink:
        for index in range(300):
            sink.write(posed(index))
            if index == 280:
                sink.commit()
        # Written and committed, written and waiting, twice for one frame.
        sink.revise(revision([3, 4, 255, 256, 299], 2.0))
        sink.revise(revision([4], 1.5))
    store = open_store(tmp_path / "a.zarr")
    assert "pending_revision" not in store.attrs
    assert store.attrs["revisions"] == 2
    for index in (3, 4, 255, 256, 299):
        assert store.world_from_cam[index, 0, 3] == 1000 + index
        factor = 3.0 if index == 4 else 2.0
        np.testing.assert_allclose(store[index].depth, factor * posed(index).depth, rtol=2**-11)
        assert store.pose_covariance[index, 0, 0] == (1.5 if index == 4 else 2.0)
    for index in (0, 2, 5, 254, 257, 298):
        assert_same(store[index], posed(index))


def test_a_revision_may_tell_the_camera(tmp_path: Path) -> None:
    """Points follow: they are made of depth, K and pose on reading."""
    path, K = tmp_path / "a.zarr", 2 * posed(0).K
    with writer(path) as sink:
        for index in range(20):
            sink.write(posed(index))
            if index == 9:
                sink.commit()
                sink.revise(revision([1], 1.0))  # says nothing of K
                sink.commit()
        told = np.stack([K, 3 * K])
        sink.revise(dataclasses.replace(revision([2, 15], 1.0), K=told))
    store = open_store(path)
    assert "pending_revision" not in store.attrs
    np.testing.assert_array_equal(store.K[[2, 15]], told)
    np.testing.assert_array_equal(store.K[[1, 3]], np.stack([posed(1).K, posed(3).K]))
    np.testing.assert_array_equal(store[15].K, 3 * K)
    expected = np.array([1015, 0, 0]) + camera.unproject(store[15].depth, 3 * K)
    np.testing.assert_allclose(store.pointmap_in_world(15), expected, rtol=1e-5)


def test_a_published_revision_counts_before_it_is_worked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill between publishing and rewriting leaves: reading and resuming both see the new poses."""
    path = tmp_path / "a.zarr"
    with interrupted(path) as sink:
        for index in range(8):
            sink.write(posed(index))
        sink.commit()
        sink.revise(dataclasses.replace(revision([2, 5], 2.0), K=np.full((2, 3, 3), 7.0)))
        monkeypatch.setattr(sink, "_apply", lambda changes: None)
        sink.commit()
    store = open_store(path)
    assert "pending_revision" in store.attrs
    assert store.world_from_cam[5, 0, 3] == 1005
    assert store.K[5, 0, 0] == 7
    assert store.depth_scale.tolist() == [1, 1, 2, 1, 1, 2, 1, 1]
    with writer(path, resume=True) as sink:
        for index in range(10):
            sink.write(posed(index))
            if index == 7:
                sink.revise(revision([2, 5], 2.0))  # the replay says it again
    store = open_store(path)
    assert "pending_revision" not in store.attrs
    assert store.depth_scale.tolist() == [1, 1, 2, 1, 1, 2, 1, 1, 1, 1]
    assert store.world_from_cam[2, 0, 3] == 1002
    assert store.K[2, 0, 0] == 7

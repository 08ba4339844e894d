"""Resuming a store: state comes back, nothing is lost or doubled, and ``kill -9`` at any moment is survived."""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from stream4d.config import ReaderConfig, RunConfig, StoreConfig, dump
from stream4d.errors import StoreError
from stream4d.packets import PosedFrame, PoseRevision, State, VideoInfo
from stream4d.store.reader import open_store
from stream4d.store.resume import load_snapshot, save_snapshot
from stream4d.store.writer import StoreWriter

H, W = 24, 32
INFO = VideoInfo.of_frames("clip.mp4", W, H)
WINDOW, HELD_BACK = 4, 2


class ToyChain:
    """A stage with memory: every frame depends on all before it, the newest are held back, loops are closed."""

    def __init__(self) -> None:
        self.seen = 0
        self.memory = 0.0
        self.held: list[float] = []

    def extend(self, count: int) -> Iterator[PosedFrame]:
        for _ in range(count):
            self.memory = (self.memory * 0.9 + self.seen) % 17.0
            self.held.append(self.memory)
            self.seen += 1
        while len(self.held) > HELD_BACK:
            yield self.pop()

    def finish(self) -> Iterator[PosedFrame]:
        while self.held:
            yield self.pop()

    def pop(self) -> PosedFrame:
        index, value = self.seen - len(self.held), self.held.pop(0)
        return toy_frame(index, value)

    def revisions(self) -> list[PoseRevision]:
        if self.seen % 20 or not self.seen:
            return []
        poses = np.stack([np.eye(4)] * 3)
        poses[:, 1, 3] = self.memory
        indices = np.array([0, self.seen // 2, self.seen - HELD_BACK - 1])
        K = np.full((3, 3, 3), self.memory)
        return [PoseRevision(indices=indices, world_from_cam=poses, scale=np.full(3, 1.25), K=K)]

    def state(self) -> State:
        return {
            "seen": np.array(self.seen),
            "memory": np.array(self.memory),
            "chain.held": np.array(self.held),
        }

    def restore(self, state: State) -> None:
        self.seen, self.memory = int(state["seen"]), float(state["memory"])
        self.held = state["chain.held"].tolist()


def toy_frame(index: int, value: float) -> PosedFrame:
    image = np.random.default_rng(index).integers(0, 255, (H, W, 3), np.uint8)
    pose = np.eye(4)
    pose[0, 3] = value
    depth = np.full((H, W), 1.0 + value, np.float32)
    return PosedFrame(
        index=index,
        timestamp_ns=index * 10,
        rgb=image,
        K=np.eye(3),
        world_from_cam=pose,
        pose_covariance=np.eye(6),
        depth=depth,
        confidence=depth / 20,
        motion_prob=depth / 30,
        flow=np.stack([depth, -depth], -1),
        flow_uncertainty=depth,
    )


def toy_writer(path: Path, *, resume: bool = False, stride: int = 1) -> StoreWriter:
    config = RunConfig(reader=ReaderConfig(stride=stride), store=StoreConfig(state_every=12))
    return StoreWriter(
        path, info=INFO, config=dump(config), store_config=config.store, resume=resume
    )


def run(path: Path, frames: int, *, resume: bool = False, pause_s: float = 0.0) -> None:
    """What the pipeline does, with a toy in place of model and chain."""
    with toy_writer(path, resume=resume) as sink:
        chain = ToyChain()
        if sink.resume_point is not None:
            chain.restore(sink.resume_point.state)
        while chain.seen < frames:
            for frame in chain.extend(min(WINDOW, frames - chain.seen)):
                sink.write(frame)
            for revision in chain.revisions():
                sink.revise(revision)
            sink.commit(chain.state)
            time.sleep(pause_s)
        for frame in chain.finish():
            sink.write(frame)


def run_until(path: Path, frames: int, *, resume: bool = False) -> None:
    """Stop with Ctrl-C after ``frames`` frames."""

    class Interrupted(ToyChain):
        def extend(self, count: int) -> Iterator[PosedFrame]:
            yield from super().extend(count)
            if self.seen >= frames:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "ToyChain", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(path, 10**6, resume=resume)


def contents(path: Path) -> dict[str, np.ndarray]:
    return {name: array[:] for name, array in zarr.open_group(path, mode="r").arrays()}


def assert_equal_stores(got: Path, want: Path) -> None:
    theirs = contents(want)
    for name, value in contents(got).items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "a.zarr"
    run(path, 150)
    return path


@pytest.mark.parametrize("stops", [[3], [5], [30, 31], [20, 60, 61, 100, 149]])
def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, uninterrupted: Path, stops: list[int]
) -> None:
    path = tmp_path / "a.zarr"
    for number, frames in enumerate(stops):
        run_until(path, frames, resume=number > 0)
    run(path, 150, resume=True)
    assert_equal_stores(path, uninterrupted)
    assert open_store(path).is_complete
    assert not (path / "resume.npz").exists()


def test_interrupted_while_catching_up(tmp_path: Path, uninterrupted: Path) -> None:
    """A state taken while old frames are repeated must not pass for the state of what is committed."""
    path = tmp_path / "a.zarr"
    run_until(path, 60)
    (path / "resume.npz").unlink()  # as if killed before the first snapshot
    run_until(path, 28, resume=True)
    assert not (path / "resume.npz").exists()
    run(path, 150, resume=True)
    assert_equal_stores(path, uninterrupted)


def test_stopping_before_the_first_window_leaves_nothing(tmp_path: Path) -> None:
    with toy_writer(tmp_path / "a.zarr") as sink:
        sink.leave_unfinished()
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_one_store(tmp_path: Path, uninterrupted: Path) -> None:
    path = tmp_path / "a.zarr"
    run_until(path, 30)
    with toy_writer(path, resume=True) as first:
        with pytest.raises(StoreError, match="being written"), toy_writer(path, resume=True):
            pass
        first.leave_unfinished()
    run(path, 150, resume=True)
    assert_equal_stores(path, uninterrupted)


def test_resume_point_is_the_last_snapshot(tmp_path: Path) -> None:
    run_until(tmp_path / "a.zarr", 35)
    with toy_writer(tmp_path / "a.zarr", resume=True) as sink:
        point = sink.resume_point
        assert point is not None
        assert 0 < point.snapshot_frames <= point.frames_committed == sink.committed
        assert point.frames_committed - point.snapshot_frames < 12 + WINDOW
        assert int(point.state["seen"]) == point.snapshot_frames + HELD_BACK
        sink.leave_unfinished()
    assert not open_store(tmp_path / "a.zarr").is_complete


def test_resume_without_a_store_starts_afresh(tmp_path: Path, uninterrupted: Path) -> None:
    run(tmp_path / "a.zarr", 150, resume=True)
    assert_equal_stores(tmp_path / "a.zarr", uninterrupted)


def test_stopping_on_purpose_keeps_the_store_resumable(tmp_path: Path, uninterrupted: Path) -> None:
    with toy_writer(tmp_path / "a.zarr") as sink:
        chain = ToyChain()
        for frame in chain.extend(9):
            sink.write(frame)
        sink.leave_unfinished()
    assert len(open_store(tmp_path / "a.zarr")) == 7
    run(tmp_path / "a.zarr", 150, resume=True)
    assert_equal_stores(tmp_path / "a.zarr", uninterrupted)


def test_other_settings_cannot_resume(tmp_path: Path) -> None:
    run_until(tmp_path / "a.zarr", 30)
    with pytest.raises(StoreError, match=r"reader.stride = 1, now it is 2"):
        toy_writer(tmp_path / "a.zarr", resume=True, stride=2)


def test_a_snapshot_needs_no_memory_of_its_size(tmp_path: Path) -> None:
    """States are tens of MB, and are written every few seconds."""
    state = {f"part{i}": np.full(1_000_000, i, np.uint8) for i in range(20)}
    tracemalloc.start()
    save_snapshot(tmp_path, state, 3, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
    point, _ = load_snapshot(tmp_path, 3)
    assert point is not None
    for name, value in state.items():
        np.testing.assert_array_equal(point.state[name], value)


def test_state_is_plain_arrays(tmp_path: Path) -> None:
    with toy_writer(tmp_path / "a.zarr") as sink:
        for frame in ToyChain().extend(20):
            sink.write(frame)
        with pytest.raises(StoreError, match="holds Python objects"):
            sink.commit(lambda: {"bad": np.array([object()])})


def test_damaged_snapshot_is_named(tmp_path: Path) -> None:
    run_until(tmp_path / "a.zarr", 40)
    (tmp_path / "a.zarr" / "resume.npz").write_bytes(b"PK\x03\x04 broken")
    with (
        pytest.raises(StoreError, match=r"resume.npz is damaged"),
        toy_writer(tmp_path / "a.zarr", resume=True),
    ):
        pass


def run_in_child(path: str, frames: int, started: Any) -> None:
    started.set()
    run(Path(path), frames, resume=True, pause_s=0.001)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_kill_at_random_moments(tmp_path: Path, uninterrupted: Path) -> None:
    path, frames, chance = tmp_path / "a.zarr", 150, random.Random(7)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stream4d.store.writer", __name__])
    want = contents(uninterrupted)
    committed, deaths = 0, 0
    for _ in range(8):
        started = context.Event()
        child = context.Process(target=run_in_child, args=(str(path), frames, started))
        child.start()
        assert started.wait(timeout=60)
        child.join(timeout=chance.uniform(0.01, 0.15))
        deaths += child.is_alive()
        child.kill()
        child.join()
        if not path.exists():
            continue
        store = open_store(path)
        assert len(store) >= committed, "a committed frame was lost"
        committed = len(store)
        for index in {0, committed // 2, committed - 1}:
            np.testing.assert_array_equal(store[index].rgb, want["rgb"][index])
        if store.is_complete:
            break
    assert deaths >= 3, "the run was over before it could be killed"
    if not path.exists() or not open_store(path).is_complete:
        run(path, frames, resume=True)
    assert_equal_stores(path, uninterrupted)

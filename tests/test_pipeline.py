"""The whole loop: properties of what comes out, memory, and nothing lost when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import stream4d
from stream4d.config import ModelConfig, ReaderConfig, RunConfig, StoreConfig
from stream4d.errors import ConfigError, StoreError
from stream4d.packets import Array, PosedFrame, PoseRevision
from stream4d.pipeline import Reconstruction, reconstruct
from tests.oracle import OracleModel
from tests.synthetic import Scene
from tests.videos import textured_pan, write_video


class Collector:
    """A sink that counts and keeps poses."""

    def __init__(self) -> None:
        self.poses: list[Array] = []
        self.commits = 0
        self.is_open = False

    def __enter__(self) -> Self:
        self.is_open = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.is_open = False

    def write(self, frame: PosedFrame) -> None:
        assert self.is_open
        self.poses.append(frame.world_from_cam)

    def revise(self, revision: PoseRevision) -> None:
        for index, pose in zip(revision.indices, revision.world_from_cam, strict=True):
            self.poses[index] = pose

    def commit(self, resume_state: object) -> None:
        self.commits += 1


def write_scene(folder: Path, scene: Scene, frames: int) -> str:
    """Write a synthetic scene as PNGs, so that decoding loses nothing."""
    import cv2

    folder.mkdir()
    for i in range(frames):
        cv2.imwrite(str(folder / f"{i:06d}.png"), scene.rgb(i)[..., ::-1])
    return str(folder)


def ate_percent(estimated: Array, truth: Array) -> float:
    """Sim(3)-aligned RMSE of camera centres by evo, in percent of the true path."""
    from evo.core import metrics
    from evo.core.trajectory import PosePath3D

    reference = PosePath3D(poses_se3=list(truth))
    other = PosePath3D(poses_se3=list(estimated))
    other.align(reference, correct_scale=True)
    ape = metrics.APE(metrics.PoseRelation.translation_part)
    ape.process_data((reference, other))
    return 100 * ape.get_statistic(metrics.StatisticsType.rmse) / reference.path_length


FRAMES = 64


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> str:
    return write_scene(tmp_path_factory.mktemp("scene") / "frames", scene, FRAMES)


@pytest.fixture(scope="module")
def oracle_run(clip: str, scene: Scene) -> list[PosedFrame]:
    H, W = scene.rgb(0).shape[:2]
    K = scene.K
    config = RunConfig(
        reader=ReaderConfig(resolution=max(H, W), intrinsics=(K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    )
    return list(reconstruct(clip, config, model=OracleModel(scene)))


def test_every_frame_comes_once_in_order_and_finite(oracle_run: list[PosedFrame]) -> None:
    assert [frame.index for frame in oracle_run] == list(range(FRAMES))
    for frame in oracle_run:
        R = frame.world_from_cam[:3, :3]
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-9)
        assert np.isfinite(frame.world_from_cam).all()
        assert frame.K[0, 0] > 0
        assert np.linalg.eigvalsh(frame.pose_covariance).min() >= -1e-12
        assert 0 <= frame.motion_prob.min() <= frame.motion_prob.max() <= 1
        assert 0 <= frame.confidence.min() <= frame.confidence.max() <= 1
    assert all(frame.flow is not None for frame in oracle_run[:-1])
    assert oracle_run[-1].flow is None


def test_exact_flow_gives_the_trajectory(oracle_run: list[PosedFrame], scene: Scene) -> None:
    """Issue figure: the oracle's trajectory is within 1 % of the path."""
    truth = np.stack([scene.world_from_cam(i) for i in range(FRAMES)])
    assert ate_percent(np.stack([f.world_from_cam for f in oracle_run]), truth) <= 1.0


def test_depth_agrees_with_the_scene_up_to_one_scale(
    oracle_run: list[PosedFrame], scene: Scene
) -> None:
    errors = []
    # Depth of the first frames rests on a short baseline, and their confidence says so.
    for frame in oracle_run[8::8]:
        truth = scene.depth(frame.index)
        use = np.isfinite(frame.depth) & ~scene.moving(frame.index) & (frame.confidence > 0.5)
        assert use.mean() > 0.2
        ratio = frame.depth[use] / truth[use]
        errors.append(np.median(np.abs(ratio / np.median(ratio) - 1)))
    assert np.median(errors) < 0.05


def test_sinks_see_what_is_yielded(clip: str) -> None:
    sink = Collector()
    frames = list(reconstruct(clip, RunConfig(reader=ReaderConfig(max_frames=20)), sinks=[sink]))
    assert len(sink.poses) == len(frames) == 20
    assert sink.commits >= 1
    assert not sink.is_open


def test_sinks_are_closed_when_the_consumer_stops_early(clip: str) -> None:
    sink = Collector()
    stream: Iterator[PosedFrame] = reconstruct(clip, sinks=[sink])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not sink.is_open


def test_overlap_must_be_smaller_than_the_window(clip: str) -> None:
    config = stream4d.config.merge(RunConfig(), {"window": {"size": 4, "overlap": 4}})
    with pytest.raises(ConfigError, match="overlap 4 must be smaller"):
        list(reconstruct(clip, config))


def test_two_runs_are_equal(clip: str) -> None:
    config = RunConfig(reader=ReaderConfig(max_frames=24))
    first, second = (list(reconstruct(clip, config)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.world_from_cam, b.world_from_cam)
        # OpenCV's threads may add up in another order: float32 rounding, no more.
        np.testing.assert_allclose(a.world_from_cam, b.world_from_cam, atol=1e-6)
        np.testing.assert_allclose(a.depth, b.depth, rtol=1e-4)


def test_stop_leaves_a_store_that_resumes(clip: str, tmp_path: Path) -> None:
    config = RunConfig(store=StoreConfig(state_every=8), reader=ReaderConfig(max_frames=36))
    with Reconstruction(clip, config, out=tmp_path / "stopped.zarr") as run:
        for frame in run:
            if frame.index == 20:
                run.stop()
    partial = stream4d.open_store(tmp_path / "stopped.zarr")
    assert 0 < len(partial) < 36
    assert not partial.is_complete
    list(reconstruct(clip, config, out=tmp_path / "stopped.zarr", resume=True))
    list(reconstruct(clip, config, out=tmp_path / "whole.zarr"))
    assert_stores_equal(tmp_path / "stopped.zarr", tmp_path / "whole.zarr")


def test_snapshot_of_another_version_is_one_clear_error(clip: str, tmp_path: Path) -> None:
    out = tmp_path / "old.zarr"
    config = RunConfig(store=StoreConfig(state_every=4), reader=ReaderConfig(max_frames=30))
    with Reconstruction(clip, config, out=out) as run:
        for _ in run:
            run.stop()
    with np.load(out / "resume.npz") as file:
        entries = dict(file)
    entries["chain.progress.scalars"] = entries["chain.progress.scalars"][:-1]
    np.savez(out / "resume.npz", **entries)
    before = (out / "zarr.json").read_bytes()
    with pytest.raises(StoreError, match="another version of stream4d"):
        list(reconstruct(clip, config, out=out, resume=True))
    assert (out / "zarr.json").read_bytes() == before


def test_taken_target_is_told_before_the_model_loads(clip: str, tmp_path: Path) -> None:
    (tmp_path / "old.zarr").mkdir()
    (tmp_path / "old.zarr" / "mine.txt").write_text("dear")
    config = RunConfig(model=ModelConfig(weights="there are none"))
    with pytest.raises(StoreError, match="not a stream4d store"):
        list(reconstruct(clip, config, out=tmp_path / "old.zarr"))


def assert_stores_equal(a: Path, b: Path) -> None:
    """Equal within float64 rounding of poses; quantised maps exactly."""
    first, second = stream4d.open_store(a), stream4d.open_store(b)
    assert len(first) == len(second)
    assert first.is_complete
    assert second.is_complete
    np.testing.assert_allclose(first.world_from_cam, second.world_from_cam, atol=1e-9)
    np.testing.assert_allclose(first.K, second.K, atol=1e-9)
    for i in range(0, len(first), 7):
        np.testing.assert_array_equal(first[i].rgb, second[i].rgb)
        np.testing.assert_allclose(first[i].depth, second[i].depth, rtol=1e-3)


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_store(tmp_path: Path) -> None:
    """``kill -9`` at random moments, twice; STREAM4D_KILLS=10 does it ten times."""
    clip = write_video(tmp_path / "clip.mp4", textured_pan(60, size=(96, 128)))
    command = [sys.executable, "-m", "stream4d", str(clip), "-q", "--resolution", "128"]
    command += ["--set", "store.state_every=8"]
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    started = time.monotonic()
    subprocess.run([*command, "--out", str(whole)], check=True)
    duration = time.monotonic() - started
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    for _ in range(int(os.environ.get("STREAM4D_KILLS", "2"))):
        resume = ["--resume"] if killed.exists() else []
        process = subprocess.Popen([*command, "--out", str(killed), *resume])
        time.sleep(rng.uniform(0.3, 1.0) * duration)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if killed.exists():
            partial = stream4d.open_store(killed)
            if partial.is_complete:
                break
            assert len(partial) < 60
    else:
        resume = ["--resume"] if killed.exists() else []
        subprocess.run([*command, "--out", str(killed), *resume], check=True)
    assert_stores_equal(killed, whole)


def test_a_run_holds_numpys_blas_to_one_thread(tmp_path: Path) -> None:
    """… and leaves it as it was: a host program has matrices of its own."""

    def threads() -> set[int]:
        loaded = threadpool_info()
        return {blas["num_threads"] for blas in loaded if "numpy" in str(blas["filepath"])}

    video = write_video(tmp_path / "v.mp4", textured_pan(4))
    with threadpool_limits(2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("this numpy's BLAS is not one whose threads can be set")
        with Reconstruction(video) as run:
            next(iter(run))
            assert threads() == {1}
        assert threads() == {2}

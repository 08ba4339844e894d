"""The pose chain on scenes whose answer is known: accuracy, degenerate motion, resume, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from stream4d.config import ChainConfig
from stream4d.geometry import transforms
from stream4d.models.registry import create_model
from stream4d.packets import Array, PosedFrame
from stream4d.pose.chain import PoseChain
from tests.naive import umeyama
from tests.oracle import OracleModel
from tests.synthetic import BIG_MOVERS, Scene


def run(
    scene: Scene, model: object, n: int, *, with_K: bool = True, config: ChainConfig | None = None
) -> tuple[list[PosedFrame], Array]:
    """Run a model and the chain over n frames; returns frames and final poses (revisions applied)."""
    chain = PoseChain(config or ChainConfig(), scene.info(n))
    frames: list[PosedFrame] = []
    poses: dict[int, Array] = {}

    def take(posed: Iterator[PosedFrame]) -> None:
        for frame in posed:
            frames.append(frame)
            poses[frame.index] = frame.world_from_cam
        for revision in chain.revisions():
            poses.update(zip(revision.indices.tolist(), revision.world_from_cam, strict=True))

    with model.session(scene.info(n)) as session:  # type: ignore[attr-defined]
        for window in scene.windows(n, with_K=with_K):
            take(iter(chain.extend(window, session.step(window))))
    take(iter(chain.finish()))
    assert_packets_are_sound(frames, n)
    return frames, np.stack([poses[i] for i in range(n)])


def assert_packets_are_sound(frames: list[PosedFrame], n: int) -> None:
    assert [frame.index for frame in frames] == list(range(n))
    for frame in frames:
        R = frame.world_from_cam[:3, :3]
        assert np.isfinite(frame.world_from_cam).all()
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-9)
        assert np.isfinite(frame.K).all()
        assert frame.K[0, 0] > 0
        assert np.isfinite(frame.pose_covariance).all()
        assert np.linalg.eigvalsh(frame.pose_covariance).min() > 0
        assert 0 <= frame.motion_prob.min() <= frame.motion_prob.max() <= 1
        assert 0 <= frame.confidence.min() <= frame.confidence.max() <= 1
        assert not (frame.depth <= 0).any()


def ate(scene: Scene, poses: Array) -> tuple[float, float]:
    """Return RMSE of positions after Sim(3) alignment, and the length of the path."""
    truth = np.stack([scene.world_from_cam(t) for t in range(len(poses))])[:, :3, 3]
    T = umeyama(poses[:, :3, 3], truth)
    error = transforms.transform_points(T, poses[:, :3, 3]) - truth
    path = np.linalg.norm(np.diff(truth, axis=0), axis=1).sum()
    return float(np.sqrt((error**2).sum(-1).mean())), float(path)


@pytest.mark.parametrize("path", ["orbit", "walk", "forward"])
def test_oracle_flow_gives_the_path_within_half_a_percent(path: str) -> None:
    scene = Scene(path)  # type: ignore[arg-type]
    _, poses = run(scene, OracleModel(scene), 60)
    error, length = ate(scene, poses)
    assert error < 0.005 * length


def test_movers_over_forty_percent_of_the_view() -> None:
    scene = Scene("orbit", balls=BIG_MOVERS, width=256, height=192, focal=220)
    _, poses = run(scene, create_model("classical"), 60)
    error, length = ate(scene, poses)
    assert error < 0.02 * length


def test_focal_is_found_where_none_is_given() -> None:
    scene = Scene("walk", width=256, height=192, focal=220)
    frames, poses = run(scene, OracleModel(scene), 80, with_K=False)
    error, length = ate(scene, poses)
    assert error < 0.02 * length
    assert frames[-1].K[0, 0] == pytest.approx(220, rel=0.05)


def test_a_run_that_was_stopped_goes_on_to_the_same_result() -> None:
    scene = Scene("walk")
    model = OracleModel(scene)
    whole, _ = run(scene, model, 40)
    session = model.session(scene.info(40))
    first, second = (PoseChain(ChainConfig(), scene.info(40)) for _ in range(2))
    frames = [f for w in scene.windows(20) for f in first.extend(w, session.step(w))]
    state = {name: array.copy() for name, array in first.state().items()}
    list(first.finish())  # what happens to the old chain must not reach the state
    second.restore(state)
    # the last frame of the first half begins the second half's windows, as in the pipeline
    for window in scene.windows(40, start=19):
        overlapping = type(window)(index=window.index + 20, frames=window.frames, overlap=1)
        frames += second.extend(overlapping, session.step(window))
    frames += second.finish()
    assert_packets_are_sound(frames, 40)
    for a, b in zip(whole, frames, strict=True):
        np.testing.assert_array_equal(a.world_from_cam, b.world_from_cam)
        np.testing.assert_array_equal(a.depth, b.depth)
        np.testing.assert_array_equal(a.motion_prob, b.motion_prob)

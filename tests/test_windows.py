"""Windows of pointmaps placed in the world: scale chain, unknown cameras, movers, resume."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.config import ChainConfig
from stream4d.geometry import camera, transforms
from stream4d.packets import Array, PosedFrame
from stream4d.pose.chain import PoseChain
from stream4d.pose.intrinsics import pose_from_pointmap, weiszfeld_focal
from tests.naive import umeyama
from tests.oracle import OracleModel
from tests.synthetic import Scene

N = 24


def place(model: OracleModel, *, with_K: bool = False) -> list[PosedFrame]:
    scene = model.scene
    chain, session = PoseChain(ChainConfig(), scene.info(N)), model.session(scene.info(N))
    frames: list[PosedFrame] = []
    for window in scene.windows(N, size=5, overlap=2, with_K=with_K):
        frames += chain.extend(window, session.step(window))
    frames += chain.finish()
    assert [f.index for f in frames] == list(range(N))
    return frames


def relative_error(scene: Scene, frames: list[PosedFrame]) -> float:
    poses: Array = np.stack([f.world_from_cam for f in frames])
    truth = np.stack([scene.world_from_cam(t) for t in range(N)])[:, :3, 3]
    T = umeyama(poses[:, :3, 3], truth)
    error = transforms.transform_points(T, poses[:, :3, 3]) - truth
    return float(
        np.sqrt((error**2).sum(-1).mean()) / np.linalg.norm(np.diff(truth, axis=0), axis=1).sum()
    )


def test_scale_is_chained_through_windows_of_any_scale() -> None:
    scene = Scene("walk")
    frames = place(OracleModel(scene, gives="pointmap", window_scale=1.7))
    assert relative_error(scene, frames) < 1e-3
    # depth is in world units: one factor for the whole run, the first window's
    ratio = [np.nanmedian(f.depth / scene.depth(f.index)) for f in frames]
    assert np.ptp(ratio) < 0.01 * np.mean(ratio)
    assert all(f.is_tracked for f in frames)


def test_unknown_cameras_are_recovered_from_the_points() -> None:
    scene = Scene("walk")
    frames = place(OracleModel(scene, gives="pointmap", window_scale=1.7, knows_camera=False))
    assert frames[-1].K[0, 0] == pytest.approx(scene.focal, rel=0.01)
    assert relative_error(scene, frames) < 0.01


def test_noise_gives_a_growing_covariance() -> None:
    scene = Scene("walk")
    frames = place(OracleModel(scene, gives="pointmap", window_scale=1.7, depth_noise=0.03))
    assert relative_error(scene, frames) < 0.02
    spread = [np.trace(f.pose_covariance) for f in frames]
    assert spread[-1] > spread[6] > spread[0]


def test_windows_without_overlap_begin_new_segments() -> None:
    scene = Scene("walk", width=64, height=48, focal=55)
    model = OracleModel(scene, gives="pointmap")
    chain, session = PoseChain(ChainConfig(), scene.info(12)), model.session(scene.info(12))
    frames = [
        f for w in scene.windows(12, size=4, overlap=0) for f in chain.extend(w, session.step(w))
    ]
    # the placer remembers a window's own frames only; a window that shares none stands alone
    assert [f.segment for f in frames] == [0] * 4 + [1] * 4 + [2] * 4


def test_resume_is_exact() -> None:
    scene = Scene("walk", width=64, height=48, focal=55)
    model = OracleModel(scene, gives="pointmap", window_scale=1.3, knows_camera=False)
    session, windows = (
        model.session(scene.info(N)),
        list(scene.windows(N, size=5, overlap=2, with_K=False)),
    )
    whole = PoseChain(ChainConfig(), scene.info(N))
    expected = [f for w in windows for f in whole.extend(w, session.step(w))]
    first, second = (PoseChain(ChainConfig(), scene.info(N)) for _ in range(2))
    frames = [f for w in windows[:3] for f in first.extend(w, session.step(w))]
    second.restore(first.state())
    frames += [f for w in windows[3:] for f in second.extend(w, session.step(w))]
    for a, b in zip(expected, frames, strict=True):
        np.testing.assert_array_equal(a.world_from_cam, b.world_from_cam)
        np.testing.assert_array_equal(a.depth, b.depth)


def test_focal_and_pose_of_a_pointmap() -> None:
    scene = Scene()
    points = camera.unproject(scene.depth(3), scene.K)
    assert weiszfeld_focal(points) == pytest.approx(scene.focal, rel=1e-6)
    noisy = points * np.exp(0.02 * np.random.default_rng(0).normal(size=points.shape))
    assert weiszfeld_focal(noisy) == pytest.approx(scene.focal, rel=0.02)
    pose = transforms.se3_exp(np.array([0.2, -0.1, 0.3, 0.1, 0.2, -0.1]))
    found = pose_from_pointmap(transforms.transform_points(pose, points), scene.K)
    assert found is not None
    np.testing.assert_allclose(found, pose, atol=1e-4)
    assert pose_from_pointmap(np.full((20, 20, 3), np.nan), scene.K) is None
    assert weiszfeld_focal(np.full((20, 20, 3), np.nan)) > 0

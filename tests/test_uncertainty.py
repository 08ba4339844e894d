"""Stated covariances of poses against errors, on scenes and problems whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.config import ChainConfig
from stream4d.eval.coverage import coverage
from stream4d.geometry import camera, transforms
from stream4d.packets import Array
from stream4d.pose import correction, drift, refine, uncertainty
from stream4d.pose.departed import Departed
from stream4d.pose.keyframe_view import NullListener
from stream4d.pose.map import LocalMap
from stream4d.pose.progress import Progress
from stream4d.pose.record import FLOATING, to_world_from_cam
from tests.oracle import OracleModel
from tests.synthetic import Scene
from tests.test_chain import run

KEYFRAMES, PATCHES, NOISE_PX, FOCAL = 10, 40, 0.3, 200.0


def true_poses() -> Array:
    """Return (n, 3, 4) camera-from-world of a camera that goes sideways and forward, turning."""
    t = np.arange(KEYFRAMES) / KEYFRAMES
    poses = np.tile(np.eye(4), (KEYFRAMES, 1, 1))
    poses[:, :3, :3] = transforms.so3_exp(np.stack([0.1 * t, -0.2 * t, 0.05 * t], -1))
    poses[:, :3, 3] = np.stack([0.5 * t, 0.1 * np.sin(5 * t), 0.3 * t], -1)
    return np.asarray(transforms.invert(poses)[:, :3])


def window(rng: np.random.Generator) -> LocalMap:
    """Return a map whose keyframes see each other's patches for five keyframes, with Gaussian noise, adjusted."""
    poses = true_poses()
    local_map = LocalMap(144, 192, KEYFRAMES, PATCHES, camera.centred_K(FOCAL, 192, 144))
    for slot in range(KEYFRAMES):
        N = len(local_map.host)
        local_map.add_keyframe(
            slot, slot, poses[slot], tuple(level[slot] for level in local_map.images),
            np.zeros((N, 2)), np.full(N, np.inf), np.zeros((N, 3)),
        )  # fmt: skip
    for slot in range(KEYFRAMES):
        uv = rng.uniform([10, 10], [182, 134], (PATCHES, 2))
        rho = 1 / rng.uniform(0.7, 2.0, PATCHES)
        rows = local_map.add_patches(slot, uv, rho, np.full(PATCHES, 1e-6))
        points = (local_map.rays[rows] / rho[:, None]) @ poses[slot, :, :3]
        points -= poses[slot, :, :3].T @ poses[slot, :, 3]
        for other in range(max(slot - 2, 0), min(slot + 6, KEYFRAMES)):
            if other == slot:
                continue
            seen = camera.project(points @ poses[other, :, :3].T + poses[other, :, 3], local_map.K)
            local_map.uv[other, rows] = seen + NOISE_PX * rng.normal(size=seen.shape)
            local_map.var[other, rows] = NOISE_PX**2
            local_map.info[other, rows] = [1 / NOISE_PX**2, 0, 1 / NOISE_PX**2]
    obs = refine.map_observations(local_map)
    rows = np.unique(obs.patch)
    rho, rays = local_map.rho[rows], local_map.rays[rows]
    refine.adjust(
        local_map.cam, rays, local_map.host[rows], local_map.poses, np.arange(1, KEYFRAMES), rho,
        rho.copy(), np.full(len(rows), 1e-6),
        refine.Observations(refine.compact(rows, obs.patch), obs.frame, obs.uv, obs.info), iterations=15,
    )  # fmt: skip
    local_map.rho[rows] = local_map.prior[rows] = rho
    return local_map


def moved(local_map: LocalMap) -> Array:
    """Return (7,) the similarity by which the newer half of the map stands off against the older half."""
    truth, ours = to_world_from_cam(true_poses()), to_world_from_cam(local_map.poses)
    centre = ours[:, :3, 3].mean(axis=0)
    turn = transforms.so3_log(ours[:, :3, :3] @ np.swapaxes(truth[:, :3, :3], 1, 2))
    way = ours[:, :3, 3] - truth[:, :3, 3] - np.cross(turn, truth[:, :3, 3] - centre)
    ours[:, :3, 3] -= centre
    S, _ = drift._normal_equations(local_map, local_map.order)
    W = drift._twists(ours)
    A = drift.similarity_columns(ours[:, :3, 3])
    contrast, _ = drift._between_halves(A, W.T @ S[:-1, :-1] @ W)
    return np.asarray(contrast @ np.concatenate([way, turn], axis=1).ravel())


def test_the_drift_of_a_window_is_that_of_many_noisy_ones() -> None:
    """Monte Carlo: the covariance from one window's normal equations against the spread over windows."""
    rng = np.random.default_rng(0)
    seen, stated = [], []
    for _ in range(40):
        local_map = window(rng)
        step = drift.step_of(local_map, focal_free=False)
        assert step is not None
        seen.append(moved(local_map))
        stated.append(step.covariance * (KEYFRAMES - KEYFRAMES // 2))
    ratio = np.std(seen, axis=0) / np.sqrt(np.mean(np.einsum("nii->ni", np.array(stated)), axis=0))
    # 40 windows know a σ within 11 %; each window's own normal equations are those of noisy poses and depths
    assert (ratio > 0.7).all(), ratio
    assert (ratio < 1.4).all(), ratio


def test_drift_does_not_depend_on_where_the_world_stands() -> None:
    local_map = window(np.random.default_rng(1))
    before = drift.step_of(local_map, focal_free=True)
    S = transforms.rigid(transforms.so3_exp(np.array([0.3, -1.0, 0.5])), np.array([5.0, -2.0, 9.0]))
    local_map.poses[:] = (transforms.square(local_map.poses) @ transforms.invert(S))[:, :3]
    after = drift.step_of(local_map, focal_free=True)
    assert before is not None
    assert after is not None
    Ad = drift.similarity_adjoint(transforms.rigid(S[:3, :3], np.zeros(3)))
    np.testing.assert_allclose(
        after.covariance, Ad @ before.covariance @ Ad.T, rtol=1e-3, atol=1e-9
    )
    np.testing.assert_allclose(after.focal, Ad @ before.focal, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(after.centre, S[:3, :3] @ before.centre + S[:3, 3], atol=1e-9)
    assert after.seen == before.seen


def test_the_adjoint_of_a_similarity_carries_tangents() -> None:
    rng = np.random.default_rng(2)
    S = transforms.similarity(1.7, transforms.so3_exp(rng.normal(size=3)), rng.normal(size=3))
    xi = 0.3 * rng.normal(size=7)
    carried = transforms.sim3_exp(drift.similarity_adjoint(S) @ xi)
    np.testing.assert_allclose(
        S @ transforms.sim3_exp(xi) @ transforms.invert(S), carried, atol=1e-9
    )


def test_fewer_patches_are_trusted_less() -> None:
    factors = [uncertainty.sigma_factor(n) for n in (1, 40, 100, 300, 800)]
    assert factors[0] == factors[1]
    assert factors[3] == 1
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("with_K", [True, False])
def test_a_camera_that_only_turns_states_the_drift_of_its_turn(with_K: bool) -> None:
    scene = Scene(
        "rotation", focal=165.0 if with_K else 230.0
    )  # far from the guess where none is given
    frames, poses = run(scene, OracleModel(scene, flow_noise_px=0.3), 60, with_K=with_K)
    truth = np.stack([scene.world_from_cam(t) for t in range(60)])
    stated = np.stack([frame.pose_covariance for frame in frames])
    ratios = coverage(poses, stated, truth, 1.0, rotation_only=True).rotation
    assert np.median(np.abs(ratios)) < 1.5
    assert np.median(np.abs(ratios)) > 0.02  # not everything is possible
    grown = np.trace(stated[:, 3:, 3:], axis1=1, axis2=2)
    assert grown[50] > grown[2]


def test_what_a_loop_leaves_reaches_keyframes_and_frames_that_have_left() -> None:
    scene = Scene("walk")
    progress = Progress.begin(scene.frame(0), ChainConfig(), NullListener())
    local_map = progress.map
    nothing = np.zeros((len(local_map.host), 3))
    local_map.add_keyframe(
        0, 20, np.eye(3, 4), tuple(level[0] for level in local_map.images), nothing[:, :2],
        np.full(len(nothing), np.inf), nothing,
    )  # fmt: skip
    local_map.covariance[0], local_map.focal_bias[0] = np.eye(7), np.ones(7)
    own = 1e-4 * np.eye(6)
    for index, reference in ((5, -1), (15, -1), (22, 20)):
        progress.departed.add(index, reference, np.eye(3, 4), np.eye(3, 4), own, 200.0)
    progress.departed.add(23, 20, np.eye(3, 4), np.eye(3, 4), FLOATING, 200.0)
    correction.apply(progress, {}, {0: np.zeros((7, 7)), 10: 0.2 * np.eye(7), 20: 0.1 * np.eye(7)})
    (revision,) = progress.revisions
    assert revision.pose_covariance is not None
    assert revision.indices.tolist() == [5, 15, 22, 23]
    np.testing.assert_array_equal(revision.world_from_cam, np.tile(np.eye(4), (4, 1, 1)))
    sizes = revision.pose_covariance[:, 0, 0]
    np.testing.assert_allclose(sizes[:3], [0.1001, 0.1501, 0.1001], rtol=1e-5)
    np.testing.assert_allclose(
        revision.pose_covariance[3], FLOATING, rtol=1e-6
    )  # it was never measured
    np.testing.assert_allclose(local_map.covariance[0], 0.1 * np.eye(7))
    assert not local_map.focal_bias.any()
    again = Departed.restore(progress.departed.state())
    np.testing.assert_array_equal(again.own, progress.departed.own)

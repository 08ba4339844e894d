"""Trajectory scores: against evo's own commands, by hand, and on trajectories that are wrong on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from stream4d.errors import EvaluationError
from stream4d.eval.coverage import share_within
from stream4d.eval.geodesy import from_enu, geodesic_m, to_enu
from stream4d.eval.kitti import kitti_drift
from stream4d.eval.trajectory import Trajectory, read_tum, write_tum
from stream4d.eval.trajectory_score import Alignment, score_trajectory


def make_truth(count: int = 80) -> Trajectory:
    """A curved path with turning camera, 20 Hz."""
    s = np.linspace(0, 3, count)
    positions = np.stack([np.sin(s) * 2, 0.3 * np.cos(3 * s), s**1.5], axis=1)
    rotations = Rotation.from_euler("yxz", np.stack([0.6 * s, 0.2 * np.sin(2 * s), 0.1 * s], 1))
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = rotations.as_matrix()
    poses[:, :3, 3] = positions
    return Trajectory(timestamps_s=np.arange(count) / 20, world_from_cam=poses)


def move(trajectory: Trajectory, scale: float) -> Trajectory:
    """The same path in another world."""
    R = Rotation.from_euler("xyz", [0.3, -0.7, 1.1]).as_matrix()
    return Alignment(R=R, t=np.array([3.0, -2.0, 5.0]), scale=scale).apply(trajectory)


def disturb(trajectory: Trajectory, position: float, rotation: float) -> Trajectory:
    rng = np.random.default_rng(1)
    poses = trajectory.world_from_cam.copy()
    count = len(trajectory)
    poses[:, :3, :3] = (
        Rotation.from_rotvec(rotation * rng.standard_normal((count, 3))).as_matrix()
        @ poses[:, :3, :3]
    )
    poses[:, :3, 3] += position * rng.standard_normal((count, 3))
    return Trajectory(timestamps_s=trajectory.timestamps_s, world_from_cam=poses)


def test_exact_trajectory_in_another_world_scores_zero() -> None:
    truth = make_truth()
    score = score_trajectory(move(truth, 0.2), truth)
    assert score.matched == len(truth)
    assert score.ate_m == pytest.approx(0, abs=1e-9)
    assert score.rpe_trans_m == pytest.approx(0, abs=1e-9)
    assert score.rpe_rot_deg == pytest.approx(0, abs=1e-5)
    assert score.rotation_deg == pytest.approx(0, abs=1e-5)
    assert score.scale == pytest.approx(5)
    # SE(3) alignment charges the scale: a path five times too small cannot fit.
    assert score.ate_se3_m is not None
    assert score.ate_se3_m > 0.2 * score.path_m / 5
    assert score.path_m == pytest.approx(truth.path_m)


def test_known_error_by_hand() -> None:
    """Alternating ±d along an axis that alignment cannot absorb is an RMSE of d."""
    truth = make_truth(200)
    poses = truth.world_from_cam.copy()
    poses[:, 1, 3] += 0.05 * (-1.0) ** np.arange(len(truth))
    estimate = Trajectory(timestamps_s=truth.timestamps_s, world_from_cam=poses)
    score = score_trajectory(estimate, truth)
    assert score.ate_m == pytest.approx(0.05, rel=2e-3)
    assert score.rpe_trans_m == pytest.approx(0.10, rel=2e-3)
    assert score.ate_percent == pytest.approx(100 * score.ate_m / score.path_m)


@pytest.mark.parametrize("wrong", ["mirrored", "shuffled", "scaled", "reversed"])
def test_wrong_trajectories_score_as_wrong(wrong: str) -> None:
    truth = make_truth()
    poses = truth.world_from_cam.copy()
    times = truth.timestamps_s
    if wrong == "mirrored":
        flip = np.diag([-1.0, 1, 1])
        poses[:, :3, 3] = poses[:, :3, 3] @ flip
        poses[:, :3, :3] = flip @ poses[:, :3, :3] @ flip
    elif wrong == "shuffled":
        poses = poses[np.random.default_rng(0).permutation(len(poses))]
    elif wrong == "reversed":
        poses = poses[::-1]
    else:
        poses[:, :3, 3] *= 1 + np.linspace(0, 1, len(poses))[:, None]  # scale drifts to twice
    score = score_trajectory(Trajectory(timestamps_s=times, world_from_cam=poses), truth)
    assert score.ate_percent is not None
    assert score.ate_percent > 2
    if wrong != "scaled":
        assert score.rotation_deg > 10


def test_constant_scale_error_only_shows_without_scale_alignment() -> None:
    truth = make_truth()
    score = score_trajectory(move(truth, 3.0), truth)
    assert score.ate_m == pytest.approx(0, abs=1e-9)
    assert score.ate_se3_m is not None
    assert score.ate_se3_m > 1


def test_camera_that_never_moved_scores_as_the_spread_of_the_truth() -> None:
    truth = make_truth()
    stuck = Trajectory(
        timestamps_s=truth.timestamps_s, world_from_cam=np.tile(np.eye(4), (80, 1, 1))
    )
    score = score_trajectory(stuck, truth)
    spread = truth.positions - truth.positions.mean(axis=0)
    assert score.ate_m == pytest.approx(np.sqrt((spread**2).sum(axis=1).mean()))


def test_still_truth_has_no_position_score() -> None:
    truth = make_truth()
    poses = truth.world_from_cam.copy()
    poses[:, :3, 3] = [1.0, 2.0, 3.0]
    still = Trajectory(timestamps_s=truth.timestamps_s, world_from_cam=poses)
    score = score_trajectory(disturb(still, 0.0, 0.01), still)
    assert score.ate_m is None
    assert score.rpe_trans_m is None
    assert score.scale is None
    # Two independent errors of 0.01 rad per axis: √6 · 0.01 rad = 1.40° between consecutive frames.
    assert score.rpe_rot_deg == pytest.approx(np.degrees(0.01 * np.sqrt(6)), rel=0.15)


def test_missing_and_offset_times_are_associated() -> None:
    truth = make_truth()
    keep = np.delete(np.arange(80), [3, 4, 50])
    late = Trajectory(timestamps_s=truth.timestamps_s + 0.004, world_from_cam=truth.world_from_cam)
    score = score_trajectory(late, truth.take(keep))
    assert score.matched == 77
    assert score.ate_m == pytest.approx(0, abs=1e-9)


def test_other_clock_is_an_error_that_says_so() -> None:
    truth = make_truth()
    other = Trajectory(timestamps_s=truth.timestamps_s + 1e6, world_from_cam=truth.world_from_cam)
    with pytest.raises(EvaluationError, match=r"0 of 80 poses .* clock"):
        score_trajectory(other, truth)


def test_poses_that_are_not_finite_are_an_error() -> None:
    truth = make_truth()
    poses = truth.world_from_cam.copy()
    poses[5, 0, 3] = np.nan
    broken = Trajectory(timestamps_s=truth.timestamps_s, world_from_cam=poses)
    with pytest.raises(EvaluationError, match="not finite"):
        score_trajectory(broken, truth)


@pytest.mark.parametrize(("stated", "expected"), [(1.0, 0.683), (2.0, 0.954), (0.1, 0.080)])
def test_coverage_of_gaussian_errors(stated: float, expected: float) -> None:
    """Errors drawn from the covariance lie within 1σ in 68.3 %; overstated and understated σ show."""
    rng = np.random.default_rng(2)
    truth = make_truth(1500)
    sigma = np.array([0.02, 0.01, 0.03, 0.004, 0.002, 0.003])
    ξ = rng.standard_normal((1500, 6)) * sigma
    poses = truth.world_from_cam.copy()
    R = Rotation.from_rotvec(ξ[:, 3:]).as_matrix()
    # exp(ξ) ≈ [R, ρ] to first order: angles are below half a degree.
    poses[:, :3, :3] = R @ poses[:, :3, :3]
    poses[:, :3, 3] = np.einsum("nij,nj->ni", R, poses[:, :3, 3]) + ξ[:, :3]
    covariance = np.tile(np.diag((stated * sigma) ** 2), (1500, 1, 1))
    estimate = Trajectory(
        timestamps_s=truth.timestamps_s, world_from_cam=poses, covariance=covariance
    )
    score = score_trajectory(move(estimate, 0.1), truth)
    assert score.coverage is not None
    assert share_within(score.coverage.position) == pytest.approx(expected, abs=0.03)
    assert share_within(score.coverage.rotation) == pytest.approx(expected, abs=0.03)
    assert score.in_1sigma == pytest.approx(expected, abs=0.03)


def test_tum_file_round_trip(tmp_path: Path) -> None:
    truth = make_truth()
    write_tum(tmp_path / "t.tum", truth)
    back = read_tum(tmp_path / "t.tum")
    np.testing.assert_allclose(back.world_from_cam, truth.world_from_cam, atol=1e-9)
    np.testing.assert_allclose(back.timestamps_s, truth.timestamps_s, atol=1e-9)


@pytest.mark.parametrize("text", ["", "1 2 3\n", "0 0 0 0 0 0 0 0\n", "a b c d e f g h\n"])
def test_malformed_tum_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(EvaluationError, match=r"bad\.txt"):
        read_tum(tmp_path / "bad.txt")


def test_figures_equal_evo_commands(tmp_path: Path) -> None:
    """``evo_ape`` and ``evo_rpe`` on the exported files say what we say."""
    truth = make_truth()
    estimate = disturb(move(truth, 0.5), 0.01, 0.005)
    write_tum(tmp_path / "truth.tum", truth)
    write_tum(tmp_path / "ours.tum", estimate)
    score = score_trajectory(read_tum(tmp_path / "ours.tum"), read_tum(tmp_path / "truth.tum"))
    for figure, command in {
        "ate_m": ["evo_ape", "tum", "-as"],
        "ate_se3_m": ["evo_ape", "tum", "-a"],
        "rpe_trans_m": ["evo_rpe", "tum", "-as"],
        "rpe_rot_deg": ["evo_rpe", "tum", "-as", "-r", "angle_deg"],
    }.items():
        assert evo_rmse(tmp_path, command) == pytest.approx(getattr(score, figure), rel=1e-6)


def evo_rmse(folder: Path, command: list[str]) -> float:
    """Run one of evo's commands on truth.tum and ours.tum and return the RMSE that it reports."""
    program, kind, *flags = command
    out = folder / "evo.zip"
    out.unlink(missing_ok=True)
    # evo writes its settings into the home folder on first use.
    environment = {**os.environ, "HOME": str(folder), "USERPROFILE": str(folder)}
    subprocess.run(
        [
            str(Path(sys.executable).parent / program), kind, "truth.tum", "ours.tum", *flags,
            "--t_max_diff", "0.02", "--no_warnings", "--save_results", str(out),
        ],
        check=True, cwd=folder, env=environment, capture_output=True, timeout=120,
    )  # fmt: skip
    with zipfile.ZipFile(out) as archive:
        return float(json.loads(archive.read("stats.json"))["rmse"])


def test_kitti_drift_of_a_scale_error() -> None:
    """A path 2 % too long drifts by 2 % on straights, whatever the length."""
    poses = np.tile(np.eye(4), (500, 1, 1))
    poses[:, 2, 3] = np.arange(500)
    truth = Trajectory(timestamps_s=np.arange(500.0), world_from_cam=poses)
    longer = poses.copy()
    longer[:, 2, 3] *= 1.02
    drift = kitti_drift(Trajectory(timestamps_s=truth.timestamps_s, world_from_cam=longer), truth)
    # A sub-path ends on the first frame beyond its length, so it is up to one step longer.
    assert drift["kitti_trans_percent"] == pytest.approx(2.0, rel=0.02)
    assert drift["kitti_rot_deg_per_100m"] == pytest.approx(0, abs=1e-6)
    assert kitti_drift(truth.take(np.arange(50)), truth.take(np.arange(50))) == {}


def test_geodesy_known_distances() -> None:
    """One degree of latitude at the equator is 110.574 km, of longitude 111.320 km (WGS 84)."""
    origin = np.array([[0.0, 0.0, 0.0]])
    north, east = np.array([[0.01, 0.0, 0.0]]), np.array([[0.0, 0.01, 0.0]])
    assert geodesic_m(origin, north)[0] == pytest.approx(1105.743, abs=0.01)
    assert geodesic_m(origin, east)[0] == pytest.approx(1113.195, abs=0.01)


def test_geodesy_round_trip_and_local_metres() -> None:
    rng = np.random.default_rng(0)
    origin = np.array([48.2, 11.6, 520.0])
    enu = rng.uniform(-2000, 2000, (50, 3))
    geodetic = from_enu(enu, origin)
    np.testing.assert_allclose(to_enu(geodetic, origin), enu, atol=1e-6)
    flat = np.hypot(enu[:, 0], enu[:, 1])
    distance = geodesic_m(np.tile(origin, (50, 1)), geodetic)
    # The ellipsoid and a plane at 520 m differ by height / radius, below 5e-4 here.
    np.testing.assert_allclose(distance, flat, rtol=5e-4)

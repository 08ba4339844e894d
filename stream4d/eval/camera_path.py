"""Scores the cameras of one run: where they were, how sure of it they were, and their focal length."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream4d.errors import EvaluationError
from stream4d.eval.calibration import focal_error_percent
from stream4d.eval.coverage import shares
from stream4d.eval.geodesy import from_enu, geodesic_m, to_enu
from stream4d.eval.kitti import kitti_drift
from stream4d.eval.sequence import EvalSequence
from stream4d.eval.trajectory import Trajectory
from stream4d.eval.trajectory_score import TrajectoryScore, position_errors, score_trajectory
from stream4d.packets import Array, PosedFrame, PoseRevision

PLOT_POINTS = 400
"""Poses kept for plots; longer trajectories are thinned."""


class CameraPath:
    """Takes the camera of every frame and revisions as they come, then scores them against ``sequence``."""

    def __init__(self, sequence: EvalSequence) -> None:
        self._sequence = sequence
        self.poses: list[Array] = []
        """``world_from_cam`` of every frame so far, as last revised."""
        self._online_poses: list[Array] = []
        self._covariances: list[Array] = []
        self._tracked: list[bool] = []
        self._segments: list[int] = []
        self._focal_errors: list[float] = []
        self._true_K: Array | None = None
        self._is_metric = False

    def add(self, frame: PosedFrame, true_K: Array | None) -> None:
        """Keep the camera of the next frame; ``true_K`` is of the frame's size.

        Raises:
            EvaluationError: frames are missing or out of order, or a pose is not finite and rigid.
        """
        self._check(frame)
        self.poses.append(frame.world_from_cam)
        self._online_poses.append(frame.world_from_cam)
        self._covariances.append(frame.pose_covariance)
        self._tracked.append(frame.is_tracked)
        self._segments.append(frame.segment)
        self._is_metric = frame.is_metric
        self._true_K = true_K
        if true_K is not None:
            self._focal_errors.append(focal_error_percent(frame.K, true_K))

    def _check(self, frame: PosedFrame) -> None:
        if frame.index != len(self.poses):
            raise EvaluationError(f"frame {len(self.poses)} was due, got frame {frame.index}")
        R = frame.world_from_cam[:3, :3]
        # 1e-4 is far above rounding and far below anything that would change a score.
        if not np.isfinite(frame.world_from_cam).all() or np.abs(R @ R.T - np.eye(3)).max() > 1e-4:
            raise EvaluationError(f"the pose of frame {frame.index} is not finite and rigid")

    def revise(self, revision: PoseRevision) -> None:
        """Replace the cameras of frames already added."""
        indices = revision.indices.tolist()
        for index, pose in zip(indices, revision.world_from_cam, strict=True):
            self.poses[index] = pose
        if revision.pose_covariance is not None:
            for index, covariance in zip(indices, revision.pose_covariance, strict=True):
                self._covariances[index] = covariance
        if revision.K is not None and self._true_K is not None:
            for index, K in zip(indices, revision.K, strict=True):
                self._focal_errors[index] = focal_error_percent(K, self._true_K)

    def trajectory(self) -> Trajectory:
        """Return the final poses of the longest segment, timed by the ground truth's clock."""
        return self._trajectory(self.poses)

    def _trajectory(self, poses: list[Array]) -> Trajectory:
        times = self._sequence.timestamps_s
        if len(times) < len(poses):
            raise EvaluationError(
                f"the video gave {len(poses)} frames, but there are {len(times)} time stamps"
            )
        whole = Trajectory(
            timestamps_s=times[: len(poses)],
            world_from_cam=np.stack(poses),
            covariance=np.stack(self._covariances),
        )
        return whole.take(np.flatnonzero(self._in_longest_segment()))

    def _in_longest_segment(self) -> Array:
        segments = np.array(self._segments)
        longest: Array = segments == np.bincount(segments).argmax()
        return longest

    def score(self, row: dict[str, Any], details: dict[str, Any]) -> TrajectoryScore | None:
        """Fill in what is known of the cameras; return the trajectory's score, None without true poses.

        Raises:
            EvaluationError: the trajectory cannot be compared.
        """
        tracked = self._in_longest_segment() & np.array(self._tracked)
        row["frames_with_pose"] = int(np.count_nonzero(tracked))
        details.update(segments=len(np.unique(self._segments)), is_metric=self._is_metric)
        if self._focal_errors:
            row["focal_error_percent"] = self._focal_errors[-1]
            details["focal_error_percent_mean"] = float(np.mean(self._focal_errors))
        estimate = self.trajectory()
        self._score_gps(estimate, details)
        if self._sequence.truth is None:
            details["plot"] = {"estimate": _thin(estimate.positions)}
            return None
        score = score_trajectory(estimate, self._sequence.truth)
        row.update(
            path_m=score.path_m,
            ate_m=score.ate_m,
            ate_percent=score.ate_percent,
            rpe_trans_m=score.rpe_trans_m,
            rpe_rot_deg=score.rpe_rot_deg,
            pose_in_1sigma=score.in_1sigma,
        )
        online = score_trajectory(self._trajectory(self._online_poses), self._sequence.truth)
        details.update(
            poses_compared=score.matched,
            ate_se3_m=score.ate_se3_m,
            ate_online_m=online.ate_m,
            rpe_trans_se3_m=score.rpe_trans_se3_m,
            rotation_deg=score.rotation_deg,
            scale=score.scale,
            **_coverage_levels(score),
            plot=_plot_data(score),
            **kitti_drift(score.aligned, score.truth),
        )
        if self._is_metric and score.scale is not None:
            details["metric_scale_error_percent"] = 100 * abs(1 / score.scale - 1)
        return score

    def _score_gps(self, estimate: Trajectory, details: dict[str, Any]) -> None:
        if self._sequence.gps is None:
            return
        times, geodetic = self._sequence.gps
        origin = geodetic[0]
        poses = np.tile(np.eye(4), (len(times), 1, 1))
        poses[:, :3, 3] = to_enu(geodetic, origin)
        score = score_trajectory(estimate, Trajectory(timestamps_s=times, world_from_cam=poses))
        ours = from_enu(score.aligned.positions, origin)
        theirs = from_enu(score.truth.positions, origin)
        details["geodesic_error_m"] = float(np.sqrt(np.mean(geodesic_m(ours, theirs) ** 2)))


def _coverage_levels(score: TrajectoryScore) -> dict[str, Any]:
    """Return the shares of errors within 1σ, 2σ and 3σ, position and rotation apart."""
    if score.coverage is None:
        return {}
    return {
        "position_in_sigma": shares(score.coverage.position),
        "rotation_in_sigma": shares(score.coverage.rotation),
    }


def _plot_data(score: TrajectoryScore) -> dict[str, Any]:
    times = score.truth.timestamps_s - score.truth.timestamps_s[0]
    return {
        "time_s": _thin(times),
        "estimate": _thin(score.aligned.positions),
        "truth": _thin(score.truth.positions),
        "error_m": _thin(position_errors(score)),
    }


def _thin(values: Array) -> list[Any]:
    step = max(1, -(-len(values) // PLOT_POINTS))
    thinned: list[Any] = np.round(values[::step], 5).tolist()
    return thinned

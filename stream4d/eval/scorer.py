"""Scores one run of the pipeline, frame by frame, in memory that does not grow with the images.

What stays: one pose and K per frame, a bounded sample of depths and points, running sums. ``row`` is the line that
other tools read; ``details`` holds everything else.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from stream4d.errors import EvaluationError
from stream4d.eval.calibration import CONFIDENT_WITHIN, focal_error_percent, reliability
from stream4d.eval.coverage import shares
from stream4d.eval.depth import DepthSample, DepthScore, score_depth
from stream4d.eval.flow import FlowScorer, dis_flow
from stream4d.eval.flow_tracks import FlowTracks
from stream4d.eval.geodesy import from_enu, geodesic_m, to_enu
from stream4d.eval.grid import TruthGrid, camera_rays, resize_flow, resize_map
from stream4d.eval.kitti import kitti_drift
from stream4d.eval.motion import MotionScorer
from stream4d.eval.pointmap import PointSample, score_points
from stream4d.eval.row import empty_row
from stream4d.eval.sequence import EvalSequence
from stream4d.eval.trajectory import (
    MAX_TIME_DIFFERENCE_S,
    Trajectory,
    TrajectoryScore,
    position_errors,
    score_trajectory,
)
from stream4d.geometry.align import align_points
from stream4d.geometry.transforms import transform_points
from stream4d.packets import Array, PosedFrame, PoseRevision, VideoInfo

MOVING_PROBABILITY = 0.5
PLOT_POINTS = 400
"""Poses kept for plots; longer trajectories are thinned."""


class SequenceScorer:
    """Takes posed frames in order and revisions as they come, then gives the row.

    Args:
        sequence: ground truth.
        info: the reader's description of the video.
        calibrated: the run was given the true camera.
    """

    def __init__(self, sequence: EvalSequence, info: VideoInfo, *, calibrated: bool) -> None:
        self._sequence = sequence
        source_size = (info.source_width, info.source_height)
        self._grid = TruthGrid(source_size, sequence.camera, calibrated=calibrated)
        self._poses: list[Array] = []
        self._online_poses: list[Array] = []
        self._covariances: list[Array] = []
        self._tracked: list[bool] = []
        self._segments: list[int] = []
        self._focal_errors: list[float] = []
        self._true_K: Array | None = None
        self._depth = DepthSample()
        self._points = PointSample()
        self._scales: dict[int, float] = {}
        self._motion = MotionScorer()
        self._flow, self._dis_flow = FlowScorer(), FlowScorer()
        self._pending_flow: tuple[Array, Array, Array] | None = None
        self._tracks = FlowTracks()
        self._true_poses = sequence.true_poses(MAX_TIME_DIFFERENCE_S)
        self._is_metric = False

    def add(self, frame: PosedFrame) -> None:
        """Compare one frame with its ground truth.

        Raises:
            EvaluationError: frames are missing or out of order, or a pose is not finite and rigid.
        """
        self._check(frame)
        self._poses.append(frame.world_from_cam)
        self._online_poses.append(frame.world_from_cam)
        self._covariances.append(frame.pose_covariance)
        self._tracked.append(frame.is_tracked)
        self._segments.append(frame.segment)
        self._is_metric = frame.is_metric
        H, W = frame.rgb.shape[:2]
        self._true_K = self._grid.truth_K((W, H))
        if self._true_K is not None:
            self._focal_errors.append(focal_error_percent(frame.K, self._true_K))
        self._add_depth(frame)
        self._add_motion(frame)
        self._add_flow(frame)
        self._add_tracks(frame)

    def _check(self, frame: PosedFrame) -> None:
        if frame.index != len(self._poses):
            raise EvaluationError(f"frame {len(self._poses)} was due, got frame {frame.index}")
        R = frame.world_from_cam[:3, :3]
        # 1e-4 is far above rounding and far below anything that would change a score.
        if not np.isfinite(frame.world_from_cam).all() or np.abs(R @ R.T - np.eye(3)).max() > 1e-4:
            raise EvaluationError(f"the pose of frame {frame.index} is not finite and rigid")

    def _add_depth(self, frame: PosedFrame) -> None:
        truth = self._sequence.depth.get(frame.index)
        if truth is None:
            return
        truth = self._grid.truth(truth)
        if self._sequence.max_depth_m is not None:
            truth = np.where(truth < self._sequence.max_depth_m, truth, 0)
        shape = truth.shape[0], truth.shape[1]
        predicted = resize_map(frame.depth, shape)
        self._depth.add(frame.index, predicted, truth, resize_map(frame.confidence, shape))
        rays = self._grid.truth_rays(shape)
        if rays is not None:
            known = np.where(truth > 0, truth, np.nan)[..., None]
            ours = camera_rays(frame.K, frame.depth.shape[:2], shape) * predicted[..., None]
            self._points.add(frame.index, ours, rays * known)

    def _add_motion(self, frame: PosedFrame) -> None:
        self._motion.add_prediction(frame.motion_prob > MOVING_PROBABILITY)
        truth = self._sequence.masks.get(frame.index)
        if truth is not None:
            truth = self._grid.truth(truth)
            moving = resize_map(frame.motion_prob, truth.shape[:2]) > MOVING_PROBABILITY
            self._motion.add(moving, truth)

    def _add_flow(self, frame: PosedFrame) -> None:
        if self._pending_flow is not None:
            rgb, predicted, known = self._pending_flow
            self._flow.add(resize_flow(predicted, known.shape[:2]), known)
            self._dis_flow.add(resize_flow(dis_flow(rgb, frame.rgb), known.shape[:2]), known)
            self._pending_flow = None
        # Undistorting a flow field needs its end points too: no benchmark has flow and a distorted lens.
        truth = None if self._grid.undistorts else self._sequence.flow.get(frame.index)
        if truth is not None and frame.flow is not None:
            self._pending_flow = frame.rgb, frame.flow, truth

    def _add_tracks(self, frame: PosedFrame) -> None:
        if self._tracks.is_done:
            return
        depth, pose = self._sequence.depth.get(frame.index), self._true_poses.get(frame.index)
        truth, moving = None, None
        if depth is not None and pose is not None and not self._grid.keeps_distortion:
            h, w = depth.shape
            K = self._grid.truth_K((w, h))
            if K is not None:
                truth = self._grid.truth(depth), K, pose
        mask = self._sequence.masks.get(frame.index)
        if mask is not None and depth is not None and mask.shape == depth.shape:
            moving = self._grid.truth(mask) > 0
        H, W = frame.rgb.shape[:2]
        self._tracks.add(frame.flow, frame.flow_uncertainty, truth, moving, (W, H))

    def revise(self, revision: PoseRevision) -> None:
        """Replace poses and scales of frames already added."""
        for index, pose, scale in zip(
            revision.indices.tolist(), revision.world_from_cam, revision.scale, strict=True
        ):
            self._poses[index] = pose
            self._scales[index] = self._scales.get(index, 1.0) * float(scale)
        if revision.pose_covariance is not None:
            for index, covariance in zip(
                revision.indices.tolist(), revision.pose_covariance, strict=True
            ):
                self._covariances[index] = covariance
        if revision.K is not None and self._true_K is not None:
            for index, K in zip(revision.indices.tolist(), revision.K, strict=True):
                self._focal_errors[index] = focal_error_percent(K, self._true_K)
        self._depth.revise(revision)

    def truth_K(self, width: int, height: int) -> Array | None:
        """Return the true K of frames of a size, or None where unknown."""
        return self._grid.truth_K((width, height))

    def trajectory(self) -> Trajectory:
        """Return the final poses of the longest segment, timed by the ground truth's clock."""
        return self._trajectory(self._poses)

    def _trajectory(self, poses: list[Array]) -> Trajectory:
        segments = np.array(self._segments)
        keep = np.flatnonzero(segments == np.bincount(segments).argmax())
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
        return whole.take(keep)

    def results(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (row, details).

        Raises:
            EvaluationError: no frame came, or the trajectory cannot be compared.
        """
        if not self._poses:
            raise EvaluationError("the run gave no frame")
        row = empty_row(self._sequence.name, "ok", frames=len(self._poses))
        segments = np.array(self._segments)
        longest = segments == np.bincount(segments).argmax()
        row["frames_with_pose"] = int(np.count_nonzero(longest & np.array(self._tracked)))
        row["static_share"] = self._motion.static_share
        if self._focal_errors:
            row["focal_error_percent"] = self._focal_errors[-1]
        details: dict[str, Any] = {
            "kind": self._sequence.kind,
            "notes": self._sequence.notes,
            "segments": len(np.unique(segments)),
            "is_metric": self._is_metric,
        }
        if self._focal_errors:
            details["focal_error_percent_mean"] = float(np.mean(self._focal_errors))
        score = self._score_trajectory(row, details)
        self._score_depth(row, details)
        self._score_points(details, score)
        self._score_maps(row, details)
        return row, details

    def _score_trajectory(
        self, row: dict[str, Any], details: dict[str, Any]
    ) -> TrajectoryScore | None:
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

    def _score_depth(self, row: dict[str, Any], details: dict[str, Any]) -> None:
        predicted, truth, confidence = self._depth.pooled()
        scale, scale_shift = self._sequence.depth_alignments
        score = score_depth(predicted, truth, scale)
        if score is None:
            return
        row.update(depth_abs_rel=score.abs_rel, depth_delta1=score.delta1)
        details["depth"] = {scale: asdict(score)}
        shifted = score_depth(predicted, truth, scale_shift)
        if shifted is not None:
            details["depth"][scale_shift] = asdict(shifted)
        if self._is_metric:
            unaligned = score_depth(predicted, truth, "none")
            details["depth"]["none"] = None if unaligned is None else asdict(unaligned)
        details["depth"]["per_frame"] = self._depth.per_frame_means()
        details["depth_density"] = float(np.mean(np.isfinite(predicted) & (predicted > 0)))
        self._score_confidence(predicted, truth, confidence, score, details)

    def _score_confidence(
        self,
        predicted: Array,
        truth: Array,
        confidence: Array,
        score: DepthScore,
        details: dict[str, Any],
    ) -> None:
        with np.errstate(invalid="ignore"):
            error = np.abs(score.scale * predicted.astype(np.float64) - truth) / truth
        result = reliability(confidence, error)
        if result is None:
            return
        details["confidence"] = {
            "within": CONFIDENT_WITHIN,
            "stated": result.stated.tolist(),
            "observed": result.observed.tolist(),
            "count": result.count.tolist(),
            "ece": result.ece,
            "ause": result.ause,
        }

    def _score_points(self, details: dict[str, Any], score: TrajectoryScore | None) -> None:
        """Compare clouds after an alignment of their own, so that poses and depth count together."""
        if self._sequence.truth is None or score is None:
            return
        ours = dict(enumerate(self._poses))
        predicted, truth = self._points.in_world(ours, self._true_poses, self._scales)
        if len(predicted) < 100:
            return
        found = align_points(predicted, truth)
        if found.ok:
            aligned = transform_points(found.transform, predicted)
            details["points"] = asdict(score_points(aligned, truth))

    def _score_maps(self, row: dict[str, Any], details: dict[str, Any]) -> None:
        motion = self._motion.score()
        if motion is not None:
            row.update(mask_j=motion.j, mask_f=motion.f)
            details["mask"] = asdict(motion)
        tracks = self._tracks.score()
        if tracks is not None:
            details["tracks"] = asdict(tracks)
        flow, dis = self._flow.score(), self._dis_flow.score()
        if flow is not None and dis is not None:
            row.update(
                flow_epe=flow.epe,
                flow_fl_percent=flow.fl_percent,
                flow_dis_epe=dis.epe,
                flow_dis_fl_percent=dis.fl_percent,
            )
            details["flow"], details["flow_dis"] = asdict(flow), asdict(dis)


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

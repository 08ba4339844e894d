"""Scores the per-pixel maps of one run in bounded memory: depth, points, motion masks, flow and its tracks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from stream4d.eval.calibration import CONFIDENT_WITHIN, reliability
from stream4d.eval.depth import DepthSample, DepthScore, score_depth
from stream4d.eval.flow import FlowScorer, dis_flow
from stream4d.eval.flow_tracks import FlowTracks
from stream4d.eval.grid import TruthGrid, camera_rays, resize_flow, resize_map
from stream4d.eval.motion import MotionScorer
from stream4d.eval.pointmap import PointSample, score_points
from stream4d.eval.sequence import EvalSequence
from stream4d.eval.trajectory import MAX_TIME_DIFFERENCE_S
from stream4d.geometry.align import align_points
from stream4d.geometry.transforms import transform_points
from stream4d.packets import Array, PosedFrame, PoseRevision

MOVING_PROBABILITY = 0.5


class MapScorer:
    """Takes the maps of every frame and revisions as they come, then scores them against ``sequence``.

    Args:
        sequence: ground truth.
        grid: where the ground truth's pixels lie in the frames.
    """

    def __init__(self, sequence: EvalSequence, grid: TruthGrid) -> None:
        self._sequence = sequence
        self._grid = grid
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
        """Compare the maps of the next frame with its ground truth."""
        self._is_metric = frame.is_metric
        self._add_depth(frame)
        self._add_motion(frame)
        self._add_flow(frame)
        self._add_tracks(frame)

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
        """Scale the depth of frames already added."""
        for index, scale in zip(revision.indices.tolist(), revision.scale.tolist(), strict=True):
            self._scales[index] = self._scales.get(index, 1.0) * scale
        self._depth.revise(revision)

    def score(
        self, row: dict[str, Any], details: dict[str, Any], poses: list[Array] | None
    ) -> None:
        """Fill in what is known of the maps; ``poses`` place the points, None leaves them out."""
        self._score_depth(row, details)
        if poses is not None:
            self._score_points(details, poses)
        self._score_motion_and_flow(row, details)

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

    def _score_points(self, details: dict[str, Any], poses: list[Array]) -> None:
        """Compare clouds after an alignment of their own, so that poses and depth count together."""
        ours = dict(enumerate(poses))
        predicted, truth = self._points.in_world(ours, self._true_poses, self._scales)
        if len(predicted) < 100:
            return
        found = align_points(predicted, truth)
        if found.ok:
            aligned = transform_points(found.transform, predicted)
            details["points"] = asdict(score_points(aligned, truth))

    def _score_motion_and_flow(self, row: dict[str, Any], details: dict[str, Any]) -> None:
        row["static_share"] = self._motion.static_share
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

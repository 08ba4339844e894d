"""Placing whole windows of pointmaps in the world: weighted Sim(3) over the frames that two windows share.

For models that predict geometry but no flow. The scale of each window is chained through the overlap; weights are
confidence times staticness. MonST3R's global alignment made incremental.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from stream4d.geometry import align, camera, transforms
from stream4d.packets import Array, PosedFrame, Prediction, State, Window
from stream4d.pose.intrinsics import pose_from_pointmap, weiszfeld_focal

FEW_INLIERS = 0.15
"""Below this share of static weight, two windows do not show the same scene."""
ROTATION_SHARE = 0.5
"""Rotation error per unit of relative position error: both come from the same points, a lever of about 2."""
EFFECTIVE_POINTS = 30.0
"""Errors of neighbouring pixels are alike: a window holds about so many independent ones."""


@dataclass(slots=True, eq=False)
class WindowPlacer:
    """Turns windows of pointmaps into posed frames at once; remembers the overlap only."""

    world_from_window: Array = field(default_factory=lambda: np.eye(4))
    """(4, 4) similarity of the last window."""
    indices: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """(n,) indices of the frames remembered."""
    points: Array = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.float32))
    """(n, H, W, 3) their points in the world."""
    weights: Array = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    """(n, H, W) confidence × staticness."""
    variance: float = 1e-8
    """Of position, relative to the scene's depth, grown from window to window."""
    segment: int = 0
    focal: float = 0.0
    """Running estimate where the model gives no K; 0: none yet."""
    last_pose: Array = field(default_factory=lambda: np.eye(4))

    def place(self, window: Window, prediction: Prediction, keep: int) -> Iterator[PosedFrame]:
        """Yield the window's new frames; ``keep`` frames at its end are remembered for the next one."""
        points, weights = _points_of(prediction, window), _weights_of(prediction, window)
        K = self._intrinsics(window, prediction, points, weights)
        poses, known = _poses_of(prediction, points, K, weights)
        tracked = self._attach(window, points, weights)
        scale = float(transforms.scale_of(self.world_from_window))
        for k, frame in enumerate(window.frames):
            if k < window.overlap:
                continue
            cam_from_window = transforms.invert(poses[k])
            depth = scale * transforms.transform_points(cam_from_window, points[k])[..., 2]
            pose = transforms.without_scale(self.world_from_window @ poses[k])
            yield self._posed(frame, prediction, k, K[k], pose, depth, tracked and known[k])
            self.last_pose = pose
        self._remember(window, points, weights, keep)

    def _attach(self, window: Window, points: Array, weights: Array) -> bool:
        """Find world_from_window over the shared frames; without any, begin a new segment."""
        shared = [
            (k, int(np.flatnonzero(self.indices == frame.index)[0]))
            for k, frame in enumerate(window.frames)
            if frame.index in self.indices
        ]
        if not shared:
            self.segment += int(len(self.indices) > 0)
            self.world_from_window, self.variance = np.eye(4), 1e-8
            return True
        here, there = (np.array(side) for side in zip(*shared, strict=True))
        both = np.sqrt(weights[here] * self.weights[there])
        # errors grow with depth: so do their variances, with its square
        depth_sq = np.maximum((self.points[there] ** 2).sum(-1), 1e-12)
        result = align.align_points(points[here], self.points[there], both / depth_sq)
        if not result.ok or result.inliers < FEW_INLIERS:
            first = transforms.invert(self.world_from_window) @ self.last_pose
            self.world_from_window = self.world_from_window @ transforms.without_scale(first)
            self.variance += 1.0
            return False
        self.world_from_window = result.transform
        depth = float(np.sqrt(np.nanmedian(depth_sq)))
        self.variance += (result.residual / depth) ** 2 / EFFECTIVE_POINTS
        return True

    def _intrinsics(
        self, window: Window, prediction: Prediction, points: Array, weights: Array
    ) -> Array:
        """Return (T, 3, 3): given, else predicted, else one focal from the pointmaps."""
        T, H, W = points.shape[:3]
        given = [frame.K for frame in window.frames]
        if all(K is not None for K in given):
            return np.stack([np.asarray(K, np.float64) for K in given])
        if prediction.K is not None:
            return np.asarray(prediction.K, np.float64)
        estimate = weiszfeld_focal(points[0], weights[0])
        self.focal = estimate if self.focal == 0 else self.focal**0.8 * estimate**0.2
        return np.repeat(camera.centred_K(self.focal, W, H)[None], T, axis=0)

    def _posed(
        self,
        frame: object,
        prediction: Prediction,
        k: int,
        K: Array,
        pose: Array,
        depth: Array,
        tracked: bool,
    ) -> PosedFrame:
        H, W = depth.shape
        positive = np.isfinite(depth) & (depth > 0)
        typical = float(np.median(depth[positive])) if positive.any() else 1.0
        sigma = (self.variance if tracked else self.variance + 1.0) ** 0.5
        covariance = np.diag([(sigma * typical) ** 2] * 3 + [(ROTATION_SHARE * sigma) ** 2] * 3)
        motion = (
            prediction.motion_prob[k]
            if prediction.motion_prob is not None
            else np.full((H, W), 0.05)
        )
        has_next = prediction.flow is not None and k < len(prediction.flow)
        sigma_flow = prediction.flow_uncertainty
        return PosedFrame(
            index=frame.index, timestamp_ns=frame.timestamp_ns, rgb=frame.rgb,  # type: ignore[attr-defined]
            K=np.array(K, np.float64), world_from_cam=pose, pose_covariance=covariance,
            depth=np.where(positive, depth, np.nan).astype(np.float32),
            confidence=_unit(prediction.confidence[k] if prediction.confidence is not None else np.ones((H, W))),
            motion_prob=np.clip(np.nan_to_num(motion, nan=0.05), 0, 1).astype(np.float32),
            flow=prediction.flow[k] if has_next and prediction.flow is not None else None,
            flow_uncertainty=sigma_flow[k] if has_next and sigma_flow is not None else None,
            semantics=prediction.semantics[k] if prediction.semantics is not None else None,
            is_keyframe=k == 0, is_tracked=tracked, segment=self.segment, is_metric=prediction.is_metric,
        )  # fmt: skip

    def _remember(self, window: Window, points: Array, weights: Array, keep: int) -> None:
        keep = max(keep, 1)
        self.indices = np.array([frame.index for frame in window.frames[-keep:]])
        world = transforms.transform_points(self.world_from_window, points[-keep:])
        self.points, self.weights = world.astype(np.float32), weights[-keep:]

    def state(self) -> State:
        """Return what ``restore`` needs."""
        return {name: np.array(getattr(self, name)) for name in WindowPlacer.__dataclass_fields__}

    def restore(self, state: State) -> None:
        """Go on from an earlier ``state``."""
        for name in WindowPlacer.__dataclass_fields__:
            value, like = np.array(state[name]), getattr(self, name)
            setattr(self, name, type(like)(value) if isinstance(like, int | float) else value)


def _points_of(prediction: Prediction, window: Window) -> Array:
    """Return (T, H, W, 3) points in the window frame, from pointmaps or from depth, K and poses."""
    if prediction.pointmap_in_window is not None:
        return prediction.pointmap_in_window
    if prediction.depth is None or prediction.window_from_cam is None:
        raise ValueError(
            "a prediction without flow needs pointmap_in_window, or depth and window_from_cam"
        )
    T, H, W = prediction.depth.shape
    if prediction.K is not None:
        K = prediction.K
    else:
        given = window.frames[0].K
        one = given if given is not None else camera.centred_K(camera.default_focal(W, H), W, H)
        K = np.repeat(np.asarray(one)[None], T, axis=0)
    in_cam = camera.unproject(prediction.depth, K)
    return transforms.transform_points(prediction.window_from_cam, in_cam).astype(np.float32)


def _weights_of(prediction: Prediction, window: Window) -> Array:
    shape = (len(window.frames), *window.frames[0].rgb.shape[:2])
    weights = np.ones(shape, np.float32) if prediction.confidence is None else prediction.confidence
    if prediction.motion_prob is not None:
        # beyond a half nothing counts: a mover with a little weight is still a mover
        weights = weights * np.clip(1 - 2 * prediction.motion_prob, 0, 1)
    return np.nan_to_num(weights, nan=0.0, posinf=0.0).astype(np.float32)


def _poses_of(
    prediction: Prediction, points: Array, K: Array, weights: Array
) -> tuple[Array, list[bool]]:
    """Return (T, 4, 4) window-from-camera and whether each was found."""
    if prediction.window_from_cam is not None:
        return np.asarray(prediction.window_from_cam, np.float64), [True] * len(points)
    poses, known = [np.eye(4)], [True]
    for k in range(1, len(points)):
        found = pose_from_pointmap(points[k], K[k], weights[k])
        poses.append(found if found is not None else poses[-1])
        known.append(found is not None)
    return np.stack(poses), known


def _unit(confidence: Array) -> Array:
    """Map a model's own confidence (≥ 0) into [0, 1) by c / (c + median): half the pixels lie above a half."""
    c = np.nan_to_num(np.maximum(confidence, 0), nan=0.0, posinf=1e6)
    middle = float(np.median(c[c > 0])) if (c > 0).any() else 1.0
    return np.asarray(c / (c + middle), np.float32)

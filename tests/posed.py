"""Posed frames of the synthetic room with exact values, for everything that takes ``PosedFrame``s."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array, FrameTracks, PosedFrame
from tests.synthetic import Scene


def posed_frame(scene: Scene, index: int, *, is_last: bool = False) -> PosedFrame:
    """Return the truth of frame ``index`` as the pipeline would give it."""
    depth = scene.depth(index).astype(np.float32)
    # Three pixels that stand for points; the second is hidden in every third frame, the last slot is free.
    u = np.array([10, 20, 30])
    seen = np.array([True, index % 3 > 0, True, False])
    tracks = FrameTracks(
        id=np.array([0, 1, 2, -1], np.int32),
        uv=np.array([[10, 12], [20, 12], [30, 12], [np.nan, np.nan]], np.float32),
        visible=seen,
        depth=np.where(seen, np.append(depth[12, u], np.nan), np.nan).astype(np.float32),
    )
    return PosedFrame(
        index=index,
        timestamp_ns=index * 40_000_000,
        rgb=scene.rgb(index),
        K=scene.K,
        world_from_cam=scene.world_from_cam(index),
        pose_covariance=np.eye(6) * 1e-6,
        depth=depth,
        confidence=np.full(depth.shape, 0.9, np.float32),
        motion_prob=scene.moving(index).astype(np.float32),
        flow=None if is_last else scene.flow(index, index + 1)[0].astype(np.float32),
        flow_uncertainty=None if is_last else np.full(depth.shape, 0.1, np.float32),
        tracks=tracks,
        is_keyframe=index % 5 == 0,
        is_metric=True,
    )


def posed_frames(n: int, scene: Scene | None = None) -> list[PosedFrame]:
    """Return the first ``n`` frames."""
    scene = scene or Scene(width=96, height=72, focal=82.0)
    return [posed_frame(scene, i, is_last=i == n - 1) for i in range(n)]


@dataclass
class Frames:
    """What exporters and pictures need of a store."""

    frames: list[PosedFrame]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> PosedFrame:
        return self.frames[index]

    @property
    def world_from_cam(self) -> Array:
        """(T, 4, 4)."""
        return np.stack([frame.world_from_cam for frame in self.frames])

    @property
    def segment(self) -> Array:
        """(T,)."""
        return np.array([frame.segment for frame in self.frames])

"""Point tracks of a run, chained from its optical flow, against tracks that true depth and poses imply.

Points are laid on a grid over the first frame with depth, on surfaces that the ground truth does not mark as moving.
Where a still point should be follows from true geometry; it counts as visible where the true depth there agrees. The
run's own track follows its flow from frame to frame and ends where it leaves the image or where the flow is said to be
worse than ``LOST_PX``. Scored by TAP-Vid's rules (``tracks.score_point_tracks``).
"""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.eval.tracks import PointTrackScore, score_point_tracks
from stream4d.geometry.camera import inside, project, unproject_pixels
from stream4d.packets import Array

GRID = 12
"""Points along each side of the grid."""
MAX_FRAMES = 48
"""Frames that a track is followed; chained flow has drifted by then."""
LOST_PX = 5.0
"""A track ends where the flow's stated 1σ is larger."""
DEPTH_AGREES = 0.05
"""Relative depth difference up to which a true point is visible."""


class FlowTracks:
    """Follows a grid of points through one run, in constant memory."""

    def __init__(self) -> None:
        self._points_in_world: Array | None = None
        self._at: Array = np.zeros((0, 2))
        self._alive: Array = np.zeros(0, bool)
        self._tracks: list[tuple[Array, Array, Array, Array]] = []
        self._size = (0, 0)

    @property
    def is_done(self) -> bool:
        """True once enough frames were followed."""
        return len(self._tracks) >= MAX_FRAMES

    def add(
        self,
        flow: Array | None,  # (H, W, 2) to the next frame, processed pixels
        uncertainty: Array | None,  # (H, W)
        truth: tuple[Array, Array, Array]
        | None,  # depth (h, w), K (3, 3) at that size, pose (4, 4)
        moving: Array | None,  # (h, w) bool, true movers
        size: tuple[int, int],  # (W, H) processed
    ) -> None:
        """Take one frame; ``truth`` is None where the frame has no depth or pose."""
        if self.is_done:
            return
        if self._points_in_world is None:
            if truth is None:
                return
            self._start(truth, moving, size)
        elif truth is not None:
            position, visible = self._true_positions(truth)
            self._tracks.append((self._at.copy(), self._alive.copy(), position, visible))
        self._follow(flow, uncertainty)

    def _start(
        self, truth: tuple[Array, Array, Array], moving: Array | None, size: tuple[int, int]
    ) -> None:
        depth, K, world_from_cam = truth
        h, w = depth.shape
        u, v = np.meshgrid(*((np.arange(GRID) + 0.5) * side / GRID - 0.5 for side in (w, h)))
        uv = np.stack([u.ravel(), v.ravel()], axis=1)
        at = np.rint(uv).astype(int)
        known = depth[at[:, 1], at[:, 0]] > 0
        if moving is not None:
            known &= ~moving[at[:, 1], at[:, 0]]
        at = at[known]
        in_cam = unproject_pixels(
            at.astype(np.float64), depth[at[:, 1], at[:, 0]].astype(np.float64), K
        )
        self._points_in_world = in_cam @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
        self._size = size
        self._at = _resize_pixels(at.astype(np.float64), (w, h), size)
        self._alive = np.ones(len(at), bool)

    def _true_positions(self, truth: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        assert self._points_in_world is not None
        depth, K, world_from_cam = truth
        h, w = depth.shape
        in_cam = (self._points_in_world - world_from_cam[:3, 3]) @ world_from_cam[:3, :3]
        uv = project(in_cam, K)
        visible = np.asarray(np.isfinite(uv).all(axis=1))
        uv = np.where(visible[:, None], uv, -1e6)
        visible &= inside(uv, h, w)
        at = np.clip(np.rint(uv), 0, [w - 1, h - 1]).astype(int)
        seen = depth[at[:, 1], at[:, 0]]
        visible &= (seen > 0) & (np.abs(in_cam[:, 2] / np.maximum(seen, 1e-6) - 1) < DEPTH_AGREES)
        return _resize_pixels(uv, (w, h), self._size), visible

    def _follow(self, flow: Array | None, uncertainty: Array | None) -> None:
        if flow is None:
            self._alive[:] = False
            return
        step = _sample(flow, self._at)
        self._alive &= np.isfinite(step).all(axis=1)
        if uncertainty is not None:
            self._alive &= _sample(uncertainty, self._at) <= LOST_PX
        self._at = self._at + np.nan_to_num(step)
        W, H = self._size
        self._alive &= inside(self._at, H, W)

    def score(self) -> PointTrackScore | None:
        """Return TAP-Vid's figures, or None where there is nothing to follow."""
        if len(self._tracks) < 2 or len(self._at) == 0:
            return None
        ours, said, theirs, seen = (
            np.stack(parts, axis=1) for parts in zip(*self._tracks, strict=True)
        )
        before_all = np.full(len(ours), -1)  # the query frame itself is not among the tracks
        return score_point_tracks(ours, said, theirs, seen, before_all, self._size)


def _resize_pixels(uv: Array, old: tuple[int, int], new: tuple[int, int]) -> Array:
    scaled: Array = (uv + 0.5) * np.array(new) / np.array(old) - 0.5
    return scaled


def _sample(image: Array, uv: Array) -> Array:
    """Interpolate an (H, W[, C]) map at (N, 2) pixels; clamped at the border."""
    maps = uv.astype(np.float32)
    sampled = cv2.remap(
        image.astype(np.float32), maps[:, None, 0], maps[:, None, 1], cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    return sampled[:, 0]

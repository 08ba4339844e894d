"""Followed points in the viewer: dots and trails over the image and in the scene, a colour per point.

In the scene only what moves has a trail: that of a still point would show how its depth wavers.
"""

from __future__ import annotations

import colorsys
from collections import deque

import numpy as np
import rerun as rr

from stream4d.geometry.camera import rays
from stream4d.geometry.flow import sample
from stream4d.packets import Array, PosedFrame
from stream4d.viz import blueprint as names
from stream4d.viz.cloud import MOVING_FROM

TRAIL = 24
"""Frames that a trail reaches back."""
GOLDEN = 0.618034
"""Turn of hue from one number to the next: neighbours differ most."""
DOT, LINE = rr.Radius.ui_points(3.0), rr.Radius.ui_points(1.0)

Trails = dict[int, deque[Array]]


class TrackLog:
    """Remembers where the points of the last frames were."""

    def __init__(self, recording: rr.RecordingStream) -> None:
        self._rec = recording
        self._in_image: Trails = {}
        self._in_world: Trails = {}

    def log(self, frame: PosedFrame) -> None:
        """Show the points of one frame."""
        tracks = frame.tracks
        if tracks is None:
            return
        seen = tracks.visible & np.isfinite(tracks.uv).all(axis=1)
        number, uv = tracks.id[seen], tracks.uv[seen]
        in_cam = rays(uv.astype(np.float64), frame.K) * tracks.depth[seen, None]
        pose = frame.world_from_cam
        points = in_cam @ pose[:3, :3].T + pose[:3, 3]
        known = np.isfinite(points).all(axis=1)
        moves = known & (sample(frame.motion_prob, uv) >= MOVING_FROM)
        self._extend(self._in_image, number, uv, tracks.id)
        still = number[known & ~moves]
        self._extend(self._in_world, number[moves], points[moves], np.setdiff1d(tracks.id, still))
        color = _colors(number)
        self._rec.log(names.TRACKS, rr.Points2D(uv, colors=color, radii=DOT))
        self._rec.log(
            names.SPATIAL_TRACKS, rr.Points3D(points[known], colors=color[known], radii=DOT)
        )
        for trails, entity, strips in (
            (self._in_image, names.TRACKS, rr.LineStrips2D),
            (self._in_world, names.SPATIAL_TRACKS, rr.LineStrips3D),
        ):
            long = [key for key, trail in trails.items() if len(trail) > 1]
            lines = [np.array(trails[key], np.float32) for key in long]
            self._rec.log(
                f"{entity}/trails", strips(lines, colors=_colors(np.array(long)), radii=LINE)
            )

    def forget(self) -> None:
        """Begin new trails: the scene has moved, or another has begun."""
        self._in_image.clear()
        self._in_world.clear()

    @staticmethod
    def _extend(trails: Trails, number: Array, points: Array, alive: Array) -> None:
        for key in set(trails) - set(alive.tolist()):
            del trails[key]
        for key, point in zip(number.tolist(), points, strict=True):
            trails.setdefault(key, deque(maxlen=TRAIL)).append(point)


def _colors(number: Array) -> Array:  # (n,) -> (n, 3) uint8
    hues = (np.asarray(number, np.float64) * GOLDEN) % 1.0
    rgb = [colorsys.hsv_to_rgb(hue, 0.75, 1.0) for hue in hues.tolist()]
    return (255 * np.array(rgb).reshape(-1, 3)).astype(np.uint8)

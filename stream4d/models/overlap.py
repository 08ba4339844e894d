"""How much of a frame's geometry is known already: MUSt3R's test for keyframes.

A frame is new where its points lie far from all points of the map, relative to their depth. Points seen from another
side do not count as known: the map is split by viewing direction.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from stream4d.packets import Array


def direction_bins(rays: Array, divisions: int) -> Array:  # (N, 3) -> (N,) int
    """Number the 2·d² cells of the viewing sphere that rays fall into: azimuth, then polar angle."""
    azimuth = np.arctan2(rays[:, 1], rays[:, 0])
    polar = np.arccos(np.clip(rays[:, 2] / np.linalg.norm(rays, axis=1).clip(1e-12), -1, 1))
    across = np.clip((azimuth + np.pi) / np.pi * divisions, 0, 2 * divisions - 1).astype(int)
    down = np.clip(polar / np.pi * divisions, 0, divisions - 1).astype(int)
    return across * divisions + down


class PointIndex:
    """Points of the newest keyframes, split by viewing direction."""

    def __init__(
        self,
        *,
        divisions: int = 2,
        mode: Literal["relative", "absolute"] = "relative",
        min_confidence: float = 1.2,
        percentile: float = 85.0,
        step: int = 4,
        frames: int = 12,
    ) -> None:
        self.divisions = divisions
        self.mode = mode
        self.min_confidence = min_confidence
        self.percentile = percentile
        self.step = step
        self.frames = frames
        self._kept: list[tuple[Array, Array]] = []

    def _parts(
        self, points: Array, depth: Array, confidence: Array, centre: Array
    ) -> tuple[Array, Array, Array]:
        s = self.step
        flat = points[::s, ::s].reshape(-1, 3).astype(np.float64)
        good = (confidence[::s, ::s].ravel() > self.min_confidence) & np.isfinite(flat).all(-1)
        flat = flat[good]
        bins = (
            direction_bins(flat - centre, self.divisions)
            if self.divisions
            else np.zeros(len(flat), int)
        )
        return flat, bins, depth[::s, ::s].ravel()[good]

    def novelty(
        self,
        points: Array,  # (H, W, 3) in the scene
        depth: Array,  # (H, W)
        confidence: Array,  # (H, W)
        centre: Array,  # (3,) of the camera, in the scene
    ) -> float:
        """Return the percentile of the distance to the map (over depth in ``relative`` mode); inf for an empty map."""
        flat, bins, z = self._parts(points, depth, confidence, centre)
        if not self._kept or not len(flat):
            return float("inf") if not self._kept else 0.0
        known = np.concatenate([p for p, _ in self._kept])
        known_bins = np.concatenate([b for _, b in self._kept])
        distance = np.full(len(flat), np.inf)
        for cell in np.unique(bins):
            there = known[known_bins == cell]
            if len(there):
                here = bins == cell
                distance[here] = _nearest(flat[here], there)
        if self.mode == "relative":
            distance = distance / np.maximum(z, 1e-9)
        # Points in cells that the map has never seen are infinitely far: sort, do not interpolate with inf.
        return _percentile(distance, self.percentile)

    def add(self, points: Array, depth: Array, confidence: Array, centre: Array) -> None:
        """Put a keyframe's points into the map; the oldest keyframe leaves when it is full."""
        flat, bins, _ = self._parts(points, depth, confidence, centre)
        self._kept.append((flat, bins))
        if len(self._kept) > self.frames:
            # The first frame stays: it defines the scene.
            self._kept.pop(1)

    def state(self) -> dict[str, Array]:
        """Return the map as arrays."""
        out = {}
        for i, (points, bins) in enumerate(self._kept):
            out[f"{i}.points"], out[f"{i}.bins"] = points, bins
        return out

    def restore(self, state: dict[str, Array]) -> None:
        """Go on from an earlier ``state``."""
        count = len(state) // 2
        self._kept = [(state[f"{i}.points"], state[f"{i}.bins"]) for i in range(count)]


def _nearest(points: Array, known: Array, chunk: int = 1024) -> Array:
    target = torch.from_numpy(known)
    parts = [
        torch.cdist(torch.from_numpy(points[i : i + chunk]), target).min(dim=1).values
        for i in range(0, len(points), chunk)
    ]
    return torch.cat(parts).numpy()


def _percentile(values: Array, percent: float) -> float:
    ordered = np.sort(values)
    place = (len(ordered) - 1) * percent / 100
    low, high = ordered[int(np.floor(place))], ordered[int(np.ceil(place))]
    if not np.isfinite(high):
        return float("inf")
    return float(low + (high - low) * (place - np.floor(place)))

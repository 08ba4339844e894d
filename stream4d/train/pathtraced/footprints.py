"""Upright boxes on the ground, turned about z: which of them share ground. Metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array


@dataclass(frozen=True, slots=True)
class Footprint:
    """A turned rectangle. Unturned, its width lies along x and its depth along y."""

    x: float
    y: float
    yaw: float
    """Turn about z in radians."""
    width: float
    depth: float

    @property
    def axes(self) -> Array:  # (2, 2)
        """The rectangle's own unit axes, as rows."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[c, s], [-s, c]])

    @property
    def corners(self) -> Array:  # (4, 2)
        """Its corners, around."""
        half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [self.width / 2, self.depth / 2]
        return np.asarray(np.array([self.x, self.y]) + half @ self.axes)

    def grown(self, margin: float) -> Footprint:
        """Return it with a margin on all sides."""
        return Footprint(self.x, self.y, self.yaw, self.width + 2 * margin, self.depth + 2 * margin)


def share_ground(a: Footprint, b: Footprint) -> bool:
    """Return whether two rectangles overlap: no side of either separates them (separating axes)."""
    reach = np.hypot(a.width, a.depth) + np.hypot(b.width, b.depth)
    if 2 * np.hypot(a.x - b.x, a.y - b.y) > reach:
        return False
    for axis in (*a.axes, *b.axes):
        along_a, along_b = a.corners @ axis, b.corners @ axis
        if along_a.max() <= along_b.min() or along_b.max() <= along_a.min():
            return False
    return True

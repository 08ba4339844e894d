"""Exported clouds of the synthetic room: read, and held against its walls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plyfile

from stream4d.packets import Array
from tests.synthetic import HALF

CENTIMETRES = 0.05
"""Points are averages over a voxel of about 4 cm."""


def read_ply(path: Path) -> tuple[Array, Array]:
    vertices = plyfile.PlyData.read(str(path))["vertex"]
    points = np.stack([vertices[axis] for axis in "xyz"], axis=1)
    return points, np.stack([vertices[c] for c in ("red", "green", "blue")], axis=1)


def share_on_walls(points: Array) -> float:
    """Return the share of points (N, 3) that lie on the walls of the room; the rest lies on balls."""
    to_wall = np.abs(HALF - np.abs(points)).min(axis=1)
    return float(np.mean(to_wall < CENTIMETRES))

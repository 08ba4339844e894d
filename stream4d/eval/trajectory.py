"""Timed camera poses, and the TUM file format that keeps them.

Everything is camera-to-world with OpenCV axes and metres.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from stream4d.errors import EvaluationError
from stream4d.packets import Array

MAX_TIME_DIFFERENCE_S = 0.02
"""A pose and its ground truth may lie this far apart in time (the TUM RGB-D tools' default)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """Timed camera poses, in order of time."""

    timestamps_s: Array
    """(N,) float64 seconds."""
    world_from_cam: Array
    """(N, 4, 4) float64, OpenCV axes."""
    covariance: Array | None = None
    """(N, 6, 6) of the left se(3) perturbation (ρ, φ), or None."""

    def __post_init__(self) -> None:
        N = len(self.timestamps_s)
        if self.world_from_cam.shape != (N, 4, 4):
            raise EvaluationError(
                f"world_from_cam must be ({N}, 4, 4), got {self.world_from_cam.shape}"
            )

    def __len__(self) -> int:
        return len(self.timestamps_s)

    @property
    def positions(self) -> Array:
        """(N, 3) camera centres."""
        centres: Array = self.world_from_cam[:, :3, 3]
        return centres

    @property
    def path_m(self) -> float:
        """Length of the path through the camera centres."""
        return float(np.linalg.norm(np.diff(self.positions, axis=0), axis=1).sum())

    def take(self, keep: Array) -> Trajectory:
        """Return the poses at ``keep`` (indices or a mask)."""
        covariance = None if self.covariance is None else self.covariance[keep]
        return Trajectory(
            timestamps_s=self.timestamps_s[keep],
            world_from_cam=self.world_from_cam[keep],
            covariance=covariance,
        )


def read_tum(path: Path) -> Trajectory:
    """Read ``timestamp tx ty tz qx qy qz qw`` lines, sorted by time.

    Raises:
        EvaluationError: missing, empty or malformed file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file is reported below
            rows = np.loadtxt(path, comments="#", ndmin=2)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot read ground truth {path}: {error}") from None
    if rows.ndim != 2 or rows.shape[1] != 8 or not np.isfinite(rows).all():
        raise EvaluationError(
            f"{path} must hold lines of 8 numbers (timestamp tx ty tz qx qy qz qw), got shape {rows.shape}"
        )
    if (np.linalg.norm(rows[:, 4:], axis=1) < 1e-6).any():
        raise EvaluationError(f"{path} holds a quaternion of length zero")
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    world_from_cam = np.tile(np.eye(4), (len(rows), 1, 1))
    world_from_cam[:, :3, :3] = Rotation.from_quat(rows[:, 4:]).as_matrix()
    world_from_cam[:, :3, 3] = rows[:, 1:4]
    return Trajectory(timestamps_s=rows[:, 0], world_from_cam=world_from_cam)


def write_tum(path: Path, trajectory: Trajectory) -> None:
    """Write what ``read_tum`` and evo's command line read."""
    xyzw = Rotation.from_matrix(trajectory.world_from_cam[:, :3, :3]).as_quat()
    rows = np.column_stack([trajectory.timestamps_s, trajectory.positions, xyzw])
    np.savetxt(path, rows, fmt=["%.9f"] + ["%.12g"] * 7)

"""KITTI odometry's drift: relative errors over sub-paths of 100 to 800 m (Geiger et al., CVPR 2012)."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from stream4d.eval.trajectory import Trajectory

LENGTHS_M = (100, 200, 300, 400, 500, 600, 700, 800)
STEP = 10
"""A sub-path begins every tenth frame."""


def kitti_drift(estimate: Trajectory, truth: Trajectory) -> dict[str, float]:
    """Return translation drift in percent and rotation drift in degrees per 100 m.

    Empty where the true path is shorter than 100 m. Both trajectories must correspond pose by pose; the estimate is
    taken as it is, so align its scale before where it is monocular.
    """
    steps = np.linalg.norm(np.diff(truth.positions, axis=0), axis=1)
    travelled = np.concatenate([[0.0], np.cumsum(steps)])
    translation, rotation = [], []
    for first in range(0, len(truth), STEP):
        for length in LENGTHS_M:
            last = int(np.searchsorted(travelled, travelled[first] + length, side="right"))
            if last >= len(truth):
                break
            true = np.linalg.inv(truth.world_from_cam[first]) @ truth.world_from_cam[last]
            ours = np.linalg.inv(estimate.world_from_cam[first]) @ estimate.world_from_cam[last]
            error = np.linalg.inv(ours) @ true
            translation.append(100 * np.linalg.norm(error[:3, 3]) / length)
            rotation.append(
                100 * np.degrees(Rotation.from_matrix(error[:3, :3]).magnitude()) / length
            )
    if not translation:
        return {}
    return {
        "kitti_trans_percent": float(np.mean(translation)),
        "kitti_rot_deg_per_100m": float(np.mean(rotation)),
    }

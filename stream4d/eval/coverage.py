"""Do stated pose covariances hold? The share of errors within the stated 1σ, 2σ and 3σ.

What is stated is the covariance of a pose in the world of the estimate, and that world is its first frame: the
covariance is nil there and grows along the path. So truth is moved into that world as the covariances mean it: by the
rigid motion that makes the first poses agree, and by the scale of the alignment of the whole path, since one camera
cannot know its unit.

The alignment that ATE uses would not do. It fits a similarity to all positions, which takes most of the error from the
end of the path, where the largest is stated, and puts error at the beginning, where none is. On simulated walks whose
covariances are exact (`tests/test_eval_coverage.py`) errors after it are within 1σ for 79–90 % of positions and 28–51 %
of rotations, by the shape of the path; as compared here, for 68–74 %, whether or not a loop closes.

The errors of one clip's frames are one walk, hardly independent: the share of a single clip says little (on such
simulated walks it varies by ±15 %), the mean over clips more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from stream4d.packets import Array

ANCHOR_SHARE = 1 / 30
"""Share of the frames, at least one, whose mean pose ties the worlds: truth is measured too, and errs by frame."""
LEVELS = (1, 2, 3)
"""Multiples of σ that are counted; a Gaussian holds 0.683, 0.954 and 0.997 of its errors within them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coverage:
    """Errors over their stated 1σ, per axis of the estimate's world, of the frames after the anchor."""

    position: Array
    """(n, 3); (0, 3) where the camera does not translate."""
    rotation: Array
    """(n, 3)."""

    @property
    def all(self) -> Array:
        """All components in one row."""
        return np.concatenate([self.position.ravel(), self.rotation.ravel()])


def share_within(ratios: Array, level: float = 1.0) -> float | None:
    """Return the share of error / σ within ±``level``, None where there are none."""
    return float((np.abs(ratios) <= level).mean()) if ratios.size else None


def shares(ratios: Array) -> list[float | None]:
    """Return the shares within each of ``LEVELS``."""
    return [share_within(ratios, level) for level in LEVELS]


def coverage(
    poses: Array,  # (N, 4, 4) estimate, world-from-camera
    covariance: Array,  # (N, 6, 6) stated, of the left se(3) perturbation (ρ, φ)
    truth: Array,  # (N, 4, 4)
    scale: float,  # truth's unit over the estimate's, of the alignment
    *,
    rotation_only: bool = False,
) -> Coverage:
    """Return errors over σ; with ``rotation_only`` there is no position to compare."""
    n = max(1, int(len(poses) * ANCHOR_SHARE))
    R = _mean_rotation(poses[:n, :3, :3] @ truth[:n, :3, :3].transpose(0, 2, 1))
    turned = (R @ truth[n:, :3, :3]) @ poses[n:, :3, :3].transpose(0, 2, 1)
    rotation = _rotation_vectors(turned) / _sigma(covariance[n:, 3:, 3:])
    if rotation_only:
        return Coverage(position=np.zeros((0, 3)), rotation=rotation)
    ours, theirs = poses[:, :3, 3], truth[:, :3, 3] @ R.T / scale
    error = (theirs[n:] - theirs[:n].mean(axis=0)) - (ours[n:] - ours[:n].mean(axis=0))
    J = position_jacobian(ours[n:])
    return Coverage(
        position=error / _sigma(J @ covariance[n:] @ J.transpose(0, 2, 1)), rotation=rotation
    )


def position_jacobian(p: Array) -> Array:  # (N, 3) -> (N, 3, 6)
    """Return [I, −[p]×]: what a left perturbation of the pose does to the camera's centre."""
    J = np.zeros((len(p), 3, 6))
    J[:, :, :3] = np.eye(3)
    x, y, z = p.T
    J[:, 0, 4], J[:, 0, 5] = z, -y
    J[:, 1, 3], J[:, 1, 5] = -z, x
    J[:, 2, 3], J[:, 2, 4] = y, -x
    return J


def pooled(clips: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Return the mean over clips of the shares at each level: every clip counts the same."""
    columns = [
        [value for value in column if value is not None] for column in zip(*clips, strict=True)
    ]
    return [float(np.mean(column)) if column else None for column in columns]


def _mean_rotation(rotations: Array) -> Array:
    mean: Array = Rotation.from_matrix(rotations).mean().as_matrix()
    return mean


def _rotation_vectors(rotations: Array) -> Array:
    if not len(rotations):
        return np.zeros((0, 3))
    vectors: Array = Rotation.from_matrix(rotations).as_rotvec()
    return vectors


def _sigma(blocks: Array) -> Array:  # (N, d, d) -> (N, d)
    return np.sqrt(np.maximum(np.einsum("nii->ni", blocks), 1e-30))

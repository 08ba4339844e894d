"""Camera trajectories against ground truth, measured through evo.

What is reported:

- **ATE**: root mean square of the position error after alignment (Umeyama 1991) with a Sim(3), for monocular
  systems, and with an SE(3), which also charges a wrong scale.
- **RPE**: root mean square of the error of the motion between consecutive frames, after the same alignment
  (Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems", IROS 2012), as MonST3R and CUT3R report it.
- **Coverage**: whether stated covariances hold, compared where they mean something (``coverage``).

A camera that does not translate has no scale and no position to align: positions are then None and only rotation
is scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from evo.core import geometry, sync
from evo.core.metrics import APE, RPE, PoseRelation, StatisticsType, Unit
from evo.core.trajectory import PoseTrajectory3D
from scipy.spatial.transform import Rotation

from stream4d.errors import EvaluationError
from stream4d.eval.coverage import Coverage, coverage, share_within
from stream4d.eval.trajectory import MAX_TIME_DIFFERENCE_S, Trajectory
from stream4d.packets import Array

STILL_M = 1e-4
"""Ground truth that stays within this radius is a camera that does not translate."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """The Sim(3) that takes estimated world coordinates to ground truth: ``scale * R @ x + t``."""

    R: Array
    """(3, 3) rotation."""
    t: Array
    """(3,) metres."""
    scale: float
    """Ground-truth metres per unit of the estimate."""

    def apply(self, trajectory: Trajectory) -> Trajectory:
        """Move a trajectory, its covariance too."""
        moved = trajectory.world_from_cam.copy()
        moved[:, :3, :3] = self.R @ moved[:, :3, :3]
        moved[:, :3, 3] = self.points(trajectory.positions)
        covariance = trajectory.covariance
        if covariance is not None:
            # S exp(ξ) S⁻¹ = exp(A ξ): the adjoint of the Sim(3), restricted to rigid perturbations.
            A = np.zeros((6, 6))
            A[:3, :3] = self.scale * self.R
            A[:3, 3:] = _skew(self.t) @ self.R
            A[3:, 3:] = self.R
            covariance = A @ covariance @ A.T
        return Trajectory(
            timestamps_s=trajectory.timestamps_s, world_from_cam=moved, covariance=covariance
        )

    def points(self, points: Array) -> Array:
        """Move (..., 3) points."""
        moved: Array = self.scale * points @ self.R.T + self.t
        return moved


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectoryScore:
    """Errors of one trajectory. None: not defined for this ground truth."""

    matched: int
    """Poses that have ground truth."""
    path_m: float
    """Length of the matched ground truth."""
    ate_m: float | None
    """RMSE of position after Sim(3) alignment."""
    ate_se3_m: float | None
    """RMSE of position after SE(3) alignment: a wrong scale counts."""
    rpe_trans_m: float | None
    """RMSE of translation between consecutive frames, after Sim(3) alignment."""
    rpe_trans_se3_m: float | None
    """The same after SE(3) alignment."""
    rpe_rot_deg: float | None
    """RMSE of rotation between consecutive frames."""
    rotation_deg: float
    """RMSE of absolute rotation after the best single rotation."""
    scale: float | None
    """Scale of the Sim(3); 1 for a metric system without error."""
    coverage: Coverage | None
    """Errors over their stated 1σ; None where no covariance was stated."""
    aligned: Trajectory
    """The matched estimate in the ground truth's world."""
    truth: Trajectory
    """The matched ground truth."""
    alignment: Alignment
    """What took the estimate to ``aligned``."""

    @property
    def ate_percent(self) -> float | None:
        """ATE as a share of the path, percent."""
        return None if self.ate_m is None or self.path_m == 0 else 100 * self.ate_m / self.path_m

    @property
    def in_1sigma(self) -> float | None:
        """Share of the six pose components within the stated 1σ (0.683 for an honest Gaussian)."""
        return None if self.coverage is None else share_within(self.coverage.all)


def score_trajectory(
    estimate: Trajectory, truth: Trajectory, max_difference_s: float = MAX_TIME_DIFFERENCE_S
) -> TrajectoryScore:
    """Compare an estimate with ground truth, associated by time.

    Raises:
        EvaluationError: fewer than three poses match in time, or a pose is not finite.
    """
    estimate, truth = associate(estimate, truth, max_difference_s)
    is_still = np.ptp(truth.positions, axis=0).max() < STILL_M
    sim3 = _rotation_alignment(estimate, truth) if is_still else align(estimate, truth)
    aligned = sim3.apply(estimate)
    se3 = align(estimate, truth, with_scale=False).apply(estimate) if not is_still else aligned
    return TrajectoryScore(
        matched=len(truth),
        path_m=truth.path_m,
        ate_m=None if is_still else _rmse(APE(PoseRelation.translation_part), truth, aligned),
        ate_se3_m=None if is_still else _rmse(APE(PoseRelation.translation_part), truth, se3),
        rpe_trans_m=None if is_still else _rpe(PoseRelation.translation_part, truth, aligned),
        rpe_trans_se3_m=None if is_still else _rpe(PoseRelation.translation_part, truth, se3),
        rpe_rot_deg=_rpe(PoseRelation.rotation_angle_deg, truth, aligned),
        rotation_deg=_absolute_rotation_deg(estimate, truth),
        scale=None if is_still else sim3.scale,
        coverage=_coverage(estimate, truth, sim3.scale, rotation_only=is_still),
        aligned=aligned,
        truth=truth,
        alignment=sim3,
    )


def associate(
    estimate: Trajectory, truth: Trajectory, max_difference_s: float = MAX_TIME_DIFFERENCE_S
) -> tuple[Trajectory, Trajectory]:
    """Keep the poses that have a partner in time, by evo's rule.

    Raises:
        EvaluationError: fewer than three pairs, or poses that are not finite.
    """
    if not np.isfinite(estimate.world_from_cam).all():
        raise EvaluationError("the estimated trajectory holds poses that are not finite")
    first, second = _time_pairs(estimate.timestamps_s, truth.timestamps_s, max_difference_s)
    if len(first) < 3:
        raise EvaluationError(
            f"only {len(first)} of {len(estimate)} poses lie within {max_difference_s} s of ground truth; "
            "an alignment needs 3: check that both use the same clock"
        )
    return estimate.take(first), truth.take(second)


def align(estimate: Trajectory, truth: Trajectory, *, with_scale: bool = True) -> Alignment:
    """Fit estimate to truth by Umeyama's method, pose by pose.

    A degenerate estimate (all centres equal) keeps scale 1 and takes the best rotation, so it scores as the
    spread of the ground truth and never as success.
    """
    try:
        R, t, scale = geometry.umeyama_alignment(
            estimate.positions.T, truth.positions.T, with_scale
        )
    except geometry.GeometryException:
        return _rotation_alignment(estimate, truth)
    if not np.isfinite(scale) or scale <= 0:
        return _rotation_alignment(estimate, truth)
    return Alignment(R=R, t=t, scale=float(scale))


def position_errors(score: TrajectoryScore) -> Array:
    """Return (N,) metres of position error after Sim(3) alignment, for plots."""
    errors: Array = np.linalg.norm(score.aligned.positions - score.truth.positions, axis=1)
    return errors


def _coverage(
    estimate: Trajectory, truth: Trajectory, scale: float, *, rotation_only: bool
) -> Coverage | None:
    if estimate.covariance is None:
        return None
    return coverage(
        estimate.world_from_cam, estimate.covariance, truth.world_from_cam, scale, rotation_only=rotation_only
    )  # fmt: skip


def _to_evo(trajectory: Trajectory) -> PoseTrajectory3D:
    """Return evo's own class, through positions and quaternions as evo's TUM reader makes it."""
    rotations = Rotation.from_matrix(trajectory.world_from_cam[:, :3, :3])
    return PoseTrajectory3D(
        positions_xyz=trajectory.positions.copy(),
        orientations_quat_wxyz=rotations.as_quat(scalar_first=True),
        timestamps=np.array(trajectory.timestamps_s, dtype=np.float64),
    )


def _rmse(metric: APE | RPE, truth: Trajectory, estimate: Trajectory) -> float:
    metric.process_data((_to_evo(truth), _to_evo(estimate)))
    return float(metric.get_statistic(StatisticsType.rmse))


def _rpe(relation: PoseRelation, truth: Trajectory, estimate: Trajectory) -> float:
    return _rmse(RPE(relation, delta=1, delta_unit=Unit.frames), truth, estimate)


def _time_pairs(first: Array, second: Array, max_difference: float) -> tuple[Array, Array]:
    """Pair times by evo's rule: every time of the shorter list takes its nearest in the other."""
    if len(first) == 0 or len(second) == 0:
        return np.zeros(0, int), np.zeros(0, int)
    if len(first) > len(second):
        matched_second, matched_first = _time_pairs(second, first, max_difference)
        return matched_first, matched_second
    found = sync.matching_time_indices(first, second, max_difference)
    return np.array(found[0], int), np.array(found[1], int)


def _rotation_alignment(estimate: Trajectory, truth: Trajectory) -> Alignment:
    """Best rotation between orientations (chordal mean) and matching centroids; scale stays 1."""
    R = _mean_rotation(estimate, truth)
    t = truth.positions.mean(axis=0) - R @ estimate.positions.mean(axis=0)
    return Alignment(R=R, t=t, scale=1.0)


def _mean_rotation(estimate: Trajectory, truth: Trajectory) -> Array:
    relative = truth.world_from_cam[:, :3, :3] @ estimate.world_from_cam[:, :3, :3].transpose(
        0, 2, 1
    )
    mean: Array = Rotation.from_matrix(relative).mean().as_matrix()
    return mean


def _absolute_rotation_deg(estimate: Trajectory, truth: Trajectory) -> float:
    R = _mean_rotation(estimate, truth) @ estimate.world_from_cam[:, :3, :3]
    relative = Rotation.from_matrix(R.transpose(0, 2, 1) @ truth.world_from_cam[:, :3, :3])
    return float(np.sqrt(np.mean(np.degrees(relative.magnitude()) ** 2)))


def _skew(v: Array) -> Array:
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])

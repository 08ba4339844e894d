"""The pose of one frame from the patches seen in it, held against the map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array
from stream4d.pose import _kernels_pose, resection
from stream4d.pose.map import LocalMap

INLIER_SQ = 9.0
"""Squared error in σ² below which a patch fits (3σ)."""
NORMAL_SCALE = 9.0
"""Geman–McClure scale, σ², at the end of every annealing."""
RESECTION_PX = 3.0
"""Error of an inlier of a pose that was not guessed: flow's, in a map just begun."""
COLD = np.array([2000.0, 2000.0, 500.0, 500.0, 120.0, 120.0, 30.0, 30.0, 9.0, 9.0, 9.0, 9.0])
"""Annealing from a guess that may be several pixels off (graduated non-convexity)."""
WARM = np.array([60.0, 60.0, 20.0, 9.0, 9.0, 9.0])
"""Annealing from a pose that is nearly right."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A pose and how well the patches agree with it."""

    pose: Array
    """(3, 4) camera-from-world."""
    information: Array
    """(6, 6) of the left twist of ``pose``."""
    errors: Array
    """(n,) squared errors in σ² of the rows given."""

    @property
    def inliers(self) -> Array:
        """(n,) bool."""
        return self.errors < INLIER_SQ

    @property
    def cost(self) -> float:
        """Robust cost in σ²."""
        return float((NORMAL_SCALE * self.errors / (NORMAL_SCALE + self.errors)).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Sightings:
    """n patches given as rays in the world, and where one frame sees them."""

    cam: Array
    """(4,) fx, fy, cx, cy."""
    directions: Array
    """(n, 3)."""
    centres: Array
    """(n, 3)."""
    rho: Array
    """(n,) inverse depths along the rays."""
    rho_var: Array
    """(n,) their variances: patches of unknown depth constrain a pose only across their epipolar lines."""
    uv: Array
    """(n, 2) pixels."""
    info: Array
    """(n, 3) inverse covariances of ``uv``."""

    def fit(self, start: Array, schedule: Array = COLD) -> Fit:
        """Refine a pose (3, 4) robustly."""
        pose, errors = np.array(start, np.float64, order="C"), np.full(len(self.rho), 1e6)
        information = _kernels_pose.refine_pose(
            self.cam, self.directions, self.centres, self.rho, self.rho_var, np.ascontiguousarray(self.uv),
            np.ascontiguousarray(self.info), pose, schedule, errors,
        )  # fmt: skip
        if not np.isfinite(pose).all():
            return Fit(start, np.zeros((6, 6)), np.full(len(self.rho), 1e6))
        return Fit(pose, information, errors)


def sightings(local_map: LocalMap, rows: Array, uv: Array, info: Array) -> Sightings:
    """Return where a frame sees patches of the map: (n,) rows, (n, 2) pixels, (n, 3) inverse covariances."""
    rho_var = 1.0 / np.maximum(local_map.rho_info[rows], 1e-12)
    rays = local_map.world_rays(rows)
    return Sightings(local_map.cam, *rays, local_map.rho[rows], rho_var, uv, info)


def fit_pose_from_nothing(local_map: LocalMap, rows: Array, uv: Array, info: Array) -> Fit | None:
    """Find a pose without a guess: P3P in RANSAC over patches of known depth, then refinement."""
    known = local_map.rho_info[rows] * local_map.rho[rows] ** 2 > 25.0  # depth within 20 %
    if known.sum() < 8:
        return None
    points = local_map.world_points(rows[known])
    found = resection.resect(points, uv[known], local_map.K, error_px=RESECTION_PX)
    return None if found is None else sightings(local_map, rows, uv, info).fit(found.pose)


def rotation_between(
    cam: Array, rays: Array, uv: Array, info: Array, start: Array
) -> tuple[Fit, Array]:
    """Fit a pure rotation (n rays at infinity); returns it and the residual length per patch in pixels."""
    zero = np.zeros(len(rays))
    seen = Sightings(cam, rays, np.zeros_like(rays), zero, zero, uv, info)
    fit = min((seen.fit(start, schedule) for schedule in (COLD, WARM)), key=lambda one: one.cost)
    q = rays @ fit.pose[:, :3].T
    z = np.where(q[:, 2] > 1e-6, q[:, 2], np.nan)
    residual = cam[:2] * q[:, :2] / z[:, None] + cam[2:] - uv
    return fit, np.hypot(residual[:, 0], residual[:, 1])


def project_rows(local_map: LocalMap, rows: Array, pose: Array) -> tuple[Array, Array]:
    """Return pixels (n, 2) of patches seen from ``pose`` and z·rho (n,), ≤ 0 behind the camera."""
    directions, centres = local_map.world_rays(rows)
    rho = local_map.rho[rows, None]
    q = (directions + rho * centres) @ pose[:, :3].T + rho * pose[:, 3]
    z = np.where(q[:, 2] > 1e-6, q[:, 2], np.nan)
    return local_map.cam[:2] * q[:, :2] / z[:, None] + local_map.cam[2:], q[:, 2]


def relative_pose(pose: Array, reference: Array) -> Array:
    """Return camera-from-reference (3, 4) of two camera-from-world poses."""
    R = pose[:, :3] @ reference[:, :3].T
    return np.hstack([R, (pose[:, 3] - R @ reference[:, 3])[:, None]])

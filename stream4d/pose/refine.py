"""Windowed bundle adjustment: keyframe poses, inverse depths and one focal length (Schur complement, robust)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array
from stream4d.pose import _kernels_bundle
from stream4d.pose._kernels_parts import move_pose
from stream4d.pose.map import LocalMap


@dataclass(frozen=True, slots=True)
class Observations:
    """Who sees which patch, sorted by patch."""

    patch: Array
    """(M,) row."""
    frame: Array
    """(M,) index into the poses."""
    uv: Array
    """(M, 2)."""
    info: Array
    """(M, 3) inverse covariance (xx, xy, yy), px⁻²."""


@dataclass(frozen=True, slots=True)
class BundleResult:
    """What an adjustment did. Poses and depths are changed in place by ``adjust``."""

    cost: float
    """Robust cost at the end, σ²."""
    observations: int
    focal_scale: float
    """The focal length was multiplied by this."""
    focal_information: float
    """1/variance of log focal with everything else free."""
    covariance: Array
    """(D, D) of the free poses' left twists, in the order of ``column``."""


def map_observations(local_map: LocalMap) -> Observations:
    """Collect what the keyframes see of living patches."""
    seen = np.isfinite(local_map.var) & (local_map.host >= 0)
    patch, frame = np.nonzero(seen.T)
    return Observations(patch, frame, local_map.uv[frame, patch], local_map.info[frame, patch])


def compact(rows: Array, patch: Array) -> Array:
    """Renumber patch rows so that only those in ``rows`` (sorted) remain: 0 … len(rows) − 1."""
    return np.searchsorted(rows, patch)


def adjust(
    cam: Array,  # (4,) changed in place where the focal is free
    rays: Array,  # (n, 3) changed with the focal
    host: Array,  # (n,) pose index
    poses: Array,  # (F, 3, 4) changed in place
    free: Array,  # (f,) pose indices that may move
    rho: Array,  # (n,) changed in place
    prior: Array,  # (n,)
    prior_info: Array,  # (n,)
    obs: Observations,  # patch numbers 0 … n − 1
    *,
    iterations: int = 8,
    scales: tuple[float, ...] = (9.0,),
    focal_info: float = np.inf,
    focal_offset: float = 0.0,
    pose_prior: float = 1e-6,
    rho_info: Array | None = None,
) -> BundleResult:
    """Minimise the robust reprojection error by Levenberg–Marquardt; ``scales`` anneals (graduated non-convexity).

    ``focal_info`` is the information of a prior on log focal whose minimum lies ``focal_offset`` away; infinite
    holds the focal. Degenerate windows do not raise: damping and priors keep what is not observable in place.
    """
    column = np.full(len(poses), -1, np.int64)
    column[free] = 6 * np.arange(len(free))
    D = 6 * len(free) + 1
    H, b, S, s = np.zeros((D, D)), np.zeros(D), np.zeros((D, D)), np.zeros(D)
    E, C, gr = np.zeros((len(rho), D)), np.zeros(len(rho)), np.zeros(len(rho))
    total_focal, damping = 0.0, 1e-4
    hold_focal = not np.isfinite(focal_info)

    def cost_of(scale_sq: float) -> float:
        value = float(
            _kernels_bundle.bundle_cost(
                cam,
                rays,
                host,
                poses,
                rho,
                obs.patch,
                obs.frame,
                obs.uv,
                obs.info,
                scale_sq,
                prior,
                prior_info,
            )
        )
        return value + (0.0 if hold_focal else focal_info * (total_focal - focal_offset) ** 2)

    for scale_sq in scales:
        cost = cost_of(scale_sq)
        for _ in range(iterations):
            _kernels_bundle.bundle_system(
                cam, rays, host, poses, column, rho, obs.patch, obs.frame, obs.uv, obs.info,
                scale_sq, prior, prior_info, H, b, E, C, gr,
            )  # fmt: skip
            H[np.arange(D - 1), np.arange(D - 1)] += pose_prior
            if hold_focal:
                H[-1], H[:, -1], E[:, -1], b[-1], H[-1, -1] = 0, 0, 0, 0, 1
            else:
                H[-1, -1] += focal_info
                b[-1] += focal_info * (total_focal - focal_offset)
            accepted = False
            for _ in range(4):
                _kernels_bundle.schur(H, b, E, C, gr, damping, S, s)
                step = -np.linalg.solve(S, s)
                kept = poses.copy(), rho.copy(), cam.copy(), rays.copy(), total_focal
                total_focal += _apply(step, free, poses, rho, cam, rays, E, C, gr, damping)
                new_cost = cost_of(scale_sq)
                if new_cost <= cost:
                    accepted = True
                    break
                poses[:], rho[:], cam[:], rays[:], total_focal = kept
                damping = damping * 10 + 1e-6
            if not accepted:
                break
            damping = max(damping * 0.2, 1e-9)
            gain, cost = cost - new_cost, new_cost
            if gain < 1e-4 * max(new_cost, 1e-9):
                break
    _kernels_bundle.schur(H, b, E, C, gr, 0.0, S, s)
    covariance = _inverse(S)
    if rho_info is not None:
        rho_info[:] = C
    return BundleResult(
        cost,
        len(obs.patch),
        float(np.exp(total_focal)),
        1.0 / max(float(covariance[-1, -1]), 1e-12),
        covariance,
    )


def adjust_map(
    local_map: LocalMap, free: Array, *, focal_info: float = np.inf, focal_offset: float = 0.0,
    inherited: float = 1.0,
) -> BundleResult:  # fmt: skip
    """Adjust keyframes and depths of the map in place; what became of the focal length is returned, the map's stays.

    ``inherited`` is the share of the information of depths' priors that counts.
    """
    obs = map_observations(local_map)
    rows = np.unique(obs.patch)
    compacted = Observations(compact(rows, obs.patch), obs.frame, obs.uv, obs.info)
    rho, info = local_map.rho[rows], np.zeros(len(rows))
    result = adjust(
        local_map.cam, local_map.rays[rows], local_map.host[rows], local_map.poses, free, rho,
        local_map.prior[rows], inherited * local_map.prior_info[rows], compacted, iterations=5,
        focal_info=focal_info, focal_offset=focal_offset, rho_info=info,
    )  # fmt: skip
    local_map.rho[rows], local_map.rho_info[rows] = rho, info
    return result


def _apply(
    step: Array, free: Array, poses: Array, rho: Array, cam: Array, rays: Array,
    E: Array, C: Array, gr: Array, damping: float,
) -> float:  # fmt: skip
    """Take a step of poses, back-substituted depths and focal; returns the change of log focal."""
    for i, f in enumerate(free):
        move_pose(poses[f], step[6 * i : 6 * i + 6])
    change = -(gr + E @ step) / np.maximum(C * (1 + damping), 1e-12)
    limit = 0.5 * np.abs(rho) + 1e-3
    rho[:] = np.maximum(rho + np.where(C > 1e-12, np.clip(change, -limit, limit), 0.0), 1e-4)
    focal = float(np.clip(step[-1], -0.2, 0.2))
    cam[:2] *= np.exp(focal)
    rays[:, :2] *= np.exp(-focal)
    return focal


def _inverse(S: Array) -> Array:
    """Invert a nearly singular positive matrix: what is not observable gets a large, finite variance."""
    ridge = 1e-10 * float(np.trace(S)) / len(S) + 1e-12
    return np.linalg.inv(S + ridge * np.eye(len(S)))

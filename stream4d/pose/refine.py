"""Windowed bundle adjustment: keyframe poses, inverse depths and one focal length (Schur complement, robust)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array
from stream4d.pose import _kernels_bundle
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


def schur(
    H: Array, b: Array, E: Array, C: Array, gr: Array, damping: float = 0.0
) -> tuple[Array, Array]:
    """Eliminate the inverse depths: S = H - Eᵀ C⁻¹ E, s = b - Eᵀ C⁻¹ gr, with Levenberg damping on both blocks.

    Args:
        H, b: (D, D) and (D,) of poses and focal.
        E, C, gr: (N, D), (N,) and (N,) of inverse depths; those of no information stay where they are.
    """
    variance = np.where(C > 1e-12, 1 / (np.maximum(C, 1e-12) * (1 + damping)), 0.0)
    coupled = np.sqrt(variance)[:, None] * E
    S = H - coupled.T @ coupled
    S[np.diag_indices_from(S)] += damping * np.diag(H) + 1e-9
    return S, b - E.T @ (variance * gr)


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
    bundle = _Bundle(
        cam, rays, host, poses, free, rho, prior, prior_info, obs,
        focal_info=focal_info, focal_offset=focal_offset, pose_prior=pose_prior,
    )  # fmt: skip
    for scale_sq in scales:
        cost = bundle.cost(scale_sq)
        for _ in range(iterations):
            bundle.linearise(scale_sq)
            new_cost = bundle.improve(cost, scale_sq)
            if new_cost is None:
                break
            gain, cost = cost - new_cost, new_cost
            if gain < 1e-4 * max(new_cost, 1e-9):
                break
    covariance = _inverse(bundle.reduced(damping=0.0)[0])
    if rho_info is not None:
        rho_info[:] = bundle.C
    return BundleResult(
        cost,
        len(obs.patch),
        float(np.exp(bundle.log_focal)),
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


class _Bundle:
    """What ``adjust`` changes in place, and the normal equations around where it stands.

    Unknowns: six a free pose, then log focal (reduced system H, b), and an inverse depth a patch (C, gr; E couples).
    """

    def __init__(
        self, cam: Array, rays: Array, host: Array, poses: Array, free: Array, rho: Array,
        prior: Array, prior_info: Array, obs: Observations,
        *, focal_info: float, focal_offset: float, pose_prior: float,
    ) -> None:  # fmt: skip
        self.cam, self.rays, self.poses, self.rho = cam, rays, poses, rho
        self.host, self.free, self.obs = host, free, obs
        self.prior, self.prior_info = prior, prior_info
        self.focal_info, self.focal_offset, self.pose_prior = focal_info, focal_offset, pose_prior
        self.column = np.full(len(poses), -1, np.int64)
        self.column[free] = 6 * np.arange(len(free))
        D = 6 * len(free) + 1
        self.H, self.b = np.zeros((D, D)), np.zeros(D)
        self.E, self.C, self.gr = np.zeros((len(rho), D)), np.zeros(len(rho)), np.zeros(len(rho))
        self.log_focal = 0.0
        """How far log focal has gone."""
        self.damping = 1e-4

    @property
    def holds_focal(self) -> bool:
        return not np.isfinite(self.focal_info)

    def cost(self, scale_sq: float) -> float:
        """Return the robust cost, priors included."""
        obs = self.obs
        value = float(
            _kernels_bundle.bundle_cost(
                self.cam, self.rays, self.host, self.poses, self.rho, obs.patch, obs.frame, obs.uv,
                obs.info, scale_sq, self.prior, self.prior_info,
            )
        )  # fmt: skip
        if self.holds_focal:
            return value
        return value + self.focal_info * (self.log_focal - self.focal_offset) ** 2

    def linearise(self, scale_sq: float) -> None:
        """Build the normal equations here."""
        obs, H, b = self.obs, self.H, self.b
        _kernels_bundle.bundle_system(
            self.cam, self.rays, self.host, self.poses, self.column, self.rho, obs.patch, obs.frame, obs.uv, obs.info,
            scale_sq, self.prior, self.prior_info, H, b, self.E, self.C, self.gr,
        )  # fmt: skip
        twists = np.arange(len(b) - 1)
        H[twists, twists] += self.pose_prior
        if self.holds_focal:
            H[-1], H[:, -1], self.E[:, -1], b[-1], H[-1, -1] = 0, 0, 0, 0, 1
        else:
            H[-1, -1] += self.focal_info
            b[-1] += self.focal_info * (self.log_focal - self.focal_offset)

    def reduced(self, damping: float) -> tuple[Array, Array]:
        """Return the system of poses and focal, depths eliminated."""
        return schur(self.H, self.b, self.E, self.C, self.gr, damping)

    def improve(self, cost: float, scale_sq: float) -> float | None:
        """Step to where the cost is no higher and return it there; None where four dampings find no such place."""
        for _ in range(4):
            S, s = self.reduced(self.damping)
            step = -np.linalg.solve(S, s)
            kept = [part.copy() for part in (self.poses, self.rho, self.cam, self.rays)]
            log_focal = self.log_focal
            self.log_focal += _kernels_bundle.take_step(
                step, self.free, self.damping, self.E, self.C, self.gr,
                self.poses, self.rho, self.cam, self.rays,
            )  # fmt: skip
            new_cost = self.cost(scale_sq)
            if new_cost <= cost:
                self.damping = max(self.damping * 0.2, 1e-9)
                return new_cost
            self.poses[:], self.rho[:], self.cam[:], self.rays[:] = kept
            self.log_focal = log_focal
            self.damping = self.damping * 10 + 1e-6
        return None


def _inverse(S: Array) -> Array:
    """Invert a nearly singular positive matrix: what is not observable gets a large, finite variance."""
    ridge = 1e-10 * float(np.trace(S)) / len(S) + 1e-12
    return np.linalg.inv(S + ridge * np.eye(len(S)))

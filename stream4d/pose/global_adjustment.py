"""The solver of the offline refinement: poses of all keyframes, one focal length, an inverse depth per site.

Levenberg–Marquardt in float64 on

    flow        robust, σ-weighted distance between a site's measured pixel and where its depth and the cameras put it
    alignment   robust difference of its log depth there from the map of that frame, one free scale a map
    smoothness  how differently neighbouring keyframes were corrected

Inverse depths are eliminated site by site (Schur), map scales settled in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stream4d.geometry import camera, transforms
from stream4d.packets import Array
from stream4d.pose import _kernels_offline
from stream4d.pose._kernels_parts import move_pose
from stream4d.pose.sites import Seen

_kernels: Any = _kernels_offline  # numba's dispatchers have no signature that a checker could read
MAP_SCALE = 4.0
"""Robust scale of the depth term, σ²."""
HELD = 1e14
"""Information that holds a camera."""
ENOUGH = 160
"""Sites per keyframe that place its camera."""
ITERATIONS = 12
"""Steps per robust scale at most."""
MIN_SITES = 12
"""Sites below which a depth map keeps its scale."""


@dataclass(slots=True, eq=False)
class Problem:
    """Everything that the solver sees: K keyframes, N sites, M observations."""

    cam: Array
    """(4,) fx, fy, cx, cy."""
    poses: Array
    """(K, 3, 4) camera-from-world."""
    host: Array
    uv: Array
    rho: Array
    prior: Array
    prior_info: Array
    seen: Seen
    start: Array
    ties: Array
    """(K − 1, 4, 4) relative motions of neighbouring keyframes before, camera k + 1 from camera k."""
    tie_info: Array
    """(6,) 1/variance of their corrections."""
    held: Array
    """(K,) bool: cameras that stay, beside the first."""
    map_scale: Array
    """(K,) log scale of each keyframe's depth map."""
    focal_is_free: bool = False
    rho_info: Array = field(default_factory=lambda: np.zeros(0))

    def arguments(self, cam: Array, poses: Array, rho: Array) -> tuple[Any, ...]:
        """Return the kernels' leading arguments for given unknowns."""
        seen = self.seen
        rays = camera.rays(self.uv, camera.make_K(*cam.tolist()))
        return (
            cam, rays, self.host, poses, rho, self.start, seen.frame, seen.uv, seen.info,
            seen.logd + self.map_scale[seen.frame], seen.logd_info,
            self.prior * np.exp(-self.map_scale[self.host]), self.prior_info,
        )  # fmt: skip

    def thinned(self, step: int) -> Problem:
        """Return the problem over every ``step``-th site."""
        chosen = np.arange(len(self.rho)) % step == 0
        seen = self.seen.of(chosen)
        return replace(
            self, cam=self.cam.copy(), poses=self.poses.copy(), host=self.host[chosen], uv=self.uv[chosen],
            rho=self.rho[chosen], prior=self.prior[chosen], prior_info=self.prior_info[chosen], seen=seen,
            start=seen.starts(int(chosen.sum())), map_scale=self.map_scale.copy(),
        )  # fmt: skip

    def cost(
        self, cam: Array, poses: Array, rho: Array, scales: Array, out: Array | None = None
    ) -> float:
        """Return the robust cost, σ²; ``out`` (N) receives that of each site."""
        out = np.empty(len(rho)) if out is None else out
        sites = _kernels.global_cost(*self.arguments(cam, poses, rho), scales, out)
        r, _ = self.tied(poses)
        return float(sites + (self.tie_info * r * r).sum())

    def tied(self, poses: Array) -> tuple[Array, Array]:  # (K − 1, 6), (K − 1, 6, 6)
        """Return how far the relative motions have changed, and what a twist of the earlier camera does to that."""
        T = transforms.square(poses)
        relative = T[1:] @ transforms.invert(T[:-1])
        change = relative @ transforms.invert(self.ties)
        r = np.concatenate([change[:, :3, 3], transforms.so3_log(change[:, :3, :3])], axis=1)
        return r, -transforms.adjoint(relative)

    def system(self, scales: Array, damping: float) -> tuple[Array, Array]:
        """Build the normal equations of poses and focal, sites eliminated."""
        D = 6 * len(self.poses) + 1
        S, s = np.zeros((D, D)), np.zeros(D)
        _kernels.global_system(
            *self.arguments(self.cam, self.poses, self.rho), scales, damping, S, s
        )
        S += np.triu(S, 1).T
        r, A = self.tied(self.poses)
        for k in range(len(r)):
            a, b = slice(6 * k, 6 * k + 6), slice(6 * k + 6, 6 * k + 12)
            weighted = self.tie_info[:, None] * A[k]
            S[a, a] += A[k].T @ weighted
            S[a, b] += weighted.T
            S[b, a] += weighted
            S[b, b] += np.diag(self.tie_info)
            s[a] += weighted.T @ r[k]
            s[b] += self.tie_info * r[k]
        diagonal = np.arange(D)
        S[diagonal, diagonal] *= 1 + damping
        S[diagonal, diagonal] += 1e-9
        stay = diagonal[:-1][np.repeat(self.held | (np.arange(len(self.held)) == 0), 6)]
        S[stay, stay] += HELD
        if not self.focal_is_free:
            S[-1, :] = S[:, -1] = 0.0
            S[-1, -1], s[-1] = 1.0, 0.0
        return S, s

    def moved(self, step: Array, scales: Array, damping: float) -> tuple[Array, Array, Array]:
        """Return camera, poses and inverse depths after a step."""
        rho, info = np.empty_like(self.rho), np.empty_like(self.rho)
        _kernels.move_sites(
            *self.arguments(self.cam, self.poses, self.rho), scales, damping, step, rho, info
        )
        self.rho_info = info
        cam, poses = self.cam.copy(), self.poses.copy()
        cam[:2] *= np.exp(np.clip(step[-1], -0.2, 0.2))
        for k in range(len(poses)):
            move_pose(poses[k], step[6 * k : 6 * k + 6])
        return cam, poses, rho


def solve(problem: Problem, robust_scale: float, iterations: int = ITERATIONS) -> float:
    """Lower the cost by Levenberg–Marquardt, in place; returns it.

    Where there are far more sites than the cameras need, a part of them places the cameras, and the depths of all
    follow.
    """
    if len(problem.rho) > 2 * ENOUGH * len(problem.poses):
        part = problem.thinned(len(problem.rho) // (ENOUGH * len(problem.poses)))
        solve(part, robust_scale, iterations)
        problem.cam, problem.poses, problem.map_scale = part.cam, part.poses, part.map_scale
        settle_sites(problem, robust_scale)
        return problem.cost(
            problem.cam, problem.poses, problem.rho, np.array([robust_scale, MAP_SCALE])
        )
    scales = np.array([robust_scale, MAP_SCALE])
    damping = 1e-4
    cost = problem.cost(problem.cam, problem.poses, problem.rho, scales)
    for _ in range(iterations):
        for _ in range(5):
            S, s = problem.system(scales, damping)
            step = -np.linalg.solve(S, s)
            new = problem.moved(step, scales, damping)
            new_cost = problem.cost(*new, scales)
            if new_cost < cost:
                break
            damping = 10 * damping + 1e-6
        else:
            return cost
        problem.cam, problem.poses, problem.rho = new
        _fit_map_scales(problem)
        new_cost = min(new_cost, problem.cost(*new, scales))
        gain, cost = cost - new_cost, new_cost
        damping = max(0.2 * damping, 1e-9)
        if gain < 1e-5 * cost:
            break
    return cost


def settle_sites(problem: Problem, robust_scale: float, iterations: int = 6) -> None:
    """Fit the inverse depths with all cameras held, in place."""
    rho, info = problem.rho.copy(), np.zeros(len(problem.rho))
    scales = np.array([robust_scale, MAP_SCALE])
    _kernels.settle(*problem.arguments(problem.cam, problem.poses, rho), scales, iterations, info)
    problem.rho, problem.rho_info = rho, info


def _fit_map_scales(problem: Problem) -> None:
    """Let each keyframe's depth map have the scale that its sites say."""
    ratio = np.log(problem.prior / problem.rho)
    known = problem.prior_info > 0
    for k in range(len(problem.poses)):
        mine = known & (problem.host == k)
        if mine.sum() >= MIN_SITES:
            problem.map_scale[k] = float(np.median(ratio[mine]))

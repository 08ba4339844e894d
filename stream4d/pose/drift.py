"""How a path drifts: what the keyframes of the map, all of them free, do not know of each other.

The newer keyframes are tied to the older ones by the patches that they share. With every pose free, and the depths
eliminated, the window's normal equations give the covariance of the similarity that moves the newer half of the map
against the older half: translation, rotation and scale, as they go together. Over the keyframes between the two halves
it is the covariance of one step, and the path's error is the walk of all steps. No pose has to be held for it, so
that it does not matter how the window is split.

A focal length that is not given errs alike everywhere: what a wrong one does to each step adds up along the path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose import _kernels_bundle, refine
from stream4d.pose.map import LocalMap
from stream4d.pose.record import to_world_from_cam

FEWEST = 2
"""Keyframes below which there is no step."""
SCALE_SQ = 9.0
"""Geman–McClure scale of the window's adjustment, σ²."""
BASELINE_SQ = 4e-6
"""Sum of squared distances, in units of the first depth, below which half a map shows no scale of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Error of one step from keyframe to keyframe, in the left tangent of Sim(3) at ``centre``."""

    covariance: Array
    """(7, 7) of translation, rotation and log scale, patches taken at their word."""
    focal: Array
    """(7,) error per unit of log focal."""
    centre: Array
    """(3,) the middle of the map's cameras, in the world."""
    seen: float
    """Patches of others that a keyframe sees, on average."""


def similarity_columns(centres: Array) -> Array:  # (..., 3) -> (..., 6, 7)
    """Return what a left tangent of Sim(3) does to the left tangents of rigid poses at ``centres``."""
    A = np.zeros((*centres.shape[:-1], 6, 7))
    A[..., :, :6] = np.eye(6)
    A[..., :3, 6] = centres
    return A


def similarity_adjoint(S: Array) -> Array:  # (4, 4) -> (7, 7)
    """Return the adjoint of a similarity: S exp(ξ) S⁻¹ = exp(Ad ξ)."""
    scale, R, t = transforms.decompose(S)
    out = np.zeros((7, 7))
    out[:3, :3], out[:3, 3:6], out[:3, 6] = scale * R, transforms.hat(t) @ R, -t
    out[3:6, 3:6], out[6, 6] = R, 1.0
    return out


def step_of(local_map: LocalMap, *, focal_free: bool) -> Step | None:
    """Return the error of a step as the map's keyframes show it, None where there are too few."""
    order = local_map.order
    if len(order) < FEWEST:
        return None
    S, seen = _normal_equations(local_map, order)
    world_from_cam = to_world_from_cam(local_map.poses[order])
    centre = world_from_cam[:, :3, 3].mean(axis=0)
    world_from_cam[:, :3, 3] -= centre  # a lever to a far origin would swallow what is small
    W = _twists(world_from_cam)
    information, pull = W.T @ S[:-1, :-1] @ W, W.T @ S[:-1, -1]
    A = similarity_columns(world_from_cam[:, :3, 3])
    contrast, steps = _between_halves(A, information)
    gauge = A.reshape(-1, 7)
    # what the window cannot know, its own place and unit, is held; the contrast between its halves is free of it
    held = information + np.trace(information) / len(information) * (gauge @ gauge.T)
    held[np.diag_indices_from(held)] += 1e-9 * np.trace(held) / len(held)
    spread = np.linalg.solve(held, np.column_stack([contrast.T, -pull]))
    covariance = contrast @ spread[:, :7] / steps
    focal = contrast @ spread[:, 7] / steps if focal_free else np.zeros(7)
    return Step((covariance + covariance.T) / 2, focal, centre, seen)


def _normal_equations(local_map: LocalMap, order: Array) -> tuple[Array, float]:
    """Return the (6n + 1)² system of all poses and log focal, depths eliminated, and ``Step.seen``."""
    obs = refine.map_observations(local_map)
    rows = np.unique(obs.patch)
    n, N, D = len(order), len(rows), 6 * len(order) + 1
    column = np.full(local_map.slots, -1, np.int64)
    column[order] = 6 * np.arange(n)
    H, b = np.zeros((D, D)), np.zeros(D)
    E, C, gr = np.zeros((N, D)), np.zeros(N), np.zeros(N)
    patch, rho = refine.compact(rows, obs.patch), local_map.rho[rows]
    prior, prior_info = local_map.prior[rows], local_map.prior_info[rows]
    scene = local_map.cam, local_map.rays[rows], local_map.host[rows], local_map.poses
    _kernels_bundle.bundle_system(
        *scene, column, rho, patch, obs.frame, obs.uv, obs.info, SCALE_SQ, prior, prior_info, H, b, E, C, gr
    )  # fmt: skip
    return refine.schur(H, b, E, C, gr)[0], len(patch) / n


def _twists(world_from_cam: Array) -> Array:  # (n, 4, 4) -> (6n, 6n)
    """Return what left twists of world-from-camera are as left twists of camera-from-world."""
    n = len(world_from_cam)
    W = np.zeros((6 * n, 6 * n))
    for i, inverse in enumerate(transforms.invert(world_from_cam)):
        W[6 * i : 6 * i + 6, 6 * i : 6 * i + 6] = -transforms.adjoint(inverse)
    return W


def _between_halves(A: Array, information: Array) -> tuple[Array, float]:  # -> (7, 6n), steps
    """Return the similarity of the newer half less that of the older half, by the errors of all poses (n, 6, 7).

    Each pose counts as much as it is known with the others held: one that hardly sees a patch says nothing.
    """
    n = len(A)
    half = n // 2
    contrast = np.zeros((7, 6 * n))
    for sign, first, last in ((-1, 0, half), (1, n - half, n)):
        weighted = np.zeros((6 * (last - first), 7))
        for i in range(first, last):
            block = slice(6 * i, 6 * i + 6)
            weighted[6 * (i - first) : 6 * (i - first) + 6] = information[block, block] @ A[i]
        normal = weighted.T @ A[first:last].reshape(-1, 7)
        normal[6, 6] += BASELINE_SQ * np.trace(normal[:3, :3])
        contrast[:, 6 * first : 6 * last] = sign * np.linalg.solve(normal, weighted.T)
    return contrast, float(n - half)

"""The camera's motion between two frames in closed form: what one rigid motion explains of a dense flow.

A learned head of this size needs far more training than the flow it would read; the flow itself determines rotation and
direction of translation to hundredths of a degree. Robust Gauss-Newton over Sampson distances (Hartley & Zisserman,
eq. 11.9), from several directions of translation; the first is the least eigenvector of the normals' moments under the
best pure rotation (Kneip & Lynen, ICCV 2013, eq. 4). Nothing here is learned, nothing carries gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from stream4d.geometry.epipolar import essential_matrices
from stream4d.geometry.transforms import so3_exp
from stream4d.models import _kernels_rigid as kernels
from stream4d.packets import Array

MIN_POINTS = 24
"""Cells that must be trusted for a fit."""
FLOOR_PX = 0.02
"""Least 1σ of a flow, pixels of the level: what rounding and interpolation leave."""
ROUNDS = (400.0, 100.0, 25.0, 9.0, 9.0, 9.0, 9.0)
"""Scales of the robust weight in σ², one round each: all cells have a say at first, movers none at the end."""
DECIDING = 25.0
"""Scale in σ² of the robust cost that chooses between the starts."""
MEDIAN_OF_ONE, MEDIAN_OF_TWO = 0.455, 1.386
"""Medians of χ² with one and with two degrees of freedom: the median error says how much 1σ is too small."""
TRIED_SAMPLES = 50
"""Five-point samples of RANSAC."""
TRIED_ROUNDS = 3
"""Rounds after which the best of the starts goes on alone."""
STEP = 3
"""Every third cell in both axes votes: as good as all of them, and a ninth of the work."""
POINTS_PER_ERROR = 64 / STEP**2
"""Neighbours share their error: the flow is smooth over some eight cells in both axes."""
STARTS = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
"""Directions of translation tried besides the closed form: forward, sideways, up."""
FOCAL_SIGMA = 0.35
"""1σ of a guessed log focal."""
UNKNOWN = np.array([np.pi, np.pi])


@dataclass(frozen=True, slots=True, eq=False)
class RigidMotion:
    """A camera motion found in the flow a → b."""

    b_from_a: Array
    """(3, 3) rotation."""
    direction: Array
    """(3,) translation of b_from_a, unit length; zeros where nothing was found."""
    focal: float
    """Pixels of the level."""
    sigma: Array
    """(2,) 1σ of the rotation and of the translation's direction, radians; π where unknown."""


def find_motion(
    start: Array,  # (n, 2) pixels from the principal point
    end: Array,  # (n, 2)
    sigma: Array,  # (n,) 1σ of the flow per axis, pixels
    focal: float,
    *,
    focal_known: bool,
) -> RigidMotion:
    """Fit one rigid motion to corresponding points; movers are outvoted, not told apart.

    Where the focal length is only a guess, it is refined within the guess's 1σ of 35 %.
    """
    if len(start) < MIN_POINTS:
        return RigidMotion(np.eye(3), np.zeros(3), focal, UNKNOWN)
    info = 1 / np.square(np.maximum(sigma, FLOOR_PX))
    R = _rotation(start, end, info, focal)
    M = np.empty((3, 3))
    kernels.baseline_moments(start, end, info, R, focal, M)
    starts = [(R, t) for t in (np.linalg.eigh(M)[1][:, 0], *STARTS)]
    noise = 1 / math.sqrt(float(np.median(info))) / focal
    starts += _five_points(start / focal, end / focal, noise)
    fits = [_Fit(*pose, focal, focal_known) for pose in starts]
    for fit in fits:
        fit.improve(start, end, info, ROUNDS[:TRIED_ROUNDS])
    best = min(fits, key=lambda fit: fit.cost)
    best.improve(start, end, info, ROUNDS[TRIED_ROUNDS:])
    return best.motion(start, end)


def _rotation(start: Array, end: Array, info: Array, focal: float) -> Array:
    R, A, g, square = np.eye(3), np.empty((3, 3)), np.empty(3), np.empty(len(start))
    spread = 1.0
    for scale in ROUNDS:
        kernels.rotation_system(start, end, info, R, focal, scale * spread, A, g, square)
        spread = max(1.0, float(np.median(square)) / MEDIAN_OF_TWO)
        R = so3_exp(np.linalg.solve(A + 1e-9 * (np.trace(A) + 1e-9) * np.eye(3), g)) @ R
    return R


def _five_points(start: Array, end: Array, sigma: float) -> list[tuple[Array, Array]]:
    """Return rotation and direction of an essential matrix by RANSAC: a start that movers cannot pull.

    From rays and their 1σ; of both rotations the smaller, since neighbouring frames turn little. Nothing where all
    samples were degenerate.
    """
    E, _ = essential_matrices(
        start, end, cv2.USAC_FAST, threshold=2 * sigma, prob=0.99, samples=TRIED_SAMPLES
    )
    if len(E) != 1:
        return []
    first, second, t = cv2.decomposeEssentialMat(E[0])
    R = first if np.trace(first) > np.trace(second) else second
    return [(R, t[:, 0])]


class _Fit:
    """One hypothesis on its way."""

    def __init__(self, R: Array, t: Array, guess: float, focal_known: bool) -> None:
        self.R, self.t, self.focal, self.guess, self.known = R, t, guess, guess, focal_known
        self.cost, self.spread = np.inf, 1.0
        self.A = np.zeros((6, 6))

    def improve(self, start: Array, end: Array, info: Array, rounds: tuple[float, ...]) -> None:
        """Take one step per round; 1σ that is too small for the data widens the robust scale."""
        A, g, square = np.empty((6, 6)), np.empty(6), np.empty(len(start))
        for scale in rounds:
            tangent = _tangent(self.t)
            kernels.epipolar_system(
                start,
                end,
                info,
                self.R,
                self.t,
                tangent,
                self.focal,
                scale * self.spread,
                A,
                g,
                square,
            )
            self.spread = max(1.0, float(np.median(square)) / MEDIAN_OF_ONE)
            if self.known:
                A[5], A[:, 5], g[5], A[5, 5] = 0, 0, 0, 1
            else:  # neighbouring cells share their error: without this the guess would have no say
                prior = POINTS_PER_ERROR * self.spread / FOCAL_SIGMA**2
                A[5, 5] += prior
                g[5] -= prior * math.log(self.focal / self.guess)
            self.A = A
            step = np.linalg.solve(A + np.diag(1e-4 * A.diagonal() + 1e-9), g)
            self.R = so3_exp(step[:3]) @ self.R
            t = self.t + step[3:5].clip(-0.5, 0.5) @ tangent
            self.t = t / np.linalg.norm(t)
            self.focal *= math.exp(float(step[5].clip(-0.3, 0.3)))
        self.cost = float((square / (1 + square / DECIDING)).sum())

    def motion(self, start: Array, end: Array) -> RigidMotion:
        """Choose the sign that puts most points in front, and state how well it is known."""
        cov = np.linalg.inv(self.A + 1e-12 * np.eye(6)) * POINTS_PER_ERROR * self.spread
        sigma = np.sqrt([np.trace(cov[:3, :3]) / 3, np.trace(cov[3:5, 3:5]) / 2])
        along, across = self._parallax(start, end)
        sign = 1.0 if np.median(along) >= 0 else -1.0
        # Where the camera only turns, the noise itself has a best direction; its length gives it away.
        sigma[1] = max(sigma[1], np.median(np.abs(across)) / max(np.median(np.abs(along)), 1e-12))
        sigma = np.nan_to_num(sigma, nan=np.pi, posinf=np.pi).clip(0, np.pi)
        return RigidMotion(self.R, sign * self.t, self.focal, sigma)

    def _parallax(self, start: Array, end: Array) -> tuple[Array, Array]:
        """Return the flow without rotation, along the epipolar lines and across, in focal lengths."""
        rays = np.column_stack([start / self.focal, np.ones(len(start))]) @ self.R.T
        p = rays[:, :2] / rays[:, 2:]
        line = self.t[:2] - self.t[2] * p
        line /= np.linalg.norm(line, axis=1, keepdims=True) + 1e-12
        rest = end / self.focal - p
        return (rest * line).sum(1), rest[:, 0] * line[:, 1] - rest[:, 1] * line[:, 0]


class RigidFields(NamedTuple):
    """What rigid motions leave of the flows of B frame pairs; both directions share the batch of the maps."""

    maps: Tensor
    """(2B, 4, h, w), see ``_kernels_rigid.remains``: a → b, then b → a."""
    rotation: Tensor
    """(B, 3, 3) a_from_b."""
    direction: Tensor
    """(B, 3) translation of a_from_b, unit length; zeros where nothing was found."""
    sigma: Tensor
    """(B, 2) 1σ of rotation and direction, radians."""
    focal: Tensor
    """(B,) pixels of the level."""


def rigid_fields(
    flow: Tensor,  # (2B, 2, h, w) pixels of the level: a → b, then b → a
    sigma: Tensor,  # (2B, 1, h, w) 1σ of the flow per axis, pixels of the level
    trip: Tensor,  # (2B, 1, h, w) miss of the way there and back, pixels of the level
    moving: Tensor,  # (2B, 1, h, w) what is known already of the probability of motion
    K: Tensor,  # (B, 3, 3) at the level
    is_known: Tensor,  # (B,) bool: K was given, not guessed
) -> RigidFields:
    """Fit every pair's camera motion; cells that come back where they began vote, movers less."""
    B, h, w = len(K), *flow.shape[-2:]
    fields = flow.detach().double().cpu().numpy()
    spread = (sigma.detach() + 0.3 * trip) / (1 - 0.9 * moving.detach())
    doubt = spread.double().cpu().numpy()
    fair = (trip < 0.25 + 0.05 * torch.linalg.vector_norm(flow, dim=1, keepdim=True)).cpu().numpy()
    cameras, known = K.detach().double().cpu().numpy(), is_known.tolist()
    v, u = np.mgrid[STEP // 2 : h : STEP, STEP // 2 : w : STEP].reshape(2, -1)
    maps = np.zeros((2 * B, 4, h, w))
    motions = []
    for i in range(B):
        centre = cameras[i, :2, 2]
        moved = fields[i][:, v, u].T
        start = np.column_stack([u, v]) - centre
        inside = ((start + moved + centre >= 0) & (start + moved + centre <= [w - 1, h - 1])).all(1)
        chosen = inside & fair[i, 0, v, u]
        motion = find_motion(
            start[chosen], (start + moved)[chosen], doubt[i, 0, v, u][chosen], cameras[i, 0, 0],
            focal_known=known[i],
        )  # fmt: skip
        R, t = motion.b_from_a, motion.direction
        kernels.remains(fields[i], R, t, motion.focal, centre, maps[i])
        kernels.remains(fields[B + i], R.T.copy(), -R.T @ t, motion.focal, centre, maps[B + i])
        motions.append(motion)

    def stack(values: Sequence[Array | float]) -> Tensor:
        return torch.from_numpy(np.stack(values)).float().to(flow.device)

    return RigidFields(
        maps=torch.from_numpy(np.nan_to_num(maps, posinf=0, neginf=0)).float().to(flow.device),
        rotation=stack([m.b_from_a.T for m in motions]),
        direction=stack([-m.b_from_a.T @ m.direction for m in motions]),
        sigma=stack([m.sigma for m in motions]),
        focal=stack([m.focal for m in motions]),
    )


def _tangent(t: Array) -> Array:
    """Return two unit vectors (2, 3) that are perpendicular to ``t`` and to each other."""
    first = np.cross(t, np.eye(3)[np.argmin(np.abs(t))])
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(t, first)])

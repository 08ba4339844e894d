"""The camera's motion between two frames in closed form: what one rigid motion explains of a dense flow.

A learned head of this size needs far more training than the flow it would read; the flow itself determines rotation and
direction of translation to hundredths of a degree. Robust Gauss-Newton over Sampson distances (Hartley & Zisserman,
eq. 11.9), from several directions of translation; the first is the least eigenvector of the normals' moments under the
best pure rotation (Kneip & Lynen, ICCV 2013, eq. 4). Nothing here is learned, nothing carries gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from stream4d.geometry.epipolar import essential_matrices
from stream4d.models import _kernels_rigid as kernels
from stream4d.packets import Array

MIN_POINTS = 24
"""Cells that must be trusted for a fit."""
FLOOR_PX = 0.02
"""Least 1σ of a flow, pixels of the level: what rounding and interpolation leave."""
ROUNDS = np.array([400.0, 100.0, 25.0, 9.0, 9.0, 9.0, 9.0])
"""Scales of the robust weight in σ², one round each: all cells have a say at first, movers none at the end."""
DECIDING = 25.0
"""Scale in σ² of the robust cost that chooses between the starts."""
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
    R, M = np.eye(3), np.empty((3, 3))
    kernels.fit_rotation(start, end, info, focal, ROUNDS, R)
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
        self.R, self.t, self.A = R.copy(), np.array(t, np.float64), np.zeros((6, 6))
        # Neighbouring cells share their error: without this the guess would have no say.
        prior = np.inf if focal_known else POINTS_PER_ERROR / FOCAL_SIGMA**2
        self._state = np.array([guess, 1.0, guess, prior])
        self.cost = np.inf

    def improve(self, start: Array, end: Array, info: Array, rounds: Array) -> None:
        """Take one step per round; 1σ that is too small for the data widens the robust scale."""
        square = np.empty(len(start))
        kernels.fit_motion(start, end, info, self.R, self.t, self._state, rounds, self.A, square)
        self.cost = float((square / (1 + square / DECIDING)).sum())

    def motion(self, start: Array, end: Array) -> RigidMotion:
        """Choose the sign that puts most points in front, and state how well it is known."""
        focal, spread = self._state[:2].tolist()
        cov = np.linalg.inv(self.A + 1e-12 * np.eye(6)) * POINTS_PER_ERROR * spread
        sigma = np.sqrt([np.trace(cov[:3, :3]) / 3, np.trace(cov[3:5, 3:5]) / 2])
        along, across = self._parallax(start, end, focal)
        sign = 1.0 if np.median(along) >= 0 else -1.0
        # Where the camera only turns, the noise itself has a best direction; its length gives it away.
        sigma[1] = max(sigma[1], np.median(np.abs(across)) / max(np.median(np.abs(along)), 1e-12))
        sigma = np.nan_to_num(sigma, nan=np.pi, posinf=np.pi).clip(0, np.pi)
        return RigidMotion(self.R, sign * self.t, focal, sigma)

    def _parallax(self, start: Array, end: Array, focal: float) -> tuple[Array, Array]:
        """Return the flow without rotation, along the epipolar lines and across, in focal lengths."""
        rays = np.column_stack([start / focal, np.ones(len(start))]) @ self.R.T
        p = rays[:, :2] / rays[:, 2:]
        line = self.t[:2] - self.t[2] * p
        line /= np.linalg.norm(line, axis=1, keepdims=True) + 1e-12
        rest = end / focal - p
        return (rest * line).sum(1), rest[:, 0] * line[:, 1] - rest[:, 1] * line[:, 0]

"""Covariances of poses: from the adjustment's Hessian, inflated where the patches fit worse than they say."""

from __future__ import annotations

import numpy as np

from stream4d.geometry.transforms import adjoint
from stream4d.packets import Array

EXPECTED_MISFIT = 2.0
"""Mean squared error of a patch in σ² (two components) where the error model holds."""
MISFIT_POWER = 3.0
"""How fast 1σ of drift grows with the misfit, on thirteen runs over eight clips with ground truth: errors that the
patches cannot explain (rolling shutter, blur, edges) are shared by neighbours and by windows, and do not average."""
MOST_MISFIT = 3.0
"""Misfit over the expected beyond which 1σ grows no more."""
TYPICAL_PATCHES = 100.0
"""Patches in agreement for which the rest was measured: with fewer the errors have longer tails."""
DRIFT_INFLATION = 2.0
"""With these, stated 1σ held for 71 % of all pose components over those runs, and within 50–90 % on all but two
clips: tartanair_189 (29 %), whose drift is made within twenty frames, and an easy rendered one (93 %)."""
FLOOR = np.diag([1e-8, 1e-8, 1e-8, 4e-10, 4e-10, 4e-10])
"""Nothing is known better than a ten thousandth of the first median depth, or 0.001°."""
STILL = np.diag([2.5e-3, 2.5e-3, 2.5e-3, 0.0, 0.0, 0.0])
"""Before the first baseline the position is known only to have moved little against the depth."""


def to_world(covariance: Array, pose: Array) -> Array:
    """Turn the covariance of a camera-from-world's left twist into that of the world-from-camera's."""
    inverse = np.eye(4)
    inverse[:3, :3], inverse[:3, 3] = pose[:, :3].T, -pose[:, :3].T @ pose[:, 3]
    A = adjoint(inverse)
    return np.asarray(A @ covariance @ A.T)


def drift_factor(misfit: float, agreeing: float) -> float:
    """Return by how much the variance of drift is larger than its normal equations say.

    ``misfit`` is the mean squared error of the patches lately, σ²; ``agreeing`` how many of them agreed.
    """
    excess = min(max(misfit / EXPECTED_MISFIT, 1.0), MOST_MISFIT)
    return DRIFT_INFLATION * excess ** (2 * MISFIT_POWER) * TYPICAL_PATCHES / max(agreeing, 1.0)


def of_pose(
    information: Array, pose: Array, drift: Array, *, factor: float, started: bool
) -> Array:
    """Return the (6, 6) covariance of a fitted pose, symmetric and positive."""
    ridge = 1e-9 * max(float(np.trace(information)) / 6, 1.0)
    own = np.linalg.inv(information + ridge * np.eye(6)) if information.any() else np.zeros((6, 6))
    total = to_world(own, pose) + factor * drift + FLOOR
    if not started:
        total = total + STILL
    return np.asarray((total + total.T) / 2)

"""How cameras move: smooth body-rate trajectories of the kinds that video has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STYLES = ("static", "rotation", "handheld", "forward", "orbit", "lateral", "drone")
"""Kinds of camera motion; ``SceneOptions.camera_weights`` are in this order."""


@dataclass(frozen=True, slots=True)
class Lens:
    """Intrinsics of B clips."""

    focal: Floats
    """(B,) pixels."""
    centre: Floats
    """(B, 2) principal point (cx, cy) in pixels."""

    @property
    def K(self) -> Floats:
        """(B, 3, 3) matrices."""
        K = np.zeros((len(self.focal), 3, 3))
        K[:, 0, 0] = K[:, 1, 1] = self.focal
        K[:, :2, 2] = self.centre
        K[:, 2, 2] = 1
        return K


def sample_lens(
    rng: np.random.Generator, batch: int, size: tuple[int, int], fov_deg: tuple[float, float]
) -> Lens:
    """Draw a horizontal field of view, uniform in angle, and a principal point near the centre."""
    H, W = size
    angle = np.radians(rng.uniform(*fov_deg, batch))
    middle = np.array([(W - 1) / 2, (H - 1) / 2])
    return Lens(W / 2 / np.tan(angle / 2), middle + rng.normal(0, 0.01, (batch, 2)) * [W, H])


def rotation_from_vector(vector: Floats) -> Floats:  # (..., 3) -> (..., 3, 3)
    """Return the rotation about ``vector`` by its length in radians (Rodrigues)."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    a = np.sinc(angle / np.pi)
    b = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.asarray(np.eye(3) + a * cross + b * (cross @ cross))


def log_uniform(
    rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]
) -> Floats:
    """Draw numbers whose logarithm is uniform."""
    return np.asarray(np.exp(rng.uniform(np.log(low), np.log(high), shape)))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], memory: float) -> Floats:
    """Draw unit-variance noise, correlated along axis 1 (an AR(1) process with the given memory)."""
    white = rng.normal(size=shape)
    out = np.empty(shape)
    out[:, 0] = white[:, 0]
    for t in range(1, shape[1]):
        out[:, t] = memory * out[:, t - 1] + np.sqrt(1 - memory**2) * white[:, t]
    return out


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / np.linalg.norm(vector, axis=-1, keepdims=True).clip(1e-9))


def _base_rates(
    rng: np.random.Generator,
    styles: npt.NDArray[np.int64],
    turn: Floats,
    move: Floats,
    depth: Floats,
) -> tuple[Floats, Floats]:
    """Return constant body rates: rotation vectors (B, 3) and translations (B, 3) a frame."""
    B = len(styles)
    spin = _unit(rng.normal(size=(B, 3)) * [0.7, 1.0, 0.4]) * turn[:, None]
    drift = _unit(rng.normal(size=(B, 3)) * [1.0, 0.6, 1.0]) * move[:, None]
    sign = np.where(rng.random(B) < 0.85, 1.0, -1.0)
    side = rng.choice([-1.0, 1.0], B)
    for b, style in enumerate(np.asarray(STYLES)[styles]):
        if style == "rotation":
            drift[b] = 0
        elif style == "handheld":
            spin[b] *= 0.5
        elif style == "forward":
            drift[b] = [0.05 * drift[b, 0], 0.02 * drift[b, 1], sign[b] * move[b]]
            spin[b] *= [0.1, 0.5, 0.1]
        elif style == "orbit":  # look at a point straight ahead while going around it
            rate = side[b] * move[b] / depth[b]
            spin[b] = [0.1 * spin[b, 0], -rate, 0]
            drift[b] = [rate * depth[b], 0.2 * drift[b, 1], 0.1 * drift[b, 2]]
        elif style == "lateral":
            drift[b] = [side[b] * move[b], 0.1 * drift[b, 1], 0.1 * drift[b, 2]]
            spin[b] *= 0.2
        elif style == "drone":
            drift[b] = [0.3 * drift[b, 0], -0.4 * move[b], 0.8 * sign[b] * move[b]]
            spin[b] *= [0.5, 1.0, 0.3]
    return spin, drift


_JITTER = {
    "static": 0.0,
    "rotation": 0.3,
    "handheld": 1.0,
    "forward": 0.25,
    "orbit": 0.3,
    "lateral": 0.3,
    "drone": 0.2,
}


def sample_trajectories(
    rng: np.random.Generator,
    styles: npt.NDArray[np.int64],  # (B,) index into STYLES
    frames: int,
    turn: Floats,  # (B,) typical rotation in radians a frame
    move: Floats,  # (B,) typical translation in world units a frame
    depth: Floats,  # (B,) typical depth of the scene
) -> Floats:
    """Draw camera paths (B, T, 4, 4) that start at the identity: ``start_from_cam``."""
    B = len(styles)
    names = np.asarray(STYLES)[styles]
    spin, drift = _base_rates(rng, styles, turn, move, depth)
    jitter = np.array([_JITTER[name] for name in names])[:, None, None]
    sway = 1 + 0.4 * smooth_noise(rng, (B, frames, 1), 0.9)
    shake = jitter * smooth_noise(rng, (B, frames, 6), 0.5)
    is_free = (names != "rotation") & (names != "static")
    poses = np.tile(np.eye(4), (B, frames, 1, 1))
    for t in range(1, frames):
        step = np.tile(np.eye(4), (B, 1, 1))
        step[:, :3, :3] = rotation_from_vector(
            spin * sway[:, t] + 0.4 * turn[:, None] * shake[:, t, :3]
        )
        step[:, :3, 3] = drift * sway[:, t] + 0.4 * (is_free * move)[:, None] * shake[:, t, 3:]
        step[names == "static"] = np.eye(4)
        poses[:, t] = poses[:, t - 1] @ step
    return poses

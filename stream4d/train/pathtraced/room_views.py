"""Where the camera stands and how it moves: seen from a person's height, at a desk, or close to a thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array
from stream4d.train.cameras import STYLES, log_uniform, rotation_from_vector, sample_trajectories

Cast = Callable[[Array, Array], tuple[float, str]]
"""From where (3,) and into which direction (3,) → distance to what is hit and its name; inf and "" for nothing."""

_SHARES = (0.03, 0.17, 0.4, 0.12, 0.14, 0.1, 0.04)
"""Of ``STYLES``."""
_GRID = np.stack(np.meshgrid(np.linspace(-0.9, 0.9, 7), np.linspace(-0.9, 0.9, 5)), -1).reshape(
    -1, 2
)
"""Places in the image, from -1 to 1, at which a view is judged."""
_NEAREST_M = 0.15


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A camera path through a room."""

    world_from_cam: Array
    """(T, 4, 4), OpenCV axes."""
    distances: Array
    """Distances in metres along the rays of a grid, first frame."""
    directions: Array
    """Those rays in the world, of unit length."""
    fov_rad: float
    """Horizontal field of view."""


def look(eye: Array, target: Array, roll: float) -> Array:  # (4, 4)
    """Return the pose of a camera at ``eye`` that looks at ``target``; z of the world is up."""
    forward = (target - eye) / max(float(np.linalg.norm(target - eye)), 1e-9)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= max(float(np.linalg.norm(right)), 1e-6)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, :3] = pose[:3, :3] @ rotation_from_vector(np.array([0.0, 0.0, roll]))
    pose[:3, 3] = eye
    return pose


def _stand(rng: np.random.Generator, room: Array, tops: list[Array]) -> tuple[Array, Array]:
    """Draw an eye and what it looks at: a table from near, a piece, or the room."""
    kind = rng.random()
    if tops and kind < 0.45:
        target = tops[int(rng.integers(len(tops)))] + rng.normal(0, 0.15, 3)
        distance = float(np.exp(rng.uniform(np.log(0.35), np.log(1.6))))
        up, around = rng.uniform(0.1, 1.1), rng.uniform(0, 2 * np.pi)
        way = [np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)]
        return target + distance * np.array(way), target
    eye = rng.uniform([0.3, 0.3, 0.5], [room[0] - 0.3, room[1] - 0.3, min(1.9, room[2] - 0.2)])
    if kind < 0.55:
        return eye, np.array([*rng.uniform([0, 0], room[:2]), 0.0])  # at the floor
    return eye, rng.uniform([0, 0, 0.2], [room[0], room[1], 1.6])


def rays(pose: Array, fov_rad: float, aspect: float) -> Array:  # (N, 3) world directions
    """Return directions through the places at which a view is judged."""
    half = np.tan(fov_rad / 2)
    rays = np.concatenate([_GRID * [half, half / aspect], np.ones((len(_GRID), 1))], 1)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return np.asarray(rays @ pose[:3, :3].T)


def _is_clear(pose: Array, fov_rad: float, aspect: float, room: Array, cast: Cast) -> bool:
    """Return whether the camera is in the room and nothing touches its lens."""
    eye = pose[:3, 3]
    if (eye < 0.1).any() or (eye > room - 0.1).any():
        return False
    around = np.concatenate([np.eye(3), -np.eye(3)])
    if min(cast(eye, way)[0] for way in around) < _NEAREST_M * 0.7:
        return False
    return min(cast(eye, way)[0] for way in rays(pose, fov_rad, aspect)[::2]) > _NEAREST_M


def sample_view(
    rng: np.random.Generator,
    room: Array,  # (3,) size in metres
    tops: list[Array],  # (3,) points on tables and cabinets
    cast: Cast,
    frames: int,
    aspect: float,
) -> View | None:
    """Draw a path that stays clear of things and sees something; None where sixty tries found none."""
    for _ in range(60):
        fov_rad = float(np.radians(rng.uniform(35, 100)))
        eye, target = _stand(rng, room, tops)
        roll = float(rng.normal(0, 0.08) if rng.random() < 0.85 else rng.normal(0, 0.5))
        first = look(eye, target, roll)
        if not _is_clear(first, fov_rad, aspect, room, cast):
            continue
        directions = rays(first, fov_rad, aspect)
        hits = [cast(eye, way) for way in directions]
        distances = np.array([hit[0] for hit in hits])
        typical = float(np.median(distances))
        is_plain = len({name for _, name in hits}) < 4
        if not np.isfinite(distances).all() or typical < 0.3 or (is_plain and rng.random() < 0.85):
            continue
        poses = _path(rng, first, typical, frames)
        if all(_is_clear(pose, fov_rad, aspect, room, cast) for pose in poses[1:]):
            return View(poses, distances, directions, fov_rad)
    return None


def _path(rng: np.random.Generator, first: Array, distance: float, frames: int) -> Array:
    """Draw a path of some style; turns of 0.05–6° and moves of 0.1–12 % of the distance per frame."""
    style = rng.choice(len(STYLES), 1, p=_SHARES)
    turn = log_uniform(rng, 0.001, 0.1, (1,))
    move = distance * log_uniform(rng, 0.001, 0.12, (1,))
    steps = sample_trajectories(rng, style, frames, turn, move, np.array([distance]))
    return np.asarray(first @ steps[0])

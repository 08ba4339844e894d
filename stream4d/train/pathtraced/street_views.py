"""Where a street is filmed from: a moving car, the pavement, a tripod, the air."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array
from stream4d.train.cameras import (
    STYLES,
    log_uniform,
    sample_trajectories,
    smooth_noise,
)
from stream4d.train.pathtraced.footprints import Footprint
from stream4d.train.pathtraced.road import SIDES, Lane, Road
from stream4d.train.pathtraced.room_views import Cast, look, rays
from stream4d.train.pathtraced.traffic import SPEED_M, Ego, lane_path

KINDS = ("dash", "pavement", "tripod", "drone")
_SHARES = (0.56, 0.27, 0.04, 0.13)
_LOOKS = ("ahead", "behind", "aside")
_LOOK_SHARES = (0.84, 0.07, 0.09)
_NEAREST_M = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class StreetView:
    """A camera path along a street."""

    kind: str
    world_from_cam: Array
    """(T, 4, 4), OpenCV axes."""
    fov_rad: float
    """Horizontal field of view."""
    ego: Ego


def draw_view(rng: np.random.Generator, road: Road, frames: int) -> StreetView:
    """Draw a camera and its path, whatever it may see."""
    kind = str(rng.choice(KINDS, p=_SHARES))
    if kind == "dash":
        return _dash(rng, road, frames)
    return _beside(rng, road, frames, kind)


def _dash(rng: np.random.Generator, road: Road, frames: int) -> StreetView:
    """Drive along a lane."""
    lane = road.lanes[int(rng.integers(len(road.lanes)))]
    speed = float(log_uniform(rng, *SPEED_M, (1,))[0])
    speed = min(speed, road.fastest)
    backwards = rng.random() < 0.06
    # Most of the road lies before the camera.
    s = -lane.way * road.reach * float(rng.uniform(-0.35, 0.75))
    drift = float(rng.normal(0, 0.02) * speed)
    moved = -speed if backwards else speed
    near = Lane(lane.d + float(rng.normal(0, 0.2)), lane.way)
    places, headings = lane_path(road, near, s, moved, frames, drift)
    way = str(rng.choice(_LOOKS, p=_LOOK_SHARES))
    yaw = float(rng.normal(0, 0.05))
    if way == "behind":
        yaw += np.pi
    elif way == "aside":
        yaw += float(rng.choice([-1, 1]) * rng.uniform(0.3, 1.7))
    pitch = float(rng.normal(-0.06, 0.06))
    roll = float(rng.normal(0, 0.015))
    height = float(rng.uniform(1.2, 2.2))
    shake = smooth_noise(rng, (1, frames, 4), 0.4)[0] * log_uniform(rng, 0.0003, 0.008, (1,))
    poses = np.empty((frames, 4, 4))
    for t in range(frames):
        ahead = headings[t] + yaw
        target = np.array([np.cos(ahead), np.sin(ahead), np.tan(pitch + shake[t, 0])])
        eye = np.array([*places[t], height + 2 * shake[t, 3]])
        poses[t] = look(eye, eye + target, roll + shake[t, 1])
    car = [
        Footprint(float(place[0]), float(place[1]), float(heading) + np.pi / 2, 1.9, 4.4)
        for place, heading in zip(places, headings, strict=True)
    ]
    ego = Ego(places, float(headings[0]) + yaw, tuple(car), lane, speed)
    return StreetView("dash", poses, float(np.radians(rng.uniform(30, 90))), ego)


def _beside(rng: np.random.Generator, road: Road, frames: int, kind: str) -> StreetView:
    """Stand on the pavement, or fly over the road."""
    side = int(rng.choice(SIDES))
    if road.is_inside(side) and rng.random() < 0.8:
        side = -side
    s = float(rng.uniform(-0.6, 0.6) * road.reach)
    d = side * (road.kerb_at(side) + float(rng.uniform(0.3, max(road.pavement[max(side, 0)], 1.5))))
    height = float(rng.uniform(1.2, 1.9)) + road.kerb
    pitch = float(rng.normal(-0.05, 0.07))
    if kind == "drone":
        d = float(rng.uniform(-1.3, 1.3) * road.half_width)
        height = float(log_uniform(rng, 2.5, 14, (1,))[0])
        pitch = -float(rng.uniform(0.1, 1.0))
    along = float(rng.choice([0, np.pi]))
    yaw = float(road.heading(s)) + along
    if kind != "drone" or rng.random() < 0.3:
        # From along the road to straight across it.
        inwards = -side * (1 if along == 0 else -1)
        yaw += inwards * float(rng.uniform(-0.1, 1.6))
    eye = np.array([*road.at(s, d), height])
    target = eye + np.array([np.cos(yaw), np.sin(yaw), np.tan(pitch)])
    first = look(eye, target, float(rng.normal(0, 0.03)))
    style = {
        "tripod": ("static",),
        "drone": ("forward", "forward", "lateral", "drone", "orbit", "rotation"),
        "pavement": ("handheld", "handheld", "rotation", "forward", "lateral"),
    }[kind]
    chosen = str(rng.choice(style))
    turn = log_uniform(rng, 0.001, 0.07, (1,))
    move = (
        log_uniform(rng, 0.03, 1.0, (1,))
        if kind == "drone"
        else log_uniform(rng, 0.003, 0.12, (1,))
    )
    steps = sample_trajectories(
        rng, np.array([STYLES.index(chosen)]), frames, turn, move, np.array([12.0])
    )[0]
    poses = np.asarray(first @ steps)
    places = poses[:, :2, 3]
    grounds = [Footprint(float(x), float(y), yaw, 0.8, 0.8) for x, y in places]
    ego = Ego(places, yaw, tuple(grounds) if height < 4 else ())
    return StreetView(kind, poses, float(np.radians(rng.uniform(30, 90))), ego)


def follow(view: StreetView, path: Array, height: float, rng: np.random.Generator) -> StreetView:
    """Turn the camera after something that moves along ``path`` (T, 4, 4), not quite exactly."""
    poses = view.world_from_cam.copy()
    aim = rng.normal(0, 0.06, 3) * [1, 1, 0.5]
    for t, pose in enumerate(poses):
        target = path[t, :3, 3] + [0, 0, height]
        away = float(np.linalg.norm(target - pose[:3, 3]))
        target = target + away * (aim + rng.normal(0, 0.004, 3))
        poses[t] = look(pose[:3, 3].copy(), target, 0.0)
    return StreetView(view.kind, poses, view.fov_rad, view.ego)


def is_good(view: StreetView, aspect: float, cast: Cast, sky: str) -> bool:
    """Return whether nothing touches the lens, and the camera sees several things besides the sky."""
    for pose in view.world_from_cam:
        eye = pose[:3, 3]
        if eye[2] < 0.5:
            return False
        hits = [cast(eye, way) for way in rays(pose, view.fov_rad, aspect)[::2]]
        if min(distance for distance, _ in hits) < _NEAREST_M:
            return False
        around = np.concatenate([np.eye(3), -np.eye(3)])
        if min(cast(eye, way)[0] for way in around) < 0.7 * _NEAREST_M:
            return False
    names = [cast(eye, way)[1] for way in rays(pose, view.fov_rad, aspect)]
    return len(set(names)) >= 4 and names.count(sky) < 0.7 * len(names)


def seen_share(
    pose: Array,  # (4, 4) world_from_cam
    fov_rad: float,
    aspect: float,
    mover: Array,  # (4, 4) world_from_piece
    size: tuple[float, float, float],
    cast: Cast,
) -> tuple[float, float]:
    """Return which share of a thing is seen, and its share of the image, both roughly."""
    spots = np.stack(np.meshgrid([-0.4, 0, 0.4], [-0.4, 0, 0.4], [0.15, 0.5, 0.9]), -1)
    points = spots.reshape(-1, 3) * size @ mover[:3, :3].T + mover[:3, 3]
    in_cam = (points - pose[:3, 3]) @ pose[:3, :3]
    half = np.tan(fov_rad / 2)
    z = np.maximum(in_cam[:, 2], 1e-6)
    x, y = in_cam[:, 0] / z / half, in_cam[:, 1] / z / half * aspect
    inside = (in_cam[:, 2] > 0.2) & (np.abs(x) < 1) & (np.abs(y) < 1)
    if not inside.any():
        return 0.0, 0.0
    ways = points[inside] - pose[:3, 3]
    away = np.linalg.norm(ways, axis=1)
    open_to = [
        cast(pose[:3, 3], way / far)[0] > far - 0.1 for way, far in zip(ways, away, strict=True)
    ]
    low = np.clip([x[inside].min(), y[inside].min()], -1, 1)
    high = np.clip([x[inside].max(), y[inside].max()], -1, 1)
    return sum(open_to) / len(points), float(np.prod(high - low)) / 4

"""What moves on a street: vehicles on their lanes, across and around, and people on foot. Metres, radians, frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array
from stream4d.train.cameras import log_uniform
from stream4d.train.pathtraced.footprints import Footprint, share_ground
from stream4d.train.pathtraced.furniture import Piece
from stream4d.train.pathtraced.road import SIDES, Lane, Road
from stream4d.train.pathtraced.street_parts import Street, street_role

KINDS = ("along", "oncoming", "crossing", "turning", "walking", "stepping")
_SHARES = (0.4, 0.22, 0.11, 0.07, 0.12, 0.08)
SPEED_M = (0.1, 2.5)
"""Slowest and fastest that is driven, in metres a frame."""
_WALK_M = (0.02, 0.12)


@dataclass(frozen=True, slots=True, eq=False)
class Ego:
    """The camera, as far as traffic minds it."""

    places: Array
    """(T, 2) on the ground."""
    heading: float
    """Where it looks at first, about z from +x."""
    grounds: tuple[Footprint, ...]
    """What it takes of the ground in every frame; empty where it flies."""
    lane: Lane | None = None
    """The lane it drives on."""
    speed: float = 0.0
    """Metres a frame along the lane."""


@dataclass(frozen=True, slots=True, eq=False)
class Mover:
    """A piece on its way."""

    kind: str
    piece: Piece
    path: Array
    """(T, 4, 4) world_from_piece; its front looks along -y of the piece."""

    @property
    def grounds(self) -> tuple[Footprint, ...]:
        """What it takes of the ground in every frame."""
        return tuple(
            Footprint(
                float(pose[0, 3]),
                float(pose[1, 3]),
                float(np.arctan2(pose[1, 0], pose[0, 0])),
                *self.piece.size[:2],
            )
            for pose in self.path
        )


def upright(
    places: Array, headings: Array, base: float = 0.0
) -> Array:  # (T, 2), (T,) -> (T, 4, 4)
    """Return the poses of a piece whose front looks along ``headings``; unturned it looks along -y."""
    yaw = headings + np.pi / 2
    poses = np.tile(np.eye(4), (len(places), 1, 1))
    poses[:, 0, 0] = poses[:, 1, 1] = np.cos(yaw)
    poses[:, 1, 0] = np.sin(yaw)
    poses[:, 0, 1] = -np.sin(yaw)
    poses[:, :2, 3] = places
    poses[:, 2, 3] = base
    return poses


def lane_path(
    road: Road, lane: Lane, s: float, speed: float, frames: int, drift: float = 0.0
) -> tuple[Array, Array]:  # (T, 2), (T,)
    """Return places and headings of who drives a lane from ``s`` on at ``speed`` and drifts to the left."""
    t = np.arange(frames)
    along = s + lane.way * speed * t / road.stretch(lane.d)
    places = road.at(along, lane.d + lane.way * drift * t)
    turn = 0.0 if lane.way > 0 else np.pi
    return places, road.heading(along) + turn + np.arctan2(drift, abs(speed) + 1e-9)


class Traffic:
    """Draws what moves around a camera; nobody drives into anybody, off the road or into what stands."""

    def __init__(
        self, rng: np.random.Generator, street: Street, catalogue: Sequence[Piece], ego: Ego
    ) -> None:
        self._rng = rng
        self._street = street
        self._ego = ego
        self._vehicles = [p for p in catalogue if street_role(p) == "vehicle"]
        self._people = [p for p in catalogue if street_role(p) == "person"]
        self._frames = len(ego.places)

    def draw(self, others: Sequence[Mover]) -> Mover | None:
        """Draw one more mover; None where the one drawn would be in somebody's way."""
        rng = self._rng
        kind = str(rng.choice(KINDS, p=_SHARES))
        walks = kind in ("walking", "stepping")
        pieces = self._people if walks else self._vehicles
        if not pieces:
            return None
        piece = pieces[int(rng.integers(len(pieces)))]
        made = getattr(self, f"_{kind}")(piece)
        if made is None:
            return None
        mover = Mover(kind, piece, made)
        return mover if self._is_free(mover, others) else None

    def _is_free(self, mover: Mover, others: Sequence[Mover]) -> bool:
        walks = mover.kind in ("walking", "stepping")
        standing = [
            thing.ground
            for thing in self._street.things
            if np.hypot(thing.ground.x - mover.path[0, 0, 3], thing.ground.y - mover.path[0, 1, 3])
            < 40
        ]
        for t, ground in enumerate(mover.grounds):
            if not walks and not self._is_on_road(ground):
                return False
            near = [other.grounds[t] for other in others]
            near += [self._ego.grounds[t]] if self._ego.grounds else []
            wide = ground.grown(0.25)
            if any(share_ground(wide, other) for other in near):
                return False
            if t in (0, self._frames - 1) and any(share_ground(ground, s) for s in standing):
                return False
        return True

    def _is_on_road(self, ground: Footprint) -> bool:
        # On a bend the middles of the sides lie elsewhere than the corners.
        margin = 0.1 + 0.6 * (ground.depth > 7)
        return bool(self._street.road.is_drivable(ground.corners, margin).all())

    # --- kinds ------------------------------------------------------------------------------------------

    def _near(self, spread: float) -> float:
        """Draw where along the road somebody is whom the camera may see."""
        ego = self._ego
        s, d = (float(x) for x in self._street.road.locate(ego.places[0]))
        if ego.lane is not None and not self._street.road.is_closed:
            ahead = 1 if np.cos(ego.heading - self._street.road.heading(s)) > 0 else -1
            return s + ahead * float(self._rng.uniform(3, 1.6 * spread))
        if ego.lane is not None:
            return s + ego.lane.way * float(self._rng.uniform(3, 0.8 * self._street.road.reach))
        heading = ego.heading - float(self._street.road.heading(s))
        ahead = np.cos(heading) * abs(
            d
        )  # looked at across, things are as far along as the road is across
        return (
            s
            + float(ahead + np.cos(heading) * self._rng.uniform(0, spread))
            + float(self._rng.normal(0, 0.2 * spread))
        )

    def _speed(self) -> float:
        return float(log_uniform(self._rng, *SPEED_M, (1,))[0])

    def _along(self, piece: Piece) -> Array | None:
        """Drive the camera's way: before it, beside it, faster or slower; without one, any lane."""
        rng, ego, road = self._rng, self._ego, self._street.road
        if ego.lane is None:
            return self._on_lane(road.lanes[int(rng.integers(len(road.lanes)))], self._speed())
        lanes = [lane for lane in road.lanes if lane.way == ego.lane.way]
        lane = ego.lane if rng.random() < 0.65 else lanes[int(rng.integers(len(lanes)))]
        if len(lanes) == 1 and len(road.lanes) > 1 and rng.random() < 0.12:  # overtakes
            other = next(lane for lane in road.lanes if lane.way != ego.lane.way)
            lane = Lane(other.d, ego.lane.way)
        speed = max(ego.speed, 0.05)
        ratio = rng.uniform(0.9, 1.1) if rng.random() < 0.3 else rng.uniform(0.3, 1.8)
        return self._on_lane(lane, float(speed * ratio))

    def _oncoming(self, piece: Piece) -> Array | None:
        road, rng = self._street.road, self._rng
        way = self._ego.lane.way if self._ego.lane is not None else 0
        lanes = [lane for lane in road.lanes if lane.way != way]
        if not lanes:
            return None
        return self._on_lane(lanes[int(rng.integers(len(lanes)))], self._speed())

    def _on_lane(self, lane: Lane, speed: float) -> Array | None:
        road, rng = self._street.road, self._rng
        lane = Lane(lane.d + float(rng.normal(0, 0.15)), lane.way)
        drift = float(rng.normal(0, 0.04) * speed) if rng.random() < 0.3 else 0.0
        s = self._near(float(rng.choice([10.0, 18.0, 30.0])))
        speed = min(speed, SPEED_M[1] * 1.2, road.fastest)
        end = s + lane.way * speed * self._frames
        if not road.is_closed and max(abs(s), abs(end)) > road.reach:
            return None
        return upright(*lane_path(road, lane, s, speed, self._frames, drift))

    def _crossing(self, piece: Piece) -> Array | None:
        """Drive along the side road."""
        road, rng = self._street.road, self._rng
        side = road.side_road
        if side is None or road.junction is None:
            return None
        count = road.junction_lanes
        across = (int(rng.integers(count)) - (count - 1) / 2) * road.lane_width
        way = int(rng.choice(SIDES))
        along, out = side.axes[1], side.axes[0]
        middle = road.at(road.junction, 0.0)
        speed = self._speed() * 0.7
        start = float(rng.normal(0, 7)) - way * speed * self._frames / 2
        t = np.arange(self._frames)[:, None]
        places = middle + across * out + (start + way * speed * t) * along
        heading = float(np.arctan2(way * along[1], way * along[0]))
        return upright(places, np.full(self._frames, heading))

    def _turning(self, piece: Piece) -> Array | None:
        """Turn at the junction, or drive a circle on the square."""
        road, rng = self._street.road, self._rng
        if piece.size[1] > 7 or (road.junction is None and not road.is_square):
            return None
        s = self._near(12.0) if road.junction is None else road.junction
        middle = road.at(s + rng.normal(0, 1.5), rng.normal(0, road.half_width / 2))
        heading = float(rng.uniform(0, 2 * np.pi))
        radius = float(rng.uniform(5.5, 12)) * rng.choice([-1, 1])
        speed = float(log_uniform(rng, 0.08, 0.7, (1,))[0])
        t = np.arange(self._frames)
        headings = heading + speed / radius * t
        arc = np.stack([np.sin(headings), -np.cos(headings)], -1) * radius
        return upright(middle + arc - arc[0], headings)

    def _walking(self, piece: Piece) -> Array | None:
        """Walk along the road, on the pavement where there is one."""
        road, rng = self._street.road, self._rng
        side, way = (int(x) for x in rng.choice(SIDES, 2))
        if road.is_inside(side):
            side = -side
        wide = max(road.pavement[max(side, 0)], 1.0)
        d = side * (road.kerb_at(side) + 0.4 + float(rng.uniform(0, max(wide - 0.8, 0.1))))
        speed = float(log_uniform(rng, *_WALK_M, (1,))[0])
        lane = Lane(d, way)
        return upright(
            *lane_path(road, lane, self._near(12.0), speed, self._frames), road.base(side)
        )

    def _stepping(self, piece: Piece) -> Array | None:
        """Cross the road on foot."""
        road, rng = self._street.road, self._rng
        s, way = self._near(14.0), int(rng.choice(SIDES))
        speed = float(log_uniform(rng, *_WALK_M, (1,))[0])
        d = float(rng.uniform(-1, 1)) * (road.half_width - 0.5 - speed * self._frames)
        t = np.arange(self._frames)
        heading = float(road.heading(s)) + way * np.pi / 2
        return upright(road.at(s, d + way * speed * t), np.full(self._frames, heading))

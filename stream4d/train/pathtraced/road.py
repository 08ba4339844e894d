"""A road of constant curvature: its lanes, what lies beside them, and how to get from one to the other. Metres, z up.

Places are given along and across the road: ``s`` along the middle line from the origin, where the road heads
towards +x, and ``d`` to its left. A road with a junction is crossed at a right angle by a straight side road.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array
from stream4d.train.pathtraced.footprints import Footprint

SIDES = (-1, 1)
"""Right and left of the road."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane, of the road's ``lane_width``."""

    d: float
    """Where its middle lies, to the left of the road's."""
    way: int
    """1 where it is driven along s, -1 against it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """What lies across the road, from the inside out: lanes, parked cars, pavement, then yards and houses."""

    curvature: float
    """1 / radius, positive to the left."""
    reach: float
    """The road runs from -reach to reach along s; a closed one meets itself there."""
    is_closed: bool
    lanes: tuple[Lane, ...]
    lane_width: float
    parking: tuple[float, float]
    """Width of the strip for parked cars at the right and at the left."""
    pavement: tuple[float, float]
    """Width of the pavements; 0 for none."""
    kerb: float
    """Height of the pavements."""
    junction: float | None = None
    """Where along s a side road crosses."""
    junction_lanes: int = 2
    is_square: bool = False
    """Whether all around is paved, too: a car park or a square."""

    @property
    def half_width(self) -> float:
        """From the middle to the edge of the outermost lane; lanes lie evenly about the middle."""
        return max(abs(lane.d) for lane in self.lanes) + self.lane_width / 2

    @property
    def side_half_width(self) -> float:
        """Half the width of the side road."""
        return self.junction_lanes * self.lane_width / 2

    @property
    def fastest(self) -> float:
        """Metres a frame beyond which its bends would be taken at more than 6° a frame."""
        return 0.1 / max(abs(self.curvature), 1e-9)

    def is_inside(self, d: float) -> bool:
        """Return whether what lies to that side of a closed road is its island."""
        return self.is_closed and d * self.curvature > 0

    def base(self, side: int) -> float:
        """Height of what lies beside the lanes at a side."""
        return self.kerb if self.pavement[max(side, 0)] else 0.0

    def kerb_at(self, side: int) -> float:
        """Distance of the kerb from the middle line at a side."""
        return self.half_width + self.parking[max(side, 0)]

    def pavement_end(self, side: int) -> float:
        """Distance from the middle line to what lies beyond the pavement."""
        return self.kerb_at(side) + self.pavement[max(side, 0)]

    def heading(self, s: float | Array) -> Array:
        """Direction of the road at ``s`` in radians from +x."""
        return np.asarray(self.curvature * np.asarray(s, float))

    def at(self, s: float | Array, d: float | Array) -> Array:  # (..., 2)
        """Return the place beside the road's middle line."""
        s, d = np.broadcast_arrays(np.asarray(s, float), np.asarray(d, float))
        k = self.curvature
        if abs(k) < 1e-9:
            return np.stack([s, d], -1)
        turn, reach = k * s, 1 / k - d
        return np.stack([np.sin(turn) * reach, 1 / k - np.cos(turn) * reach], -1)

    def ground(self, s: float, d: float, yaw: float, width: float, depth: float) -> Footprint:
        """Return the footprint of something that stands there."""
        x, y = self.at(s, d)
        return Footprint(float(x), float(y), yaw, width, depth)

    def locate(self, place: Array) -> tuple[Array, Array]:  # (..., 2) -> s, d
        """Return where along and across the road a place lies."""
        x, y = place[..., 0], place[..., 1]
        k = self.curvature
        if abs(k) < 1e-9:
            return x, y
        up = 1 / k - y
        turn = np.arctan2(np.sign(k) * x, np.sign(k) * up)
        return turn / k, 1 / k - np.sign(k) * np.hypot(x, up)

    def fits(self, d: float) -> bool:
        """Return whether the road is straight enough for something to stand that far to its left."""
        return bool(self.curvature * d < 0.75)

    def stretch(self, d: float) -> float:
        """Metres along a line beside the road for each metre along its middle."""
        return 1 - self.curvature * d

    @property
    def side_road(self) -> Footprint | None:
        """The ground of the side road: across on straight roads, outwards from a circle."""
        if self.junction is None:
            return None
        outwards = self.is_closed or abs(self.curvature) > 1e-3
        long = 60.0 if outwards else 120.0
        d = -np.sign(self.curvature) * (long / 2) if outwards else 0.0
        x, y = self.at(self.junction, d)
        return Footprint(
            float(x), float(y), float(self.heading(self.junction)), 2 * self.side_half_width, long
        )

    def is_drivable(self, places: Array, margin: float = 0.0) -> Array:  # (N, 2) -> (N,) bool
        """Return whether places lie on a lane of this road or of the side road."""
        s, d = self.locate(places)
        edge = self.half_width + margin
        on = (np.abs(d) <= edge) & ((np.abs(s) <= self.reach) | self.is_closed)
        side = self.side_road
        if side is not None:
            local = np.abs((places - [side.x, side.y]) @ side.axes.T)
            on |= (local[..., 0] <= side.width / 2 + margin) & (local[..., 1] <= side.depth / 2)
        return np.asarray(on)


def draw_road(rng: np.random.Generator, kind: str) -> Road:
    """Draw a road of a town, a suburb, the country, or one around a circle or a square."""
    lane_width = float(rng.uniform(2.9, 3.6))
    is_closed = kind in ("circle", "square")
    if is_closed:
        radius = float(rng.uniform(8, 26))
        count = 1 if rng.random() < 0.6 else 2
        hand = int(rng.choice([-1, 1]))
        lanes = tuple(Lane((i - (count - 1) / 2) * lane_width, 1) for i in range(count))
        kerb = 0.0 if kind == "square" else float(rng.uniform(0.08, 0.16))
        return Road(
            curvature=hand / radius,
            reach=np.pi * radius,
            is_closed=True,
            lanes=lanes,
            lane_width=lane_width,
            parking=(0.0, 0.0),
            pavement=(0.0, 0.0) if kind == "square" else (float(rng.uniform(1.5, 4)),) * 2,
            kerb=kerb,
            junction=float(rng.uniform(-1, 1) * np.pi * radius * 0.9),
            is_square=kind == "square",
        )
    curved = rng.random() < 0.45
    radius = float(np.exp(rng.uniform(np.log(28), np.log(400)))) * rng.choice([-1, 1])
    curvature = 1 / radius if curved else 0.0
    # 1.2 rad each way at most: beyond, a bend would come back to where it began.
    reach = min(130.0, 1.2 / abs(curvature)) if curved else 130.0
    is_rural = kind == "country"
    is_walked = rng.random() < (0.2 if is_rural else 0.95)
    shares = [0.0, 0.0]
    for i in range(2):
        if not is_rural and rng.random() < 0.6:
            shares[i] = float(rng.uniform(2.1, 2.5))
    pavements = rng.uniform(1.4, 4.5, 2) * is_walked
    crossing = rng.random() < (0.2 if is_rural else 0.5)
    return Road(
        curvature=curvature,
        reach=reach,
        is_closed=False,
        lanes=_lanes(rng, lane_width),
        lane_width=lane_width,
        parking=(shares[0], shares[1]),
        pavement=(float(pavements[0]), float(pavements[1])),
        kerb=float(rng.uniform(0.07, 0.17)) if is_walked else 0.0,
        junction=float(rng.uniform(-0.3, 0.4) * reach) if crossing else None,
        junction_lanes=int(rng.integers(1, 4)),
    )


def _lanes(rng: np.random.Generator, width: float) -> tuple[Lane, ...]:
    """Draw lanes both ways, or one way; people drive on the right, or on the left."""
    hand = 1 if rng.random() < 0.75 else -1
    each = 1 if rng.random() < 0.65 else 2
    if rng.random() < 0.15:  # one way
        return tuple(Lane((i - (each - 1) / 2) * width, 1) for i in range(each))
    return tuple(
        Lane(side * (i + 0.5) * width, -side * hand) for side in SIDES for i in range(each)
    )

"""Where things stand: a room, and furniture in it that does not overlap. Metres, z up, floor at z = 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array
from stream4d.train.pathtraced.furniture import Piece


@dataclass(frozen=True, slots=True)
class Standing:
    """A piece in its place."""

    piece: Piece
    position: tuple[float, float, float]
    """Middle of its lower face."""
    yaw: float
    """Turn about z in radians."""
    scale: float

    @property
    def size(self) -> tuple[float, float, float]:
        """Width, depth, height in metres as it stands."""
        w, d, h = self.piece.size
        return w * self.scale, d * self.scale, h * self.scale

    @property
    def reach(self) -> tuple[float, float]:
        """Half the extent of its footprint along x and y."""
        return footprint(self.size[0], self.size[1], self.yaw)


@dataclass(frozen=True, slots=True)
class Room:
    """A box from (0, 0, 0) to ``size``, and what stands in it."""

    size: tuple[float, float, float]
    furniture: tuple[Standing, ...]


def footprint(width: float, depth: float, yaw: float) -> tuple[float, float]:
    """Return half the extents along x and y of a turned rectangle."""
    c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
    return float(c * width + s * depth) / 2, float(s * width + c * depth) / 2


class Planner:
    """Fills one room, piece by piece; what does not fit is left out."""

    def __init__(self, rng: np.random.Generator, catalogue: list[Piece]) -> None:
        self._rng = rng
        self._by_role: dict[str, list[Piece]] = {}
        for piece in catalogue:
            self._by_role.setdefault(piece.role, []).append(piece)
        width, depth = np.exp(rng.uniform(np.log(2.4), np.log(7.5), 2))
        self.size = (float(width), float(depth), float(rng.uniform(2.3, 3.2)))
        self._standing: list[Standing] = []

    def fill(self) -> Room:
        """Place doors, tables with seats, wall furniture, loose pieces and hangings."""
        rng = self._rng
        area = self.size[0] * self.size[1]
        crowd = rng.uniform(0.3, 1.2) * area  # pieces aimed at
        for _ in range(int(rng.integers(1, 4))):
            self._at_wall("door")
        for _ in range(max(1, int(rng.poisson(0.2 * crowd)))):
            self._table_with_seats()
        for _ in range(int(0.5 * crowd) + 2):
            self._at_wall("floor")
        for _ in range(int(rng.poisson(0.3 * crowd))):
            self._loose(
                str(rng.choice(["floor", "seat", "small", "figure"], p=[0.45, 0.3, 0.2, 0.05]))
            )
        for _ in range(int(rng.integers(2, 9))):
            self._at_wall("hanging")
        return Room(self.size, tuple(self._standing))

    def _draw(self, role: str) -> tuple[Piece, float] | None:
        pieces = self._by_role.get(role)
        if not pieces:
            return None
        piece = pieces[int(self._rng.integers(len(pieces)))]
        return piece, float(np.exp(self._rng.uniform(-0.15, 0.15)))

    def _at_wall(self, role: str) -> None:
        """Put a piece with its back to a wall."""
        drawn = self._draw(role)
        if drawn is None:
            return
        piece, scale = drawn
        w, d = piece.size[0] * scale, piece.size[1] * scale
        for _ in range(8):
            side = int(self._rng.integers(4))
            length = self.size[0] if side % 2 == 0 else self.size[1]
            if w > length - 0.1:
                continue
            along = float(self._rng.uniform(w / 2, length - w / 2))
            gap = d / 2 + (
                0.01 if role in ("door", "hanging") else float(self._rng.uniform(0.01, 0.08))
            )
            # Unturned, the back looks along +y: against the wall at the far end of y.
            spot = {
                0: (along, self.size[1] - gap),
                1: (gap, along),
                2: (along, gap),
                3: (self.size[0] - gap, along),
            }[side]
            if self._put(Standing(piece, (*spot, piece.elevation), side * np.pi / 2, scale)):
                return

    def _table_with_seats(self) -> None:
        rng = self._rng
        before = len(self._standing)
        if rng.random() < 0.5:
            self._at_wall("table")
        else:
            self._loose("table")
        if len(self._standing) == before:
            return
        table = self._standing[-1]
        for _ in range(int(rng.integers(0, 5))):
            seat = self._draw("seat")
            if seat is None:
                return
            side = int(rng.integers(4))
            across, along = (table.size[1], table.size[0]) if side % 2 == 0 else table.size[:2]
            out = across / 2 + seat[0].size[1] * float(rng.uniform(0.1, 0.6))
            beside = float(rng.uniform(-0.35, 0.35)) * along
            yaw = table.yaw + side * np.pi / 2
            # Seen from the table the seat stands at +y and looks back at -y, like its own front.
            x = table.position[0] + beside * np.cos(yaw) - out * np.sin(yaw)
            y = table.position[1] + beside * np.sin(yaw) + out * np.cos(yaw)
            turn = yaw + float(rng.normal(0, 0.25))
            self._put(Standing(seat[0], (float(x), float(y), 0.0), turn, seat[1]), under=table)

    def _loose(self, role: str) -> None:
        """Put a piece anywhere, turned anyhow."""
        drawn = self._draw(role)
        if drawn is None:
            return
        for _ in range(8):
            spot = self._rng.uniform((0, 0), self.size[:2])
            yaw = float(self._rng.uniform(0, 2 * np.pi))
            if self._put(Standing(drawn[0], (float(spot[0]), float(spot[1]), 0.0), yaw, drawn[1])):
                return

    def _put(self, new: Standing, under: Standing | None = None) -> bool:
        """Keep ``new`` if it lies in the room and overlaps nothing but ``under``."""
        if not self._is_inside(new) or any(
            other is not under and overlap(new, other) for other in self._standing
        ):
            return False
        self._standing.append(new)
        return True

    def _is_inside(self, new: Standing) -> bool:
        low, high = bounds(new)
        return bool((low > -1e-6).all() and (high < np.array(self.size) + 1e-6).all())


def bounds(standing: Standing) -> tuple[Array, Array]:
    """Return the lowest and the highest corner of the upright box around a piece."""
    x, y, z = standing.position
    dx, dy = standing.reach
    return np.array([x - dx, y - dy, z]), np.array([x + dx, y + dy, z + standing.size[2]])


def overlap(a: Standing, b: Standing) -> bool:
    """Return whether the upright boxes around two pieces share space."""
    (low_a, high_a), (low_b, high_b) = bounds(a), bounds(b)
    return bool((low_a < high_b).all() and (low_b < high_a).all())

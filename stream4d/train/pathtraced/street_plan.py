"""What stands along a road: houses, parked cars, trees, lamps, people; nothing shares ground, the lanes are free."""

from __future__ import annotations

import numpy as np

from stream4d.train.pathtraced.footprints import share_ground
from stream4d.train.pathtraced.furniture import Piece
from stream4d.train.pathtraced.road import SIDES, draw_road
from stream4d.train.pathtraced.street_parts import Street, Thing, street_role

KINDS = ("town", "suburb", "country", "circle", "square")
_SHARES = (0.36, 0.24, 0.16, 0.14, 0.1)


class StreetPlanner:
    """Lines one road, thing by thing; what does not fit is left out."""

    def __init__(self, rng: np.random.Generator, catalogue: list[Piece]) -> None:
        self._rng = rng
        self._by_role: dict[str, list[Piece]] = {}
        for piece in catalogue:
            self._by_role.setdefault(street_role(piece), []).append(piece)
        self._kind = str(rng.choice(KINDS, p=_SHARES))
        self._road = draw_road(rng, self._kind)
        self._things: list[Thing] = []

    def fill(self) -> Street:
        """Park cars, build houses, plant, light, and let people stand about."""
        rng = self._rng
        for side in SIDES:
            self._park(side)
            self._houses(side)
            self._lights(side)
            self._trees(side)
            self._yards(side)
            self._clutter(side)
        if self._road.is_closed:
            self._island()
        if self._kind == "square":
            self._car_park()
        for _ in range(int(rng.poisson(6 if self._kind in ("town", "circle", "square") else 2))):
            self._person()
        return Street(self._kind, self._road, tuple(self._things))

    # --- along the road ---------------------------------------------------------------------------------

    def _park(self, side: int) -> None:
        road, rng = self._road, self._rng
        strip = road.parking[max(side, 0)]
        if not strip:
            return
        crowd = rng.uniform(0.3, 1.0)
        way = next((lane.way for lane in road.lanes if lane.d * side > 0), 1)
        s = -road.reach + rng.uniform(0, 6)
        while s < road.reach:
            piece = self._draw("vehicle")
            if piece is None:
                return
            s += piece.size[1] + float(rng.uniform(0.5, 1.5))
            if rng.random() > crowd or piece.size[0] > strip + 0.1 or piece.size[1] > 8:
                continue
            d = side * (road.half_width + strip / 2 + rng.uniform(0, 0.1))
            ahead = way if rng.random() < 0.95 else -way
            yaw = float(road.heading(s)) + ahead * np.pi / 2 + rng.normal(0, 0.015)
            self._put_piece(piece, s, d, yaw)

    def _houses(self, side: int) -> None:
        road, rng = self._road, self._rng
        if road.is_inside(side):
            return
        density = {"town": 0.97, "suburb": 0.75, "country": 0.12, "circle": 0.8, "square": 0.85}
        is_low = self._kind in ("suburb", "country")
        setback = float(rng.uniform(3, 9) if is_low else rng.uniform(0.1, 2.0))
        if self._kind == "square":
            setback += float(rng.uniform(8, 20))
        storeys = float(rng.uniform(2, 7))
        s = -road.reach + float(rng.uniform(-5, 5))
        while s < road.reach:
            width = float(rng.uniform(6, 13) if is_low else rng.uniform(7, 24))
            depth = float(rng.uniform(7, 11))
            height = rng.uniform(3, 7) if is_low else 3.1 * max(1.0, storeys + rng.normal(0, 1)) + 1
            gap = 0.02
            if is_low or rng.random() < 0.15:
                gap = float(rng.uniform(1.5, 12))
            d = side * (road.pavement_end(side) + setback + depth / 2)
            if rng.random() < 0.3:
                d += side * float(rng.uniform(0, 3))
            # The front is the narrower line on the outside of a bend, the back on its inside.
            narrow = min(road.stretch(d - side * depth / 2), road.stretch(d + side * depth / 2))
            if narrow < 0.25:
                return
            step = (width + gap) / narrow
            if rng.random() < density[self._kind]:
                middle = s + step / 2
                yaw = float(road.heading(middle)) + (np.pi if side < 0 else 0.0)
                self._put("house", middle, d, yaw, (width, depth, float(height)))
            s += step

    def _lights(self, side: int) -> None:
        road, rng = self._road, self._rng
        if rng.random() < (0.7 if self._kind == "country" else 0.3) or road.is_inside(side):
            return
        piece = self._draw("lamp")
        spacing = float(rng.uniform(14, 35))
        scale = 1.0
        if piece is not None and piece.size[2] < 5:
            scale = float(rng.uniform(1.2, 1.9))
        d = side * (road.kerb_at(side) + 0.45)
        for s in np.arange(-road.reach + rng.uniform(0, spacing), road.reach, spacing):
            # A lamp's arm lies along y: over the road.
            yaw = float(road.heading(s)) + (0.0 if side > 0 else np.pi)
            if piece is None or rng.random() < 0.03:
                size = (0.16, 0.16, float(rng.uniform(4, 8)))
                self._put("pole", float(s), d, yaw, size, base=road.base(side))
            else:
                self._put_piece(piece, float(s), d, yaw, scale, base=road.base(side))

    def _trees(self, side: int) -> None:
        road, rng = self._road, self._rng
        if rng.random() < 0.35 or road.is_inside(side):
            return
        is_avenue = rng.random() < 0.6
        spacing = float(rng.uniform(6, 16))
        model = self._draw("tree") if rng.random() < 0.3 else None
        near = road.kerb_at(side) + 0.9
        far = road.pavement_end(side) + 8
        for s in np.arange(-road.reach + rng.uniform(0, spacing), road.reach, spacing):
            d = side * (near if is_avenue else float(rng.uniform(near, far)))
            s = float(s + (0 if is_avenue else rng.normal(0, spacing / 2)))
            base = road.base(side) if abs(d) < road.pavement_end(side) else 0.0
            yaw = float(rng.uniform(0, 6.28))
            if model is not None:
                self._put_piece(model, s, d, yaw, float(rng.uniform(0.7, 1.1)), base=base)
            else:
                self._put("tree", s, d, yaw, (0.6, 0.6, float(rng.uniform(4.5, 11))), base=base)

    def _yards(self, side: int) -> None:
        """Line the ground behind the pavement with hedges, walls and bushes."""
        road, rng = self._road, self._rng
        if self._kind not in ("suburb", "country") or rng.random() < 0.3:
            return
        d = side * (road.pavement_end(side) + float(rng.uniform(0.6, 1.5)))
        style = str(rng.choice(["wall", "green", "loose"]))
        hedge = self._draw("green")
        height = float(rng.uniform(0.5, 1.9))
        s = -road.reach
        while s < road.reach:
            length = float(rng.uniform(2.0, 8.0)) if style == "wall" else 1.5
            yaw = float(road.heading(s + length / 2)) + (np.pi if side < 0 else 0.0)
            if rng.random() < 0.8:
                if style == "wall":
                    self._put("wall", s + length / 2, d, yaw, (length, 0.2, height))
                elif hedge is not None:
                    away = 0.0 if style == "green" else float(rng.uniform(0, 7))
                    self._put_piece(hedge, s + length / 2, d + side * away, yaw)
            s += length if style != "loose" else float(rng.uniform(3, 20))

    def _clutter(self, side: int) -> None:
        road, rng = self._road, self._rng
        for _ in range(int(rng.poisson(10 if self._kind != "country" else 3))):
            s = float(rng.uniform(-road.reach, road.reach))
            out = float(rng.choice([road.kerb_at(side) + 0.6, road.pavement_end(side) - 0.4]))
            d = side * max(out, road.kerb_at(side) + 0.5)
            yaw = float(road.heading(s)) + (0.0 if side > 0 else np.pi)
            if rng.random() < 0.45:
                size = (float(rng.uniform(0.5, 1.2)), 0.1, float(rng.uniform(2.2, 3.2)))
                turn = float(rng.choice([-1, 1])) * np.pi / 2
                self._put("sign", s, d, yaw + turn, size, base=road.base(side))
                continue
            piece = self._draw("hall" if rng.random() < 0.1 else "roadside")
            if piece is not None:
                self._put_piece(piece, s, d, yaw, base=road.base(side))

    # --- places -----------------------------------------------------------------------------------------

    def _island(self) -> None:
        """Put something in the middle of the circle."""
        road, rng = self._road, self._rng
        inner = 1 / abs(road.curvature) - road.half_width - 0.5
        base = road.kerb
        side = int(np.sign(road.curvature))
        for _ in range(int(rng.integers(1, 12))):
            s = float(rng.uniform(-road.reach, road.reach))
            d = side * (1 / abs(road.curvature) - inner * float(rng.random()))
            yaw = float(rng.uniform(0, 6.28))
            if rng.random() < 0.5:
                self._put("tree", s, d, yaw, (0.6, 0.6, float(rng.uniform(3.5, 9))), base=base)
                continue
            piece = self._draw(str(rng.choice(["green", "roadside", "lamp", "tree"])))
            if piece is not None:
                self._put_piece(piece, s, d, yaw, base=base)

    def _car_park(self) -> None:
        """Put rows of cars around the square."""
        road, rng = self._road, self._rng
        side = -int(np.sign(road.curvature))
        for row in range(int(rng.integers(1, 3))):
            d = side * (road.half_width + 3.5 + 9 * row)
            tilt = float(rng.choice([0, 0.5, -0.5]))
            pitch = float(rng.uniform(2.6, 3.2)) / road.stretch(d) / np.cos(tilt)
            for s in np.arange(-road.reach, road.reach - pitch, pitch):
                piece = self._draw("vehicle")
                if piece is not None and rng.random() < 0.6 and piece.size[1] < 6.5:
                    turn = np.pi if rng.random() < 0.4 else 0.0
                    yaw = float(road.heading(s)) + turn + tilt
                    self._put_piece(piece, float(s), d, yaw)

    def _person(self) -> None:
        road, rng = self._road, self._rng
        piece = self._draw("person")
        side = int(rng.choice(SIDES))
        wide = max(road.pavement[max(side, 0)], 1.2)
        if piece is None or road.is_inside(side):
            return
        s = float(rng.uniform(-road.reach, road.reach))
        d = side * (road.kerb_at(side) + 0.4 + float(rng.uniform(0, wide - 0.6)))
        self._put_piece(piece, s, d, float(rng.uniform(0, 6.28)), base=road.base(side))

    # --- putting ----------------------------------------------------------------------------------------

    def _draw(self, role: str) -> Piece | None:
        pieces = self._by_role.get(role)
        return pieces[int(self._rng.integers(len(pieces)))] if pieces else None

    def _put_piece(
        self, piece: Piece, s: float, d: float, yaw: float, scale: float = 1.0, base: float = 0.0
    ) -> None:
        w, depth, h = (x * scale for x in piece.size)
        # Of lamps and palms only the foot stands on the ground.
        slim = street_role(piece) in ("lamp", "tree") and h > 2
        ground = self._road.ground(
            s,
            d,
            yaw,
            min(w, 0.6) if slim else w,
            min(depth, 0.6) if slim else depth,
        )
        self._keep(Thing("piece", ground, h, base, piece, scale), d)

    def _put(
        self,
        kind: str,
        s: float,
        d: float,
        yaw: float,
        size: tuple[float, float, float],
        base: float = 0.0,
    ) -> None:
        ground = self._road.ground(s, d, yaw, size[0], size[1])
        self._keep(Thing(kind, ground, size[2], base), d)

    def _keep(self, thing: Thing, d: float) -> None:
        """Keep what leaves the lanes and the side road free and shares no ground."""
        road, ground = self._road, thing.ground
        if not road.is_inside(d) and not road.fits(d):
            return
        across = np.linspace(0, 1, 5)[:, None]
        corners = ground.corners
        rim = np.concatenate(
            [a + across * (b - a) for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)]
        )
        if road.is_drivable(rim, margin=0.05).any():
            return
        side = road.side_road
        if side is not None and share_ground(ground, side):
            return
        if any(share_ground(ground, other.ground) for other in self._things):
            return
        self._things.append(thing)

"""The ground of a street: fields or paving, asphalt with its marks, kerbs, pavements, the island of a circle."""

from __future__ import annotations

from typing import Any

import numpy as np
from mathutils import Matrix

from stream4d.packets import Array
from stream4d.train.pathtraced import street_shapes, street_surfaces, surfaces
from stream4d.train.pathtraced.materials import Paintbox
from stream4d.train.pathtraced.road import SIDES
from stream4d.train.pathtraced.stage import Stage
from stream4d.train.pathtraced.street_parts import Street

_SIDE_Z, _MEND_Z, _MARK_Z = -0.006, 0.003, 0.006
"""Heights of what would else share a plane: the side road, mended places, road marks."""
_GROUND_Z = -0.03


class Roadway:
    """Lays one street's ground on a stage."""

    def __init__(self, stage: Stage, paint: Paintbox, street: Street) -> None:
        self._stage = stage
        self._paint = paint
        self._rng = stage.rng
        self._street = street
        self._road = street.road
        bent = abs(self._road.curvature)
        # A road that does not close goes on out of sight, as long as it does not come back.
        self._end = self._road.reach
        if not self._road.is_closed:
            self._end = min(280.0, 1.7 / bent) if bent else 280.0

    def build(self) -> None:
        """Lay it."""
        asphalt = self._surface((street_surfaces.asphalt,), (2, 9))
        self._ground(asphalt)
        road = self._road
        whole = (-self._end, self._end)
        self._lay("road", [(*whole, -road.kerb_at(-1), road.kerb_at(1))], 0.0, asphalt)
        side = road.side_road
        if side is not None:
            corners = side.corners[[0, 1, 3, 2]].reshape(2, 2, 2)
            level = np.full((2, 2, 1), _SIDE_Z)
            grid = np.concatenate([corners, level], -1)
            self._add("side road", street_shapes.sheet("side road", grid), asphalt)
        self._mend()
        self._marks()
        stone = self._surface((street_surfaces.paving, surfaces.plaster), (1, 3))
        paving = self._surface((street_surfaces.paving,), (1, 5))
        for at in SIDES:
            self._pavement(at, paving, stone)
        if road.is_closed and road.kerb:
            self._island(stone)

    def _surface(self, kinds: tuple[surfaces.Kind, ...], tile: tuple[float, float]) -> Any:
        side = float(np.exp(self._rng.uniform(*np.log(tile))))
        picture = self._paint.drawn(kinds)
        repeat = "REPEAT" if kinds == (street_surfaces.paving,) else "MIRROR"
        return self._paint.material(picture, mapped="World", tile=side, repeat=repeat)

    def _add(self, name: str, mesh: Any, material: Any) -> None:
        self._stage.dress(self._stage.add(name, mesh, Matrix()), material)

    def _lay(self, name: str, patches: Any, z: float, material: Any) -> None:
        """Lay patches (s, s, d, d) at a height."""
        flat: Array = np.array(patches, float).reshape(-1, 4)
        if len(flat):
            self._add(name, street_shapes.strips(name, self._road, flat, z), material)

    def _ground(self, asphalt: Any) -> None:
        kind = self._street.kind
        if kind == "square":
            material = asphalt if self._rng.random() < 0.5 else None
            material = material or self._surface((street_surfaces.paving,), (2, 8))
        elif kind in ("town", "circle") and self._rng.random() < 0.6:
            material = self._surface((street_surfaces.paving,), (1, 5))
        else:
            material = self._surface(street_surfaces.GROUNDS, (3, 14))
        corner = street_shapes.SKY_M
        x, y = np.meshgrid([-corner, corner], [-corner, corner])
        grid = np.stack([x, y, np.full((2, 2), _GROUND_Z)], -1)
        if kind == "square":
            grid[..., 2] = _SIDE_Z
        self._add("ground", street_shapes.sheet("ground", grid), material)

    # --- asphalt ----------------------------------------------------------------------------------------

    def _mend(self) -> None:
        """Lay mended places and manhole covers."""
        rng, road = self._rng, self._road
        if rng.random() < 0.4:
            return
        for _ in range(int(rng.integers(1, 4))):
            spots = []
            for _ in range(int(rng.integers(1, 14))):
                s, d = rng.uniform(-1, 1, 2) * [road.reach, road.half_width - 0.8]
                long, wide = rng.uniform([0.5, 0.4], [9, 2.2])
                if rng.random() < 0.4:
                    long = wide = 0.65
                edge = road.half_width
                spots.append(
                    (
                        s,
                        s + long / road.stretch(d),
                        max(d - wide / 2, -edge),
                        min(d + wide / 2, edge),
                    )
                )
            self._lay("mend", spots, _MEND_Z, self._surface((street_surfaces.asphalt,), (1, 6)))

    def _marks(self) -> None:
        """Paint lane marks, edges and crossings."""
        rng, road = self._rng, self._road
        if rng.random() < 0.12:
            return
        paint = self._surface((street_surfaces.road_paint,), (1, 4))
        wide = float(rng.uniform(0.1, 0.18)) / 2
        lanes = sorted(road.lanes, key=lambda lane: lane.d)
        lines: list[tuple[float, float, float, float]] = []
        dash, gap = float(rng.uniform(1.0, 4.5)), float(rng.uniform(1.0, 7.0))
        solid = rng.random() < 0.3
        double = solid and rng.random() < 0.4
        for left, right in zip(lanes[1:], lanes[:-1], strict=True):
            d = (left.d + right.d) / 2
            if left.way != right.way and solid:
                for off in (-0.12, 0.12) if double else (0.0,):
                    lines += self._line(d + off, wide, 2 * self._end, 0.0)
            else:
                lines += self._line(d, wide, dash, gap)
        if rng.random() < 0.5:
            for at in SIDES:
                lines += self._line(at * (road.half_width - 0.2), wide, 2 * self._end, 0.0)
        for at in SIDES:
            if road.parking[max(at, 0)] and rng.random() < 0.6:
                lines += self._line(at * road.half_width, wide, 2 * self._end, 0.0)
        self._lay("marks", lines, _MARK_Z, paint)
        if rng.random() < 0.5:
            for _ in range(int(rng.integers(1, 3))):
                self._lay("crossing", self._zebra(), _MARK_Z + 0.002, paint)

    def _line(
        self, d: float, half: float, dash: float, gap: float
    ) -> list[tuple[float, float, float, float]]:
        start = np.arange(-self._end, self._end - 0.5, dash + gap)
        return [(s, min(s + dash, self._end), d - half, d + half) for s in start.tolist()]

    def _zebra(self) -> list[tuple[float, float, float, float]]:
        rng, road = self._rng, self._road
        s = float(rng.uniform(-0.8, 0.8) * road.reach)
        bar = float(rng.uniform(0.35, 0.6))
        long = float(rng.uniform(2.5, 4.5)) / road.stretch(0.0)
        edge = road.half_width
        return [(s, s + long, d, d + bar) for d in np.arange(-edge + 0.2, edge - bar, 2 * bar)]

    # --- beside -----------------------------------------------------------------------------------------

    def _pieces(self, side: int) -> list[tuple[float, float]]:
        """Stretches along a side that no side road interrupts."""
        road = self._road
        ground = road.side_road
        if road.junction is None or ground is None:
            return [(-self._end, self._end)]
        d = side * road.kerb_at(side)
        outwards = ground.depth < 100
        if outwards and side * road.curvature > 0:
            return [(-self._end, self._end)]
        half = road.side_half_width / max(road.stretch(d), 0.2)
        middle = road.junction
        both = [(-self._end, middle - half), (middle + half, self._end)]
        return [(a, b) for a, b in both if b - a > 0.5]

    def _pavement(self, side: int, paving: Any, stone: Any) -> None:
        road = self._road
        if not road.pavement[max(side, 0)] or road.is_inside(side):
            return
        near, far = side * road.kerb_at(side), side * road.pavement_end(side)
        edge = near + side * 0.16
        for s in self._pieces(side):
            self._lay("kerb", [(*s, near, edge)], road.kerb, stone)
            self._lay("pavement", [(*s, edge, far)], road.kerb, paving)
            for d in (near, far):
                self._add("kerb", street_shapes.kerb(road, s, d, road.kerb), stone)

    def _island(self, stone: Any) -> None:
        road = self._road
        side = int(np.sign(road.curvature))
        whole = (-road.reach, road.reach)
        near = side * road.half_width
        middle = side * (1 / abs(road.curvature) - 0.01)
        kinds = (*street_surfaces.GROUNDS, street_surfaces.paving)
        self._lay("island", [(*whole, near, middle)], road.kerb, self._surface(kinds, (2, 8)))
        self._add("kerb", street_shapes.kerb(road, whole, near, road.kerb), stone)

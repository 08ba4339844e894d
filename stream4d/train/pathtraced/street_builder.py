"""Blender's side of what stands along a street: houses with doors and shops, trees, walls, poles, signs."""

from __future__ import annotations

from typing import Any

import numpy as np
from mathutils import Matrix, Vector

from stream4d.train.pathtraced import street_shapes, street_surfaces, surfaces
from stream4d.train.pathtraced.materials import Paintbox
from stream4d.train.pathtraced.stage import Stage
from stream4d.train.pathtraced.street_parts import Street, Thing

_TREES = 10
_GABLES = (0.0, 0.3, 0.5)


class StreetShapes:
    """The meshes that streets share, kept for as long as the process lives."""

    def __init__(self) -> None:
        self.trees = [street_shapes.tree(np.random.default_rng(i)) for i in range(_TREES)]
        self.houses = [street_shapes.house(gable) for gable in _GABLES]
        for kept in (*self.trees, *self.houses):
            kept.use_fake_user = True


def flat(paint: Paintbox, kind: surfaces.Kind) -> Any:
    """Make a material that shows one drawn picture on each face."""
    return paint.material(paint.drawn((kind,)))


def front(paint: Paintbox, width: float, height: float) -> Any:
    """Make the material of a house front, of as many windows as fit."""
    rng = paint.rng
    picture = paint.drawn((street_surfaces.front,))
    if rng.random() < 0.05:
        picture = paint.photo()
    across = max(1, round(width / rng.uniform(6, 11)))
    up = max(1, round(height / rng.uniform(6, 10)))
    return paint.material(picture, tile=(1 / across, 1 / up, 1.0))


class StreetBuilder:
    """Builds one street's things on a stage."""

    def __init__(self, stage: Stage, paint: Paintbox, street: Street, shapes: StreetShapes) -> None:
        self._stage = stage
        self._paint = paint
        self._rng = stage.rng
        self._street = street
        self._shapes = shapes
        self._leaves = [flat(paint, street_surfaces.leaves) for _ in range(2)]
        self._bark = flat(paint, street_surfaces.bark)
        self._fence = paint.wall((surfaces.planks, surfaces.tiles, surfaces.plaster), 0.0)
        self._fronts = [front(paint, 10.0, 9.0) for _ in range(3)]

    def build(self) -> None:
        """Build them."""
        make = {
            "piece": self._piece,
            "house": self._house,
            "tree": self._tree,
            "wall": self._wall,
            "pole": self._pole,
            "sign": self._sign,
        }
        for thing in self._street.things:
            make[thing.kind](thing)

    def _place(self, thing: Thing, z: float = 0.0) -> tuple[float, float, float]:
        return thing.ground.x, thing.ground.y, thing.base + z

    def _piece(self, thing: Thing) -> None:
        assert thing.piece is not None
        self._stage.add_piece(thing.piece, self._place(thing), thing.ground.yaw, thing.scale)

    def _house(self, thing: Thing) -> None:
        rng, ground = self._rng, thing.ground
        low = thing.height < 8
        shape = self._shapes.houses[
            int(rng.integers(len(_GABLES))) if low else int(rng.random() < 0.15)
        ]
        matrix = Matrix.LocRotScale(
            Vector(self._place(thing, -0.02)),
            Matrix.Rotation(ground.yaw, 3, "Z"),
            Vector((ground.width, ground.depth, thing.height)),
        )
        facade = (
            self._fronts[int(rng.integers(3))]
            if rng.random() < 0.3
            else front(self._paint, ground.width, thing.height)
        )
        top = flat(self._paint, street_surfaces.roof)
        self._stage.dress(self._stage.add("house", shape, matrix), facade, top)
        if self._street.kind in ("town", "circle", "square") and rng.random() < 0.55:
            shop = flat(self._paint, street_surfaces.shop)
            size = (0.96 * ground.width, 0.12, float(rng.uniform(2.8, 3.6)))
            self._at_front(thing, size, 0.0, 0.0, shop)
        else:
            size = (float(rng.uniform(0.9, 1.6)), 0.06, float(rng.uniform(2.0, 2.5)))
            door = flat(self._paint, surfaces.planks)
            self._at_front(thing, size, float(rng.uniform(-0.35, 0.35)), 0.0, door)
        if rng.random() < 0.3:  # balconies or an awning
            material = flat(self._paint, surfaces.plaster)
            for storey in range(1, max(2, int(thing.height / 3.1))):
                size = (float(rng.uniform(1.5, 3)), float(rng.uniform(0.6, 1.2)), 0.9)
                for across in (-0.3, 0.0, 0.3):
                    if rng.random() < 0.5:
                        self._at_front(thing, size, across, 3.1 * storey, material)

    def _at_front(
        self,
        house: Thing,
        size: tuple[float, float, float],
        across: float,
        z: float,
        material: Any,
    ) -> None:
        """Put a box before a house front; ``across`` is a share of the front's width from its middle."""
        ground = house.ground
        room = max(0.0, 0.5 - size[0] / ground.width / 2)
        local = [
            float(np.clip(across, -room, room)) * ground.width,
            -(ground.depth + size[1]) / 2 + 0.01,
        ]
        x, y = np.array([ground.x, ground.y]) + local @ ground.axes
        self._stage.box(size, [x, y, house.base + z], ground.yaw, material)

    def _tree(self, thing: Thing) -> None:
        rng = self._rng
        wide = thing.height * float(rng.uniform(0.85, 1.2))
        matrix = Matrix.LocRotScale(
            Vector(self._place(thing, -0.02)),
            Matrix.Rotation(thing.ground.yaw, 3, "Z"),
            Vector((wide, wide, thing.height)),
        )
        shape = self._shapes.trees[int(rng.integers(_TREES))]
        leaves = self._leaves[int(rng.random() < 0.2)]
        self._stage.dress(self._stage.add("tree", shape, matrix), self._bark, leaves)

    def _wall(self, thing: Thing) -> None:
        size = (thing.ground.width, thing.ground.depth, thing.height)
        self._stage.box(size, self._place(thing), thing.ground.yaw, self._fence)

    def _pole(self, thing: Thing) -> None:
        metal = self._paint.plain((float(self._rng.uniform(0.03, 0.5)),) * 3)
        size = (0.12, 0.12, thing.height)
        self._stage.box(size, self._place(thing), thing.ground.yaw, metal)
        # Its arm reaches over the road: towards -y, where it is yawed to look.
        out = np.array([0.0, -0.9]) @ thing.ground.axes
        x, y, z = self._place(thing, thing.height)
        self._stage.box((0.1, 1.9, 0.08), [x + out[0], y + out[1], z], thing.ground.yaw, metal)

    def _sign(self, thing: Thing) -> None:
        rng, paint = self._rng, self._paint
        metal = paint.plain((float(rng.uniform(0.1, 0.6)),) * 3)
        self._stage.box((0.07, 0.07, thing.height), self._place(thing), thing.ground.yaw, metal)
        kind = rng.random()
        if kind < 0.4:
            red, green, blue = (float(x) for x in rng.choice([0.02, 0.3, 0.8], 3))
            board = paint.plain((red, green, blue))
        else:
            board = paint.material(paint.photo() if kind < 0.7 else paint.drawn((surfaces.page,)))
        wide = thing.ground.width
        tall = min(float(rng.uniform(0.5, 1.5)) * wide, thing.height - 1.2)
        x, y, z = self._place(thing, thing.height - tall)
        self._stage.box((wide, 0.09, tall), [x, y, z], thing.ground.yaw, board)

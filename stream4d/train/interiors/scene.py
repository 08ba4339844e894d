"""Blender's side of a room: walls, furniture, clutter, pictures and lights, built and torn down again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix, Vector

from stream4d.packets import Array
from stream4d.train.interiors import surfaces
from stream4d.train.interiors.furniture import Piece
from stream4d.train.interiors.materials import Paintbox
from stream4d.train.interiors.meshes import MeshShelf, cube, panel
from stream4d.train.interiors.plan import Planner, Room, footprint

_DESK_THINGS = re.compile(r"imac|ibook|laptop|tv|keyboard|phone|printer|lamp|book|mug|cup")
_LEVEL_M = 0.02
"""Largest height difference under the corners of something that stands."""


class Stage:
    """One room at a time in Blender's scene, with what rests on its furniture."""

    def __init__(self, catalogue: list[Piece], photos: list[Path]) -> None:
        self.scene = bpy.context.scene
        self._catalogue = catalogue
        small = [p for p in catalogue if p.role == "small"]
        usual = [p for p in small if p.category == "Office" or _DESK_THINGS.search(p.name.lower())]
        self._small = small + 3 * usual
        self._paint = Paintbox(photos)
        self._shelf = MeshShelf()
        self._cube = cube()
        self._wall = panel()
        self.room: Room
        self.tops: list[Any] = []
        """Objects that carry clutter."""

    # --- building ---------------------------------------------------------------------------------------

    def build(self, rng: np.random.Generator) -> Room:
        """Clear the scene and furnish a room."""
        self._clear()
        self.use(rng)
        # Cycles keeps what it has loaded by address, also when something else lies there by now: have it forget.
        self.scene.render.use_persistent_data = False
        self.scene.render.use_persistent_data = True
        self.room = Planner(rng, self._catalogue).fill()
        self._shell()
        standing = []
        for place in self.room.furniture:
            thing = self.add_piece(place.piece, place.position, place.yaw, place.scale)
            if thing is not None:
                standing.append((thing, place))
        self.tops = [
            thing
            for thing, place in standing
            if place.piece.role in ("table", "floor") and max(place.size[:2]) > 0.45
        ]
        self._pictures()
        self._lights()
        self._update()
        for thing in self.tops:
            self._clutter(thing)
        for _ in range(int(rng.integers(0, 8))):  # things on the floor
            self._drop_anything(rng.uniform((0.2, 0.2), np.array(self.room.size[:2]) - 0.2), 0.6)
        self._update()
        return self.room

    def use(self, rng: np.random.Generator) -> None:
        """Draw from ``rng`` from now on."""
        self.rng = self._paint.rng = rng

    def _clear(self) -> None:
        for thing in list(self.scene.objects):
            bpy.data.objects.remove(thing)
        self._paint.clear()
        for unused in [light for light in bpy.data.lights if light.users == 0]:
            bpy.data.lights.remove(unused)

    def _update(self) -> None:
        bpy.context.view_layer.update()

    def _add(self, name: str, mesh: Any, matrix: Matrix) -> Any:
        thing = bpy.data.objects.new(name, mesh)
        thing.matrix_world = matrix
        self.scene.collection.objects.link(thing)
        return thing

    def add_piece(
        self, piece: Piece, position: tuple[float, ...], yaw: float, scale: float
    ) -> Any | None:
        """Put a model in the room; None where it cannot be read."""
        mesh = self._shelf.mesh(piece)
        if mesh is None:
            return None
        matrix = Matrix.LocRotScale(
            Vector(position), Matrix.Rotation(yaw, 3, "Z"), Vector((scale,) * 3)
        )
        thing = self._add(piece.name, mesh, matrix)
        self._recolour(thing)
        return thing

    def _recolour(self, thing: Any) -> None:
        """Give a piece's large plain surfaces another colour or texture now and then, for this room only."""
        if self.rng.random() > 0.4:
            return
        for slot in thing.material_slots:
            material = slot.material
            if material is None or any(n.type == "TEX_IMAGE" for n in material.node_tree.nodes):
                continue
            if self.rng.random() < 0.6:
                slot.link = "OBJECT"
                slot.material = self._paint.material(mapped="Object", tile=0.6)

    # --- the shell --------------------------------------------------------------------------------------

    def _dress(self, thing: Any, material: Any) -> Any:
        thing.material_slots[0].link = "OBJECT"
        thing.material_slots[0].material = material
        return thing

    def _panel(
        self, middle: Sequence[float] | Array, yaw: float, size: tuple[float, float], material: Any
    ) -> Any:
        """Hang an upright panel; ``middle`` is that of its lower edge."""
        matrix = Matrix.LocRotScale(
            Vector(middle), Matrix.Rotation(yaw, 3, "Z"), Vector((size[0], 1.0, size[1]))
        )
        return self._dress(self._add("panel", self._wall, matrix), material)

    def box(
        self,
        size: Sequence[float] | Array,
        position: Sequence[float] | Array,
        yaw: float,
        material: Any,
    ) -> Any:
        """Put a box; ``position`` is the middle of its lower face."""
        matrix = Matrix.LocRotScale(Vector(position), Matrix.Rotation(yaw, 3, "Z"), Vector(size))
        return self._dress(self._add("box", self._cube, matrix), material)

    def _shell(self) -> None:
        w, d, h = self.room.size
        middle = np.array([w / 2, d / 2])
        thick = 0.1
        floor = self._paint.wall(surfaces.FLOORS, 0.35)
        ceiling = self._paint.wall((surfaces.plaster,), 0.0)
        common = self._paint.wall(surfaces.WALLS, 0.15)
        self.box([w, d, thick], [*middle, -thick], 0.0, floor)
        self.box([w, d, thick], [*middle, h], 0.0, ceiling)
        for side in range(4):
            material = (
                self._paint.wall(surfaces.WALLS, 0.25) if self.rng.random() < 0.25 else common
            )
            length, out = (w, d / 2) if side % 2 == 0 else (d, w / 2)
            offset = np.array([-np.sin(side * np.pi / 2), np.cos(side * np.pi / 2)])
            self.box(
                [length + 2 * thick, thick, h],
                [*(middle + offset * (out + thick / 2)), 0.0],
                side * np.pi / 2,
                material,
            )

    def _on_wall(self, width: float) -> tuple[Array, float]:
        """Draw a place on a wall for something ``width`` wide: (x, y) just off the wall, and its yaw."""
        side = int(self.rng.integers(4))
        w, d, _ = self.room.size
        length = w if side % 2 == 0 else d
        along = self.rng.uniform(min(width, length) / 2, length - min(width, length) / 2)
        off = 0.012
        spot = {0: (along, d - off), 1: (off, along), 2: (along, off), 3: (w - off, along)}[side]
        return np.array(spot), side * np.pi / 2

    def _pictures(self) -> None:
        """Hang pictures, posters and windows (photos that shine)."""
        height = self.room.size[2]
        for _ in range(int(self.rng.integers(2, 10))):
            size = np.exp(self.rng.uniform(np.log(0.2), np.log(1.1), 2))
            (x, y), yaw = self._on_wall(size[0])
            z = self.rng.uniform(0.7, max(0.75, height - size[1] - 0.1))
            page = self.rng.random() < 0.3
            material = self._paint.material(
                self._paint.drawn((surfaces.page,)) if page else self._paint.photo()
            )
            self._panel([x, y, z], yaw, (size[0], min(size[1], height - z)), material)
        for _ in range(int(self.rng.integers(0, 3))):
            width, tall = self.rng.uniform(0.7, 2.0), self.rng.uniform(0.9, 1.6)
            (x, y), yaw = self._on_wall(width)
            material = self._paint.material(
                self._paint.photo(), emission=float(self.rng.uniform(1, 4))
            )
            self._panel([x, y, self.rng.uniform(0.5, 0.9)], yaw, (width, tall), material)
            self._lamp([x, y, 1.5], toward=yaw, power=float(self.rng.uniform(20, 120)), size=width)

    # --- light ------------------------------------------------------------------------------------------

    def _lamp(
        self, position: list[float], *, power: float, size: float, toward: float | None = None
    ) -> None:
        """Add an area light: downwards, or from a wall of yaw ``toward`` into the room."""
        data = bpy.data.lights.new("lamp", "AREA")
        data.energy, data.size, data.shape = power, size, "DISK"
        warmth = self.rng.uniform(-0.25, 0.25)
        data.color = (1 + max(warmth, -0.05), 1.0, 1 - warmth)
        lamp = bpy.data.objects.new("lamp", data)
        lamp.location = position
        if toward is not None:
            # An area light shines along its -z; a panel of yaw 0 hangs on the wall at +y and looks along -y.
            lamp.rotation_euler = (-np.pi / 2, 0.0, toward)
            lamp.location += Matrix.Rotation(toward, 3, "Z") @ Vector((0, -0.1, 0))
        self.scene.collection.objects.link(lamp)

    def _lights(self) -> None:
        w, d, h = self.room.size
        for _ in range(int(self.rng.integers(1, 4))):
            x, y = self.rng.uniform(0.2, 0.8, 2) * [w, d]
            power = float(np.exp(self.rng.uniform(np.log(20), np.log(150))))
            self._lamp([x, y, h - 0.05], power=power, size=float(self.rng.uniform(0.05, 1.0)))
        background = self.scene.world.node_tree.nodes["Background"]
        tint = self.rng.uniform(0.85, 1.0, 3)
        background.inputs["Color"].default_value = (*tint, 1.0)
        background.inputs["Strength"].default_value = float(np.exp(self.rng.uniform(-1.6, 0.3)))

    # --- clutter ----------------------------------------------------------------------------------------

    def _clutter(self, carrier: Any) -> None:
        """Put things on a table, a cabinet or into a shelf."""
        size = carrier.dimensions
        area = size[0] * size[1]
        count = int(self.rng.poisson(min(22, 18 * area) * self.rng.choice([0.3, 1.0, 2.5])))
        for _ in range(count):
            local = Vector((*(self.rng.uniform(-0.48, 0.48, 2) * [size[0], size[1]]), 0.0))
            turned = carrier.matrix_world.to_3x3().normalized() @ local
            spot = np.array(carrier.matrix_world.translation)[:2] + np.array(turned)[:2]
            top = float(carrier.location[2] + size[2])
            inside = self.rng.random() < 0.35 and size[2] > 0.6  # a shelf
            self._drop_anything(spot, self.rng.uniform(0.25, top) if inside else top + 0.3)

    def _drop_anything(self, spot: Array, height: float) -> Any | None:
        """Let a small piece, a box, a book or a sheet down from ``height``; None where it would not lie level."""
        yaw = float(self.rng.uniform(0, 2 * np.pi))
        kind = self.rng.random()
        if kind < 0.55:
            piece = self._small[int(self.rng.integers(len(self._small)))]
            scale = float(self.rng.uniform(0.8, 1.25))
            size = np.array(piece.size) * scale
            z = self._ground(spot, size, yaw, height)
            return None if z is None else self.add_piece(piece, (*spot, z), yaw, scale)
        if kind < 0.75:  # books and boxes
            size = self.rng.uniform([0.08, 0.06, 0.01], [0.3, 0.24, 0.06])
            if self.rng.random() < 0.25:
                size = self.rng.uniform(0.05, 0.3, 3)
        else:
            size = np.array([0.21, 0.297, 0.001]) * self.rng.choice([1.0, 0.7, 0.5])
        z = self._ground(spot, size, yaw, height)
        if z is None:
            return None
        sheet = size[2] < 0.005 or self.rng.random() < 0.3
        material = self._paint.material(
            self._paint.drawn((surfaces.page,)) if sheet else self._paint.photo()
        )
        return self.box(size, np.array([*spot, z]), yaw, material)

    def _ground(self, spot: Array, size: Array, yaw: float, height: float) -> float | None:
        """Return the height on which something of this size would stand level and have room above; else None."""
        depsgraph = bpy.context.evaluated_depsgraph_get()
        dx, dy = footprint(size[0], size[1], yaw)
        if not (dx < spot[0] < self.room.size[0] - dx and dy < spot[1] < self.room.size[1] - dy):
            return None
        turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
        corners = np.array([[0, 0], [-1, -1], [-1, 1], [1, -1], [1, 1]]) * 0.45 * size[:2]
        heights = []
        for x, y in spot + corners @ turn.T:
            hit, where, *_ = self.scene.ray_cast(
                depsgraph, Vector((x, y, height)), Vector((0, 0, -1))
            )
            if not hit:
                return None
            heights.append(where[2])
        ground = max(heights)
        if ground - min(heights) > _LEVEL_M:
            return None
        lift = 0.002
        above, where, *_ = self.scene.ray_cast(
            depsgraph, Vector((*spot, ground + lift)), Vector((0, 0, 1))
        )
        return ground + lift / 2 if above and where[2] - ground > size[2] else None

    # --- movers -----------------------------------------------------------------------------------------

    def add_mover(self, place: Array, room_m: float, index: int) -> Any | None:
        """Add something that will move: a person on the floor, or a thing in the air at ``place``.

        Args:
            place: where it shall be seen.
            room_m: how large it may be; None comes back where the piece drawn is larger.
            index: its pass index, from 1.
        """
        role = "figure" if room_m > 1.0 and self.rng.random() < 0.5 else "small"
        pieces = [
            p for p in self._catalogue if p.role == role or (role, p.role) == ("small", "seat")
        ]
        piece = pieces[int(self.rng.integers(len(pieces)))]
        walks = role == "figure"
        if not walks and max(piece.size) > room_m:
            return None
        at = [*place[:2], 0.0 if walks else max(place[2] - piece.size[2] / 2, 0.02)]
        mover = self.add_piece(piece, tuple(at), float(self.rng.uniform(0, 2 * np.pi)), 1.0)
        if mover is not None:
            mover.pass_index = index
        return mover

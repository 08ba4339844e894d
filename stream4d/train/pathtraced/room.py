"""Blender's side of a room: walls, furniture, clutter, pictures and lights, built and torn down again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix, Vector

from stream4d.packets import Array
from stream4d.train.cameras import log_uniform, rotation_from_vector
from stream4d.train.pathtraced import surfaces
from stream4d.train.pathtraced.furniture import Piece
from stream4d.train.pathtraced.room_plan import Planner, Room, footprint
from stream4d.train.pathtraced.room_views import View, sample_view
from stream4d.train.pathtraced.stage import Shot, Stage

_DESK_THINGS = re.compile(r"imac|ibook|laptop|tv|keyboard|phone|printer|lamp|book|mug|cup")
_LEVEL_M = 0.02
"""Largest height difference under the corners of something that stands."""


class RoomStage(Stage):
    """One room at a time in Blender's scene, with what rests on its furniture."""

    name = "room"

    def __init__(self, catalogue: list[Piece], photos: list[Path]) -> None:
        super().__init__(catalogue, photos)
        small = [p for p in catalogue if p.role == "small"]
        usual = [p for p in small if p.category == "Office" or _DESK_THINGS.search(p.name.lower())]
        self._small = small + 3 * usual
        self.room: Room
        self.tops: list[Any] = []
        """Objects that carry clutter."""

    # --- building ---------------------------------------------------------------------------------------

    def build(self, rng: np.random.Generator) -> None:
        """Clear the scene and furnish a room."""
        self.clear()
        self.use(rng)
        self.forget()
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
        self.update()
        for thing in self.tops:
            self._clutter(thing)
        for _ in range(int(rng.integers(0, 8))):  # things on the floor
            self._drop_anything(rng.uniform((0.2, 0.2), np.array(self.room.size[:2]) - 0.2), 0.6)
        self.update()

    # --- the shell --------------------------------------------------------------------------------------

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
            self.panel([x, y, z], yaw, (size[0], min(size[1], height - z)), material)
        for _ in range(int(self.rng.integers(0, 3))):
            width, tall = self.rng.uniform(0.7, 2.0), self.rng.uniform(0.9, 1.6)
            (x, y), yaw = self._on_wall(width)
            material = self._paint.material(
                self._paint.photo(), emission=float(self.rng.uniform(1, 4))
            )
            self.panel([x, y, self.rng.uniform(0.5, 0.9)], yaw, (width, tall), material)
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

    # --- clips ------------------------------------------------------------------------------------------

    def shoot(
        self, rng: np.random.Generator, frames: int, aspect: float, moving: float
    ) -> Shot | None:
        """Draw a view that sees something, and now and then what moves there."""
        self.use(rng)
        tops = [
            np.array([*thing.location[:2], thing.location[2] + min(thing.dimensions[2], 1.3)])
            for thing in self.tops
        ]
        view = sample_view(rng, np.array(self.room.size), tops, self.cast, frames, aspect)
        if view is None:
            return None
        movers: list[Any] = []
        paths: list[Array] = []
        if rng.random() < moving:
            movers, paths = self._movers(view, frames)
        return Shot(view.world_from_cam, view.fov_rad, movers, paths)

    def _movers(self, view: View, frames: int) -> tuple[list[Any], list[Array]]:
        """Put one or two things into the view, and draw how they move: along a line, with a turn."""
        rng = self.rng
        movers: list[Any] = []
        paths: list[Array] = []
        for _ in range(1 if rng.random() < 0.7 else 2):
            ray = int(rng.integers(len(view.distances)))
            distance = view.distances[ray] * rng.uniform(0.45, 0.85)
            if distance < 0.35:
                continue
            place = view.world_from_cam[0, :3, 3] + distance * view.directions[ray]
            mover = self._add_mover(place, 0.8 * distance, len(movers) + 1)
            if mover is None:
                continue
            self.update()
            start = np.array(mover.matrix_world)
            walks = start[2, 3] == 0.0  # a person stays upright on the floor
            speed = distance * log_uniform(rng, 0.005, 0.12, (1,))[0]
            drift = rng.normal(size=3) * [1, 1, 0 if walks else 1]
            drift *= speed / max(float(np.linalg.norm(drift)), 1e-6)
            spin = rng.normal(0, 0.06, 3) * ([0, 0, 1] if walks else [1, 1, 1])
            path = np.tile(start, (frames, 1, 1))
            for t in range(frames):
                path[t, :3, :3] = rotation_from_vector(spin * t) @ start[:3, :3]
                path[t, :3, 3] = start[:3, 3] + drift * t
            movers.append(mover)
            paths.append(path)
        return movers, paths

    def _add_mover(self, place: Array, room_m: float, index: int) -> Any | None:
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

"""What every set shares: Blender's scene, emptied and filled again with models, boxes and panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix, Vector

from stream4d.packets import Array
from stream4d.train.pathtraced.furniture import Piece
from stream4d.train.pathtraced.materials import Paintbox
from stream4d.train.pathtraced.meshes import MeshShelf, cube, panel


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """How one clip is filmed on a set."""

    world_from_cam: Array
    """(T, 4, 4), OpenCV axes."""
    fov_rad: float
    """Horizontal field of view."""
    movers: list[Any] = field(default_factory=list)
    """Objects with pass indices from 1; they leave the set after the clip."""
    paths: list[Array] = field(default_factory=list)
    """World matrix of each of them in every frame (T, 4, 4)."""


class Stage:
    """One set at a time in Blender's scene."""

    name = "set"
    """Begins the names of its clips."""
    far_m = 200.0
    """Beyond this there is nothing."""
    moving = 0.25
    """Share of clips with movers, unless another is asked for."""

    def __init__(self, catalogue: list[Piece], photos: list[Path]) -> None:
        self.scene = bpy.context.scene
        self.rng: np.random.Generator
        self._catalogue = catalogue
        self._paint = Paintbox(photos)
        self._shelf = MeshShelf()
        self._cube = cube()
        self._square = panel()

    def build(self, rng: np.random.Generator) -> None:
        """Clear the scene and build a set in it."""
        raise NotImplementedError

    def shoot(
        self, rng: np.random.Generator, frames: int, aspect: float, moving: float
    ) -> Shot | None:
        """Draw a camera path and what moves, with movers in a share of ``moving``; None where no view is clear."""
        raise NotImplementedError

    def use(self, rng: np.random.Generator) -> None:
        """Draw from ``rng`` from now on."""
        self.rng = self._paint.rng = rng

    def clear(self) -> None:
        """Empty the scene."""
        for thing in list(self.scene.objects):
            bpy.data.objects.remove(thing)
        self._paint.clear()
        for kept in (bpy.data.lights, bpy.data.meshes):
            for unused in [block for block in kept if block.users == 0]:
                kept.remove(unused)

    def forget(self) -> None:
        """Have Cycles forget what it has loaded: it is kept by address, also when something else lies there by now."""
        self.scene.render.use_persistent_data = False
        self.scene.render.use_persistent_data = True

    def update(self) -> None:
        """Have Blender take note of what was added and moved."""
        bpy.context.view_layer.update()

    def cast(self, eye: Array, way: Array) -> tuple[float, str]:
        """Return how far from ``eye`` (3,) something lies into the direction ``way``, and its name; inf for nothing."""
        hit, where, _, _, thing, _ = self.scene.ray_cast(
            bpy.context.evaluated_depsgraph_get(), Vector(eye), Vector(way)
        )
        return (float(np.linalg.norm(np.array(where) - eye)), thing.name) if hit else (np.inf, "")

    def add(self, name: str, mesh: Any, matrix: Matrix) -> Any:
        """Put a mesh into the scene."""
        thing = bpy.data.objects.new(name, mesh)
        thing.matrix_world = matrix
        self.scene.collection.objects.link(thing)
        return thing

    def add_piece(
        self, piece: Piece, position: Sequence[float], yaw: float, scale: float
    ) -> Any | None:
        """Put a model on the set; None where it cannot be read."""
        mesh = self._shelf.mesh(piece)
        if mesh is None:
            return None
        matrix = Matrix.LocRotScale(
            Vector(position), Matrix.Rotation(yaw, 3, "Z"), Vector((scale,) * 3)
        )
        thing = self.add(piece.name, mesh, matrix)
        self._recolour(thing, piece)
        return thing

    def _recolour(self, thing: Any, piece: Piece) -> None:
        """Give a piece's large plain surfaces another colour or texture now and then, for this set only."""
        if self.rng.random() > 0.4:
            return
        for slot in thing.material_slots:
            material = slot.material
            if material is None or any(n.type == "TEX_IMAGE" for n in material.node_tree.nodes):
                continue
            if self.rng.random() < 0.6:
                slot.link = "OBJECT"
                slot.material = self._paint.material(mapped="Object", tile=0.6)

    def dress(self, thing: Any, *materials: Any) -> Any:
        """Give this object, and no other with its mesh, these materials."""
        for slot, material in zip(thing.material_slots, materials, strict=False):
            slot.link = "OBJECT"
            slot.material = material
        return thing

    def panel(
        self, middle: Sequence[float] | Array, yaw: float, size: tuple[float, float], material: Any
    ) -> Any:
        """Hang an upright panel; ``middle`` is that of its lower edge."""
        matrix = Matrix.LocRotScale(
            Vector(middle), Matrix.Rotation(yaw, 3, "Z"), Vector((size[0], 1.0, size[1]))
        )
        return self.dress(self.add("panel", self._square, matrix), material)

    def box(
        self,
        size: Sequence[float] | Array,
        position: Sequence[float] | Array,
        yaw: float,
        material: Any,
    ) -> Any:
        """Put a box; ``position`` is the middle of its lower face."""
        matrix = Matrix.LocRotScale(Vector(position), Matrix.Rotation(yaw, 3, "Z"), Vector(size))
        return self.dress(self.add("box", self._cube, matrix), material)

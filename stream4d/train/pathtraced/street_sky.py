"""What surrounds a street and lights it: hills, a skyline, the sky, the sun."""

from __future__ import annotations

import bpy
import numpy as np
from mathutils import Matrix, Vector

from stream4d.train.pathtraced import street_shapes, street_surfaces
from stream4d.train.pathtraced.materials import Paintbox
from stream4d.train.pathtraced.stage import Stage
from stream4d.train.pathtraced.street_builder import StreetShapes, flat, front

SKY = "sky"
"""Name of the object that is the sky."""


def surround(stage: Stage, paint: Paintbox, shapes: StreetShapes) -> None:
    """Put hills, a skyline and the sky around."""
    rng = stage.rng
    if rng.random() < 0.6:
        ridge = street_shapes.hills(rng, float(rng.uniform(190, 285)), float(rng.uniform(4, 45)))
        green = paint.drawn((street_surfaces.leaves, street_surfaces.lawn))
        material = paint.material(green, mapped="World", tile=float(rng.uniform(15, 60)))
        stage.dress(stage.add("hills", ridge, Matrix()), material)
    for _ in range(int(rng.integers(0, 30)) if rng.random() < 0.6 else 0):
        around, away = rng.uniform(0, 2 * np.pi), rng.uniform(160, 250)
        width, depth, height = rng.uniform([8, 8, 5], [35, 20, 45])
        matrix = Matrix.LocRotScale(
            Vector((away * np.cos(around), away * np.sin(around), -0.1)),
            Matrix.Rotation(around, 3, "Z"),
            Vector((width, depth, height)),
        )
        top = flat(paint, street_surfaces.roof)
        stage.dress(stage.add("far", shapes.houses[0], matrix), front(paint, width, height), top)


def light(stage: Stage, paint: Paintbox) -> None:
    rng = stage.rng
    overcast = rng.random() < 0.3
    data = bpy.data.lights.new("sun", "SUN")
    data.energy = float(rng.uniform(0, 0.8) if overcast else rng.uniform(3.0, 9.0))
    data.angle = float(rng.uniform(0.2, 0.8) if overcast else rng.uniform(0.005, 0.05))
    warmth = float(rng.uniform(0, 0.3))
    data.color = (1.0, 1 - 0.4 * warmth, 1 - warmth)
    sun = bpy.data.objects.new("sun", data)
    sun.rotation_euler = (float(rng.uniform(0.2, 1.4)), 0.0, float(rng.uniform(0, 6.28)))
    stage.scene.collection.objects.link(sun)
    background = stage.scene.world.node_tree.nodes["Background"]
    blue = float(rng.uniform(0, 0.35)) * (not overcast)
    background.inputs["Color"].default_value = (1 - blue, 1 - 0.5 * blue, 1.0, 1.0)
    background.inputs["Strength"].default_value = float(rng.uniform(0.35, 1.0))
    stage.scene.world.light_settings.distance = 6.0
    picture = paint.drawn((street_surfaces.sky,))
    if rng.random() < 0.08:
        picture = paint.photo()
    material = paint.material(
        picture,
        emission=float(rng.uniform(0.6, 1.5)),
        tile=(0.5 / float(rng.integers(1, 3)), 1.0, 1.0),
        repeat="MIRROR",  # an even number of times around: no seam
    )
    sky = stage.dress(stage.add(SKY, street_shapes.dome(), Matrix()), material)
    # The sky neither shades nor lights: that is left to the sun and the world's background.
    sky.visible_shadow = sky.visible_diffuse = False

"""Materials cheap to trace: diffuse, of a colour, a photo or a made-up picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy
import numpy as np

from stream4d.train.pathtraced import surfaces

_PICTURES_A_KIND = 40
"""Made-up pictures of each kind of surface."""


class Paintbox:
    """Makes the materials of a room, and keeps the pictures that they show."""

    def __init__(self, photos: list[Path]) -> None:
        self.rng: np.random.Generator
        """Draws what is left open; set it for each room."""
        self._photos = photos
        self._drawn: dict[str, Any] = {}
        self._made: list[Any] = []

    def clear(self) -> None:
        """Remove the materials made since the last call; nothing may use them any more."""
        for material in self._made:
            bpy.data.materials.remove(material)
        self._made = []

    def material(
        self,
        picture: Any | None = None,
        *,
        mapped: str = "UV",
        emission: float = 0.0,
        tile: float | tuple[float, float, float] = 1.0,
        repeat: str = "REPEAT",
    ) -> Any:
        """Make a material of a picture (one given, a photo, or one that is drawn).

        ``mapped`` is ``UV``, or from three sides by the ``Object``'s or the ``World``'s coordinates; then ``tile`` is
        the picture's side in metres. ``repeat`` is Blender's word for what lies beyond its edges.
        """
        material = self._blank()
        nodes, links = material.node_tree.nodes, material.node_tree.links
        texture = nodes.new("ShaderNodeTexImage")
        texture.image = picture or (
            self.photo()
            if self.rng.random() < 0.5
            else self.drawn(surfaces.FLOORS + surfaces.WALLS)
        )
        in_world = mapped == "World"
        coordinates = nodes.new("ShaderNodeNewGeometry" if in_world else "ShaderNodeTexCoord")
        mapping = nodes.new("ShaderNodeMapping")
        mapping.inputs["Scale"].default_value = (
            (1 / tile,) * 3 if isinstance(tile, float) else tuple(1 / side for side in tile)
        )
        texture.extension = repeat
        links.new(coordinates.outputs["Position" if in_world else mapped], mapping.inputs["Vector"])
        links.new(mapping.outputs[0], texture.inputs["Vector"])
        if mapped != "UV":
            texture.projection = "BOX"
        gloss = float(self.rng.uniform(0.03, 0.15)) if self.rng.random() < 0.3 else 0.0
        wire(material, texture.outputs["Color"], gloss=gloss, emission=emission)
        return material

    def plain(self, colour: tuple[float, float, float], gloss: float = 0.0) -> Any:
        """Make a material of one colour."""
        material = self._blank()
        wire(material, (*colour, 1.0), gloss=gloss)
        return material

    def _blank(self) -> Any:
        """Begin a material that is removed with this set."""
        material = bpy.data.materials.new("made")
        material.use_nodes = True
        self._made.append(material)
        nodes = material.node_tree.nodes
        nodes.remove(next(n for n in nodes if n.type == "BSDF_PRINCIPLED"))
        return material

    def photo(self) -> Any:
        """Open a photo, drawn by lot."""
        if not self._photos:
            return self.drawn((surfaces.page, surfaces.wallpaper, surfaces.tiles))
        path = self._photos[int(self.rng.integers(len(self._photos)))]
        return bpy.data.images.load(str(path), check_existing=True)

    def drawn(self, kinds: tuple[surfaces.Kind, ...]) -> Any:
        """Take a made-up picture of one of these kinds of surface; each is drawn once and kept."""
        kind = kinds[int(self.rng.integers(len(kinds)))]
        number = int(self.rng.integers(_PICTURES_A_KIND))
        name = f"{kind.__name__} {number}"
        if name not in self._drawn:
            picture = np.clip(kind(np.random.default_rng([number, *kind.__name__.encode()])), 0, 1)
            H, W = picture.shape[:2]
            image = bpy.data.images.new(name, W, H)
            rgba = np.ones((H, W, 4), np.float32)
            rgba[..., :3] = picture[::-1]
            image.pixels.foreach_set(rgba.ravel())
            image.update()
            image.pack()
            self._drawn[name] = image
        return self._drawn[name]

    def wall(self, kinds: tuple[surfaces.Kind, ...], photo_share: float) -> Any:
        picture = self.photo() if self.rng.random() < photo_share else self.drawn(kinds)
        return self.material(
            picture, mapped="World", tile=float(np.exp(self.rng.uniform(-0.7, 0.9)))
        )


def wire(
    material: Any, colour: Any, opacity: Any = None, *, gloss: float = 0.0, emission: float = 0.0
) -> None:
    """Make the material's output diffuse, with some gloss, or light of its own.

    Args:
        material: changed in place.
        colour: a socket or (r, g, b, a).
        opacity: a socket; the surface is let through where it is low (leaves).
        gloss: share of a glossy reflection.
        emission: strength of the light it gives; 0 for ordinary surfaces.
    """
    tree = material.node_tree
    nodes, links = tree.nodes, tree.links

    def coloured(kind: str) -> Any:
        node = nodes.new(kind)
        if isinstance(colour, tuple):
            node.inputs["Color"].default_value = colour
        else:
            links.new(colour, node.inputs["Color"])
        return node

    def mixed(first: Any, second: Any, share: Any) -> Any:
        node = nodes.new("ShaderNodeMixShader")
        if isinstance(share, float):
            node.inputs[0].default_value = share
        else:
            links.new(share, node.inputs[0])
        links.new(first.outputs[0], node.inputs[1])
        links.new(second.outputs[0], node.inputs[2])
        return node

    if emission > 0:
        shader = coloured("ShaderNodeEmission")
        shader.inputs["Strength"].default_value = emission
    else:
        shader = coloured("ShaderNodeBsdfDiffuse")
    if gloss > 0:
        mirror = nodes.new("ShaderNodeBsdfGlossy")
        mirror.inputs["Roughness"].default_value = 0.25
        shader = mixed(shader, mirror, gloss)
    if opacity is not None:
        shader = mixed(nodes.new("ShaderNodeBsdfTransparent"), shader, opacity)
    output = next(n for n in nodes if n.type == "OUTPUT_MATERIAL")
    links.new(shader.outputs[0], output.inputs["Surface"])

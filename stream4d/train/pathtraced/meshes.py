"""Furniture models as Blender meshes: imported once, set upright and to size, with materials cheap to trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bpy
import numpy as np

from stream4d.packets import Array
from stream4d.train.pathtraced.furniture import Piece
from stream4d.train.pathtraced.materials import wire

_LARGEST_PICTURE_PX = 1024


class MeshShelf:
    """Keeps every mesh that was imported, for as long as the process lives."""

    def __init__(self) -> None:
        self._meshes: dict[Path, Any] = {}

    def mesh(self, piece: Piece) -> Any | None:
        """Return the mesh of a piece in metres, standing on z = 0; None where Blender cannot read the model."""
        if piece.model not in self._meshes:
            self._meshes[piece.model] = _import(piece)
        return self._meshes[piece.model]


def _import(piece: Piece) -> Any | None:
    bpy.ops.object.select_all(action="DESELECT")
    # Axes as in the file: y up. Blender would otherwise turn the object, not the mesh.
    bpy.ops.wm.obj_import(
        filepath=str(piece.model),
        forward_axis="Y",
        up_axis="Z",
        use_split_objects=False,
        use_split_groups=False,
    )
    found = [o for o in bpy.context.selected_objects if o.type == "MESH"]
    mesh = found[0].data if len(found) == 1 and len(found[0].data.vertices) > 3 else None
    for thing in found:
        bpy.data.objects.remove(thing)
    if mesh is None:
        return None
    mesh.use_fake_user = True
    points = np.empty(3 * len(mesh.vertices), np.float32)
    mesh.vertices.foreach_get("co", points)
    mesh.vertices.foreach_set("co", _upright(points.reshape(-1, 3), piece).ravel())
    mesh.update()
    for material in mesh.materials:
        if material is not None:
            simplify(material)
    return mesh


def _upright(points: Array, piece: Piece) -> Array:  # (N, 3) -> (N, 3) float32
    """Turn the model as its catalogue says, then from y up to z up, and fit its box to the stated size."""
    if piece.turn is not None:
        points = points @ np.array(piece.turn, np.float32).reshape(3, 3).T
    points = np.stack([points[:, 0], -points[:, 2], points[:, 1]], -1)
    low, high = points.min(0), points.max(0)
    points = (points - (low + high) / 2) / np.maximum(high - low, 1e-9) * piece.size
    points[:, 2] += piece.size[2] / 2
    return np.asarray(points, np.float32)


def simplify(material: Any) -> None:
    """Replace the imported shader by a diffuse one: a third of its cost, and its colour is all that matters here."""
    if not material.use_nodes:
        return
    tree = material.node_tree
    principled = next((n for n in tree.nodes if n.type == "BSDF_PRINCIPLED"), None)
    if principled is None:
        return
    base, alpha = principled.inputs["Base Color"], principled.inputs["Alpha"]
    colour = base.links[0].from_socket if base.links else None
    if colour is not None and not _shrink(colour.node):
        colour = None
    plain = tuple(base.default_value)
    opacity = alpha.links[0].from_socket if alpha.links else None
    wire(material, colour if colour is not None else plain, opacity)
    tree.nodes.remove(principled)


def _shrink(node: Any) -> bool:
    """Scale a texture's picture down where it is needlessly large; False where the picture is missing."""
    picture = getattr(node, "image", None)
    if picture is None:
        return True
    if not picture.size[0]:
        return False
    scale = _LARGEST_PICTURE_PX / max(picture.size)
    if scale < 1:
        picture.scale(max(1, int(picture.size[0] * scale)), max(1, int(picture.size[1] * scale)))
    return True


_WHOLE_PICTURE = [0, 0, 1, 0, 1, 1, 0, 1]


def cube() -> Any:
    """Make a unit cube on z = 0 whose faces each show the whole picture; it takes its object's material."""
    corners = [(x - 0.5, y - 0.5, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    faces = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    return _simple("cube", corners, faces)


def panel() -> Any:
    """Make a unit square in x and z that looks along -y; it takes its object's material."""
    corners = [(-0.5, 0.0, 0), (0.5, 0.0, 0), (0.5, 0.0, 1), (-0.5, 0.0, 1)]
    return _simple("panel", corners, [(0, 1, 2, 3)])


def _simple(
    name: str, corners: Sequence[tuple[float, ...]], faces: Sequence[tuple[int, ...]]
) -> Any:
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(corners, [], faces)
    mesh.uv_layers.new().data.foreach_set("uv", _WHOLE_PICTURE * len(faces))
    mesh.materials.append(None)
    mesh.use_fake_user = True
    return mesh

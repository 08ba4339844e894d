"""Meshes of a street's own: strips of road, houses with gables, trees of leaves, hills and the sky's dome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bpy
import numpy as np

from stream4d.packets import Array
from stream4d.train.pathtraced.road import Road

SKY_M = 300.0
"""Radius of the sky."""
_STEP_M = 1.5
"""Length of a quadrilateral on bends, along the road's middle."""
_LEAVES = 1300


def mesh(name: str, corners: Array, faces: Array, uv: Array, parts: Sequence[int] = ()) -> Any:
    """Make a mesh of faces (N, 3 or 4) whose corners show ``uv`` (N, 3 or 4, 2); ``parts`` are their material slots."""
    made = bpy.data.meshes.new(name)
    made.from_pydata(corners.tolist(), [], faces.tolist())
    made.uv_layers.new().data.foreach_set("uv", np.ascontiguousarray(uv, np.float32).ravel())
    for _ in range(max(parts, default=0) + 1):
        made.materials.append(None)
    if len(parts):
        made.polygons.foreach_set("material_index", np.asarray(parts, np.int32))
    return made


def _quads(rows: int, columns: int) -> Array:  # (N, 4)
    """Return the faces of a grid of corners, row by row."""
    index = np.arange(rows * columns).reshape(rows, columns)
    faces = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], -1)
    return faces.reshape(-1, 4)


def sheet(name: str, grid: Array) -> Any:  # (rows, columns, 3)
    """Make a surface through a grid of points; its picture is stretched over the whole."""
    rows, columns = grid.shape[:2]
    v, u = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    flat = _quads(rows, columns)
    return mesh(name, grid.reshape(-1, 3), flat, np.stack([u, v], -1).reshape(-1, 2)[flat])


def strips(name: str, road: Road, patches: Array, z: float) -> Any:  # (N, 4)
    """Make level patches of road in one mesh, each from s to s and from d to d; each shows the whole picture."""
    corners: list[Array] = []
    faces: list[Array] = []
    for s0, s1, d0, d1 in patches:
        bent = abs(road.curvature) > 1e-6
        along = np.linspace(s0, s1, max(2, int(abs(s1 - s0) / _STEP_M) + 2) if bent else 2)
        first = sum(len(c) for c in corners)
        corners.append(np.stack([road.at(along, d0), road.at(along, d1)], 1).reshape(-1, 2))
        i = first + 2 * np.arange(len(along) - 1)
        faces.append(np.stack([i, i + 2, i + 3, i + 1], -1))
    flat = np.concatenate(corners)
    grid = np.concatenate([flat, np.full((len(flat), 1), z)], 1)
    quads = np.concatenate(faces)
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    return mesh(name, grid, quads, np.tile(square, (len(quads), 1, 1)))


def kerb(road: Road, s: tuple[float, float], d: float, height: float) -> Any:
    """Make the upright face of a kerb."""
    along = np.linspace(*s, max(2, int(abs(s[1] - s[0]) / _STEP_M) + 2))
    line = road.at(along, d)
    low = np.concatenate([line, np.full((len(line), 1), -0.05)], 1)
    return sheet("kerb", np.stack([low, low + np.array([0, 0, height + 0.05])], 1))


def dome() -> Any:
    """Make the upper half of the sky, from a little below the horizon."""
    around = np.linspace(0, 2 * np.pi, 97)
    up = np.linspace(-0.12, np.pi / 2, 33)
    ring = np.stack([np.cos(around), np.sin(around)], -1)
    grid = np.concatenate(
        [
            np.cos(up)[:, None, None] * ring,
            np.broadcast_to(np.sin(up)[:, None, None], (33, 97, 1)),
        ],
        -1,
    )
    return sheet("sky", SKY_M * grid)


def hills(rng: np.random.Generator, radius: float, height: float) -> Any:
    """Make a closed ridge around the street."""
    count = 160
    around = np.linspace(0, 2 * np.pi, count + 1)
    rise = sum(
        np.sin(k * around + rng.uniform(0, 6.28)) * rng.normal() / k**0.7 for k in range(1, 14)
    )
    rise = height * np.clip(0.5 + 0.3 * np.asarray(rise), 0.02, 2)
    ring = np.stack([np.cos(around), np.sin(around), np.zeros(count + 1)], -1)
    foot, top = ring * (radius - 25), ring * radius
    top[:, 2] = rise
    middle = 0.5 * (foot + top)
    middle[:, 2] = 0.6 * rise
    return sheet("hills", np.stack([foot - [0, 0, 0.5], middle, top]))


def house(gable: float) -> Any:
    """Make a unit house around z of 0 to 1; a gable rises ``gable`` above it. Slots: walls, roof."""
    low = [(-0.5, -0.5, 0.0), (0.5, -0.5, 0.0), (0.5, 0.5, 0.0), (-0.5, 0.5, 0.0)]
    corners = [*low, *((x, y, 1.0) for x, y, _ in low)]
    faces = [(i, (i + 1) % 4, (i + 1) % 4 + 4, i + 4) for i in range(4)]
    square = [(0, 0), (1, 0), (1, 1), (0, 1)]
    if not gable:
        faces.append((4, 5, 6, 7))
        return mesh(
            "house", np.array(corners), np.array(faces), np.array([square] * 5), [0] * 4 + [1]
        )
    out = 0.03  # eaves
    corners += [(-0.5, 0.0, 1 + gable), (0.5, 0.0, 1 + gable)]
    corners += [(-0.5 - out, -0.5 - out, 1 - out), (0.5 + out, -0.5 - out, 1 - out)]
    corners += [(0.5 + out, 0.5 + out, 1 - out), (-0.5 - out, 0.5 + out, 1 - out)]
    corners += [(-0.5 - out, 0.0, 1.01 + gable), (0.5 + out, 0.0, 1.01 + gable)]
    # Faces have four corners here: a gable has a point in the middle of its foot.
    faces += [(10, 11, 15, 14), (12, 13, 14, 15)]
    corners += [(-0.5, 0.0, 1.0), (0.5, 0.0, 1.0)]
    faces += [(7, 16, 4, 8), (5, 17, 6, 9)]
    flank = [(1, 0), (0.5, 0), (0, 0), (0.5, 0.3)]
    uv = np.array([square] * 6 + [flank] * 2)
    return mesh("house", np.array(corners), np.array(faces), uv, [0] * 4 + [1] * 2 + [0] * 2)


def tree(rng: np.random.Generator) -> Any:
    """Make a tree of height 1: a trunk, and a crown of loose leaf-coloured cards. Slots: bark, leaves."""
    crown = rng.uniform(0.3, 0.45)  # where it begins
    slim = rng.uniform(0.22, 0.42)
    around = np.linspace(0, 2 * np.pi, 8)
    ring = np.stack([np.cos(around), np.sin(around)], -1)
    heights, widths = np.array([0, crown, 0.75]), np.array([0.03, 0.02, 0.005])
    trunk = np.concatenate(
        [widths[:, None, None] * ring, np.broadcast_to(heights[:, None, None], (3, 8, 1))], -1
    )
    bark = _quads(3, 8)
    blobs = rng.normal(0, 0.55, (int(rng.integers(4, 9)), 3))
    middles = blobs[rng.integers(len(blobs), size=_LEAVES)]
    out = rng.normal(size=(_LEAVES, 3))
    out *= 0.55 * rng.random((_LEAVES, 1)) ** 0.25 / np.linalg.norm(out, axis=1, keepdims=True)
    spots = np.clip(middles + out, -1.1, 1.1)
    spots = spots * [slim, slim, (1 - crown) / 2] + [0, 0, (1 + crown) / 2]
    a, b = rng.normal(size=(2, _LEAVES, 3))
    size = rng.uniform(0.009, 0.024, (_LEAVES, 1))
    a *= size / np.linalg.norm(a, axis=1, keepdims=True)
    b *= size / np.linalg.norm(b, axis=1, keepdims=True)
    cards = spots[:, None] + np.stack([-a - b, a - b, a + b, b - a], 1)
    leaf = 24 + np.arange(4 * _LEAVES).reshape(-1, 4)
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    # Each card shows a small part of the picture, so that cards differ.
    shown = rng.random((_LEAVES, 1, 2)) + 0.12 * square
    uv = np.concatenate([np.tile(square, (len(bark), 1, 1)), shown])
    made = mesh(
        "tree",
        np.concatenate([trunk.reshape(-1, 3), cards.reshape(-1, 3)]),
        np.concatenate([bark, leaf]),
        uv,
        [0] * len(bark) + [1] * _LEAVES,
    )
    return made

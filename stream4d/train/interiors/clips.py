"""Clips of a room: pick views, set things moving, render, develop, label, write."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix, Vector

from stream4d.packets import Array
from stream4d.train.cameras import log_uniform, rotation_from_vector
from stream4d.train.interiors.furniture import Piece
from stream4d.train.interiors.render import Renderer, develop
from stream4d.train.interiors.scene import Stage
from stream4d.train.interiors.truth import RenderedClip, has_clip, write_clip
from stream4d.train.interiors.views import View, sample_view


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep Blender from printing a line for every file that it opens and every sample that it takes."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    saved, null = (os.dup(1), os.dup(2)), os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    try:
        yield
    finally:
        flush(None)
        for stream, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(null)


class ClipMaker:
    """Renders clips room by room; each room and each clip has a seed of its own."""

    def __init__(
        self,
        args: argparse.Namespace,
        size: tuple[int, int],
        catalogue: list[Piece],
        photos: list[Path],
        scratch: Path,
    ) -> None:
        self._args = args
        self._renderer = Renderer(size, scratch, args.samples)
        self._stage = Stage(catalogue, photos)

    def room(self, room: int, count: int) -> int:
        """Render those of the first ``count`` clips of a room that are missing; returns how many."""
        names = [f"room{room:04d}_{clip}" for clip in range(count)]
        missing = [clip for clip in range(count) if not has_clip(self._args.out, names[clip])]
        if not missing:
            return 0
        done = 0
        with silence():
            self._stage.build(np.random.default_rng([self._args.seed, room]))
            for clip in missing:
                rendered = self._clip(np.random.default_rng([self._args.seed, room, clip]))
                if rendered is not None:
                    write_clip(self._args.out, names[clip], rendered)
                    done += 1
        return done

    def _cast(self, eye: Array, way: Array) -> tuple[float, str]:
        hit, where, _, _, thing, _ = bpy.context.scene.ray_cast(
            bpy.context.evaluated_depsgraph_get(), Vector(eye), Vector(way)
        )
        return (float(np.linalg.norm(np.array(where) - eye)), thing.name) if hit else (np.inf, "")

    def _tops(self) -> list[Array]:
        return [
            np.array([*thing.location[:2], thing.location[2] + min(thing.dimensions[2], 1.3)])
            for thing in self._stage.tops
        ]

    def _clip(self, rng: np.random.Generator) -> RenderedClip | None:
        """Render one clip; None where the room has no clear view."""
        renderer = self._renderer
        room = np.array(self._stage.room.size)
        aspect = renderer.width / renderer.height
        view = sample_view(rng, room, self._tops(), self._cast, self._args.frames, aspect)
        if view is None:
            return None
        self._stage.use(rng)
        movers: list[Any] = []
        paths: list[Array] = []
        if rng.random() < self._args.moving:
            movers, paths = self._movers(rng, view)
        K = renderer.set_camera(view.fov_rad)
        colours, depths, indices = [], [], []
        for t in range(self._args.frames):
            self._pose(view, movers, paths, t)
            colours.append(renderer.colour(int(rng.integers(1 << 30))))
        for t in range(self._args.frames):
            self._pose(view, movers, paths, t)
            depth, index = renderer.depth_and_index()
            depths.append(depth)
            indices.append(index)
        for mover in movers:
            bpy.data.objects.remove(mover)
        return RenderedClip(
            rgb=develop(rng, np.stack(colours)),
            depth=np.stack(depths),
            mover=np.stack(indices),
            K=K,
            world_from_cam=view.world_from_cam,
            world_from_mover=np.array(paths).reshape(len(movers), self._args.frames, 4, 4),
        )

    def _pose(self, view: View, movers: list[Any], paths: list[Array], t: int) -> None:
        self._renderer.place_camera(view.world_from_cam[t])
        for mover, path in zip(movers, paths, strict=True):
            mover.matrix_world = Matrix(path[t].tolist())

    def _movers(self, rng: np.random.Generator, view: View) -> tuple[list[Any], list[Array]]:
        """Put one or two things into the view, and draw how they move: along a line, with a turn."""
        movers: list[Any] = []
        paths: list[Array] = []
        for _ in range(1 if rng.random() < 0.7 else 2):
            ray = int(rng.integers(len(view.distances)))
            distance = view.distances[ray] * rng.uniform(0.45, 0.85)
            if distance < 0.35:
                continue
            place = view.world_from_cam[0, :3, 3] + distance * view.directions[ray]
            mover = self._stage.add_mover(place, 0.8 * distance, len(movers) + 1)
            if mover is None:
                continue
            bpy.context.view_layer.update()
            start = np.array(mover.matrix_world)
            walks = start[2, 3] == 0.0  # a person stays upright on the floor
            speed = distance * log_uniform(rng, 0.005, 0.12, (1,))[0]
            drift = rng.normal(size=3) * [1, 1, 0 if walks else 1]
            drift *= speed / max(float(np.linalg.norm(drift)), 1e-6)
            spin = rng.normal(0, 0.06, 3) * ([0, 0, 1] if walks else [1, 1, 1])
            path = np.tile(start, (self._args.frames, 1, 1))
            for t in range(self._args.frames):
                path[t, :3, :3] = rotation_from_vector(spin * t) @ start[:3, :3]
                path[t, :3, 3] = start[:3, 3] + drift * t
            movers.append(mover)
            paths.append(path)
        return movers, paths

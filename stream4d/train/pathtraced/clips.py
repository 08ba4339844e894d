"""Clips of a set: pick views, set things moving, render, develop, label, write."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
from collections.abc import Iterator

import bpy
import numpy as np
from mathutils import Matrix

from stream4d.train.pathtraced.render import Renderer, develop
from stream4d.train.pathtraced.stage import Shot, Stage
from stream4d.train.pathtraced.truth import RenderedClip, has_clip, write_clip


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
    """Renders clips set by set; each set and each clip has a seed of its own."""

    def __init__(self, args: argparse.Namespace, stage: Stage, renderer: Renderer) -> None:
        self._args = args
        self._renderer = renderer
        self._stage = stage
        self._moving = stage.moving if args.moving is None else args.moving

    def render_set(self, number: int, count: int) -> int:
        """Render those of the first ``count`` clips of a set that are missing; returns how many."""
        names = [f"{self._stage.name}{number:04d}_{clip}" for clip in range(count)]
        missing = [clip for clip in range(count) if not has_clip(self._args.out, names[clip])]
        if not missing:
            return 0
        done = 0
        with silence():
            self._stage.build(np.random.default_rng([self._args.seed, number]))
            for clip in missing:
                rendered = self._clip(np.random.default_rng([self._args.seed, number, clip]))
                if rendered is not None:
                    write_clip(self._args.out, names[clip], rendered)
                    done += 1
        return done

    def _clip(self, rng: np.random.Generator) -> RenderedClip | None:
        """Render one clip; None where the set has no clear view."""
        renderer, frames = self._renderer, self._args.frames
        shot = self._stage.shoot(rng, frames, renderer.width / renderer.height, self._moving)
        if shot is None:
            return None
        K = renderer.set_camera(shot.fov_rad, self._stage.far_m)
        colours, depths, indices = [], [], []
        for t in range(frames):
            self._pose(shot, t)
            colours.append(renderer.colour(int(rng.integers(1 << 30))))
        for t in range(frames):
            self._pose(shot, t)
            depth, index = renderer.depth_and_index()
            depths.append(depth)
            indices.append(index)
        for mover in shot.movers:
            bpy.data.objects.remove(mover)
        return RenderedClip(
            rgb=develop(rng, np.stack(colours)),
            depth=np.stack(depths),
            mover=np.stack(indices),
            K=K,
            world_from_cam=shot.world_from_cam,
            world_from_mover=np.array(shot.paths).reshape(len(shot.movers), frames, 4, 4),
        )

    def _pose(self, shot: Shot, t: int) -> None:
        self._renderer.place_camera(shot.world_from_cam[t])
        for mover, path in zip(shot.movers, shot.paths, strict=True):
            mover.matrix_world = Matrix(path[t].tolist())

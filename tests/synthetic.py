"""A textured room with moving spheres, ray-cast in closed form: exact depth, flow, masks and poses.

The test-suite's source of truth. Any frame can be rendered on its own, so that a stream of any length costs no
memory. Camera paths are closed-form functions of time; every texture is smooth value noise, so that sub-pixel
methods meet neither aliasing nor flat patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stream4d.geometry import camera, flow, transforms
from stream4d.packets import Array, Frame, VideoInfo, Window

Path = Literal["orbit", "walk", "loop", "static", "rotation", "forward"]
HALF = np.array([4.0, 2.5, 4.0])
"""Half extents of the room, metres; its centre is the origin, y points down."""


@dataclass(frozen=True)
class Ball:
    """A textured sphere that swings about a point."""

    centre: tuple[float, float, float]
    radius: float
    swing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    period: float = 40.0
    """Frames per swing."""

    def position(self, t: float) -> Array:
        """Return the centre at frame ``t``; smooth, never still for long where ``swing`` is not zero."""
        return np.array(self.centre) + np.array(self.swing) * np.sin(2 * np.pi * t / self.period)


DEFAULT_BALLS = (
    Ball((-0.6, 0.3, 1.6), 0.45, (0.7, 0.1, 0.2)),
    Ball((1.5, 0.8, 1.0), 0.5),
    Ball((-1.8, -0.6, 2.4), 0.6),
)
"""One mover and two still ones."""

BIG_MOVERS = (
    Ball((-0.55, -0.25, -0.4), 0.57, (0.30, 0.1, 0.1), 31.0),
    Ball((0.75, 0.3, 0.0), 0.64, (-0.25, 0.15, 0.1), 43.0),
    Ball((1.6, 0.8, 2.5), 0.6),
    Ball((-2.4, 0.9, 2.2), 0.7),
    Ball((2.2, -1.2, 2.9), 0.6),
    Ball((-0.2, -1.6, 2.6), 0.5),
)
"""Movers that cover about 40 % of the view."""


def _noise_table(seed: int) -> Array:
    table = np.random.default_rng(seed).uniform(0, 1, (64, 64, 3))
    return table


def _value_noise(table: Array, u: Array, v: Array) -> Array:
    """Interpolate the periodic table with the smoothstep of Perlin's noise."""
    n = len(table)
    iu, iv = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    fu, fv = u - iu, v - iv
    fu, fv = (fu * fu * (3 - 2 * fu))[..., None], (fv * fv * (3 - 2 * fv))[..., None]
    u0, u1, v0, v1 = iu % n, (iu + 1) % n, iv % n, (iv + 1) % n
    top = table[v0, u0] * (1 - fu) + table[v0, u1] * fu
    bottom = table[v1, u0] * (1 - fu) + table[v1, u1] * fu
    return top * (1 - fv) + bottom * fv


def _texture(table: Array, u: Array, v: Array) -> Array:
    """Return colours in [0, 1]: three octaves, the finest about 0.12 m."""
    out = 0.30 * _value_noise(table, 1.3 * u, 1.3 * v)
    out += 0.35 * _value_noise(table, 3.7 * u + 11, 3.7 * v + 5)
    return out + 0.35 * _value_noise(table, 8.3 * u + 3, 8.3 * v + 17)


@dataclass(frozen=True)
class Scene:
    """A room, its balls and a camera path."""

    path: Path = "orbit"
    width: int = 192
    height: int = 144
    focal: float = 165.0
    balls: tuple[Ball, ...] = DEFAULT_BALLS
    frames_per_turn: float = 160.0
    """Sets the speed of the camera."""
    seed: int = 0
    tables: tuple[Array, ...] = field(init=False, repr=False)
    casts: dict[float, tuple[Array, Array, Array]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """The last few frames cast: everything asked of a frame shares one."""

    def __post_init__(self) -> None:
        tables = tuple(_noise_table(self.seed * 100 + i) for i in range(6 + len(self.balls)))
        object.__setattr__(self, "tables", tables)

    @property
    def K(self) -> Array:
        """(3, 3) intrinsics."""
        return camera.centred_K(self.focal, self.width, self.height)

    def info(self, n: int | None = None) -> VideoInfo:
        """Describe the video of ``n`` frames."""
        return VideoInfo.of_frames("synthetic", self.width, self.height, count=n)

    def world_from_cam(self, t: float) -> Array:
        """Return the camera's exact pose at frame ``t``."""
        a = 2 * np.pi * t / self.frames_per_turn
        centre, target = np.array([0.0, 0.0, -2.6]), np.array([0.0, 0.1, 1.5])
        if self.path == "orbit":
            centre = centre + np.array(
                [1.2 * np.sin(a), 0.35 * np.sin(1.7 * a), 0.5 * np.cos(a) - 0.5]
            )
        elif self.path == "walk":  # handheld: several incommensurate sways
            centre = centre + np.array(
                [
                    1.1 * np.sin(a) + 0.05 * np.sin(9 * a),
                    0.3 * np.sin(2.3 * a) + 0.04 * np.sin(11 * a),
                    0.7 * np.sin(1.3 * a),
                ]
            )
            target = target + np.array([0.9 * np.sin(1.9 * a), 0.4 * np.sin(1.1 * a), 0.0])
        elif self.path == "loop":  # out and back along the same arc
            centre = centre + np.array([1.8 * np.sin(a), 0.3 * np.sin(a), 0.8 * np.sin(a) ** 2])
        elif self.path == "rotation":
            target = target + np.array([2.5 * np.sin(a), 0.8 * np.sin(1.4 * a), 0.0])
        elif self.path == "forward":
            centre = centre + np.array([0.0, 0.0, 1.6 * (1 - np.cos(a)) / 2])
        return _look_at(centre, target)

    def _cast(self, t: float) -> tuple[Array, Array, Array]:
        """Return points in the world (H, W, 3), surface number (H, W) and z-depth of frame ``t``."""
        if t not in self.casts:
            if len(self.casts) >= 6:
                del self.casts[next(iter(self.casts))]
            self.casts[t] = self._cast_anew(t)
        return self.casts[t]

    def _cast_anew(self, t: float) -> tuple[Array, Array, Array]:
        pose = self.world_from_cam(t)
        rays = camera.pixel_rays(self.K, self.height, self.width) @ pose[:3, :3].T
        origin = pose[:3, 3]
        with np.errstate(divide="ignore"):
            to_wall = (np.sign(rays) * HALF - origin) / rays
        to_wall = np.where(rays == 0, np.inf, to_wall)
        axis = np.argmin(to_wall, axis=-1)
        depth = np.take_along_axis(to_wall, axis[..., None], -1)[..., 0]
        surface = 2 * axis + (np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0)
        for i, ball in enumerate(self.balls):
            hit = _hit_sphere(origin, rays, ball.position(t), ball.radius)
            nearer = hit < depth
            depth, surface = np.where(nearer, hit, depth), np.where(nearer, 6 + i, surface)
        return origin + depth[..., None] * rays, surface, depth

    def depth(self, t: float) -> Array:  # -> (H, W)
        """Return exact z-depth in metres (rays have z = 1, so that the ray parameter is the depth)."""
        return self._cast(t)[2]

    def moving(self, t: float) -> Array:  # -> (H, W) bool
        """Return the mask of balls that swing."""
        surface = self._cast(t)[1]
        movers = [6 + i for i, ball in enumerate(self.balls) if np.any(ball.swing)]
        return np.isin(surface, movers)

    def rgb(self, t: float) -> Array:  # -> (H, W, 3) uint8
        """Render frame ``t``."""
        points, surface, _ = self._cast(t)
        out = np.zeros((self.height, self.width, 3))
        for number in np.unique(surface):
            chosen = surface == number
            if number < 6:
                u, v = np.delete(points[chosen], number // 2, axis=1).T
            else:
                ball = self.balls[number - 6]
                local = (points[chosen] - ball.position(t)) / ball.radius
                u = 2.5 * np.arctan2(local[:, 0], -local[:, 2])
                v = 2.5 * np.arcsin(np.clip(local[:, 1], -1, 1))
            out[chosen] = _texture(self.tables[number], u, v)
        return np.clip(255 * (0.1 + 0.8 * (1.6 * (out - 0.5) + 0.5)), 0, 255).astype(np.uint8)

    def flow(self, a: float, b: float) -> tuple[Array, Array]:
        """Return exact flow a → b (H, W, 2) and where its target is visible in b (H, W) bool."""
        points, surface, _ = self._cast(a)
        for i, ball in enumerate(self.balls):
            points = np.where(
                (surface == 6 + i)[..., None], points + ball.position(b) - ball.position(a), points
            )
        in_b = transforms.transform_points(transforms.invert(self.world_from_cam(b)), points)
        uv = camera.project(in_b, self.K)
        seen_depth = flow.sample(self.depth(b), uv)
        # a point is hidden where something is nearer by more than interpolation of a slanted wall errs
        visible = np.abs(in_b[..., 2] - seen_depth) < 0.03 * in_b[..., 2]
        return uv - camera.pixel_grid(self.height, self.width), visible

    def frame(self, index: int, *, with_K: bool = True) -> Frame:
        """Return frame ``index`` as the packet a reader would give."""
        return Frame(
            index=index,
            timestamp_ns=int(index * 1e9 / 30),
            rgb=self.rgb(index),
            K=self.K if with_K else None,
        )

    def windows(
        self, n: int, size: int = 2, overlap: int = 1, *, with_K: bool = True, start: int = 0
    ) -> Iterator[Window]:
        """Yield windows over frames ``start`` … ``n - 1``, rendering each frame once."""
        held: list[Frame] = []
        number, index, fresh = 0, start, 0
        while index < n:
            held.append(self.frame(index, with_K=with_K))
            index, fresh = index + 1, fresh + 1
            if len(held) == size or index == n:
                yield Window(index=number, frames=tuple(held), overlap=len(held) - fresh)
                held, number, fresh = held[len(held) - overlap :], number + 1, 0


def _look_at(centre: Array, target: Array) -> Array:
    """Return the pose of an upright camera at ``centre`` that looks at ``target`` (y down)."""
    z = (target - centre) / np.linalg.norm(target - centre)
    x = np.cross([0.0, 1.0, 0.0], z)
    x /= np.linalg.norm(x)
    return transforms.rigid(np.stack([x, np.cross(z, x), z], axis=1), centre)


def _hit_sphere(origin: Array, rays: Array, centre: Array, radius: float) -> Array:
    """Return the nearest positive ray parameter, infinite where the ray misses."""
    to_centre = centre - origin
    a, b = (rays**2).sum(-1), rays @ to_centre
    root = b * b - a * (to_centre @ to_centre - radius**2)
    t = (b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (t > 0), t, np.inf)

"""Procedural texture tiles that repeat without a seam: noise, checks, bricks, pebbles, planks, print, sky."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.floating]
"""(H, W) or (H, W, 3), in [0, 1] where it is a colour."""
TILE = 256
"""Texels along a tile's edge at the finest level."""


def periodic_noise(rng: np.random.Generator, beta: float, size: int = TILE) -> Image:
    """Draw a seamless Gaussian field with power spectrum 1/f^beta, zero mean and unit variance."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(size, size))) * f ** (-beta / 2)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(size, size))
    return np.asarray(field / field.std(), np.float32)


def _colour(rng: np.random.Generator) -> Image:
    """Draw a colour: mostly muted, sometimes vivid."""
    grey = rng.uniform(0.08, 0.92)
    return np.clip(grey + rng.normal(0, rng.choice([0.04, 0.12, 0.3]), 3), 0, 1).astype(np.float32)


def _ramp(rng: np.random.Generator, value: Image, colours: int) -> Image:
    """Map a field to colours along a random polyline in RGB."""
    order = value.ravel().argsort().argsort().reshape(value.shape) / value.size  # histogram-flat
    stops = np.stack([_colour(rng) for _ in range(colours)])
    at = np.linspace(0, 1, colours)
    return np.stack([np.interp(order, at, stops[:, c]) for c in range(3)], -1).astype(np.float32)


def _warped_grid(rng: np.random.Generator, strength: float) -> tuple[Image, Image]:
    """Return (u, v) in [0, 1) tile units, distorted by a seamless displacement."""
    v, u = np.meshgrid(np.arange(TILE) / TILE, np.arange(TILE) / TILE, indexing="ij")
    du, dv = periodic_noise(rng, 3.0), periodic_noise(rng, 3.0)
    return (u + strength * du).astype(np.float32), (v + strength * dv).astype(np.float32)


def _mix(low: Image, high: Image, weight: Image) -> Image:
    return low + (high - low) * weight[..., None]


def _plasma(rng: np.random.Generator) -> Image:
    return _ramp(rng, periodic_noise(rng, rng.uniform(1.2, 2.8)), int(rng.integers(2, 6)))


def _camouflage(rng: np.random.Generator) -> Image:
    """Flat patches with sharp outlines."""
    level = np.digitize(periodic_noise(rng, rng.uniform(2.2, 3.2)), np.sort(rng.normal(0, 0.8, 4)))
    return np.stack([_colour(rng) for _ in range(5)])[level]


def _checks(rng: np.random.Generator) -> Image:
    u, v = _warped_grid(rng, rng.choice([0.0, 0.004]))
    n, m = 2 * rng.integers(1, 9, 2)
    return _mix(_colour(rng), _colour(rng), ((u * n).astype(int) + (v * m).astype(int)) % 2.0)


def _stripes(rng: np.random.Generator) -> Image:
    u, v = _warped_grid(rng, rng.choice([0.0, 0.01, 0.03]))
    n, m = rng.integers(-8, 9), rng.integers(1, 13)
    phase = (n * u + m * v) % 1
    width, edge = rng.uniform(0.15, 0.6), rng.uniform(0.01, 0.2)
    return _mix(_colour(rng), _colour(rng), np.clip((width - abs(phase - 0.5) * 2) / edge, 0, 1))


def _bricks(rng: np.random.Generator) -> Image:
    """Rows of bricks, each of its own shade, with mortar between."""
    u, v = _warped_grid(rng, rng.choice([0.0, 0.002, 0.006]))
    rows, columns = 2 * rng.integers(2, 9), rng.integers(2, 9)
    row = np.floor(v * rows) % rows
    shift = (row % 2) * rng.choice([0.0, 0.5])
    column = np.floor(u * columns + shift) % columns
    shade = rng.normal(1, rng.uniform(0.02, 0.25), (rows, columns))[
        row.astype(int), column.astype(int)
    ]
    edge_u = np.minimum((u * columns + shift) % 1, 1 - (u * columns + shift) % 1) / columns
    edge_v = np.minimum((v * rows) % 1, 1 - (v * rows) % 1) / rows
    gap = rng.uniform(0.002, 0.01)
    inside = np.clip((np.minimum(edge_u, edge_v) - gap) / 0.006, 0, 1)
    brick = _colour(rng) * shade[..., None]
    return _mix(np.broadcast_to(_colour(rng), brick.shape), brick, inside).astype(np.float32)


def _cells(rng: np.random.Generator) -> Image:
    """Pebbles or cracked ground: distances to scattered points on a torus."""
    points = rng.random((int(rng.integers(12, 160)), 2))
    grid = np.stack(np.meshgrid(np.arange(TILE), np.arange(TILE), indexing="ij"), -1) / TILE
    best = np.full((TILE, TILE), 9.0)
    second, owner = best.copy(), np.zeros((TILE, TILE), int)
    for index, point in enumerate(points):
        delta = np.abs(grid - point)
        distance = np.hypot(*np.moveaxis(np.minimum(delta, 1 - delta), -1, 0))
        closer = distance < best
        second = np.where(closer, best, np.minimum(second, distance))
        owner[closer] = index
        best = np.minimum(best, distance)
    shades = _colour(rng) * rng.normal(1, rng.uniform(0.05, 0.3), (len(points), 1))
    inside = np.clip((second - best - 0.004) / rng.uniform(0.005, 0.05), 0, 1)
    return _mix(np.broadcast_to(_colour(rng), (TILE, TILE, 3)), shades[owner], inside).astype(
        np.float32
    )


def _dots(rng: np.random.Generator) -> Image:
    u, v = _warped_grid(rng, rng.choice([0.0, 0.01]))
    n = int(rng.integers(2, 14))
    radius = np.hypot((u * n) % 1 - 0.5, (v * n) % 1 - 0.5)
    weight = np.clip((rng.uniform(0.15, 0.45) - radius) / 0.06, 0, 1)
    return _mix(_colour(rng), _colour(rng), weight)


def _stamp(image: Image, draw: Callable[[Image, tuple[int, int]], None]) -> None:
    """Draw nine shifted copies, so that what crosses an edge comes in on the other side."""
    for dy in (-TILE, 0, TILE):
        for dx in (-TILE, 0, TILE):
            draw(image, (dx, dy))


def _shapes(rng: np.random.Generator) -> Image:
    """Overlapping filled polygons and discs: a collage."""
    image = np.broadcast_to(_colour(rng), (TILE, TILE, 3)).copy()
    for _ in range(int(rng.integers(6, 50))):
        centre, radius = rng.uniform(0, TILE, 2), rng.uniform(4, 60)
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        outline = centre + radius * np.stack([np.cos(angles), np.sin(angles)], -1)
        colour = tuple(float(c) for c in _colour(rng))

        def draw(
            target: Image, shift: tuple[int, int], p: Image = outline, c: tuple[float, ...] = colour
        ) -> None:
            cv2.fillPoly(target, [np.round((p + shift) * 16).astype(np.int32)], c, cv2.LINE_AA, 4)

        _stamp(image, draw)
    return image


def _text(rng: np.random.Generator) -> Image:
    """Rows of glyph-like strokes on paper: posters, labels, screens."""
    ink = np.zeros((TILE, TILE), np.uint8)
    height = float(rng.choice([0.3, 0.5, 0.8, 1.4]))
    line = int(30 * height) + int(rng.integers(2, 10))
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789   ")
    fonts = [cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX]
    font, thickness = int(rng.choice(fonts)), int(rng.integers(1, 3))
    for y in range(line, TILE - 4, line):
        words = "".join(rng.choice(letters, int(rng.integers(5, 60))))
        cv2.putText(ink, words, (4, y), font, height, 255, thickness, cv2.LINE_AA)
    return _mix(_colour(rng), _colour(rng), ink.astype(np.float32) / 255)


def _wood(rng: np.random.Generator) -> Image:
    """Planks with grain along one direction."""
    f_v, f_u = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    f = np.hypot(f_v, rng.uniform(4, 14) * f_u)
    f[0, 0] = 1
    grain = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(TILE, TILE))) * f**-1.0, s=(TILE, TILE))
    image = _ramp(rng, grain.astype(np.float32), 3) * 0.4 + _colour(rng) * 0.6
    planks = int(rng.integers(1, 9))
    row = np.arange(TILE) * planks // TILE
    image *= rng.normal(1, 0.12, planks)[row][:, None, None]
    image[np.diff(row, prepend=row[-1]) != 0] *= 0.5
    return image.astype(np.float32)


def _smooth(rng: np.random.Generator) -> Image:
    """Almost plain: painted walls, plastic, sky."""
    amount = rng.uniform(0.01, 0.12)
    shade = periodic_noise(rng, 3.0)[..., None] * _colour(rng)
    return np.asarray(_colour(rng) + amount * shade, np.float32)


def sky_tile(rng: np.random.Generator) -> Image:
    """Clouds on a clear or overcast sky."""
    blue = np.array([0.35, 0.55, 0.85]) * rng.uniform(0.7, 1.1) + rng.normal(0, 0.05, 3)
    cloud = np.clip(periodic_noise(rng, rng.uniform(2.4, 3.2)) * 0.5 + rng.uniform(-0.3, 0.7), 0, 1)
    sky = np.broadcast_to(blue.astype(np.float32), (TILE, TILE, 3))
    return np.clip(_mix(sky, np.array([0.9, 0.9, 0.92], np.float32), cloud), 0, 1).astype(
        np.float32
    )


_PATTERNS: tuple[tuple[Callable[[np.random.Generator], Image], float], ...] = (
    (_plasma, 3.0), (_camouflage, 1.5), (_checks, 0.7), (_stripes, 1.0), (_bricks, 1.5), (_cells, 1.5),
    (_dots, 0.5), (_shapes, 2.0), (_text, 1.0), (_wood, 1.0), (_smooth, 1.5),
)  # fmt: skip


def procedural_tile(rng: np.random.Generator) -> Image:
    """Draw one seamless tile (TILE, TILE, 3) in [0, 1]: a pattern, weathered by noise at all scales."""
    weights = np.array([weight for _, weight in _PATTERNS])
    pattern = _PATTERNS[rng.choice(len(_PATTERNS), p=weights / weights.sum())][0]
    stain = rng.choice([0.0, 0.05, 0.15]) * periodic_noise(rng, rng.uniform(1.0, 2.5))
    grain = rng.choice([0.0, 0.03, 0.08]) * periodic_noise(rng, rng.uniform(0.3, 1.0))
    return np.asarray(np.clip(pattern(rng) * (1 + stain[..., None]) + grain[..., None], 0, 1))

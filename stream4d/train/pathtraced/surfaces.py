"""Pictures of surfaces, made up: planks, tiles, plaster, carpet, wallpaper, bricks, and pages with writing."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from stream4d.packets import Array

SIDE = 512
"""Pixels of a side of every picture."""


def noise(rng: np.random.Generator, cells: tuple[int, int], octaves: int = 4) -> Array:
    """Return smooth noise of unit spread, ``cells`` = (vertical, horizontal) blobs, (SIDE, SIDE)."""
    total = np.zeros((SIDE, SIDE), np.float32)
    for octave in range(octaves):
        shape = [min(n << octave, SIDE) for n in cells]
        grid = rng.normal(size=shape).astype(np.float32)
        total += 0.6**octave * cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.asarray((total - total.mean()) / (total.std() + 1e-6))


def hsv(hue: float, saturation: float, value: float) -> Array:  # (3,) float32
    """Return the RGB of 0 to 1 of a colour in OpenCV's units: hue of 0 to 180, the rest of 0 to 255."""
    pixel = np.array([[[hue, saturation, value]]], np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32) / 255


def colour(rng: np.random.Generator, warm: bool = False) -> Array:
    """Draw a subdued colour, brown to beige when ``warm``."""
    hue = rng.uniform(10, 25) if warm else rng.uniform(0, 180)
    saturation = rng.uniform(60, 160) if warm else rng.uniform(0, 110)
    return hsv(hue, saturation, rng.uniform(70, 240))


def bricks(rng: np.random.Generator, rows: int, columns: int, shift: float) -> tuple[Array, Array]:
    """Lay a wall of bricks: a random number for each (SIDE, SIDE), and where the joints are."""
    v, u = np.mgrid[:SIDE, :SIDE] / SIDE
    row = np.floor(v * rows).astype(int)
    x = u * columns + (row * shift) % 1
    column = np.floor(x).astype(int) % columns
    tone = rng.normal(size=(rows, columns)).astype(np.float32)[row, column]
    gap = rng.uniform(0.004, 0.02)
    across = np.minimum(x % 1, 1 - x % 1) / columns
    along = np.minimum((v * rows) % 1, 1 - (v * rows) % 1) / rows
    return tone, np.minimum(across, along) < gap / 2


def shade(paint: Array, amount: Array) -> Array:
    """Brighten and darken a colour by ``amount`` (SIDE, SIDE), in units of e."""
    return np.asarray(paint * np.exp(amount)[..., None])


def planks(rng: np.random.Generator) -> Array:
    """Draw a wooden floor."""
    tone, joint = bricks(
        rng, int(rng.integers(4, 14)), int(rng.integers(1, 4)), rng.choice([0.5, 0.37])
    )
    grain = noise(rng, (48, 2))
    picture = shade(colour(rng, warm=True), 0.18 * tone + rng.uniform(0.05, 0.15) * grain)
    picture[joint] *= rng.uniform(0.3, 0.8)
    return picture


def tiles(rng: np.random.Generator) -> Array:
    """Draw tiles or bricks with joints."""
    count = int(rng.integers(2, 12))
    brick = rng.random() < 0.5
    tone, joint = bricks(rng, count * (2 if brick else 1), count, 0.5 if brick else 0.0)
    picture = shade(colour(rng), rng.uniform(0, 0.2) * tone + 0.06 * noise(rng, (6, 6)))
    if rng.random() < 0.25:  # a chessboard
        v, u = np.mgrid[:SIDE, :SIDE] * count // SIDE
        picture[(u + v) % 2 == 0] = colour(rng)
    picture[joint] = colour(rng)
    return picture


def plaster(rng: np.random.Generator) -> Array:
    """Draw a painted wall: nearly plain, with stains and grit."""
    picture = shade(
        0.5 + 0.5 * colour(rng),
        rng.uniform(0.01, 0.06) * noise(rng, (3, 3))
        + rng.uniform(0.005, 0.05) * noise(rng, (128, 128), 2),
    )
    return np.asarray(picture)


def carpet(rng: np.random.Generator) -> Array:
    """Draw a woven floor: fine grain of two colours, patches."""
    mix = noise(rng, (8, 8)) * 0.5 + noise(rng, (200, 200), 1) * 0.7
    weight = (1 / (1 + np.exp(-1.5 * mix)))[..., None]
    return np.asarray(colour(rng) * weight + colour(rng) * (1 - weight))


def wallpaper(rng: np.random.Generator) -> Array:
    """Draw stripes or a repeated motif on plaster."""
    picture = plaster(rng)
    ink = colour(rng)
    count = int(rng.integers(3, 16))
    if rng.random() < 0.5:
        bands = (np.arange(SIDE) * count * 2 // SIDE) % 2 == 0
        picture[:, bands] = 0.5 * picture[:, bands] + 0.5 * ink
        return picture
    side = SIDE // count + 1
    motif = cv2.resize(rng.random((5, 5)).astype(np.float32), (side, side)) > 0.55
    mask = np.tile(np.maximum(motif, motif[:, ::-1]), (count, count))[:SIDE, :SIDE]
    picture[mask] = 0.4 * picture[mask] + 0.6 * ink
    return picture


def page(rng: np.random.Generator) -> Array:
    """Draw a page of writing, sometimes with a figure."""
    picture = np.full((SIDE, SIDE, 3), rng.uniform(0.75, 0.97), np.float32)
    ink = rng.uniform(0.02, 0.35, 3).astype(np.float32)
    step = int(rng.integers(12, 28))
    margin = int(rng.integers(20, 80))
    for y in range(margin, SIDE - margin, step):
        x = margin
        while x < SIDE - margin - 8 and rng.random() < 0.97:
            word = int(rng.integers(8, 60))
            picture[y : y + step // 2, x : min(x + word, SIDE - margin)] = ink
            x += word + step // 2
    if rng.random() < 0.4:
        x, y = rng.integers(margin, SIDE // 2, 2)
        w, h = rng.integers(80, SIDE // 2 - 10, 2)
        picture[y : y + h, x : x + w] = planks(rng)[:h, :w] if rng.random() < 0.3 else colour(rng)
    return picture


Kind = Callable[[np.random.Generator], Array]
"""Draws a picture (SIDE, SIDE, 3), of about 0 to 1."""
FLOORS: tuple[Kind, ...] = (planks, planks, tiles, carpet)
WALLS: tuple[Kind, ...] = (plaster, plaster, wallpaper, tiles)

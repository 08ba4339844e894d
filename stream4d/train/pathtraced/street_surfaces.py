"""Pictures of what is outdoors, made up: asphalt, paint, paving, lawns, fields, leaves, house fronts and skies."""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.train.pathtraced.surfaces import (
    SIDE,
    Kind,
    bricks,
    colour,
    hsv,
    noise,
    plaster,
    shade,
    tiles,
)


def asphalt(rng: np.random.Generator) -> Array:
    """Draw a road surface: grit, stains, sometimes cracks and mended places; sometimes next to nothing."""
    base = np.full(3, rng.uniform(0.12, 0.42), np.float32) * rng.uniform(0.94, 1.06, 3)
    contrast = float(np.exp(rng.uniform(np.log(0.15), np.log(1.5))))
    grit = rng.uniform(0.03, 0.22) * noise(rng, (200, 200), 2)
    picture = shade(base, contrast * (grit + rng.uniform(0.02, 0.12) * noise(rng, (4, 4))))
    if rng.random() < 0.5:
        _crack(rng, picture, int(rng.integers(1, 9)))
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.5 else 0):
        x, y = rng.integers(0, SIDE - 60, 2)
        w, h = rng.integers(25, 200, 2)
        picture[y : y + h, x : x + w] *= rng.uniform(0.6, 1.25)
    return np.asarray(picture, np.float32)


def _crack(rng: np.random.Generator, picture: Array, count: int) -> None:
    """Draw dark wandering lines, in place."""
    ink = [float(x) for x in picture.mean((0, 1)) * rng.uniform(0.2, 0.7)]
    for _ in range(count):
        way = rng.uniform(0, 2 * np.pi) + 0.3 * rng.normal(size=60).cumsum()
        steps = 9.0 * np.stack([np.cos(way), np.sin(way)], -1)
        line = rng.uniform(0, SIDE, 2) + steps.cumsum(0)
        cv2.polylines(picture, [line.astype(np.int32)], False, ink, int(rng.integers(1, 4)))


def road_paint(rng: np.random.Generator) -> Array:
    """Draw white or yellow road paint, worn in places."""
    ink = hsv(rng.uniform(20, 28), 190, 235) if rng.random() < 0.15 else np.full(3, 0.8)
    picture = shade(ink.astype(np.float32), 0.05 * noise(rng, (100, 100), 2))
    worn = noise(rng, (40, 40)) > rng.uniform(0.6, 3.0)
    picture[worn] *= 0.4
    return picture


def paving(rng: np.random.Generator) -> Array:
    """Draw slabs, cobbles or plain concrete of a pavement."""
    if rng.random() < 0.3:
        return asphalt(rng) * 1.2
    rows = int(rng.integers(4, 24))
    tone, joint = bricks(rng, rows, rows, float(rng.choice([0.0, 0.5])))
    warm = rng.random() < 0.4
    stone = hsv(rng.uniform(5, 22), rng.uniform(10, 110 if warm else 30), rng.uniform(90, 200))
    picture = shade(stone, rng.uniform(0.02, 0.15) * tone + 0.05 * noise(rng, (30, 30)))
    picture[joint] *= rng.uniform(0.4, 0.9)
    return picture


def lawn(rng: np.random.Generator) -> Array:
    """Draw grass, from lush to dry, fine or in patches."""
    grass = hsv(rng.uniform(22, 50), rng.uniform(60, 170), rng.uniform(60, 150))
    amount = rng.uniform(0.1, 0.4) * noise(rng, (160, 160), 2) + 0.15 * noise(rng, (5, 5))
    picture = shade(grass, amount)
    bare = noise(rng, (6, 6)) > rng.uniform(1.0, 4.0)
    picture[bare] = shade(hsv(15, 90, 130), amount)[bare]
    return picture


def field(rng: np.random.Generator) -> Array:
    """Draw earth, stubble or rows of plants."""
    ground = hsv(rng.uniform(12, 45), rng.uniform(50, 150), rng.uniform(80, 190))
    rows = np.sin(np.arange(SIDE) * 2 * np.pi * int(rng.integers(8, 40)) / SIDE)
    amount = 0.15 * noise(rng, (8, 8)) + 0.15 * noise(rng, (120, 120), 2)
    return shade(ground, amount + rng.uniform(0, 0.3) * rows[None, :])


def leaves(rng: np.random.Generator) -> Array:
    """Draw foliage: dark and light blots of a green, or of autumn."""
    hue = rng.uniform(5, 28) if rng.random() < 0.15 else rng.uniform(28, 55)
    green = hsv(hue, rng.uniform(80, 190), rng.uniform(60, 140))
    return shade(green, 0.45 * noise(rng, (24, 24), 3))


def bark(rng: np.random.Generator) -> Array:
    """Draw the bark of a trunk."""
    wood = hsv(rng.uniform(8, 20), rng.uniform(20, 110), rng.uniform(50, 150))
    return shade(wood, 0.3 * noise(rng, (8, 60), 3))


def front(rng: np.random.Generator) -> Array:
    """Draw some storeys of a house front: a wall with rows of windows; tileable."""
    wall = tiles(rng) if rng.random() < 0.25 else plaster(rng)
    if rng.random() < 0.25:
        tone, joint = bricks(rng, 64, 24, 0.5)
        wall = shade(
            hsv(rng.uniform(3, 16), rng.uniform(60, 150), rng.uniform(90, 190)), 0.1 * tone
        )
        wall[joint] = rng.uniform(0.4, 0.8)
    rows, columns = int(rng.integers(2, 5)), int(rng.integers(2, 6))
    h, w = SIDE // rows, SIDE // columns
    tall, wide = rng.uniform(0.4, 0.75), rng.uniform(0.3, 0.85)
    frame = np.float32(rng.uniform(0.75, 0.95)) if rng.random() < 0.6 else colour(rng)
    shutters = colour(rng) if rng.random() < 0.25 and wide < 0.5 else None
    ledge = rng.random() < 0.4
    bars = int(rng.integers(0, 3))
    for row in range(rows):
        for column in range(columns):
            y = int(row * h + h * (1 - tall) * 0.45)
            x = int(column * w + w * (1 - wide) / 2)
            y1, x1 = y + int(h * tall), x + int(w * wide)
            if shutters is not None:
                out = int(0.45 * (x1 - x))
                wall[y:y1, max(x - out, 0) : x1 + out] = shutters
            wall[y:y1, x:x1] = frame
            rim = max(2, SIDE // 128)
            _pane(rng, wall[y + rim : y1 - rim, x + rim : x1 - rim])
            for bar in range(1, bars + 1):
                at = x + (x1 - x) * bar // (bars + 1)
                wall[y:y1, at - rim // 2 : at + rim // 2 + 1] = frame
            if ledge:
                wall[y1 : y1 + 2 * rim, max(x - rim, 0) : x1 + rim] *= 0.6
    if rng.random() < 0.4:  # cornices
        for row in range(rows):
            wall[row * h : row * h + max(3, SIDE // 90)] *= rng.uniform(0.6, 1.25)
    return np.asarray(wall, np.float32)


def _pane(rng: np.random.Generator, pane: Array) -> None:
    """Fill a window, in place: dark, a mirrored sky, a curtain."""
    if not pane.size:
        return
    ramp = np.linspace(1, rng.uniform(0.3, 1), len(pane))[:, None, None]
    kind = rng.random()
    if kind < 0.6:
        pane[:] = rng.uniform(0.03, 0.15, 3) * ramp
    elif kind < 0.85:
        pane[:] = np.array([0.4, 0.5, 0.6]) * rng.uniform(0.4, 1.1) * ramp
    else:
        pane[:] = rng.uniform(0.4, 0.8)


def shop(rng: np.random.Generator) -> Array:
    """Draw a ground floor: shop windows and doors under a sign."""
    picture = shade(colour(rng), 0.05 * noise(rng, (10, 10)))
    picture[: SIDE // 5] = colour(rng)
    x = int(rng.integers(5, 40))
    while x < SIDE - 60:  # letters
        wide = int(rng.integers(10, 26))
        picture[SIDE // 18 : SIDE // 7, x : x + wide] = rng.uniform(0, 1)
        x += wide + int(rng.integers(5, 30))
    x = 20
    while x < SIDE - 120:
        wide = int(rng.integers(60, 200))
        is_door = rng.random() < 0.35
        top, low = SIDE // 4, SIDE - (6 if is_door else int(rng.integers(20, 130)))
        picture[top:low, x : x + (70 if is_door else wide)] = rng.uniform(0.05, 0.9)
        _pane(rng, picture[top + 8 : low - 8, x + 8 : x + (62 if is_door else wide - 8)])
        x += (70 if is_door else wide) + int(rng.integers(10, 60))
    return picture


def roof(rng: np.random.Generator) -> Array:
    """Draw roof tiles or slate."""
    rows = int(rng.integers(12, 32))
    tone, joint = bricks(rng, rows, rows, 0.5)
    clay = hsv(rng.uniform(2, 14), rng.uniform(20, 170), rng.uniform(60, 170))
    picture = shade(clay, 0.12 * tone + 0.1 * noise(rng, (6, 6)))
    picture[joint] *= 0.6
    return picture


def sky(rng: np.random.Generator) -> Array:
    """Draw half a sky, from the horizon (lowest row) to the zenith: clear, cloudy, overcast, or at dusk."""
    up = np.linspace(1, 0, SIDE)[:, None, None] ** 0.6
    hue, saturation = rng.uniform(95, 112), rng.uniform(30, 170)
    zenith = hsv(hue, saturation, rng.uniform(140, 235))
    horizon = 0.7 * np.full(3, rng.uniform(0.75, 1.0)) + 0.3 * zenith
    if rng.random() < 0.15:
        horizon = hsv(rng.uniform(5, 22), rng.uniform(40, 140), 250)
    picture = horizon * (1 - up) + zenith * up + np.zeros((SIDE, SIDE, 1))
    cover = rng.uniform(-2.5, 1.5)
    cells = int(rng.integers(3, 10))
    clouds = noise(rng, (2 * cells, cells), 6)
    weight = np.clip((clouds + cover) * rng.uniform(0.4, 2), 0, 1)[..., None]
    grey = rng.uniform(0.7, 1.0) * (1 + 0.12 * noise(rng, (2 * cells, cells), 5))[..., None]
    return np.asarray(picture * (1 - weight) + grey * weight, np.float32)


GROUNDS: tuple[Kind, ...] = (lawn, lawn, field)

"""Surface textures: periodic tiles from procedural patterns and photos, mip-mapped in one atlas image.

Tiles repeat without a seam. Every mip level lies in the same image with a one-texel border, so that a trilinear
look-up is two ``grid_sample`` calls, whatever tile and level each pixel needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from stream4d.errors import ConfigError

Image = npt.NDArray[np.floating]
SKY_TILES = 4
"""The first tiles of an atlas are skies."""
TILE = 256
"""Texels along a tile's edge at the finest level."""
LEVELS = 8
_IMAGE_TYPES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


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


def _sky(rng: np.random.Generator) -> Image:
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


def list_photos(folder: Path) -> list[Path]:
    """Return the images under a folder, sorted.

    Raises:
        ConfigError: the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise ConfigError(f"photo_dir {str(folder)!r} is not a folder: give a folder of images")
    photos = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGE_TYPES)
    if not photos:
        raise ConfigError(
            f"photo_dir {str(folder)!r} holds no image ({', '.join(sorted(_IMAGE_TYPES))})"
        )
    return photos


def photo_tile(rng: np.random.Generator, path: Path) -> Image:
    """Cut a random square out of a photo and cross-fade its borders, so that it repeats.

    Raises:
        ConfigError: the file cannot be decoded.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ConfigError(f"cannot decode the photo {str(path)!r}: remove it from photo_dir")
    border = TILE // 8
    short = min(image.shape[:2])
    side = int(rng.uniform(min(TILE, short) / short, 1.0) * short)
    y, x = (int(rng.integers(0, n - side + 1)) for n in image.shape[:2])
    crop = cv2.resize(
        image[y : y + side, x : x + side, ::-1], (TILE + border,) * 2, interpolation=cv2.INTER_AREA
    ).astype(np.float32) / 255  # fmt: skip
    fade = (np.arange(border, dtype=np.float32) / border)[:, None, None]
    crop[:border] = crop[:border] * fade + crop[TILE:] * (1 - fade)
    crop = crop[:TILE].swapaxes(0, 1)
    crop[:border] = crop[:border] * fade + crop[TILE:] * (1 - fade)
    return np.ascontiguousarray(crop[:TILE])


@dataclass(frozen=True, slots=True)
class Atlas:
    """Tiles and their mip levels in one image."""

    image: Tensor
    """(3, H, W) float32 in [0, 1]."""
    tiles: int
    """How many tiles there are."""

    @staticmethod
    def layout(tiles: int) -> tuple[int, list[tuple[int, int, int]]]:
        """Return tiles per row, and for each level (x offset, y offset, tile edge) in texels."""
        columns = int(np.ceil(np.sqrt(tiles)))
        first = columns * (TILE + 2)
        places, y = [(0, 0, TILE)], 0
        for level in range(1, LEVELS):
            edge = TILE >> level
            places.append((first, y, edge))
            y += columns * (edge + 2)
        return columns, places


def build_atlas(images: Tensor) -> Atlas:  # (N, 3, TILE, TILE) in [0, 1]
    """Lay tiles and their averaged-down levels into one image."""
    columns, places = Atlas.layout(len(images))
    x1, _, edge1 = places[1]
    width, height = x1 + columns * (edge1 + 2), columns * (TILE + 2)
    height = max(height, places[-1][1] + columns * (places[-1][2] + 2))
    atlas = torch.zeros(3, height, width)
    for level, (x0, y0, edge) in enumerate(places):
        small = F.avg_pool2d(images, 1 << level) if level else images
        tiles = F.pad(small, (1, 1, 1, 1), mode="circular")
        for index, tile in enumerate(tiles):
            y, x = y0 + index // columns * (edge + 2), x0 + index % columns * (edge + 2)
            atlas[:, y : y + edge + 2, x : x + edge + 2] = tile
    return Atlas(atlas, len(images))


@lru_cache(maxsize=8)
def make_atlas(seed: int, tiles: int, photo_dir: str | None, photo_share: float) -> Atlas:
    """Draw an atlas; the same arguments give the same atlas.

    Raises:
        ConfigError: ``photo_dir`` is missing, empty or holds a file that is not an image.
    """
    rng = np.random.default_rng([seed, 0x7E47])
    photos = list_photos(Path(photo_dir)) if photo_dir else []
    images = [_sky(rng) for _ in range(SKY_TILES)]
    for _ in range(tiles - SKY_TILES):
        if photos and rng.random() < photo_share:
            images.append(photo_tile(rng, photos[rng.integers(len(photos))]))
        else:
            images.append(procedural_tile(rng))
    return build_atlas(
        torch.from_numpy(np.stack(images).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    )


def sample_atlas(
    image: Tensor,  # (3, Ha, Wa) float
    tiles: int,
    tile: Tensor,  # (M,) int64
    u: Tensor,  # (M,) in tile widths
    v: Tensor,  # (M,)
    level: Tensor,  # (M,) float mip level
) -> Tensor:  # (3, M)
    """Look textures up with trilinear filtering."""
    columns, places = Atlas.layout(tiles)
    table = torch.tensor(places, dtype=torch.float32, device=image.device)
    height, width = image.shape[1:]
    u, v = u - u.floor(), v - v.floor()
    order = torch.arange(tiles, device=image.device)
    row = (order // columns).float().index_select(0, tile)
    column = (order % columns).float().index_select(0, tile)
    level = level.clamp(0, LEVELS - 1.001)
    fine = level.long()

    def fetch(at: Tensor) -> Tensor:
        x0, y0, edge = (table[:, i].contiguous().index_select(0, at) for i in range(3))
        x = x0 + column * (edge + 2) + 1 + u * edge  # texel edges, as grid_sample's default wants
        y = y0 + row * (edge + 2) + 1 + v * edge
        grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), -1)
        return F.grid_sample(image[None], grid[None, :, None], align_corners=False)[0, :, :, 0]

    return torch.lerp(fetch(fine), fetch(fine + 1), level - fine)

"""Surface textures: periodic tiles from patterns and photos, mip-mapped in one atlas image.

Tiles repeat without a seam. Every mip level lies in the same image with a one-texel border, so that a trilinear
look-up is two ``grid_sample`` calls, whatever tile and level each pixel needs.
"""

from __future__ import annotations

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
from stream4d.train.patterns import TILE, Image, procedural_tile, sky_tile

SKY_TILES = 4
"""The first tiles of an atlas are skies."""
LEVELS = 8
MOST_TILES = 1024
"""Tiles that the atlases of a run share at most (200 MB)."""
_IMAGE_TYPES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


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
    small = images
    for level, (x0, y0, edge) in enumerate(places):
        if level:
            small = F.avg_pool2d(small, 2)
        tiles = F.pad(small, (1, 1, 1, 1), mode="circular")
        for index, tile in enumerate(tiles):
            y, x = y0 + index // columns * (edge + 2), x0 + index % columns * (edge + 2)
            atlas[:, y : y + edge + 2, x : x + edge + 2] = tile
    return Atlas(atlas, len(images))


@lru_cache(maxsize=MOST_TILES + 64)
def _tile(index: int, photo_dir: str | None, photo_share: float) -> npt.NDArray[np.uint8]:
    """Draw one tile of the pool, (TILE, TILE, 3)."""
    rng = np.random.default_rng([index, 0x7E47])
    photos = _photos(photo_dir) if photo_dir else ()
    if photos and rng.random() < photo_share:
        image = photo_tile(rng, photos[rng.integers(len(photos))])
    else:
        image = procedural_tile(rng)
    return np.round(image * 255).astype(np.uint8)


@lru_cache(maxsize=4)
def _photos(folder: str) -> tuple[Path, ...]:
    return tuple(list_photos(Path(folder)))


@lru_cache(maxsize=4)
def make_atlas(
    index: int, tiles: int, photo_dir: str | None, photo_share: float, atlases: int = 1
) -> Atlas:
    """Put an atlas together; the same arguments give the same atlas.

    Atlases share a pool of tiles, each drawn when it is first needed and then kept (200 kB each).

    Args:
        index: which one of the atlases.
        tiles: textures in it; the first ``SKY_TILES`` are skies of its own.
        photo_dir: folder of photos to cut tiles from.
        photo_share: share of tiles cut from photos.
        atlases: how many atlases share the pool.

    Raises:
        ConfigError: ``photo_dir`` is missing, empty or holds a file that is not an image.
    """
    rng = np.random.default_rng([index, 0xA71A5])
    pool = max(tiles, min(MOST_TILES, tiles * atlases))
    picks = rng.choice(pool, tiles - SKY_TILES, replace=False)
    skies = [sky_tile(rng) for _ in range(SKY_TILES)]
    others = [_tile(int(i), photo_dir, photo_share) / np.float32(255) for i in picks]
    return build_atlas(
        torch.from_numpy(np.stack([*skies, *others]).astype(np.float32))
        .permute(0, 3, 1, 2)
        .contiguous()
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

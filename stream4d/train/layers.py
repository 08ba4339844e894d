"""Layered 2D clips: photos and noise cut into shapes that move over a moving background, with exact flow.

The cheap half of the training data. Scenes in 3D (``scenes``) teach cameras, depth and motion; layers teach
correspondence: real photo texture, large displacements, thin shapes and occlusion, at a few milliseconds per pair.
Sources: FlyingChairs (Dosovitskiy et al. 2015) and AutoFlow (Sun et al. 2021), whose layered recipe this follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from stream4d.errors import TrainingError
from stream4d.packets import Array
from stream4d.train.compositing import Layer, composite, hidden_in_other, layer_flow, moves_apart

TILE = 448
"""Side of a texture tile in pixels."""
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class LayeredPair(NamedTuple):
    """Two frames and the flow between them."""

    rgb: Array
    """(2, H, W, 3) uint8."""
    flow: Array
    """(2, H, W, 2) float32 pixels: frame 0 → 1 and frame 1 → 0."""
    occluded: Array
    """(2, H, W) bool: covered or outside the image in the other frame."""
    moving: Array
    """(2, H, W) bool: on a shape that moves otherwise than the background does there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOptions:
    """How wild the layers are."""

    shapes: tuple[int, int] = (3, 12)
    """Fewest and most shapes over the background."""
    background_px: float = 0.04
    """Typical motion of the background, as a share of the image's width."""
    shape_px: float = 0.06
    """Typical motion of a shape relative to the background, as a share of the image's width."""
    still: float = 0.15
    """Share of clips whose background rests."""

    def __post_init__(self) -> None:
        if not 0 <= self.shapes[0] <= self.shapes[1]:
            raise TrainingError(f"shapes must be a range of counts, got {self.shapes}")
        for name in ("background_px", "shape_px", "still"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


def load_photos(folder: str | Path | None, limit: int = 400) -> list[Array]:
    """Read the photos of a folder at no more than 1000 pixels on their long side.

    Raises:
        TrainingError: the folder does not exist or holds no picture.
    """
    if folder is None:
        return []
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    photos = []
    for path in paths[:limit]:
        picture = cv2.imread(str(path))
        if picture is None or picture.std() < 3:  # unreadable or blank: nothing to match
            continue
        scale = min(1.0, 1000 / max(picture.shape[:2]))
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        photos.append(np.ascontiguousarray(picture[..., ::-1]))
    if not photos:
        raise TrainingError(f"no photo found in {folder}: give a folder of jpg or png files")
    return photos


@dataclass(slots=True, kw_only=True)
class LayeredClips:
    """Renders layered pairs; the same seed gives the same pair."""

    photos: Sequence[Array] = field(default_factory=list)
    options: LayerOptions = field(default_factory=LayerOptions)
    tiles: int = 300
    """Different textures; each is made when first used and kept (0.6 MB)."""
    _made: dict[int, Array] = field(default_factory=dict, repr=False)

    def pair(self, seed: int, size: tuple[int, int]) -> LayeredPair:
        """Render one pair of (H, W) frames."""
        rng = np.random.default_rng(seed)
        layers = self._layers(rng, size)
        frames, owners = zip(*(composite(layers, t, size) for t in (0, 1)), strict=True)
        fields = [layer_flow(layers, owners[t], t) for t in (0, 1)]
        hidden = [hidden_in_other(owners, fields[t], t) for t in (0, 1)]
        moving = [moves_apart(layers, owners[t], fields[t], t) for t in (0, 1)]
        rgb = _sensor(rng, np.stack(frames))
        return LayeredPair(rgb, np.stack(fields), np.stack(hidden), np.stack(moving))

    def _layers(self, rng: np.random.Generator, size: tuple[int, int]) -> list[Layer]:
        H, W = size
        options = self.options
        camera = _motion(rng, size, 0 if rng.random() < options.still else options.background_px)
        layers = [self._layer(rng, size, camera, None)]
        for _ in range(rng.integers(*options.shapes, endpoint=True)):
            own = _motion(rng, size, options.shape_px if rng.random() < 0.8 else 0)
            layers.append(self._layer(rng, size, own @ camera, _shape(rng, max(H, W))))
        return layers

    def _layer(
        self, rng: np.random.Generator, size: tuple[int, int], motion: Array, alpha: Array | None
    ) -> Layer:
        H, W = size
        side = max(H, W)
        texture = self._texture(rng, side * 3 // 2 if alpha is None else alpha.shape[0])
        if alpha is not None:
            alpha = cv2.resize(alpha, texture.shape[:2], interpolation=cv2.INTER_AREA)
        place = _placement(rng, size, texture.shape[0], cover=alpha is None)
        # Half of the motion before the first frame, half after: neither frame is the special one.
        half = _root(motion)
        return Layer(texture, alpha, (np.linalg.inv(half) @ place, half @ place))

    def _texture(self, rng: np.random.Generator, side: int) -> Array:
        """Cut a square from a random tile, sometimes mirrored, tinted or with exchanged channels."""
        tile = self._tile(int(rng.integers(self.tiles)))
        crop = min(side, TILE)
        y, x = rng.integers(0, TILE - crop + 1, 2)
        cut = tile[y : y + crop, x : x + crop]
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        if rng.random() < 0.3:
            cut = cut[..., rng.permutation(3)]
        return np.ascontiguousarray(cut)

    def _tile(self, index: int) -> Array:
        """Make (once) texture ``index``: part of a photo at a random scale, or noise."""
        if index not in self._made:
            rng = np.random.default_rng(index)
            if self.photos and rng.random() > 0.15:
                photo = self.photos[int(rng.integers(len(self.photos)))]
                crop = int(rng.uniform(0.25, 1.0) * min(photo.shape[:2]))
                y, x = (int(rng.integers(0, n - crop + 1)) for n in photo.shape[:2])
                cut = photo[y : y + crop, x : x + crop]
                self._made[index] = cv2.resize(cut, (TILE, TILE), interpolation=cv2.INTER_AREA)
            else:
                self._made[index] = _noise(rng, TILE)
        return self._made[index]


def _noise(rng: np.random.Generator, side: int) -> Array:
    """Sum coloured noise of several scales; sometimes thresholded into patches."""
    total = np.zeros((side, side, 3), np.float32)
    for cells in (4, 9, 20, 45, 100):
        grid = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        total += cv2.resize(
            grid, (side, side), interpolation=cv2.INTER_CUBIC
        ) * cells ** -rng.uniform(0, 0.6)
    if rng.random() < 0.3:
        total = np.sign(total)
    return np.asarray(np.clip(128 + total * rng.uniform(15, 60), 0, 255), np.uint8)


def _shape(rng: np.random.Generator, side: int) -> Array:
    """Draw a shape: (S, S) float32 coverage with soft edges."""
    size = int(side * np.exp(rng.uniform(np.log(0.12), np.log(0.8))))
    size = max(size, 12)
    kind = rng.integers(4)
    canvas = np.zeros((size * 2, size * 2), np.uint8)
    if kind == 0:
        cv2.ellipse(
            canvas,
            (size, size),
            (int(size * 0.95), int(size * rng.uniform(0.2, 0.95))),
            0,
            0,
            360,
            255,
            -1,
        )
    elif kind == 1:  # thin bars, the hard case
        for _ in range(rng.integers(1, 4)):
            p = rng.integers(0, 2 * size, 4)
            cv2.line(
                canvas,
                (int(p[0]), int(p[1])),
                (int(p[2]), int(p[3])),
                255,
                max(2, int(size * rng.uniform(0.04, 0.2))),
            )
    else:  # a star-shaped blob, smooth or with corners
        count = int(rng.integers(3, 14))
        angle = np.sort(rng.uniform(0, 2 * np.pi, count))
        radius = rng.uniform(0.35 if kind == 2 else 0.6, 0.98, count) * size
        points = np.stack([size + radius * np.cos(angle), size + radius * np.sin(angle)], 1)
        cv2.fillPoly(canvas, [points.astype(np.int32)], 255)
        if kind == 2 and rng.random() < 0.3:  # a hole
            cv2.circle(canvas, (size, size), int(size * 0.3), 0, -1)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _motion(rng: np.random.Generator, size: tuple[int, int], share: float) -> Array:
    """Draw a homography of the image; displacements are heavy-tailed with median ≈ ``share`` of the width."""
    H, W = size
    if share == 0:
        return np.eye(3)
    length = W * share * np.exp(rng.normal(-0.5, 1.0))
    length = min(length, 0.45 * W)
    turn = rng.uniform(0, 2 * np.pi)
    shift = length * np.array([np.cos(turn), 0.6 * np.sin(turn)])
    strength = min(1.0, length / (0.1 * W))
    angle = rng.normal(0, 0.12) * strength
    zoom = np.exp(rng.normal(0, 0.08) * strength)
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear + rng.normal(0, 0.03 * strength, (2, 2))
    centre = np.array([W, H]) * rng.uniform(0.2, 0.8, 2)
    out = np.eye(3)
    out[:2, :2] = linear
    out[:2, 2] = centre + shift - linear @ centre
    tilt = np.eye(3)
    tilt[2, :2] = rng.normal(0, 0.1 * strength, 2) / W
    return out @ tilt


def _root(motion: Array) -> Array:
    """Take (nearly) half of a small motion: the mean with identity, whose square is close to it.

    Exactness does not matter: flow is computed from the matrices that are used.
    """
    half: Array = 0.5 * (motion / motion[2, 2] + np.eye(3))
    return half


def _placement(rng: np.random.Generator, size: tuple[int, int], side: int, *, cover: bool) -> Array:
    """Place a texture of ``side`` pixels in the image: covering it, or somewhere over it."""
    H, W = size
    scale = 1.5 * max(H, W) / side if cover else 1.0
    middle = np.array([W / 2, H / 2]) if cover else np.array([W, H]) * rng.uniform(-0.05, 1.05, 2)
    angle = rng.uniform(-0.2, 0.2) if cover else rng.uniform(0, 2 * np.pi)
    stretch = np.ones(2) if cover else np.exp(rng.normal(0, 0.2, 2))
    linear = (
        scale
        * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        * stretch
    )
    out = np.eye(3)
    out[:2, :2] = linear
    out[:2, 2] = middle - linear @ np.array([side / 2, side / 2])
    return out


def _sensor(rng: np.random.Generator, frames: Array) -> Array:
    """Add what cameras do: exposure and colour drift, blur, noise, JPEG blocks; flow stays true."""
    frames = (frames * (rng.uniform(0.6, 1.3) * rng.uniform(0.85, 1.15, 3))).astype(np.float32)
    frames[1] *= np.exp(rng.normal(0, 0.06)) * np.exp(rng.normal(0, 0.02, 3))
    frames[1] += rng.normal(0, 3)
    sigma = rng.uniform(0, 1.2) if rng.random() < 0.4 else 0
    out = []
    noise = rng.uniform(0, 8) if rng.random() < 0.6 else 0
    quality = int(rng.integers(40, 95)) if rng.random() < 0.3 else 0
    for frame in frames:
        if sigma > 0.3:
            frame = cv2.GaussianBlur(frame, (0, 0), sigma)
        if noise:
            frame = frame + rng.standard_normal(frame.shape, dtype=np.float32) * noise
        image = np.clip(frame, 0, 255).astype(np.uint8)
        if quality:
            _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        out.append(image)
    return np.stack(out)

"""Bring a decoded image to processed size, undistort it, and keep K exact.

Frames are resized to multiples of 16 by a plain resize of the whole image, so that a pixel maps to the source by
``u_source = (u + 0.5) * source_width / width - 0.5`` and nothing is cropped.
"""

from __future__ import annotations

import logging

import cv2
import numpy as np

from stream4d.config import ReaderConfig
from stream4d.errors import ConfigError
from stream4d.geometry.camera import make_K, rays, scale_K
from stream4d.packets import Array

logger = logging.getLogger(__name__)

MULTIPLE = 16
"""Both sides are multiples of this: what networks with patches of 8 or 16 pixels need."""
_FREE_STRETCH = 0.01
"""A change of aspect ratio that no later stage notices (half a pixel in fifty)."""
_SHORTEST_LONG_SIDE = 0.9
"""How much of the asked resolution may be given up for a truer aspect ratio."""
_WIDEST_ZOOM = 4.0
_USUAL_FOCAL = (0.1, 20.0)
"""Focal length over the long side of the image: fields of view from 157° down to 3°."""


def processed_size(width: float, height: float, resolution: int) -> tuple[int, int]:
    """Return (width, height) of the processed frames: multiples of 16, long side at most ``resolution``.

    Rounding both sides to 16 bends the aspect ratio (16:9 at 384 would be 4 % off), which an unknown camera
    cannot tell from a change of focal length. So the long side may shrink by up to a tenth where that keeps
    the ratio: 16:9 at 384 becomes 368×208. Small sources are never enlarged.
    """
    long_side, short_side = max(width, height), min(width, height)
    longest = max(MULTIPLE, int(min(resolution, long_side)) // MULTIPLE * MULTIPLE)
    shortest = max(MULTIPLE, int(np.ceil(_SHORTEST_LONG_SIDE * longest / MULTIPLE)) * MULTIPLE)
    best: tuple[float, int, int] | None = None
    for long_px in range(longest, shortest - 1, -MULTIPLE):
        short_px = max(MULTIPLE, round(long_px * short_side / long_side / MULTIPLE) * MULTIPLE)
        stretch = abs(np.log(long_px / short_px * short_side / long_side))
        if best is None or stretch < best[0]:
            best = (float(stretch), long_px, short_px)
        if stretch <= _FREE_STRETCH:
            break
    assert best is not None
    _, long_px, short_px = best
    return (long_px, short_px) if width >= height else (short_px, long_px)


class Preprocessor:
    """Turn decoded images into processed ones. All maps are made once.

    Args:
        source_size: (width, height) of the decoded images, after rotation.
        size: (width, height) of the processed frames.
        config: intrinsics and distortion, in pixels of the decoded image.

    Raises:
        ConfigError: distortion without intrinsics, a focal length that is not positive, or too few numbers.
    """

    def __init__(
        self, source_size: tuple[int, int], size: tuple[int, int], config: ReaderConfig
    ) -> None:
        self.size = size
        self.K: Array | None = None
        self._maps: tuple[Array, Array] | None = None
        K = _source_K(config)
        if K is None:
            return
        _warn_of_odd_camera(K, source_size)
        if config.distortion is not None and any(config.distortion):
            K, self._maps = undistortion(K, np.array(config.distortion), source_size)
        self.K = scale_K(K, size[0] / source_size[0], size[1] / source_size[1])

    def __call__(self, rgb: Array) -> Array:  # (H, W, 3) uint8 -> (h, w, 3) uint8
        """Return the image undistorted and resized."""
        if self._maps is not None:
            # The maps stay inside the image, up to rounding: the border mode only fills that.
            rgb = cv2.remap(rgb, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if (rgb.shape[1], rgb.shape[0]) == self.size:
            return np.ascontiguousarray(rgb)
        shrinks = rgb.shape[1] >= self.size[0] and rgb.shape[0] >= self.size[1]
        return cv2.resize(
            rgb, self.size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )


def _source_K(config: ReaderConfig) -> Array | None:
    if config.intrinsics is None:
        if config.distortion is not None and any(config.distortion):
            raise ConfigError("distortion needs intrinsics: give fx, fy, cx, cy too")
        return None
    if len(config.intrinsics) != 4 or not np.all(np.isfinite(config.intrinsics)):
        raise ConfigError(f"intrinsics must be fx, fy, cx, cy; got {config.intrinsics}")
    if min(config.intrinsics[:2]) <= 0:
        raise ConfigError(f"focal lengths must be positive, got {config.intrinsics[:2]}")
    return make_K(*config.intrinsics)


def _warn_of_odd_camera(K: Array, size: tuple[int, int]) -> None:
    """Say so where a camera hardly belongs to these images: often it was meant for another size."""
    width, height = size
    low, high = _USUAL_FOCAL
    is_usual = low < K[0, 0] / max(size) < high and low < K[1, 1] / max(size) < high
    if is_usual and 0 <= K[0, 2] <= width and 0 <= K[1, 2] <= height:
        return
    camera = ",".join(f"{K[at]:g}" for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    logger.warning(
        "intrinsics %s are odd for images of %d×%d: are they in pixels of these?",
        camera,
        width,
        height,
    )


def undistortion(
    K: Array, distortion: Array, size: tuple[int, int]
) -> tuple[Array, tuple[Array, Array]]:
    """Return the pinhole K after undistortion and the ``cv2.remap`` maps that do it, at source size.

    The new camera keeps the principal point and the ratio fx : fy, and zooms until every pixel has a source
    pixel: no black borders.

    Raises:
        ConfigError: the distortion model folds over inside the image.
    """
    if not 4 <= len(distortion) <= 14:
        raise ConfigError(f"distortion must be k1, k2, p1, p2[, k3 …]; got {distortion.tolist()}")
    low, high = 1 / _WIDEST_ZOOM, _WIDEST_ZOOM
    if not _stays_inside(K, distortion, size, high):
        raise ConfigError(
            f"distortion {distortion.tolist()} leaves no usable image: check the sign and order of "
            "k1, k2, p1, p2, k3"
        )
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if _stays_inside(K, distortion, size, middle) else (middle, high)
    pinhole = _zoomed(K, high)
    maps = cv2.initUndistortRectifyMap(K, distortion, None, pinhole, size, cv2.CV_16SC2)
    return pinhole, (maps[0], maps[1])


def _zoomed(K: Array, zoom: float) -> Array:
    return make_K(K[0, 0] * zoom, K[1, 1] * zoom, K[0, 2], K[1, 2])


def _stays_inside(K: Array, distortion: Array, size: tuple[int, int], zoom: float) -> bool:
    """Tell whether the outline of the zoomed pinhole image comes from inside the distorted image."""
    width, height = size
    u, v = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)
    outline = np.concatenate(
        [
            np.stack([u, np.zeros_like(u)], -1),
            np.stack([u, np.full_like(u, height - 1)], -1),
            np.stack([np.zeros_like(v), v], -1),
            np.stack([np.full_like(v, width - 1), v], -1),
        ]
    )  # (N, 2)
    none = np.zeros(3)
    seen = cv2.projectPoints(rays(outline, _zoomed(K, zoom)), none, none, K, distortion)[0][:, 0]
    return bool((seen >= 0).all() and (seen <= (width - 1, height - 1)).all())

"""Pinhole cameras: intrinsics K, projection, rays, and what resizing and cropping do to K.

Camera frame: x right, y down, z forward. Integer pixel coordinates are pixel centres, so that an image of width W
spans [-0.5, W - 0.5]. Leading dimensions are free; floating dtypes are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DEFAULT_FOV_DEG = 60.0
"""Horizontal-ish field of view of a phone's main camera (26 mm equivalent: 60–70°), used where nothing is known."""


def make_K(fx: float, fy: float, cx: float, cy: float) -> Array:
    """Return the (3, 3) float64 intrinsics."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def split_K(K: Array) -> Array:  # (3, 3) -> (4,)
    """Return fx, fy, cx, cy: what ``make_K`` takes."""
    return np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])


def centred_K(focal: float, width: int, height: int) -> Array:
    """Return intrinsics with square pixels and the principal point in the middle of the image."""
    return make_K(focal, focal, (width - 1) / 2, (height - 1) / 2)


def default_focal(width: int, height: int) -> float:
    """Return the focal length in pixels of a camera with ``DEFAULT_FOV_DEG`` over the long side."""
    return focal_from_fov(DEFAULT_FOV_DEG, max(width, height))


def focal_from_fov(fov_deg: float, size_px: float) -> float:
    """Return the focal length in pixels from the full field of view over ``size_px`` pixels."""
    return size_px / (2 * float(np.tan(np.radians(fov_deg) / 2)))


def fov_from_focal(focal_px: float, size_px: float) -> float:
    """Return the full field of view in degrees over ``size_px`` pixels."""
    return float(np.degrees(2 * np.arctan(size_px / (2 * focal_px))))


def scale_K(K: Array, scale_x: float, scale_y: float) -> Array:
    """Return K of the image resized by the factors (new size / old size), pixel centres kept exact."""
    out = np.array(K, np.float64)
    out[..., 0, :] *= scale_x
    out[..., 1, :] *= scale_y
    out[..., 0, 2] += 0.5 * (scale_x - 1)
    out[..., 1, 2] += 0.5 * (scale_y - 1)
    return out


def crop_K(K: Array, left: float, top: float) -> Array:
    """Return K of the image whose pixel (left, top) became (0, 0)."""
    out = np.array(K, np.float64)
    out[..., 0, 2] -= left
    out[..., 1, 2] -= top
    return out


def pixel_grid(height: int, width: int) -> Array:  # -> (H, W, 2)
    """Return the (u, v) float64 coordinates of all pixel centres."""
    u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    return np.stack([u, v], axis=-1)


def project(
    points_in_cam: Array,  # (..., 3)
    K: Array,  # (..., 3, 3), leading dimensions broadcast against those of the points
) -> Array:  # (..., 2)
    """Project points to pixels. Points at or behind the camera plane become NaN."""
    x, y, z = points_in_cam[..., 0], points_in_cam[..., 1], points_in_cam[..., 2]
    K = np.asarray(K, np.float64)
    safe = np.where(z > 0, z, np.nan)
    nx, ny = x / safe, y / safe
    lead = (...,) + (None,) * (nx.ndim - (K.ndim - 2)) if K.ndim > 2 else (...,)
    u = K[..., 0, 0][lead] * nx + K[..., 0, 1][lead] * ny + K[..., 0, 2][lead]
    v = K[..., 1, 1][lead] * ny + K[..., 1, 2][lead]
    return np.stack([u, v], axis=-1).astype(np.result_type(points_in_cam.dtype, np.float32))


def rays(uv: Array, K: Array) -> Array:  # (..., 2), (3, 3) -> (..., 3)
    """Return the directions with z = 1 through pixels ``uv``: ``point = depth * ray``."""
    uv = np.asarray(uv)
    y = (uv[..., 1] - K[1, 2]) / K[1, 1]
    x = (uv[..., 0] - K[0, 2] - K[0, 1] * y) / K[0, 0]
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def pixel_rays(K: Array, height: int, width: int) -> Array:  # -> (..., H, W, 3)
    """Return the z = 1 directions of all pixels as float64; K may have leading dimensions."""
    K = np.asarray(K, np.float64)
    u = np.arange(width, dtype=np.float64)
    v = np.arange(height, dtype=np.float64)
    y = (v - K[..., 1, 2, None]) / K[..., 1, 1, None]  # (..., H)
    skew = K[..., 0, 1, None, None] * y[..., None]
    x = (u - K[..., 0, 2, None, None] - skew) / K[..., 0, 0, None, None]  # (..., H, W)
    y = np.broadcast_to(y[..., None], x.shape)
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def unproject(
    depth: Array,  # (..., H, W)
    K: Array,  # (..., 3, 3)
) -> Array:  # (..., H, W, 3)
    """Return the pointmap in the camera frame of z-depth; NaN depth gives NaN points. Keeps depth's dtype."""
    H, W = depth.shape[-2:]
    directions = pixel_rays(K, H, W).astype(depth.dtype, copy=False)
    return depth[..., None] * directions


def unproject_pixels(uv: Array, depth: Array, K: Array) -> Array:  # (..., 2), (...) -> (..., 3)
    """Return the camera-frame points at pixels ``uv`` with z-depth ``depth``."""
    return rays(uv, K) * np.asarray(depth)[..., None]


def inside(uv: Array, height: int, width: int, margin: float = 0.0) -> Array:  # (..., 2) -> (...)
    """Tell which pixel positions lie at least ``margin`` px inside the outermost pixel centres; NaN is outside."""
    u, v = uv[..., 0], uv[..., 1]
    return (u >= margin) & (v >= margin) & (u <= width - 1 - margin) & (v <= height - 1 - margin)

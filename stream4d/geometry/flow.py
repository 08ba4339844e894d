"""Flow on the image and in space: what camera motion alone would cause, and what is left over.

Optical flow goes from frame a to frame b in pixels of a. ``ego flow`` is the flow of static surfaces, ``residual
flow`` is optical minus ego, ``scene flow`` is the displacement of the surface point in the world.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stream4d.geometry.camera import pixel_grid, project, unproject
from stream4d.geometry.transforms import transform_points

Array = npt.NDArray[Any]


def ego_flow(
    depth_a: Array,  # (H, W) z-depth, NaN where unknown
    K_a: Array,
    K_b: Array,
    b_from_a: Array,  # (4, 4) rigid
) -> Array:  # (H, W, 2)
    """Return the flow a → b that the camera's motion causes on static surfaces; NaN where unknown or behind b."""
    H, W = depth_a.shape
    points_in_b = transform_points(b_from_a, unproject(depth_a, K_a))
    return (project(points_in_b, K_b) - pixel_grid(H, W)).astype(depth_a.dtype)


def scene_flow(
    flow: Array,  # (H, W, 2) a → b
    depth_a: Array,  # (H, W)
    depth_b: Array,  # (H, W)
    K_a: Array,
    K_b: Array,
    world_from_a: Array,
    world_from_b: Array,
) -> Array:  # (H, W, 3)
    """Return the displacement in the world of the surface seen at each pixel of a; NaN where it leaves the view."""
    points_a = transform_points(world_from_a, unproject(depth_a, K_a))
    points_b = transform_points(world_from_b, unproject(depth_b, K_b))
    return (sample(points_b, targets(flow)) - points_a).astype(depth_a.dtype)


def targets(flow: Array) -> Array:  # (H, W, 2) -> (H, W, 2)
    """Return where each pixel goes: its position plus its flow."""
    H, W = flow.shape[:2]
    return pixel_grid(H, W).astype(flow.dtype) + flow


def sample(
    image: Array,  # (H, W) or (H, W, C)
    uv: Array,  # (..., 2)
) -> Array:  # (...) or (..., C)
    """Read ``image`` bilinearly at pixel positions; NaN outside the outermost pixel centres."""
    H, W = image.shape[:2]
    u, v = uv[..., 0], uv[..., 1]
    valid = (u >= 0) & (v >= 0) & (u <= W - 1) & (v <= H - 1)
    u, v = np.where(valid, u, 0.0), np.where(valid, v, 0.0)
    x = np.minimum(u.astype(np.int64), max(W - 2, 0))
    y = np.minimum(v.astype(np.int64), max(H - 2, 0))
    right, below = np.minimum(x + 1, W - 1), np.minimum(y + 1, H - 1)
    fx, fy = u - x, v - y
    if image.ndim == 3:
        fx, fy, valid = fx[..., None], fy[..., None], valid[..., None]
    top = image[y, x] * (1 - fx) + image[y, right] * fx
    bottom = image[below, x] * (1 - fx) + image[below, right] * fx
    out = top * (1 - fy) + bottom * fy
    return np.where(valid, out, np.nan).astype(np.result_type(image.dtype, np.float32))


def consistency_error(flow: Array, flow_backward: Array) -> Array:  # (H, W, 2) twice -> (H, W)
    """Return how far a pixel lands from itself after going a → b → a, pixels; NaN where it leaves the view."""
    there_and_back = flow + sample(flow_backward, targets(flow))
    return np.hypot(there_and_back[..., 0], there_and_back[..., 1])

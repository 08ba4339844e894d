"""Cameras from pointmaps: focal length, pose by PnP, rigid and scale fits between pointmaps (numpy, float64)."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from stream4d.geometry.camera import pixel_grid
from stream4d.geometry.transforms import project_to_so3
from stream4d.packets import Array

PNP_POINTS = 4000
"""Points that PnP sees: more make it slower, not better."""
PNP_CONFIDENCE = 3.0
"""Pixels of this confidence (DUSt3R's, from 1) are good enough for PnP."""


def estimate_focal(
    points_in_cam: Array,  # (H, W, 3)
    principal_point: tuple[float, float] | None = None,
    *,
    mode: Literal["weiszfeld", "median"] = "weiszfeld",
    min_focal: float = 0.0,
    max_focal: float = np.inf,
) -> float:
    """Estimate the focal length in pixels of a pointmap in its own camera (DUSt3R, section 3.3).

    Weiszfeld minimises the sum of distances between pixels and projected points by ten reweighted least squares.

    Args:
        principal_point: (x, y) in pixels; the middle (W / 2, H / 2) by default.
        mode: robust fit, or the median of all pixels' own focal lengths.
        min_focal, max_focal: limits, as multiples of the focal length of a 60° lens.

    Returns:
        NaN where no pixel gives an answer.
    """
    H, W = points_in_cam.shape[:2]
    middle = (W / 2, H / 2) if principal_point is None else principal_point
    pixels = (pixel_grid(H, W) - np.asarray(middle)).reshape(-1, 2)
    x, y, z = points_in_cam.reshape(-1, 3).astype(np.float64).T
    with np.errstate(divide="ignore", invalid="ignore"):
        if mode == "median":
            both = np.concatenate([pixels[:, 0] * z / x, pixels[:, 1] * z / y])
            focal = _lower_median(both)
        else:
            focal = _weiszfeld(
                pixels, np.nan_to_num(np.stack([x / z, y / z], -1), posinf=0, neginf=0)
            )
    base = max(H, W) / (2 * np.tan(np.radians(60) / 2))
    return float(np.clip(focal, min_focal * base, max_focal * base))


def _lower_median(values: Array) -> float:
    finite = np.sort(values[np.isfinite(values)])
    return float(finite[(len(finite) - 1) // 2]) if len(finite) else float("nan")


def _weiszfeld(pixels: Array, directions: Array, iterations: int = 10) -> float:
    along = (directions * pixels).sum(-1)
    square = (directions * directions).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        focal = along.mean() / square.mean()
        for _ in range(iterations):
            distance = np.linalg.norm(pixels - focal * directions, axis=-1)
            weight = 1 / np.maximum(distance, 1e-8)
            focal = (weight * along).mean() / (weight * square).mean()
    return float(focal)


def pose_by_pnp(
    points: Array,  # (H, W, 3) in any frame A
    confidence: Array,  # (H, W)
    K: Array,  # (3, 3) of the image whose pixels these are
    *,
    iterations: int = 100,
    tolerance_px: float = 5.0,
    every_pixel: bool = False,
) -> Array | None:
    """Find cam_from_A of the camera that saw ``points`` at its pixels (RANSAC, SQPnP); None where it fails.

    Pixels of confidence above ``PNP_CONFIDENCE`` are used, or the more confident half where they are fewer, thinned
    to ``PNP_POINTS``; all of them with ``every_pixel``.
    """
    H, W = points.shape[:2]
    valid = np.isfinite(points).all(-1) & np.isfinite(confidence)
    index = np.flatnonzero(valid)
    if len(index) < 6:
        return None
    order = index
    if not every_pixel:
        known = confidence.ravel()[index]
        order = index[(known > PNP_CONFIDENCE) | (known >= np.median(known))]
        order = order[:: max(1, len(order) // PNP_POINTS)]
    object_points = np.ascontiguousarray(points.reshape(-1, 3)[order], np.float64)
    pixels = np.ascontiguousarray(pixel_grid(H, W).reshape(-1, 2)[order])
    cv2.setRNGSeed(0)
    try:
        ok, rotation, translation, _ = cv2.solvePnPRansac(
            object_points,
            pixels,
            np.asarray(K, np.float64),
            None,
            iterationsCount=iterations,
            reprojectionError=tolerance_px,
            flags=cv2.SOLVEPNP_SQPNP,
        )
    except cv2.error:
        return None
    if not ok or not (np.isfinite(rotation).all() and np.isfinite(translation).all()):
        return None
    cam_from_a = np.eye(4)
    cam_from_a[:3, :3] = cv2.Rodrigues(rotation)[0]
    cam_from_a[:3, 3] = translation.ravel()
    return cam_from_a


def rigid_fit(source: Array, target: Array, weight: Array) -> Array:
    """Find the rigid 4×4 that takes ``source`` (..., 3) to ``target``, least squares weighted (Kabsch)."""
    return _weighted_fit(source, target, weight, with_scale=False)


def similarity_fit(source: Array, target: Array, weight: Array) -> Array:
    """Find the similarity 4×4 that takes ``source`` (..., 3) to ``target`` (Umeyama 1991), weighted."""
    return _weighted_fit(source, target, weight, with_scale=True)


def _weighted_fit(source: Array, target: Array, weight: Array, *, with_scale: bool) -> Array:
    a, b = source.reshape(-1, 3).astype(np.float64), target.reshape(-1, 3).astype(np.float64)
    w = weight.reshape(-1).astype(np.float64)
    good = np.isfinite(a).all(-1) & np.isfinite(b).all(-1) & np.isfinite(w) & (w > 0)
    out = np.eye(4)
    if good.sum() < 3:
        return out
    a, b, w = a[good], b[good], w[good] / w[good].sum()
    middle_a, middle_b = w @ a, w @ b
    covariance = (b - middle_b).T @ ((a - middle_a) * w[:, None])
    R = project_to_so3(covariance)
    variance = (w[:, None] * (a - middle_a) ** 2).sum()
    scale = np.trace(R.T @ covariance) / variance if with_scale and variance > 0 else 1.0
    out[:3, :3] = scale * R
    out[:3, 3] = middle_b - out[:3, :3] @ middle_a
    return out


def scale_between(source: Array, target: Array, weight: Array) -> float:
    """Find the factor from ``source`` depths to ``target`` depths: weighted median of ratios, 1 where unknown."""
    good = (source > 0) & (target > 0) & np.isfinite(source) & np.isfinite(target) & (weight > 0)
    if not good.any():
        return 1.0
    ratio, w = target[good] / source[good], weight[good]
    order = np.argsort(ratio)
    total = np.cumsum(w[order])
    return float(ratio[order][np.searchsorted(total, total[-1] / 2)])

"""Intrinsics and poses from pointmaps alone, for models that give neither."""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.geometry import camera
from stream4d.packets import Array

ITERATIONS = 12


def weiszfeld_focal(pointmap_in_cam: Array, weights: Array | None = None) -> float:
    """Return the focal length that best explains a pointmap, principal point in the middle, square pixels.

    Minimises Σ w |uv − f xy/z| by Weiszfeld's reweighting, as DUSt3R does (Wang et al. 2024, sec. 3.3).
    """
    H, W = pointmap_in_cam.shape[:2]
    uv = (camera.pixel_grid(H, W) - [(W - 1) / 2, (H - 1) / 2]).reshape(-1, 2)
    points = pointmap_in_cam.reshape(-1, 3).astype(np.float64)
    w = np.ones(len(points)) if weights is None else np.array(weights, np.float64).ravel()
    good = np.isfinite(points).all(-1) & (points[:, 2] > 0) & np.isfinite(w) & (w > 0)
    if good.sum() < 16:
        return camera.default_focal(W, H)
    uv, w, xy = uv[good], w[good], points[good, :2] / points[good, 2:]
    near = (xy**2).sum(-1) < 25  # rays beyond 79° say nothing about a pinhole
    uv, w, xy = uv[near], w[near], xy[near]
    focal = _ratio(
        (w * (uv * xy).sum(-1)).sum(), (w * (xy**2).sum(-1)).sum(), camera.default_focal(W, H)
    )
    for _ in range(ITERATIONS):
        scaled = w / np.maximum(np.hypot(*(uv - focal * xy).T), 1e-3)
        focal = _ratio((scaled * (uv * xy).sum(-1)).sum(), (scaled * (xy**2).sum(-1)).sum(), focal)
    size = max(H, W)
    return float(np.clip(focal, 0.2 * size, 20 * size))


def _ratio(top: float, bottom: float, otherwise: float) -> float:
    return top / bottom if bottom > 0 and top > 0 else otherwise


def pose_from_pointmap(pointmap: Array, K: Array, weights: Array | None = None) -> Array | None:
    """Return (4, 4) frame-from-camera of the image whose pixels see ``pointmap`` (H, W, 3), by PnP; None: failed."""
    H, W = pointmap.shape[:2]
    step = max(int(np.sqrt(H * W / 1500)), 1)
    uv = camera.pixel_grid(H, W)[::step, ::step].reshape(-1, 2)
    points = pointmap[::step, ::step].reshape(-1, 3).astype(np.float64)
    good = np.isfinite(points).all(-1)
    if weights is not None:
        w = weights[::step, ::step].ravel()
        good &= w >= np.nanquantile(w, 0.3)
    if good.sum() < 12:
        return None
    ok, rotation, translation, _ = cv2.solvePnPRansac(
        points[good], uv[good], K, None, iterationsCount=100, reprojectionError=0.01 * max(H, W),
        confidence=0.999, flags=cv2.SOLVEPNP_SQPNP,
    )  # fmt: skip
    if not ok or not np.isfinite(rotation).all() or not np.isfinite(translation).all():
        return None
    R = cv2.Rodrigues(rotation)[0]
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = R.T, -R.T @ translation.ravel()
    return out

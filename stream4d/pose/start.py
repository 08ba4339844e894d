"""The first relative pose and depths, from tracks that began in one frame.

Hypotheses (essential matrix at several focal lengths where K is unknown) are each refined by bundle adjustment over
a few frames, and the cost decides. Nothing is started while rotation alone explains the tracks.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stream4d.geometry import camera
from stream4d.packets import Array
from stream4d.pose import refine

MIN_TRACKS = 30
FOCAL_FACTORS = (0.62, 0.85, 1.2, 1.7)
"""Focal hypotheses over the long side: fields of view of 78°, 61°, 45°, 33°."""
FOCAL_PRIOR_INFO = 1 / 0.35**2
"""Information of log focal around a 60° camera: most cameras are within ±35 %."""


@dataclass(frozen=True, slots=True)
class Start:
    """A started map: the anchor is the identity, its median depth is 1."""

    poses: Array
    """(F, 3, 4) of the frames given; the first is the anchor."""
    rho: Array
    """(n,) inverse depths in the anchor."""
    rho_info: Array
    """(n,)."""
    inlier: Array
    """(n,) bool."""
    focal: float
    """fx in pixels."""
    focal_information: float
    share: float
    """Inliers over the tracks seen in the last frame: low where movers were taken for the scene."""
    quality: float
    """Median of depth / σ(depth) over the inliers; below about 5 the start is not worth having."""


def two_view_pose(rays_a: Array, rays_b: Array, focal: float) -> list[Array]:
    """Return camera-b-from-a candidates (3, 4), unit translation, from normalised rays; best first."""
    a, b = rays_a[:, :2].copy(), rays_b[:, :2].copy()
    try:
        E, inlier = cv2.findEssentialMat(
            a, b, np.eye(3), method=cv2.USAC_MAGSAC, prob=0.999, threshold=1.0 / focal
        )
    except cv2.error:  # an assertion inside, where all its samples were degenerate
        return []
    if E is None or E.shape != (3, 3) or inlier is None or inlier.sum() < 8:
        return []
    chosen = inlier.ravel() > 0
    found = []
    R1, R2, t = cv2.decomposeEssentialMat(E)
    for R in (R1, R2):
        for sign in (1, -1):
            pose = np.hstack([R, sign * t])
            front = (_two_view_rho(rays_a[chosen], rays_b[chosen], pose) > 0).mean()
            found.append((front, pose))
    found.sort(key=lambda item: -item[0])
    return [pose for front, pose in found[:2] if front > 0.5]


def _two_view_rho(rays_a: Array, rays_b: Array, pose: Array) -> Array:
    """Return least-squares inverse depths in a: minimise the cross product of b's ray with R a + rho t."""
    moved = rays_a @ pose[:, :3].T
    m = np.cross(rays_b, moved)
    n = np.cross(rays_b, np.broadcast_to(pose[:, 3], rays_b.shape))
    return -(m * n).sum(-1) / np.maximum((n * n).sum(-1), 1e-12)


def start_map(
    K: Array,
    uv0: Array,  # (n, 2) pixels in the anchor
    uv: Array,  # (F, n, 2) pixels in the other frames, oldest first
    info: Array,  # (F, n, 3) inverse covariances, zero where not seen
    *,
    size: int,
    focal_known: bool,
) -> Start | None:
    """Find poses of F frames and depths of n tracks, or None where the tracks do not allow it."""
    both = info[-1, :, 0] > 0
    if both.sum() < MIN_TRACKS:
        return None
    focals = [K[0, 0]] if focal_known else [factor * size for factor in FOCAL_FACTORS]
    best: Start | None = None
    best_cost = np.inf
    for focal in focals:
        scaled = K.copy()
        scaled[0, 0], scaled[1, 1] = focal, K[1, 1] * focal / K[0, 0]
        inv = np.linalg.inv(scaled)
        rays_a = np.column_stack([uv0, np.ones(len(uv0))]) @ inv.T
        rays_b = np.column_stack([uv[-1], np.ones(len(uv0))]) @ inv.T
        for pose in two_view_pose(rays_a[both], rays_b[both], focal):
            rho = np.full(len(uv0), np.nan)
            rho[both] = _two_view_rho(rays_a[both], rays_b[both], pose)
            start, cost = _bundle(scaled, rays_a, uv, info, pose, rho, size, focal_known)
            if start is not None and cost < best_cost:
                best, best_cost = start, cost
    return best


def _bundle(
    K: Array,
    rays: Array,
    uv: Array,
    info: Array,
    last: Array,
    rho: Array,
    size: int,
    focal_known: bool,
) -> tuple[Start | None, float]:
    """Refine one hypothesis over all frames; frames in between begin on the straight line to the last."""
    F, n = info.shape[:2]
    positive = np.isfinite(rho) & (rho > 1e-3)
    if positive.sum() < MIN_TRACKS // 2:
        return None, np.inf
    middle = float(np.median(rho[positive]))
    rho = np.where(positive, np.clip(rho, 0.05 * middle, 20 * middle), middle)
    rotation = cv2.Rodrigues(np.ascontiguousarray(last[:, :3]))[0].ravel()
    poses = np.zeros((F + 1, 3, 4))
    for i in range(F + 1):
        share = i / F
        poses[i, :, :3] = cv2.Rodrigues(share * rotation)[0]
        poses[i, :, 3] = share * last[:, 3]
    poses[:, :, 3] *= middle
    rho /= middle
    patch, frame = np.nonzero((info[..., 0] > 0).T)
    obs = refine.Observations(patch, frame + 1, uv[frame, patch], info[frame, patch])
    cam = camera.split_K(K)
    rho_info = np.zeros(n)
    ready = rays.copy()
    typical = 0.85 * size
    result = refine.adjust(
        cam, ready, np.zeros(n, np.int64), poses, np.arange(1, F + 1), rho, rho.copy(), np.full(n, 0.01), obs,
        iterations=10, scales=(400.0, 60.0, 9.0),
        focal_info=np.inf if focal_known else FOCAL_PRIOR_INFO,
        focal_offset=float(np.log(typical / K[0, 0])), rho_info=rho_info,
    )  # fmt: skip
    q = ready @ poses[-1, :, :3].T + rho[:, None] * poses[-1, :, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = (cam[:2] * q[:, :2] / q[:, 2:] + cam[2:] - uv[-1]).T
        error = u * u * info[-1, :, 0] + 2 * u * v * info[-1, :, 1] + v * v * info[-1, :, 2]
    inlier = (info[-1, :, 0] > 0) & (error < 16) & (rho > 2e-3) & (q[:, 2] > 0)
    if inlier.sum() < MIN_TRACKS // 2 or not np.isfinite(poses).all():
        return None, np.inf
    scale = float(np.median(rho[inlier]))
    rho, rho_info = rho / scale, rho_info * scale**2
    poses[:, :, 3] *= scale
    quality = float(np.median(rho[inlier] * np.sqrt(np.maximum(rho_info[inlier], 0))))
    share = float(inlier.sum() / max((info[-1, :, 0] > 0).sum(), 1))
    focal_information = np.inf if focal_known else result.focal_information
    start = Start(poses, rho, rho_info, inlier, float(cam[0]), focal_information, share, quality)
    return start, result.cost

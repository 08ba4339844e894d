"""Is this the same place? The similarity between a keyframe and one of long ago, measured in several cameras.

Descriptors of the keyframe's patches are matched to those of the place, P3P in RANSAC gives a first pose, then the
patches are found by alignment in the place and in its neighbours, and a similarity is fitted to all of it: over the
neighbours' baseline its scale is seen. What is not found in two of them is not believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stream4d.geometry import camera, transforms
from stream4d.packets import Array
from stream4d.pose import _kernels_loops, descriptors, hosted, patches, resection
from stream4d.pose.places import Place

MAX_PATCHES = 120
MIN_MATCHES = 12
MIN_POSE_INLIERS = 10
RATIO = 0.85
"""Lowe's test: the best match must be this much nearer than the second best."""
RANSAC_SHARE = 0.01
"""Error of an inlier of the first pose, over the long side."""
ROOM_PX = 8.0
"""How far from the first pose's prediction a patch may be found."""
MIN_CORRELATION = 0.8
INLIER_SQ = 9.0
MIN_SEEN = (18, 12)
"""Patches that must agree in the place itself, and in another camera."""
MIN_SHARE = 0.5
"""Share of the patches found that must agree."""
SCHEDULE = np.array([400.0, 400.0, 100.0, 100.0, 30.0, 30.0, 9.0, 9.0, 9.0, 9.0])
"""Geman–McClure scales, σ²."""
INFLATION = 4.0
"""Patch errors of one view are not independent: variances grow by this, as those of frames do."""
FLOOR = np.array([5e-3, 5e-3, 5e-3, 3e-3, 3e-3, 3e-3, 5e-3])
"""1σ that no number of patches takes away: what rolling shutter, blur and the shape of either map leave, of the depth,
in radians and of scale."""


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """A keyframe that looks for where it has been: patches of known depth and their descriptors."""

    pyramid: tuple[Array, ...]
    """(1, H, W), (1, H/2, W/2), …"""
    K: Array
    uv: Array
    """(n, 2)."""
    rho: Array
    """(n,) inverse depth."""
    rho_var: Array
    """(n,)."""
    descriptors: Array
    """(n, 32)."""


@dataclass(frozen=True, slots=True, eq=False)
class Recognition:
    """Where the keyframe stands as seen from the place."""

    place_from_here: Array
    """(4, 4) similarity: it turns the keyframe's unit into the place's."""
    covariance: Array
    """(7, 7) of its right tangent."""
    seen: tuple[int, ...]
    """Patches that agree in the place and in each of its neighbours."""


def recognise(
    here: Sighting, place: Place, others: Sequence[tuple[Place, Array]]
) -> Recognition | None:
    """Measure the similarity from a keyframe to a place, None where it is another place.

    Args:
        here: the keyframe.
        place: what it may be.
        others: neighbours of the place, with other-from-place (4, 4) similarities.
    """
    guess = _first_pose(here, place)
    if guess is None:
        return None
    scale = _first_scale(here, place, guess)
    start = transforms.square(scale * guess)
    poses = np.stack([_rigid_view(S) for S in [np.eye(4), *(S for _, S in others)]])
    found = [
        _find(here, p.grey(), pose @ start)
        for p, pose in zip([place, *(p for p, _ in others)], transforms.square(poses), strict=True)
    ]
    patch = np.concatenate([rows for rows, _, _ in found])
    frame = np.repeat(np.arange(len(found)), [len(rows) for rows, _, _ in found])
    if len(found[0][0]) < MIN_SEEN[0] or len(patch) < sum(MIN_SEEN):
        return None
    uv, info = (np.concatenate([part[k] for part in found]) for k in (1, 2))
    S, information, errors = np.ascontiguousarray(start[:3]), np.zeros((7, 7)), np.zeros(len(patch))
    ok = _kernels_loops.fit_similarity(
        camera.split_K(here.K), camera.rays(here.uv, here.K), here.rho, here.rho_var, poses, patch, frame,
        np.ascontiguousarray(uv), np.ascontiguousarray(info), S, SCHEDULE, errors, information,
    )  # fmt: skip
    agree = errors < INLIER_SQ
    seen = np.bincount(frame[agree], minlength=len(found))
    if not ok or not np.isfinite(S).all() or not _is_believed(seen, agree):
        return None
    eigenvalues = np.linalg.eigvalsh(information)
    if eigenvalues[0] < 1e-9 * eigenvalues[-1]:
        return None
    depth = 1 / np.median(here.rho)
    floor = FLOOR * [depth, depth, depth, 1, 1, 1, 1]
    covariance = INFLATION * np.linalg.inv(information) + np.diag(floor**2)
    return Recognition(transforms.square(S), covariance, tuple(seen.tolist()))


def _is_believed(seen: Array, agree: Array) -> bool:
    return bool(
        seen[0] >= MIN_SEEN[0]
        and len(seen) > 1
        and seen[1:].max() >= MIN_SEEN[1]
        and agree.mean() >= MIN_SHARE
    )


def _first_pose(here: Sighting, place: Place) -> Array | None:
    """Return (3, 4) place-from-here in the keyframe's unit, by descriptors and P3P."""
    pairs = descriptors.match(here.descriptors, place.descriptors, RATIO)
    if len(pairs) < MIN_MATCHES:
        return None
    rows = pairs[:, 0]
    points = camera.rays(here.uv[rows], here.K) / here.rho[rows, None]
    error_px = max(RANSAC_SHARE * max(here.pyramid[0].shape), 2.0)
    found = resection.resect(
        points, place.points[pairs[:, 1]].astype(np.float64), here.K, error_px=error_px
    )
    return found.pose if found is not None and found.inliers.sum() >= MIN_POSE_INLIERS else None


def _first_scale(here: Sighting, place: Place, pose: Array) -> float:
    """Return the place's unit over the keyframe's, from depths that both know near the same pixel."""
    if not len(place.uv):
        return 1.0
    points = (camera.rays(here.uv, here.K) / here.rho[:, None]) @ pose[:, :3].T + pose[:, 3]
    points = points[points[:, 2] > 1e-6]
    if not len(points):
        return 1.0
    apart = camera.project(points, here.K)[:, None] - place.uv[None]
    distance = np.hypot(apart[..., 0], apart[..., 1])
    nearest = distance.argmin(axis=1)
    close = distance[np.arange(len(points)), nearest] < 0.04 * max(here.pyramid[0].shape)
    if close.sum() < 5:
        return 1.0
    return float(np.median(1 / (place.rho[nearest[close]] * points[close, 2])))


def _find(here: Sighting, grey: Array, there_from_here: Array) -> tuple[Array, Array, Array]:
    """Find the patches in another image: rows (m,), pixels (m, 2), inverse covariances (m, 3)."""
    return hosted.find(
        here.pyramid, np.zeros(len(here.uv), np.int64), here.uv, here.rho, np.eye(3, 4)[None],
        camera.split_K(here.K), patches.levels_of(grey), _rigid_view(there_from_here),
        room_px=ROOM_PX, min_correlation=MIN_CORRELATION,
    )  # fmt: skip


def _rigid_view(S: Array) -> Array:
    """Return (3, 4) [R | t / scale]: the camera that sees what the similarity shows it, in the source's unit."""
    scale, R, t = transforms.decompose(S)
    return np.ascontiguousarray(np.hstack([R, (t / scale)[:, None]]))

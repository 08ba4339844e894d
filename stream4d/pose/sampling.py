"""Guesses of rigid motions: from all tracks, and from few each, so that some hold nothing but the scene.

Five-point samples (Nistér, "An efficient solution to the five-point relative pose problem", 2004), half of them from
the whole view and half from a part of it; the epipolar error picks those worth a look over all frames. The draws are
always the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from stream4d.geometry import camera
from stream4d.geometry.epipolar import essential_matrices
from stream4d.packets import Array
from stream4d.pose import motions
from stream4d.pose.motions import Motion, Tracks

SAMPLES = 240
LOCAL = 0.35
"""Share of the tracks, the nearest ones, that a sample from a part of the view is drawn from."""
LOOKED_AT = 24
"""Guesses that are looked at over all frames."""
SAME = 0.8
"""Overlap of the tracks that they explain beyond which two guesses are one."""
FITS = 9.0
"""Squared epipolar error, σ², within which a track agrees with a sample."""
POINTS = 5


def agreed(tracks: Tracks, frame: int) -> list[Motion]:
    """Return the motions of the essential matrix that most tracks agree on in ``frame``, placed in all frames."""
    rows = np.flatnonzero(tracks.seen[frame])
    a, b = tracks.rays[rows], camera.rays(tracks.uv[frame, rows], tracks.K)
    E, inlier = essential_matrices(a, b, cv2.USAC_MAGSAC, threshold=1.0 / tracks.K[0, 0])
    if len(E) != 1 or inlier.sum() < motions.MIN_MEMBERS:
        return []
    return _placed(tracks, frame, E[0], rows, inlier, both=True)


def sampled(tracks: Tracks, frame: int) -> list[Motion]:
    """Return motions guessed from samples in ``frame``, placed in all frames, best first."""
    rows = np.flatnonzero(tracks.seen[frame])
    if len(rows) < 2 * motions.MIN_MEMBERS:
        return []
    a, b = tracks.rays[rows], camera.rays(tracks.uv[frame, rows], tracks.K)
    info = tracks.info[frame, rows] * tracks.K[0, 0] ** 2  # of rays, not of pixels
    matrices = [
        essential_matrices(a[sample], b[sample], cv2.RANSAC, threshold=1.0)[0]
        for sample in _samples(tracks.uv0[rows])
    ]
    E = np.concatenate([np.zeros((0, 3, 3)), *matrices])
    error = _epipolar_error(a, b, info, E)
    fit = (tracks.votes[rows] * np.maximum(1 - error / FITS, 0)).sum(-1)
    order = np.argsort(-fit, kind="stable")
    found = []
    for k in _different(error[order] < FITS):
        found += _placed(tracks, frame, E[order[k]], rows, error[order[k]] < FITS)
    return sorted(found, key=lambda m: -motions.score(tracks, m.error, 2 * motions.CONSISTENT))


def _placed(
    tracks: Tracks, frame: int, E: Array, rows: Array, inlier: Array, *, both: bool = False
) -> list[Motion]:
    """Return the motion of an essential matrix, or both that a plane leaves, from inliers among ``rows``."""
    members = np.zeros(len(tracks.uv0), bool)
    members[rows[inlier]] = True
    b = camera.rays(tracks.uv[frame, members], tracks.K)
    poses = motions.poses_of(E, tracks.rays[members], b)[: 2 if both else 1]
    guessed = [motions.guess(tracks, frame, pose, members) for pose in poses]
    return [motion for motion in guessed if motion is not None]


def _samples(uv: Array) -> Iterator[Array]:  # (n, 2) -> (5,)
    """Draw samples, in turn from everywhere and from the neighbourhood of one track."""
    rng = np.random.default_rng(0)
    near = max(int(LOCAL * len(uv)), 2 * POINTS)
    for i in range(SAMPLES):
        if i % 2:
            distance = np.hypot(*(uv - uv[rng.integers(len(uv))]).T)
            pool = np.argpartition(distance, min(near, len(uv) - 1))[:near]
        else:
            pool = np.arange(len(uv))
        yield rng.choice(pool, POINTS, replace=False)


def _epipolar_error(a: Array, b: Array, info: Array, E: Array) -> Array:  # (k, n)
    """Return the squared distance of each b from the epipolar line of its a, in σ²; ``info`` is that of b's ray."""
    line = a @ np.swapaxes(E, 1, 2)  # (k, n, 3)
    top = (line * b).sum(-1) ** 2
    l0, l1 = line[..., 0], line[..., 1]
    A, B, C = info.T
    det = np.maximum(A * C - B * B, 1e-12)
    variance = (C * l0 * l0 - 2 * B * l0 * l1 + A * l1 * l1) / det
    return np.asarray(top / np.maximum(variance, 1e-18))


def _different(inlier: Array) -> list[int]:  # (k, n) bool, best first
    """Return the first few that explain different tracks."""
    kept: list[int] = []
    for k in np.flatnonzero(inlier.sum(1) >= motions.MIN_MEMBERS):
        both = (inlier[kept] & inlier[k]).sum(1)
        if not (both >= SAME * (inlier[kept] | inlier[k]).sum(1)).any():
            kept.append(int(k))
        if len(kept) == LOOKED_AT:
            break
    return kept

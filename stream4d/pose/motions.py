"""Rigid motions among tracks that began in one frame: how they are guessed, grown and scored.

A track belongs to a motion when *all* its observations fit, since what moves, moves as a whole. A compromise between
the scene and its movers fits many observations but few tracks; judged by single observations it would win.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np

from stream4d.geometry import camera
from stream4d.packets import Array
from stream4d.pose import _kernels_bundle, refine, track
from stream4d.pose.focal import Focal

MIN_MEMBERS = 12
"""Tracks of which a motion is made, at least."""
ROBUST = 9.0
"""σ²: what an observation that does not fit at all counts."""
CONSISTENT = 3.0
"""Mean robust error of a track's observations, σ², below which it belongs to a motion (1.4: perfect, 9: hopeless)."""
AGREEING = 4.5
"""Mean robust error of a track, σ², below which it agrees with a motion, though not every observation does."""
SAME_MOTION = 0.8
"""Overlap of what two motions explain above which they are one."""
Growth = tuple[tuple[tuple[float, ...], float, int], ...]
"""Robust scales of each adjustment, the error up to which a track takes part in it, and how many motions do."""
FROM_AFAR: Growth = (
    ((60.0, 9.0), 6.0, 16),
    ((25.0, 9.0), 5.0, 6),
    ((9.0,), 4.0, 4),
    ((9.0,), 3.0, 4),
)
"""For guesses that may be far off: draws in what fits a little. Over a short baseline that may be another motion."""
FROM_NEAR: Growth = (((9.0,), 4.0, 16), ((9.0,), 3.0, 6), ((9.0,), 3.0, 4))
"""For guesses that hold: grows by what fits already."""
SPREAD = 0.08
"""Radius, over the long side, within which tracks share one vote: texture crowds, the view does not."""
LEAST_RHO = 2e-3
"""Inverse depth over the median's from which a point is before the camera, and not at infinity."""
GUESS_SIGMA = 0.1
"""Relative 1σ of the depths of a guess."""


@dataclass(eq=False)
class Tracks:
    """n tracks of one anchor, seen in F frames, under one guess of the focal length."""

    K: Array
    uv0: Array
    """(n, 2) pixels in the anchor."""
    uv: Array
    """(F, n, 2) pixels in the other frames, oldest first."""
    info: Array
    """(F, n, 3) inverse covariances, zero where not seen."""
    size: int
    """Long side, pixels."""
    focal_known: bool

    seen: Array = field(init=False)
    """(F, n) bool."""
    rays: Array = field(init=False)
    """(n, 3) of the anchor, z = 1."""

    def __post_init__(self) -> None:
        self.seen = self.info[..., 0] > 0
        self.rays = camera.rays(self.uv0, self.K)

    @cached_property
    def votes(self) -> Array:
        """(n,) weights, mean 1."""
        return area_votes(self.uv0, SPREAD * self.size)

    def observations(self, members: Array) -> refine.Observations:
        """Return what the frames see of some tracks (n,) bool, under their own numbers."""
        patch, frame = np.nonzero((self.seen & members).T)
        return refine.Observations(patch, frame + 1, self.uv[frame, patch], self.info[frame, patch])


@dataclass(slots=True, eq=False)
class Motion:
    """One motion while it grows; arrays are changed in place."""

    cam: Array
    """(4,)."""
    rays: Array
    """(n, 3), follow the focal length."""
    poses: Array
    """(F + 1, 3, 4) frame-from-anchor; the first is the identity."""
    rho: Array
    """(n,) inverse depths in the anchor."""
    rho_info: Array
    """(n,)."""
    error: Array
    """(n,) mean robust error of each track, σ²."""
    focal_information: float = np.inf


def members(motion: Motion) -> Array:  # (n,) bool
    """Tell which tracks agree with a motion, at a depth that can be seen."""
    return (motion.error < AGREEING) & (motion.rho > LEAST_RHO)


def parallax(motion: Motion, rows: Array) -> float:
    """Return the median way in pixels of tracks (n,) bool from the anchor to the last frame, but for rotation."""
    turned = motion.rays[rows] @ motion.poses[-1, :, :3].T
    moved = turned + motion.rho[rows, None] * motion.poses[-1, :, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        way = motion.cam[:2] * (moved[:, :2] / moved[:, 2:] - turned[:, :2] / turned[:, 2:])
    return float(np.median(np.hypot(*way.T))) if rows.any() else 0.0


def area_votes(uv: Array, radius: float) -> Array:  # (n, 2) -> (n,)
    """Return a weight per position so that crowds within ``radius`` count about once; mean 1."""
    gaps = np.hypot(*(uv[:, None] - uv[None]).transpose(2, 0, 1))
    votes = 1.0 / (gaps < radius).sum(1)
    return np.asarray(votes / votes.mean())


def score(tracks: Tracks, error: Array, consistent: float = CONSISTENT) -> float:
    """Return the share of the view whose tracks a motion explains, tight fits above loose ones."""
    fit = np.maximum(1 - error / consistent, 0.0)
    return float((tracks.votes * fit).sum() / len(fit))


def two_view_rho(rays_a: Array, rays_b: Array, pose: Array) -> Array:
    """Return least-squares inverse depths in a: minimise the cross product of b's ray with R a + rho t."""
    moved = rays_a @ pose[:, :3].T
    m = np.cross(rays_b, moved)
    n = np.cross(rays_b, np.broadcast_to(pose[:, 3], rays_b.shape))
    return -(m * n).sum(-1) / np.maximum((n * n).sum(-1), 1e-12)


def poses_of(E: Array, rays_a: Array, rays_b: Array) -> list[Array]:
    """Return the poses (3, 4), unit translation, of an essential matrix that put most points before both cameras."""
    found = []
    R1, R2, t = cv2.decomposeEssentialMat(E)
    for R in (R1, R2):
        for sign in (1, -1):
            pose = np.hstack([R, sign * t])
            found.append((_share_in_front(rays_a, rays_b, pose), pose))
    found.sort(key=lambda item: -item[0])
    return [pose for front, pose in found[:2] if front > 0.5]


def _share_in_front(rays_a: Array, rays_b: Array, pose: Array) -> float:
    """Return the share of points before both cameras; turned half round, the second has them all behind it."""
    rho = two_view_rho(rays_a, rays_b, pose)
    in_b = rays_a @ pose[:, :3].T + rho[:, None] * pose[:, 3]
    return float(((rho > 0) & ((in_b * rays_b).sum(-1) > 0)).mean())


def guess(tracks: Tracks, frame: int, pose: Array, members: Array) -> Motion | None:
    """Place all frames by the members' depths, seen from the anchor and ``frame`` (whose pose is known up to scale)."""
    rho = two_view_rho(tracks.rays, camera.rays(tracks.uv[frame], tracks.K), pose)
    rho[~tracks.seen[frame]] = -1.0
    positive = members & (rho > 1e-3)
    if positive.sum() < MIN_MEMBERS:
        return None
    middle = float(np.median(rho[positive]))
    rho = np.where(rho > 1e-3, np.clip(rho / middle, 0.05, 20), 1.0)
    pose = np.column_stack([pose[:, :3], middle * pose[:, 3]])
    turn = cv2.Rodrigues(np.ascontiguousarray(pose[:, :3]))[0].ravel()
    poses = np.zeros((len(tracks.uv) + 1, 3, 4))
    poses[0] = np.eye(3, 4)
    for i in range(len(tracks.uv)):
        share = (i + 1) / (frame + 1)
        near = np.column_stack([cv2.Rodrigues(share * turn)[0], share * pose[:, 3]])
        poses[i + 1] = pose if i == frame else near
    cam = camera.split_K(tracks.K)
    none = np.zeros(len(rho))
    motion = Motion(cam, tracks.rays.copy(), poses, rho, none, none)
    for i in range(len(tracks.uv)):
        if i != frame:
            _resect(tracks, motion, i, positive)
    fit_depths(tracks, motion)
    return motion


def resume(tracks: Tracks, focal: float, rho: Array) -> Motion:
    """Place all frames, one from the other, by the depths of a motion that was found before; 0: not of it."""
    cam, members = camera.split_K(tracks.K), rho > 0
    if not tracks.focal_known:
        cam[:2] *= focal / cam[0]
    rays = tracks.rays * [*(tracks.K[[0, 1], [0, 1]] / cam[:2]), 1.0]
    none = np.zeros(len(rho))
    poses = np.tile(np.eye(3, 4), (len(tracks.uv) + 1, 1, 1))
    rho = np.where(members, rho, np.median(rho[members]))
    motion = Motion(cam, rays, poses, rho, none, none)
    for i in range(len(tracks.uv)):
        poses[i + 1] = poses[i]
        _resect(tracks, motion, i, members)
    fit_depths(tracks, motion)
    return motion


def _resect(tracks: Tracks, motion: Motion, i: int, members: Array) -> None:
    """Place one frame by the members' depths, from where it stands: that is nearly right."""
    rows = members & tracks.seen[i]
    if rows.sum() < MIN_MEMBERS:
        return
    rho = motion.rho[rows]
    seen = track.Sightings(
        motion.cam, motion.rays[rows], np.zeros((len(rho), 3)), rho, (GUESS_SIGMA * rho) ** 2,
        tracks.uv[i, rows], tracks.info[i, rows],
    )  # fmt: skip
    motion.poses[i + 1] = seen.fit(motion.poses[i + 1], track.COLD).pose


def grow(tracks: Tracks, guesses: list[Motion], growth: Growth = FROM_AFAR) -> list[Motion]:
    """Refine motions over all frames and the tracks that they explain; returns the best, best first.

    All are adjusted a little, the best of them to the end. The guesses stay as they are.
    """
    found = [copy.deepcopy(motion) for motion in _varied(tracks, guesses)[: growth[0][2]]]
    for scales, most_error, most in growth:
        alive = []
        for motion in found[:most]:
            taking_part = (motion.error < most_error) & (motion.rho > LEAST_RHO)
            if taking_part.sum() < MIN_MEMBERS:
                continue
            _adjust(tracks, motion, taking_part, scales)
            if np.isfinite(motion.poses).all():
                alive.append(motion)
        found = _varied(tracks, sorted(alive, key=lambda m: -score(tracks, m.error)))
    return found


def _varied(tracks: Tracks, ranked: list[Motion]) -> list[Motion]:
    """Put first, of motions best first, the best of each that explain other tracks than those before; all are kept.

    Many guesses grow into one motion; without this none but its variants would be adjusted to the end.
    """
    first = different(tracks, ranked)
    return first + [motion for motion in ranked if not any(motion is m for m in first)]


def different(tracks: Tracks, ranked: list[Motion]) -> list[Motion]:
    """Return, of motions best first, each that explains other tracks than those before it."""
    first: list[Motion] = []
    for motion in ranked:
        if all(overlap(tracks, motion, other) < SAME_MOTION for other in first):
            first.append(motion)
    return first


def overlap(tracks: Tracks, a: Motion, b: Motion) -> float:
    """Return the area that two motions explain both, over that which either does."""
    one, two = a.error < AGREEING, b.error < AGREEING
    return float(tracks.votes[one & two].sum() / max(tracks.votes[one | two].sum(), 1e-9))


def _adjust(tracks: Tracks, motion: Motion, members: Array, scales: tuple[float, ...]) -> None:
    """Adjust poses and focal to the members, then the depths of all tracks to the poses."""
    n, F = len(motion.rho), len(tracks.uv)
    usual = Focal.usual(tracks.size)
    result = refine.adjust(
        motion.cam, motion.rays, np.zeros(n, np.int64), motion.poses, np.arange(1, F + 1), motion.rho,
        motion.rho.copy(), np.full(n, 0.01), tracks.observations(members), iterations=8, scales=scales,
        focal_info=np.inf if tracks.focal_known else usual.info,
        focal_offset=usual.mean - float(np.log(motion.cam[0])),
    )  # fmt: skip
    motion.focal_information = np.inf if tracks.focal_known else result.focal_information
    fit_depths(tracks, motion)


def fit_depths(tracks: Tracks, motion: Motion) -> None:
    """Fit the depths of all tracks, poses held, and see how well that explains them."""
    n = len(motion.rho)
    obs = tracks.observations(np.ones(n, bool))
    motion.rho_info = np.zeros(n)
    _kernels_bundle.refine_depths(
        motion.cam, motion.rays, np.zeros(n, np.int64), motion.poses, obs.patch, obs.frame, obs.uv, obs.info,
        motion.rho, motion.rho_info, motion.rho.copy(), np.full(n, 0.01),
    )  # fmt: skip
    motion.error = track_errors(tracks, motion)


def track_errors(tracks: Tracks, motion: Motion) -> Array:  # (n,)
    """Return the mean robust error of each track's observations, σ²; ``ROBUST`` where it is hardly seen."""
    q = motion.rays @ np.swapaxes(motion.poses[1:, :, :3], 1, 2)
    q = q + motion.rho[:, None] * motion.poses[1:, None, :, 3]  # (F, n, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        off = motion.cam[:2] * q[..., :2] / q[..., 2:] + motion.cam[2:] - tracks.uv
    (u, v), (a, b, c) = np.moveaxis(off, -1, 0), np.moveaxis(tracks.info, -1, 0)
    square = u * u * a + 2 * u * v * b + v * v * c
    square = np.where((q[..., 2] > 1e-6) & np.isfinite(square), square, 1e6)
    robust = np.where(tracks.seen, ROBUST * square / (ROBUST + square), 0.0)
    count = tracks.seen.sum(0)
    enough = count >= 0.5 * len(tracks.seen)
    return np.where(enough, robust.sum(0) / np.maximum(count, 1), ROBUST)

"""A second look at hard frame pairs: a semi-global search along the epipolar lines of the camera's own motion.

Where the view changes much between two frames, DIS goes wrong in most places but right in enough of them to give the
camera's motion; that motion leaves one unknown per pixel. Costs are Hamming distances of census bits (Zabih & Woodfill,
ECCV 1994), paths over them as in semi-global matching (Hirschmüller, PAMI 2008) along the epipolar lines (Yamaguchi,
McAllester & Urtasun, ECCV 2014). What moves by itself keeps DIS's flow, unless the images speak for the line.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import NamedTuple, Self

import cv2
import numpy as np

from stream4d.geometry.camera import centred_K, default_focal, make_K, scale_K
from stream4d.models import _kernels_sweep as kernels
from stream4d.models.camera_motion import MIN_POINTS, RigidMotion, find_motion
from stream4d.models.dis import Preset, dis_flow, missed_trip
from stream4d.packets import Array

HARD_SHARE = 0.75
"""A pair is hard where less than this of its flow returns to where it began."""
LOST_SHARE = 0.1
"""Where less than this returns, the flow tells nothing of the camera's motion either."""
MISS_PX = 0.5
"""A round trip may miss by this many pixels …"""
MISS_SHARE = 0.05
"""… plus this share of the flow's length."""
MAX_PIXELS = 48_000
"""Larger images are searched smaller: time and memory stay bounded."""
STEPS = 64
"""Depths that are tried."""
REACH = 0.21
"""Most displacement that is looked for, beyond the rotation's, as a share of the image's longer side …"""
REACH_QUANTILE = 0.9
"""… which so many of the pixels' lines do not exceed."""
SMALL_JUMP, LARGE_JUMP = np.int16(10), np.int16(100)
"""Cost in census bits of a change by one step between neighbours, and of a larger one."""
VOTE_EVERY = 4
"""Every fourth pixel in both axes tells how the camera moved."""
COST_WINDOW = 5
"""Pixels over which the costs of two flows are compared."""


class BothWays(NamedTuple):
    """Flow of a frame pair, (H, W, 2) pixels."""

    there: Array
    back: Array


class StartedPair(NamedTuple):
    """Two grey images, (H, W) uint8, whose flow both ways a pool is estimating."""

    first: Array
    second: Array
    there: Future[Array]
    back: Future[Array]
    pool: Executor

    @classmethod
    def start(cls, first: Array, second: Array, preset: Preset, pool: Executor) -> Self:
        """Let two threads of a pool run DIS from the first image to the second, and back."""
        there = pool.submit(dis_flow, first, second, preset)
        return cls(first, second, there, pool.submit(dis_flow, second, first, preset), pool)

    def flows(self, K: Array | None) -> BothWays:
        """Wait for DIS and mend what it found, if the pair is hard; K as for ``mend_hard_pair``."""
        found = BothWays(self.there.result(), self.back.result())
        return mend_hard_pair(self.first, self.second, found, K, self.pool)


def returns(flow: Array, other: Array, every: int = 1) -> Array:  # (H, W, 2) twice -> (H, W)
    """Return by how much a flow's round trip misses its start, in units of what is allowed: up to 1 it returns.

    ``every``: only every so many-th pixel in both axes.
    """
    missed = missed_trip(flow, other, every=every, beyond=1e3)  # out of view nothing returns
    u, v = np.moveaxis(flow[::every, ::every], -1, 0)
    return missed / (MISS_PX + MISS_SHARE * np.sqrt(u * u + v * v))


def mend_hard_pair(
    first: Array,  # (H, W) uint8
    second: Array,  # (H, W) uint8
    flows: BothWays,
    K: Array | None = None,
    pool: Executor | None = None,
) -> BothWays:
    """Look again where a pair's flow does not return, if that is much of it; else return it as it is.

    Args:
        flows: from the first image to the second, and back.
        K: (3, 3) intrinsics of the images; without, a focal length is guessed and refined.
        pool: two threads, to search both ways at once.
    """
    if not LOST_SHARE < (returns(*flows, VOTE_EVERY) <= 1).mean() < HARD_SHARE:
        return flows
    H, W = first.shape
    guess = centred_K(default_focal(W, H), W, H) if K is None else K
    misses = returns(*flows)
    motion = _motion(flows.there, misses, guess, focal_known=K is not None)
    if motion is None:
        return flows
    R, t = motion.b_from_a, motion.direction
    camera = make_K(motion.focal, motion.focal, guess[0, 2], guess[1, 2])
    jobs = (first, second, camera, R, t), (second, first, camera, R.T, -R.T @ t)
    there, back = (pool.map if pool else map)(lambda job: sweep(*job), jobs)
    bits = [_census(first), _census(second)]
    return BothWays(
        _better(flows.there, misses, there, returns(there, back), bits),
        _better(
            flows.back, returns(flows.back, flows.there), back, returns(back, there), bits[::-1]
        ),
    )


def rehearse() -> None:
    """Mend a tiny pair of noise: all kernels are called, of the types that they are called with later."""
    grey = np.random.default_rng(0).integers(0, 256, (24, 32)).astype(np.uint8)
    start = np.stack(np.meshgrid(np.arange(8.0), np.arange(6.0)), -1).reshape(-1, 2)
    find_motion(start, start + 0.1, np.ones(len(start)), 32.0, focal_known=False)
    flow = sweep(grey, grey, np.diag([32.0, 32.0, 1.0]), np.eye(3), np.array([1.0, 0.0, 0.0]))
    _cost(flow, [_census(grey)] * 2)


def _motion(flow: Array, misses: Array, K: Array, *, focal_known: bool) -> RigidMotion | None:
    """Fit the camera's motion to the flow that returns; None where too little does or nothing moves."""
    H, W = misses.shape
    y, x = (VOTE_EVERY * np.mgrid[: H // VOTE_EVERY, : W // VOTE_EVERY] + VOTE_EVERY // 2).reshape(
        2, -1
    )
    fair = misses[y, x] <= 1
    x, y = x[fair], y[fair]
    if len(x) < MIN_POINTS:
        return None
    moved = flow[y, x].astype(np.float64)
    start = np.column_stack([x, y]) - K[:2, 2]
    doubt = MISS_PX * (0.1 + misses[y, x].astype(np.float64))
    motion = find_motion(start, start + moved, doubt, float(K[0, 0]), focal_known=focal_known)
    return motion if motion.direction.any() else None


def sweep(
    first: Array, second: Array, K: Array, R: Array, t: Array
) -> Array:  # (H, W) uint8 twice -> (H, W, 2) float32
    """Search every pixel's epipolar line; return the flow first → second of a scene that stands still.

    Args:
        K: (3, 3) intrinsics.
        R, t: second_from_first, (3, 3) and (3,); the length of t does not matter.
    """
    H, W = first.shape
    scale = min(1.0, (MAX_PIXELS / (H * W)) ** 0.5)
    h, w = round(scale * H), round(scale * W)
    if scale < 1:
        first, second = (
            cv2.resize(x, (w, h), interpolation=cv2.INTER_AREA) for x in (first, second)
        )
    K = scale_K(K, w / W, h / H)
    M, shift = (K @ R @ np.linalg.inv(K)).astype(np.float32), (K @ t).astype(np.float32)
    steps = _inverse_depths(M, shift, (h, w))
    costs, paths = np.empty((h, w, STEPS), np.int16), np.zeros((h, w, STEPS), np.int16)
    kernels.line_costs(_census(first), _census(second), M, shift, steps, costs)
    kernels.aggregate(costs, first, SMALL_JUMP, LARGE_JUMP, paths)
    flow = np.empty((h, w, 2), np.float32)
    kernels.cheapest(paths, M, shift, steps, flow)
    flow = np.dstack([cv2.medianBlur(np.ascontiguousarray(flow[..., i]), 5) for i in (0, 1)])
    if scale < 1:
        flow = cv2.resize(flow, (W, H)) * np.array([W / w, H / h], np.float32)
    return flow


def _census(grey: Array) -> Array:
    bits = np.empty(grey.shape, np.uint64)
    kernels.census(np.ascontiguousarray(grey), bits)
    return bits


def _inverse_depths(M: Array, shift: Array, size: tuple[int, int]) -> Array:  # (L,) float32
    """Space the steps evenly, from one behind infinity (noise goes there) to the reach."""
    h, w = size
    x, y = np.meshgrid(np.linspace(0, w - 1, 9), np.linspace(0, h - 1, 9))
    far = M.astype(np.float64) @ np.stack([x.ravel(), y.ravel(), np.ones(81)])

    def displacement(inverse_depth: float) -> float:
        near = far + inverse_depth * shift[:, None].astype(np.float64)
        # a turn by 90° puts infinity beside the image
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.nan_to_num(np.hypot(*(near[:2] / near[2] - far[:2] / far[2])), nan=np.inf)
        moved[near[2] < 0.2 * far[2]] = np.inf  # before the camera comes the camera
        return float(np.quantile(moved, REACH_QUANTILE, method="higher"))

    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if displacement(middle) > REACH * max(h, w) else (middle, high)
    return np.linspace(-low / (STEPS - 2), low, STEPS).astype(np.float32)


def _better(
    flow: Array, misses: Array, other: Array, other_misses: Array, bits: list[Array]
) -> Array:
    """Take the other flow where it returns better, if the first does not return or the images speak against it."""
    own_cost, other_cost = _cost(flow, bits), _cost(other, bits)
    take = (other_misses < misses) & ((misses > 1) | (other_cost < own_cost))
    if (other_misses <= 1).mean() < (misses <= 1).mean():
        take &= other_misses <= 1  # the motion may be wrong: no guess where nothing returns
    return np.where(take[..., None], other, flow)


def _cost(flow: Array, bits: list[Array]) -> Array:  # (H, W)
    """Return the census bits that differ along a flow, averaged over a small window."""
    cost = np.empty(flow.shape[:2], np.float32)
    kernels.costs_of_flow(bits[0], bits[1], flow, cost)
    return np.asarray(cv2.blur(cost, (COST_WINDOW, COST_WINDOW)))

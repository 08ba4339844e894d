"""Offline refinement: poses, focal length and depth scale of a finished reconstruction, all keyframes at once.

MonST3R's global optimisation (Zhang et al., "MonST3R", ICLR 2025, section 3.3) put to a store: over a graph of paired
frames, ego flow must agree with the flow measured at still, textured sites, the pointmaps of paired frames must agree
in depth (one free scale a frame), and neighbouring cameras are held together. Two things differ. Flow between far
frames is measured in the images themselves (``sites.py``), with its covariance, and so reaches revisits; and the
smoothness is that of the *correction*, since that of the path itself would shorten it. The solver is in
``global_adjustment.py``; frames between the keyframes are fitted to the result (``placing.py``).

A tenth of the sites is held out. Where their cost does not fall by more than chance, the original is kept: so a store
that was refined once is not stirred again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stream4d.geometry import camera, transforms
from stream4d.packets import Array
from stream4d.pose.global_adjustment import MAP_SCALE, Problem, settle_sites, solve
from stream4d.pose.placing import Cameras, place_frames
from stream4d.pose.sites import (
    Recorded,
    Seen,
    Sites,
    cam_from_world,
    choose_sites,
    find_sites,
    pair_graph,
    read_log_depth,
)

SCALES = ((100.0, 30.0, 9.0), (16.0, 9.0))
"""Robust scales (σ²) of the two rounds: the second looks for every site anew from where the first has put it."""
ROOM_PX = (6.0, 3.0)
TIE_SHARE = 0.05
"""1σ of how neighbouring keyframes' corrections differ: radians, and share of the scene's depth."""
HELD_OUT = 10
"""One site in so many is left out of the fit and tells whether it is better."""
SURE = 2.0
"""Standard errors by which held-out sites must fit better: what chance exceeds once in forty times."""
MAX_KEYS = 400
"""Keyframes refined at once: the system is dense. More of them are refined in turn, …"""
HELD_KEYS = 12
"""… each run of them with so many before and after it, which are held."""
MAX_GAP = 6
"""Frames between keyframes at most."""
FEW = 6
"""Observations per keyframe below which nothing is fitted: as many as a pose has unknowns."""


@dataclass(frozen=True, slots=True)
class Part:
    """One run of frames refined together."""

    first: int
    stop: int
    """Frames ``first`` … ``stop − 1``."""
    is_better: bool
    cost: tuple[float, float]
    """Mean robust cost of a held-out observation before and after, σ²."""
    reason: str
    """Why it was kept as it was; empty where it improved."""


@dataclass(frozen=True, slots=True, eq=False)
class Refinement:
    """Better cameras for all frames, or the same where none were found."""

    cameras: Cameras
    parts: tuple[Part, ...]
    """What was done, part by part."""

    @property
    def is_better(self) -> bool:
        """True where any part improved."""
        return any(part.is_better for part in self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class _Stretch:
    """Frames that share a scale, and their keyframes."""

    first: int
    stop: int
    keys: Array
    held: Array
    """(K,) bool: keyframes outside of it that stay."""

    @property
    def steps(self) -> int:
        """What the progress counts."""
        looks = len(self.keys) * (1 + len(SCALES))
        return looks + sum(len(scales) for scales in SCALES) + self.stop - self.first


def refine(
    frames: Recorded,
    *,
    calibrated: bool,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Refinement:
    """Refine a finished reconstruction; each segment by itself.

    Args:
        frames: what is stored.
        calibrated: the focal length was given and stays.
        on_step: told the number of steps done and to be done.
    """
    out = Cameras(np.array(frames.world_from_cam), np.array(frames.K), np.ones(len(frames)))
    stretches = _stretches(frames)
    total = sum(stretch.steps for stretch in stretches)
    counter = itertools.count(1)

    def step() -> None:
        on_step(next(counter), total)

    return Refinement(out, tuple(_refine(frames, s, calibrated, out, step) for s in stretches))


def _stretches(frames: Recorded) -> list[_Stretch]:
    edges = [0, *(np.flatnonzero(np.diff(frames.segment)) + 1).tolist(), len(frames)]
    out = []
    for first, stop in itertools.pairwise(edges):
        keys = _keys(frames, first, stop)
        if len(keys) >= 3:
            out += _turns(first, stop, keys)
    return out


def _keys(frames: Recorded, first: int, stop: int) -> Array:
    """Return the run's own keyframes, and frames between them where they are rare (pointmap models mark hardly any)."""
    tracked = np.array(frames.is_tracked)
    own = first + np.flatnonzero((frames.keyframe & tracked)[first:stop])
    ends = [first, *own.tolist(), stop - 1]
    between = [
        np.linspace(a, b, -(-(b - a) // MAX_GAP) + 1)
        for a, b in itertools.pairwise(ends)
        if b - a > MAX_GAP
    ]
    keys = np.unique(np.concatenate([own, *(steps.round().astype(np.int64) for steps in between)]))
    return np.asarray(keys[tracked[keys]])


def _turns(first: int, stop: int, keys: Array) -> list[_Stretch]:
    """Cut a stretch with many keyframes into runs that are refined in turn."""
    count = -(-len(keys) // MAX_KEYS)
    cuts = np.linspace(0, len(keys), count + 1).astype(int)
    edges = [first, *keys[cuts[1:-1]].tolist(), stop]
    out = []
    for i, (a, b) in enumerate(itertools.pairwise(cuts.tolist())):
        number = np.arange(max(a - HELD_KEYS, 0), min(b + HELD_KEYS, len(keys)))
        held = (number < a) | (number >= b)
        out.append(_Stretch(edges[i], edges[i + 1], keys[number], held))
    return out


def _refine(
    frames: Recorded, stretch: _Stretch, calibrated: bool, out: Cameras, step: Callable[[], None]
) -> Part:
    sites = choose_sites(frames, stretch.keys, step)
    old = cam_from_world(out.world_from_cam[stretch.keys])
    # A focal length that a run has not found by its middle is no better at its end; once settled here, it stays.
    K = out.K[stretch.keys[0]] if stretch.held[0] else np.median(out.K[stretch.keys], axis=0)
    given = camera.split_K(K)
    held = np.arange(len(sites.host)) % HELD_OUT == 0
    cam, poses, rho = given, old, sites.rho
    test = None
    for room, scales in zip(ROOM_PX, SCALES, strict=True):
        seen = _look(frames, stretch.keys, sites, rho, poses, cam, room, step)
        test = test or _problem(stretch, sites, seen, held, cam, old, old)
        solved = _problem(stretch, sites, seen, ~held, cam, poses, old)
        solved.focal_is_free = not (calibrated or stretch.held[0])
        solved.rho = rho[~held]
        for scale in scales:
            if len(seen.site) > FEW * len(stretch.keys):
                settle_sites(solved, scale)
                solve(solved, scale)
            step()
        whole = _problem(stretch, sites, seen, held | True, solved.cam, solved.poses, old)
        whole.rho, whole.map_scale = rho, solved.map_scale
        settle_sites(whole, scales[-1])
        cam, poses, rho = whole.cam, whole.poses, whole.rho
    assert test is not None
    before, after = _held_out_costs(test, old, given), _held_out_costs(test, poses, cam)
    seen_by = max(len(test.seen.site), 1)
    cost = float(before.sum() / seen_by), float(after.sum() / seen_by)
    if not _is_surely_less(after, before):
        for _ in range(stretch.first, stretch.stop):
            step()
        reason = "held-out sites fit no better, beyond chance"
        return Part(stretch.first, stretch.stop, False, cost, reason)
    place_frames(frames, range(stretch.first, stretch.stop), stretch.keys, sites, whole, out, step)
    return Part(stretch.first, stretch.stop, True, cost, "")


def _look(
    frames: Recorded, keys: Array, sites: Sites, rho: Array, poses: Array, cam: Array, room: float,
    step: Callable[[], None],
) -> Seen:  # fmt: skip
    """Find the sites in the keyframes that the pair graph names."""
    parts = []
    for f, hosts in enumerate(pair_graph(sites, rho, poses, cam)):
        frame = frames[int(keys[f])]
        rows = np.flatnonzero(np.isin(sites.host, hosts))
        rows, uv, info = find_sites(sites, rows, rho, poses, cam, frame, poses[f], room)
        logd, logd_info = read_log_depth(frame, uv)
        parts.append(Seen(rows, np.full(len(rows), f), uv, info, logd, logd_info))
        step()
    return Seen.gather(parts)


def _problem(
    stretch: _Stretch, sites: Sites, seen: Seen, chosen: Array, cam: Array, poses: Array, old: Array
) -> Problem:
    """State the problem over the chosen sites (N,) bool."""
    T, seen, rho = transforms.square(old), seen.of(chosen), sites.rho[chosen]
    sigma = np.array([TIE_SHARE / float(np.median(sites.rho))] * 3 + [TIE_SHARE] * 3)
    return Problem(
        cam=cam.copy(), poses=poses.copy(), host=sites.host[chosen], uv=sites.uv[chosen],
        rho=rho.copy(), prior=rho.copy(), prior_info=sites.prior_info[chosen], seen=seen,
        start=seen.starts(len(rho)), ties=T[1:] @ transforms.invert(T[:-1]), tie_info=sigma**-2,
        held=stretch.held, map_scale=np.zeros(len(poses)),
    )  # fmt: skip


def _held_out_costs(test: Problem, poses: Array, cam: Array) -> Array:  # (N,)
    """Return the robust cost of each held-out site under given cameras, the sites' depths fitted.

    Only the images judge: stored depth belongs to the cameras before.
    """
    scale = SCALES[-1][-1]
    test.poses, test.cam, test.rho = poses, cam, test.prior.copy()
    test.prior_info = np.full(len(test.rho), 1e-4)
    test.seen.logd_info[:] = 0.0
    for robust in (100.0, scale):
        settle_sites(test, robust)
    of_site = np.empty(len(test.rho))
    test.cost(cam, poses, test.rho, np.array([scale, MAP_SCALE]), of_site)
    return of_site


def _is_surely_less(after: Array, before: Array) -> bool:
    """Tell whether costs (N,) of the same sites fell by more than chance (a paired t-test)."""
    gain = before - after
    N = len(gain)
    return N > 1 and bool(gain.sum() > SURE * np.sqrt(N * gain.var(ddof=1)))

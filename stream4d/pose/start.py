"""The first relative pose and depths, from tracks that began in one frame.

Guesses of the scene's motion (``sampling``: the essential matrix that most tracks agree on and, where that explains
too little, many from few tracks each; at several focal lengths where K is unknown) are refined over several frames
(``motions``) and judged by the share of the view whose whole tracks they explain. The best is told from the best
*other* motion: where the two are close, the tracks do not tell yet. Nothing is started while rotation alone explains
the tracks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array
from stream4d.pose import motions, sampling
from stream4d.pose.candidates import Candidates
from stream4d.pose.motions import Motion, Tracks

MIN_TRACKS = 30
FOCAL_FACTORS = (0.62, 0.85, 1.2, 1.7)
"""Focal hypotheses over the long side: fields of view of 78°, 61°, 45°, 33°."""
CLEAR_SHARE = 0.92
"""Share of the view from which nothing but the best guess from all tracks is looked at."""
UNDECIDED = 7.0
"""Mean robust error of a track, σ², beyond which it clearly belongs to another motion."""


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
    """(n,) bool: what belongs to the motion beyond doubt; parts of movers agree with it in part."""
    focal: float
    """fx in pixels."""
    focal_information: float
    share: float
    """Of the view, by area: what agrees, over all that is seen. Low where movers were taken for the scene."""
    purity: float
    """What agrees well, over what does not clearly disagree. Low where the motion is a compromise of several."""
    margin: float
    """Score over that of the best other motion; infinite where there is none."""
    parallax: float
    """Median way that what agrees has gone in the view since the anchor, but for rotation, over the long side."""
    quality: float
    """Median of depth / σ(depth) over the inliers; below about 5 the start is not worth having."""
    candidates: Candidates
    """What was found, for the next look."""


def start_map(
    K: Array,
    uv0: Array,  # (n, 2) pixels in the anchor
    uv: Array,  # (F, n, 2) pixels in the other frames, oldest first
    info: Array,  # (F, n, 3) inverse covariances, zero where not seen
    *,
    size: int,
    focal_known: bool,
    thorough: bool = True,
    earlier: Candidates | None = None,
) -> Start | None:
    """Find poses of F frames and depths of n tracks, or None where the tracks do not allow it.

    Only a ``thorough`` look at more than two views finds the scene among large movers (two hold a track by a line
    only: much fits as well as the scene does); it costs ten times as much. It goes on from what
    ``earlier`` looks at the same tracks found.
    """
    if (info[-1, :, 0] > 0).sum() < MIN_TRACKS:
        return None
    focals = [K[0, 0]] if focal_known else [factor * size for factor in FOCAL_FACTORS]
    every = [Tracks(_with_focal(K, f), uv0, uv, info, size, focal_known) for f in focals]
    grown: list[Motion] = []
    for tracks in every:
        grown += motions.grow(tracks, sampling.agreed(tracks, len(uv) - 1))
    tracks = every[0]
    best = _best(tracks, grown)
    if thorough and len(uv) > 1 and (best is None or _share(tracks, best) < CLEAR_SHARE):
        for one in (
            every[1:-1] or every
        ):  # growing frees the focal length: the extremes are in reach
            guesses = sampling.sampled(one, len(uv) - 1)
            grown += motions.grow(one, guesses) + motions.grow(one, guesses, motions.FROM_NEAR)
        if earlier is not None:
            grown += motions.grow(tracks, earlier.resumed(tracks), motions.FROM_NEAR)
        best = _best(tracks, grown)
    if best is None or (best.error < motions.AGREEING).sum() < MIN_TRACKS // 2:
        return None
    return _finish(tracks, grown)


def _with_focal(K: Array, focal: float) -> Array:
    scaled = K.copy()
    scaled[0, 0], scaled[1, 1] = focal, K[1, 1] * focal / K[0, 0]
    return scaled


def _best(tracks: Tracks, grown: list[Motion]) -> Motion | None:
    return max(grown, key=lambda motion: _rank(tracks, motion), default=None)


def _rank(tracks: Tracks, motion: Motion) -> float:
    """Return what motions are compared by.

    A compromise of the scene and its movers may fit more of the view than the scene does, but not as well: it leaves
    much that fits halfway.
    """
    return motions.score(tracks, motion.error) * _purity(tracks, motion)


def _purity(tracks: Tracks, motion: Motion) -> float:
    """Return what agrees well with a motion, by area, over what does not clearly disagree."""
    well, others = motion.error < motions.CONSISTENT, motion.error < UNDECIDED
    return float(tracks.votes[well].sum() / max(tracks.votes[others].sum(), 1e-9))


def _share(tracks: Tracks, motion: Motion) -> float:
    """Return the share of the view, of what is seen in the last frame, that agrees with a motion."""
    seen = tracks.seen[-1]
    agreeing = seen & (motion.error < motions.AGREEING)
    return float(tracks.votes[agreeing].sum() / max(tracks.votes[seen].sum(), 1e-9))


def _finish(tracks: Tracks, grown: list[Motion]) -> Start:
    """Scale the best motion so that its median depth is 1, and grade it."""
    ranked = sorted(grown, key=lambda motion: -_rank(tracks, motion))
    motion = ranked[0]
    members = motions.members(motion)
    scale = float(np.median(motion.rho[members]))
    rho, rho_info = motion.rho / scale, motion.rho_info * scale**2
    poses = motion.poses.copy()
    poses[:, :, 3] *= scale
    others = (
        _rank(tracks, m) for m in ranked if motions.overlap(tracks, motion, m) < motions.SAME_MOTION
    )
    other = next(others, 0.0)
    # A wrong focal length leaves errors too.
    beyond_doubt = motions.CONSISTENT if tracks.focal_known else motions.AGREEING
    return Start(
        poses, rho, rho_info, members & (motion.error < beyond_doubt), float(motion.cam[0]),
        motion.focal_information, share=_share(tracks, motion), purity=_purity(tracks, motion),
        margin=_rank(tracks, motion) / other if other > 0 else np.inf,
        parallax=motions.parallax(motion, members & tracks.seen[-1]) / tracks.size,
        quality=float(np.median(rho[members] * np.sqrt(np.maximum(rho_info[members], 0)))),
        candidates=Candidates.of(tracks, ranked),
    )  # fmt: skip

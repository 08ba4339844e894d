"""The focal length from bundle adjustment of the whole map, and from the best of its explanations."""

from __future__ import annotations

import numpy as np

from stream4d.pose import focal, refine, rivals
from stream4d.pose.progress import Progress

INHERITED_SHARE = 1e-3
"""Of the information of inherited depths, what counts where the focal length is free: they came from their neighbours
under the focal length so far, and hundreds of them together would hold it."""
LOOKS = frozenset({7, 8, 9})
"""Keyframes whose evidence was not taken up yet at which other explanations are looked for: right after a start."""
MARGIN = 2 * focal.OVERCONFIDENCE
"""Cost, σ², by which another explanation must be better than the present one."""


def calibrate(progress: Progress) -> None:
    """Adjust all keyframes but the oldest, the depths of all patches, and the focal length.

    Before what the map says of the focal length is believed, other explanations of the map are looked at.
    """
    local_map, known = progress.map, progress.focal
    order, was_settled = local_map.order, known.settled
    taken_up = known.fresh >= progress.config.keyframes
    looked = not was_settled and (known.fresh in LOOKS or taken_up)
    _adjust(progress, _choose(progress) if looked else 0.0)
    if known.settled and not was_settled and not looked:
        _adjust(progress, _choose(progress))
    if taken_up:
        known.take_up(known.fresh / len(order))


def _adjust(progress: Progress, spread: float) -> None:
    """Adjust the map once, and hear what it says of the focal length; ``spread`` is a variance of log focal.

    Poses that were held would have been found with the focal length so far, and would hold it too; so would depths
    that new patches inherited. How far the focal length went is how far it may still have to go.
    """
    local_map, known = progress.map, progress.focal
    now = float(np.log(local_map.K[0, 0]))
    result = refine.adjust_map(
        local_map, local_map.order[1:], focal_info=known.held_info, focal_offset=known.mean - now,
        inherited=INHERITED_SHARE,
    )  # fmt: skip
    low, high = focal.limits(progress.size)
    new = min(max(now + float(np.log(result.focal_scale)), low), high)
    local_map.set_focal(float(np.exp(new - now)))
    known.weigh(new, result.focal_information, spread + (new - now) ** 2, progress.size)


def _choose(progress: Progress) -> float:
    """Take up the best explanation of the map; returns the variance of log focal over those nearly as good."""
    local_map, known = progress.map, progress.focal
    evidence = rivals.Evidence.of(
        local_map, inherited=INHERITED_SHARE, mean=known.mean, info=known.held_info
    )
    if not len(evidence.rows):
        return 0.0
    every = rivals.explain(evidence)
    present, best = every[0], min(every, key=lambda rival: rival.cost)
    if best.cost > present.cost - MARGIN:
        best = present
    local_map.set_focal(float(best.cam[0] / local_map.K[0, 0]))
    local_map.poses[:] = best.poses
    local_map.rho[evidence.rows], local_map.prior[evidence.rows] = best.rho, best.prior
    worse = np.array([max(rival.cost - best.cost, 0.0) for rival in every])
    likelihood = np.exp(-worse / (2 * focal.OVERCONFIDENCE))
    apart = np.array([rival.log_focal - best.log_focal for rival in every])
    return float((likelihood * apart**2).sum() / likelihood.sum())

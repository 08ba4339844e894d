"""MonST3R's alignment of one window: first by the pairs alone, then with the flow of what stands still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from stream4d.models.alignment import AlignmentWeights, PairSet, Scene, optimise
from stream4d.packets import Array

LATE_SMOOTHNESS = 0.1
"""Share of the smoothness in the second half: at its full weight it shortens the path by 3 %."""


class Start(NamedTuple):
    """What the alignment of a window begins with."""

    scene: Scene
    pairs: PairSet
    free: list[str]
    """Parts of the scene that may change."""
    frozen_frames: int
    """So many of the first frames stay where they are."""


def align(
    start: Start,
    find_motion: Callable[[Scene, PairSet], Array],
    *,
    iterations: int,
    smooth: float,
    flow: float,
    depth_prior: float,
) -> tuple[Scene, PairSet]:
    """Align without flow, find what moves, align with flow on the rest.

    Args:
        start: what to begin with.
        find_motion: gives (n, h, w) probabilities that pixels move.
        iterations: steps, half of them without flow.
        smooth, flow, depth_prior: weights of the terms.
    """
    first_half = iterations // 2
    scene, _ = optimise(
        start.scene,
        start.pairs,
        AlignmentWeights(smooth=smooth, flow=0.0, depth=depth_prior),
        iterations=first_half,
        total=iterations,
        free=start.free,
        frozen_frames=start.frozen_frames,
    )
    is_moving = torch.from_numpy(find_motion(scene, start.pairs) > 0.5)
    pairs = replace(start.pairs, is_moving=is_moving)
    scene, _ = optimise(
        scene,
        pairs,
        AlignmentWeights(
            smooth=LATE_SMOOTHNESS * smooth, flow=flow, flow_start=0.0, depth=depth_prior
        ),
        iterations=iterations - first_half,
        free=start.free,
        frozen_frames=start.frozen_frames,
    )
    return scene, pairs

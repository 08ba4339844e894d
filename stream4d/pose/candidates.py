"""Motions found at earlier looks at an anchor's tracks: later looks start from them too.

Whether the samples of one look hit upon the scene's motion is luck. What was found once is kept: the depths of its
tracks place every later frame, and there its fit is compared with that of what is found afresh.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stream4d.packets import Array
from stream4d.pose import motions
from stream4d.pose.motions import Motion, Tracks

MOST = 4
"""Motions that are kept."""


@dataclass(slots=True, eq=False)
class Candidates:
    """k motions of n tracks that began in one frame."""

    rho: Array = field(default_factory=lambda: np.zeros((0, 0)))
    """(k, n) inverse depths in the anchor, up to scale; zero where a track does not agree."""
    focal: Array = field(default_factory=lambda: np.zeros(0))
    """(k,) fx in pixels."""

    @classmethod
    def of(cls, tracks: Tracks, ranked: list[Motion]) -> Candidates:
        """Keep the best motions, of those best first, that differ."""
        kept = motions.different(tracks, ranked)[:MOST]
        agreeing = [np.where(motions.members(m), m.rho, 0.0) for m in kept]
        return cls(np.reshape(agreeing, (len(kept), -1)), np.array([m.cam[0] for m in kept]))

    def resumed(self, tracks: Tracks) -> list[Motion]:
        """Return the motions as later frames of the same tracks show them."""
        enough = (self.rho > 0).sum(1) >= motions.MIN_MEMBERS
        return [
            motions.resume(tracks, focal, rho)
            for focal, rho in zip(self.focal[enough], self.rho[enough], strict=True)
        ]

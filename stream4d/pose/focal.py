"""The focal length where no K is given: its logarithm, filtered over the video.

Evidence comes from two sides. While the map has no depth, from turning: the view turned by R moves as K R K⁻¹, whatever
the depth. Then from bundle adjustment of the whole map (``selfcalibration``). A window's normal equations believe in
independent errors and so in too much; what they say is discounted, no window counts twice, and one that contradicts
what is known counts little. So no number of biased windows can carry the focal length away, as it can where each
window's answer becomes the next one's prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.geometry import camera

TYPICAL = 0.85
"""Focal length over the long side of a usual camera (61°)."""
TYPICAL_SIGMA = 0.35
"""1σ of its logarithm over usual cameras."""
WIDEST_DEG, NARROWEST_DEG = 130.0, 20.0
"""Fields of view over the long side that are believed."""
OVERCONFIDENCE = 8.0
"""Variance of a window's log focal over what its normal equations say: errors are shared by neighbouring frames and
patches (blur, rolling shutter, a distorted lens). In calibrated runs over all clips with camera truth the windows'
answers, compared with the truth, were off by one stated σ (rendered, rectified) to six (handheld, rolling shutter)."""
BEST_SIGMA = 0.01
"""No window is believed better than this: lenses are no pinholes."""
CONTRADICTION = 4.0
"""Squared deviation from what is known, σ², beyond which a window counts less."""
SETTLED_SIGMA = 0.015
"""1σ below which not every keyframe needs the whole map adjusted."""


@dataclass(slots=True)
class Focal:
    """What is known of log focal from all that the map does not hold any more; information form."""

    mean: float = 0.0
    """log of fx in pixels."""
    info: float = 1 / TYPICAL_SIGMA**2
    """1/variance."""
    fresh: int = 0
    """Keyframes made since evidence was last taken up."""
    doubt: float = OVERCONFIDENCE
    """Variance over what normal equations say, for the window at hand."""
    window_mean: float = 0.0
    window_info: float = 0.0
    """What the map alone says, discounted by ``doubt``."""

    @classmethod
    def usual(cls, size: int) -> Focal:
        """Return what is known of a camera of which nothing is known, but the long side of its images."""
        return cls(mean=float(np.log(TYPICAL * size)))

    @property
    def settled(self) -> bool:
        """True where the map and all before it leave little doubt."""
        return self.sigma < SETTLED_SIGMA

    @property
    def sigma(self) -> float:
        """1σ of log focal, by all that is known."""
        return float((self.info + self.window_info) ** -0.5)

    @property
    def held_info(self) -> float:
        """Information with which what is known holds log focal in an adjustment of the window at hand.

        The window's normal equations believe in too much; so that what is known weighs its share, it is raised alike.
        """
        return self.doubt * self.info

    @property
    def best(self) -> float:
        """Log focal by all that is known."""
        total = self.info * self.mean + self.window_info * self.window_mean
        return total / (self.info + self.window_info)

    def weigh(self, mean: float, posterior: float, spread: float, size: int) -> None:
        """Hear of an adjustment in which ``held_info`` held the focal length.

        ``mean`` and ``posterior`` are where log focal came to lie and its stated information, the prior in it;
        ``spread`` is its variance over explanations of the window that are nearly as good.
        """
        own = max(posterior / self.doubt - self.info, 0.0)
        if own < 1e-3 * self.info:
            self.forget()
            return
        apart = mean + self.info / own * (mean - self.mean)
        stated = own * self.doubt
        self.see(apart, stated, spread, size)
        self.doubt = stated / self.window_info

    def see(self, mean: float, stated: float, shared: float, size: int) -> None:
        """Hear what the window at hand says: log focal, its stated information, and a variance that does not average.

        It replaces what the window said before.
        """
        own = 1 / (OVERCONFIDENCE / max(stated, 1e-9) + shared)
        deviation = (mean - self.mean) ** 2 / (1 / own + 1 / self.info)
        self.window_info = min(own / max(deviation / CONTRADICTION, 1.0), BEST_SIGMA**-2)
        low, high = limits(size)
        self.window_mean = min(max(mean, low), high)

    def forget(self) -> None:
        """Leave out what the window says."""
        self.window_info = 0.0

    def take_up(self, share: float) -> None:
        """Keep what the window says, of which so much was not counted before; a new window begins."""
        counted = min(share, 1.0) * self.window_info
        total = self.info * self.mean + counted * self.window_mean
        self.info += counted
        self.mean = total / self.info
        self.fresh = 0
        self.forget()


def limits(size: int) -> tuple[float, float]:
    """Return the least and the largest log focal that are believed, for images with this long side."""
    return (
        float(np.log(camera.focal_from_fov(WIDEST_DEG, size))),
        float(np.log(camera.focal_from_fov(NARROWEST_DEG, size))),
    )

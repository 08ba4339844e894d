"""Sizes of the networks of Depth Anything 3."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

ResizeRule = Literal[
    "upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop"
]
Reference = Literal["saddle_balanced", "saddle_sim_range", "first", "middle"]
"""Which view is the reference; see `reference_view`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Da3Config:
    """Sizes of the network; the defaults are those of DA3-BASE."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    swiglu: bool = False
    patch_grid: int = 37
    alternate_from: int | None = 4
    """First block of the part that alternates views; None: every view stays alone (metric network)."""
    taps: tuple[int, int, int, int] = (5, 7, 9, 11)
    """Blocks whose tokens the dense head reads; only these are kept."""
    dpt_layers: tuple[int, int, int, int] = (96, 192, 384, 768)
    dpt_features: int = 128
    camera_encoder_depth: int = 4
    camera_encoder_heads: int = 16
    ray_head: bool = False
    """Build the ray map's branch of the dense head; without it its weights are not loaded."""
    pose_from: Literal["token", "rays"] = "token"
    """Where cameras come from: the camera head, or a fit to the map of rays (slower, more accurate)."""
    metric: Da3Config | None = None
    """The second network of the nested model: metric scale and sky."""
    reference: Reference = "saddle_balanced"
    """How the reference view is picked."""
    sky: Literal["unknown", "far"] = "unknown"
    """What the nested model says of the sky: no depth, or the depth of the farthest things."""
    resolution: int = 504
    """Side of the network's image: the long one for ``upper_bound_*``, the short one for ``lower_bound_*``."""
    resize: ResizeRule = "upper_bound_resize"
    """How frames come to multiples of 14: stretched (``*_resize``) or cut (``*_crop``)."""
    head_chunk: int = 4
    """Frames that pass through the dense head together: bounds memory."""

    @property
    def is_mono(self) -> bool:
        """True for the metric network."""
        return self.alternate_from is None


_LARGE = Da3Config(
    dim=1024,
    depth=24,
    heads=16,
    alternate_from=8,
    taps=(11, 15, 19, 23),
    dpt_layers=(256, 512, 1024, 1024),
    dpt_features=256,
)
_GIANT = replace(
    _LARGE, dim=1536, depth=40, heads=24, swiglu=True, alternate_from=13, taps=(19, 27, 33, 39)
)
METRIC_LARGE = replace(_LARGE, alternate_from=None, taps=(4, 11, 17, 23))
SIZES = {
    "da3-small": Da3Config(dim=384, heads=6, dpt_layers=(48, 96, 192, 384), dpt_features=64),
    "da3-base": Da3Config(),
    "da3-large": _LARGE,
    "da3-giant": _GIANT,
    "da3-nested": replace(_GIANT, metric=METRIC_LARGE),
}

"""The store format in one place: arrays, dtypes, chunks, units, attributes, version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

FORMAT = "stream4d"
FORMAT_VERSION = 1
"""Raised when a reader of the old version would misread the new one."""

FRAMES_PER_SHARD = 31
"""One file of a map holds this many frames. With 31, its index (16 bytes a frame and a checksum) is 500 bytes:
it fits the 512 bytes that a disk writes as one."""
FRAMES_PER_CHUNK = 256
"""Rows per chunk of the small arrays."""

Group = Literal["poses", "geometry", "all", "semantics", "tracks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One array of the store; the first dimension is always the frame."""

    name: str
    dtype: str
    """Numpy name; depth is replaced by the configured precision."""
    dims: tuple[str, ...]
    """Names of the dimensions after ``index``."""
    group: Group
    """Written with ``maps`` = none (poses), geometry, all; semantics only where a model gives them, tracks where
    points are followed."""
    fill: float | int | bool
    """What a pixel without data holds."""
    doc: str
    unit: str = ""
    scale: float | None = None
    """Value of one step, for quantised arrays: CF ``scale_factor``, which xarray applies."""
    error: str = "exact"
    """How far a stored value can be from the one given."""
    sizes: tuple[int, ...] = field(default=())
    """Sizes of ``dims`` that do not depend on the video."""

    @property
    def is_map(self) -> bool:
        """True for per-pixel arrays: one chunk a frame, sharded."""
        return "y" in self.dims

    def frame_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one frame's entry."""
        return (height, width, *self.sizes) if self.is_map else self.sizes


def _map(name: str, dtype: str, group: Group, doc: str, **extra: Any) -> ArraySpec:
    channel: tuple[str, ...] = extra.pop("channel", ())
    return ArraySpec(
        name=name, dtype=dtype, dims=("y", "x", *channel), group=group, doc=doc, **extra
    )


def _row(name: str, dtype: str, doc: str, **extra: Any) -> ArraySpec:
    fill = np.nan if dtype.startswith("float") else False if dtype == "bool" else 0
    dims: tuple[str, ...] = extra.pop("dims", ())
    return ArraySpec(name=name, dtype=dtype, dims=dims, group="poses", fill=fill, doc=doc, **extra)


def _track(name: str, dtype: str, doc: str, **extra: Any) -> ArraySpec:
    channel: tuple[str, ...] = extra.pop("channel", ())
    return ArraySpec(
        name=name, dtype=dtype, dims=("slot", *channel), group="tracks", doc=doc,
        sizes=(0, *(2 for _ in channel)), **extra,
    )  # fmt: skip


_STEP = 1.0 / 255.0

ARRAYS: tuple[ArraySpec, ...] = (
    _row("index", "int64", "frame number: 0, 1, 2, …"),
    _row("timestamp_ns", "int64", "presentation time from the start of the source", unit="ns"),
    _row(
        "K",
        "float64",
        "intrinsics in pixels of the stored frames; integer coordinates are pixel centres",
        unit="px",
        dims=("k_row", "k_col"),
        sizes=(3, 3),
    ),
    _row(
        "world_from_cam",
        "float64",
        "rigid transform from the camera frame to the world",
        unit="world unit",
        dims=("pose_row", "pose_col"),
        sizes=(4, 4),
    ),
    _row(
        "pose_covariance",
        "float64",
        "covariance of the left se(3) perturbation (ρ, φ): exp(ξ) · world_from_cam; NaN where the "
        "path was refined since",
        unit="world unit, rad",
        dims=("cov_row", "cov_col"),
        sizes=(6, 6),
    ),
    _row(
        "depth_scale",
        "float64",
        "multiply stored depth by this (1 unless a loop was closed or depth left the "
        "range of float16)",
    ),
    _row("keyframe", "bool", "true where the pose chain kept the frame as a reference"),
    _row("is_tracked", "bool", "false where the pose was predicted, not measured"),
    _row("segment", "int32", "counts up at each cut: segments share neither scale nor origin"),
    _map(
        "rgb",
        "uint8",
        "geometry",
        "the processed frame, sRGB",
        fill=0,
        channel=("channel",),
        sizes=(3,),
    ),
    _map(
        "depth",
        "float16",
        "geometry",
        "z-depth before depth_scale; NaN where unknown",
        fill=np.nan,
        unit="world unit / depth_scale",
        error="relative 2⁻¹¹ (0.05 %) as float16, exact as float32",
    ),
    _map(
        "confidence",
        "uint8",
        "geometry",
        "probability that depth is within 10 % of the truth",
        fill=0,
        scale=_STEP,
        error="1/510",
    ),
    _map(
        "motion_prob",
        "uint8",
        "geometry",
        "probability that the surface moves in the world",
        fill=0,
        scale=_STEP,
        error="1/510",
    ),
    _map(
        "flow",
        "float16",
        "all",
        "optical flow (du, dv) to the next frame; NaN where unknown",
        fill=np.nan,
        unit="px",
        channel=("uv",),
        sizes=(2,),
        error="relative 2⁻¹¹: under 0.016 px up to 32 px",
    ),
    _map(
        "flow_uncertainty",
        "float16",
        "all",
        "1σ of flow; NaN where unknown",
        fill=np.nan,
        unit="px",
        error="relative 2⁻¹¹",
    ),
    _map("semantics", "int32", "semantics", "class or instance label, -1 where none", fill=-1),
    _track("track_id", "int32", "number of the point in each slot, −1 where it is free", fill=-1),
    _track(
        "track_uv",
        "float32",
        "its pixel; NaN where the slot is free, a guess where the point is hidden",
        fill=np.nan,
        unit="px",
        channel=("uv",),
    ),
    _track("track_visible", "bool", "true where the point is seen", fill=False),
    _track(
        "track_depth",
        "float32",
        "its z-depth before depth_scale; NaN where hidden or unknown",
        fill=np.nan,
        unit="world unit / depth_scale",
    ),
)
BY_NAME: Mapping[str, ArraySpec] = {spec.name: spec for spec in ARRAYS}

CONVENTIONS = {
    "camera_axes": "OpenCV: x right, y down, z forward",
    "pixel_centres": "integer coordinates",
    "world": "camera frame of the first keyframe of each segment",
    "depth": "z in the camera frame, times depth_scale",
    "pointmap": "pointmap_in_world = world_from_cam · (depth · depth_scale · K⁻¹ · (u, v, 1))",
    "flow": "pixels, frame t to t + 1",
    "time": "integer nanoseconds",
}

ATTRIBUTES = {
    "format": f'"{FORMAT}": how a store is recognised',
    "format_version": f"{FORMAT_VERSION}; readers refuse what is newer than they know",
    "stream4d_version": "version that wrote the store",
    "committed": "how many frames are safe; also the length of every array",
    "complete": "true once the run ended by itself",
    "scale": '"metric" where lengths are metres, else "relative"',
    "source": "the source video: path, size, rate, rotation, backend",
    "config": "every resolved setting of the run",
    "model_card": "name, licence and shape of the model",
    "conventions": "axes and units, as in docs/conventions.md",
    "revisions": "how many pose revisions (loop closures, a focal length found later) were applied",
    "refined": "what `stream4d refine` did, part by part (absent before)",
    "pending_revision": "poses, depth scales, perhaps K, that replace those in the arrays (present for an instant)",
}


def arrays_for(maps: str) -> tuple[ArraySpec, ...]:
    """Return the arrays that a setting of ``StoreConfig.maps`` writes, without semantics."""
    groups = {
        "none": ("poses",),
        "geometry": ("poses", "geometry"),
        "all": ("poses", "geometry", "all"),
    }
    return tuple(spec for spec in ARRAYS if spec.group in groups[maps])


def track_arrays(slots: int) -> tuple[ArraySpec, ...]:
    """Return the arrays of ``slots`` followed points."""
    return tuple(
        replace(spec, sizes=(slots, *spec.sizes[1:])) for spec in ARRAYS if spec.group == "tracks"
    )

"""The store format in one place: arrays, dtypes, chunks, units, attributes, version.

``python -m stream4d.store.schema`` prints ``docs/store-format.md``.
"""

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
        "covariance of the left se(3) perturbation (ρ, φ): exp(ξ) · world_from_cam",
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
    "revisions": "how many pose revisions (loop closures) were applied",
    "refined": "what `stream4d refine` did, part by part (absent before)",
    "pending_revision": "poses and depth scales that replace those in the arrays (present for an instant)",
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


def array_metadata(
    spec: ArraySpec, frames: int, height: int, width: int, *, dtype: str, level: int
) -> dict[str, Any]:
    """Return the zarr v3 metadata document of one array."""
    inner = spec.frame_shape(height, width)
    rows = FRAMES_PER_SHARD if spec.is_map else FRAMES_PER_CHUNK
    attributes: dict[str, Any] = {"description": spec.doc}
    if spec.unit:
        attributes["unit"] = spec.unit
    if spec.scale is not None:
        attributes["scale_factor"] = spec.scale
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [frames, *inner],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, *inner]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if spec.fill != spec.fill else spec.fill,
        "codecs": _map_codecs(inner, dtype, level) if spec.is_map else [_bytes_codec(dtype)],
        "attributes": attributes,
        "dimension_names": ["index", *spec.dims],
        "storage_transformers": [],
    }


def _bytes_codec(dtype: str) -> dict[str, Any]:
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _map_codecs(inner: tuple[int, ...], dtype: str, level: int) -> list[dict[str, Any]]:
    """Shards of one-frame chunks; the index comes first, so that a shard can grow at its end."""
    blosc = {
        "typesize": np.dtype(dtype).itemsize,
        "cname": "zstd",
        "clevel": min(level, 9),
        "shuffle": "bitshuffle",
        "blocksize": 0,
    }
    sharding = {
        "chunk_shape": [1, *inner],
        "codecs": [_bytes_codec(dtype), {"name": "blosc", "configuration": blosc}],
        "index_codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ],
        "index_location": "start",
    }
    return [{"name": "sharding_indexed", "configuration": sharding}]


_HEAD = f"""\
# Store format

<!-- Generated by `python -m stream4d.store.schema`; a test keeps it equal. -->

A store is a zarr v3 group (format version {FORMAT_VERSION}). T frames, H rows, W columns.
`xarray.open_zarr(path)` reads it, and so does anything else that knows zarr v3, local or over fsspec
(`s3://…`, `gs://…`, `https://…`). `stream4d.open_store(path)` gives frames.

## Arrays

| array | shape | dtype | unit | error | meaning |
|---|---|---|---|---|---|
"""

_MIDDLE = """
`maps: geometry` leaves out flow and flow_uncertainty, `maps: none` all per-pixel arrays; semantics exists
where a model gives labels, the tracks where points were followed (`--tracks N`: N slots; a point keeps its slot and
its number, which never comes again; `stream4d.open_store(path).tracks()` gives arrays by point, in 2D and 3D).
Pointmaps are computed on read (`pointmap_in_world(i)`): exact for pinhole models. So is scene flow
(`scene_flow(i)`): the displacement in the world until the next frame, zero where `motion_prob` says still, from flow,
both depths and both poses.

## Attributes of the root

| attribute | meaning |
|---|---|
"""

_TAIL = f"""
## Layout and durability

- Maps: one chunk a frame (blosc: zstd with bit shuffle), {FRAMES_PER_SHARD} frames a shard, shard index at the
  start. A shard only ever grows: new chunks go to its end, then the index (500 bytes, one disk sector) is replaced.
- Small arrays: chunks of {FRAMES_PER_CHUNK} rows, uncompressed; new rows are written into their place.
- The commit: the root `zarr.json` is replaced atomically. It holds `committed` and the consolidated metadata
  with the shapes of all arrays, so that every reader sees exactly the committed frames, whatever else is on the
  disk. Bytes beyond them are cut off on resume. The `zarr.json` of single arrays follows when the run ends.
- Killing the process at any moment loses nothing committed. After a power failure the operating system may not
  yet have written the last seconds; a file that is missing or fails its checksum is reported, not read as data.
- `resume.npz` (only in unfinished stores) is the state that `--resume` starts from: plain arrays, no pickle.
- Pose revisions rewrite `world_from_cam` and `depth_scale`; depth maps are never rewritten. The new rows are
  published in the root first (`pending_revision`), so that a kill halfway is made good on the next open.
"""


def document() -> str:
    """Return ``docs/store-format.md``."""
    arrays = "".join(_array_line(spec) for spec in ARRAYS)
    attributes = "".join(f"| `{name}` | {doc} |\n" for name, doc in ATTRIBUTES.items())
    return _HEAD + arrays + _MIDDLE + attributes + _TAIL


def _array_line(spec: ArraySpec) -> str:
    letters = {"y": "H", "x": "W", "slot": "N"}
    sizes = spec.sizes[1:] if spec.group == "tracks" else spec.sizes
    inner = [letters[d] for d in spec.dims if d in letters] + [str(n) for n in sizes]
    shape = f"(T, {', '.join(inner)})" if inner else "(T,)"
    dtype = "float16 or float32" if spec.name == "depth" else spec.dtype
    if spec.scale is not None:
        dtype += " (× 1/255)"
    return f"| `{spec.name}` | {shape} | {dtype} | {spec.unit} | {spec.error} | {spec.doc} |\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(document())

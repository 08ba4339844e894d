"""Read a store lazily: frames by index or time, arrays as numpy, pointmaps computed on the way out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import zarr
import zarr.errors

from stream4d.errors import StoreError
from stream4d.geometry.camera import unproject
from stream4d.geometry.flow import scene_flow
from stream4d.packets import Array, FrameTracks, PosedFrame, VideoInfo
from stream4d.store.encode import dequantise
from stream4d.store.integrity import check_intact
from stream4d.store.metadata import read_attributes, read_root
from stream4d.store.stored import StoredArrays
from stream4d.store.track_set import TrackSet, by_point

HIDDEN_SIGMA_PX = 4.0
"""1σ of flow beyond which the surface counts as not seen in the next frame."""


def open_store(path: str | Path) -> Store:
    """Open a store for reading: a local folder, or a URL that fsspec knows (``s3://…``, ``https://…``).

    A store that is still being written shows the frames committed at this moment.

    Raises:
        StoreError: nothing there, not a stream4d store, of a newer format, or damaged.
    """
    if "://" in str(path):
        return Store(str(path), _open_url(str(path)))
    folder = Path(path)
    root = read_root(folder)
    read_attributes(root, path)
    check_intact(folder, root)
    return Store(str(path), zarr.open_group(folder, mode="r"), folder)


def _open_url(url: str) -> zarr.Group:
    try:
        return zarr.open_group(url, mode="r")
    except (OSError, ValueError, KeyError, zarr.errors.NodeNotFoundError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(f"cannot open the store {url}: {reason}") from None
    except ImportError as error:
        raise StoreError(f"{url} needs another package: {error}") from None


class Store(Sequence[PosedFrame]):
    """A read-only sequence of posed frames. Nothing is loaded before it is asked for."""

    def __init__(self, path: str, group: zarr.Group, folder: Path | None = None) -> None:
        self.path = path
        self.attrs: dict[str, Any] = read_attributes({"attributes": dict(group.attrs)}, path)
        self._stored = StoredArrays(path, group, self.attrs, folder)
        self._length = int(self.attrs["committed"])

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "unfinished"
        size = f"{self.info.width}×{self.info.height}"
        return f"Store({self.path!r}, {len(self)} frames of {size}, {state})"

    @functools.cached_property
    def info(self) -> VideoInfo:
        """The source, as it was when the store was written."""
        known = {field.name for field in dataclasses.fields(VideoInfo)}
        return VideoInfo(**{k: v for k, v in self.attrs["source"].items() if k in known})

    @property
    def is_complete(self) -> bool:
        """False while it is being written, and after a run that was interrupted."""
        return bool(self.attrs["complete"])

    @property
    def is_metric(self) -> bool:
        """True where lengths are metres."""
        return bool(self.attrs.get("scale") == "metric")

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the arrays that this store holds (docs/store-format.md)."""
        return self._stored.names

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one array as stored: quantised, and before ``depth_scale`` and pending revisions.

        Raises:
            StoreError: this store does not hold it.
        """
        return self._stored.array(name)

    @functools.cached_property
    def timestamp_ns(self) -> Array:
        """(T,) int64 nanoseconds from the start of the source."""
        return self._stored.rows("timestamp_ns")

    @functools.cached_property
    def K(self) -> Array:
        """(T, 3, 3) float64 intrinsics in pixels of the stored frames."""
        return self._stored.revised("K")

    @functools.cached_property
    def world_from_cam(self) -> Array:
        """(T, 4, 4) float64 camera poses."""
        return self._stored.revised("world_from_cam")

    @functools.cached_property
    def pose_covariance(self) -> Array:
        """(T, 6, 6) float64, see ``PosedFrame``."""
        return self._stored.revised("pose_covariance")

    @functools.cached_property
    def depth_scale(self) -> Array:
        """(T,) float64 factor of the stored depth."""
        return self._stored.revised("depth_scale")

    @functools.cached_property
    def keyframe(self) -> Array:
        """(T,) bool."""
        return self._stored.rows("keyframe")

    @functools.cached_property
    def is_tracked(self) -> Array:
        """(T,) bool."""
        return self._stored.rows("is_tracked")

    @functools.cached_property
    def segment(self) -> Array:
        """(T,) int32."""
        return self._stored.rows("segment")

    @overload
    def __getitem__(self, key: int) -> PosedFrame: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[PosedFrame]: ...
    def __getitem__(self, key: int | slice) -> PosedFrame | Sequence[PosedFrame]:
        """Return a frame, or a lazy sequence of frames.

        Raises:
            IndexError: beyond the committed frames.
            StoreError: the store holds no images (``maps: none``), or a file is damaged.
        """
        if isinstance(key, slice):
            return _Slice(self, range(len(self))[key])
        return self._frame(self._checked(key))

    def __iter__(self) -> Iterator[PosedFrame]:
        return (self._frame(i) for i in range(len(self)))

    def at_time(self, timestamp_ns: int) -> PosedFrame:
        """Return the frame nearest in time.

        Raises:
            StoreError: the store is empty.
        """
        if not len(self):
            raise StoreError(f"{self.path} holds no frames yet")
        return self[int(np.abs(self.timestamp_ns - timestamp_ns).argmin())]

    def depth(self, index: int) -> Array:  # -> (H, W) float32
        """Return z-depth in world units, NaN where unknown."""
        index = self._checked(index)
        stored = self._stored.map("depth", index).astype(np.float32, copy=False)
        return stored * np.float32(self.depth_scale[index])

    def pointmap_in_cam(self, index: int) -> Array:  # -> (H, W, 3) float32
        """Return the points seen by each pixel in the camera frame."""
        return unproject(self.depth(index), self.K[index])

    def pointmap_in_world(self, index: int) -> Array:  # -> (H, W, 3) float32
        """Return the points seen by each pixel in the world; computed, not stored."""
        pose = self.world_from_cam[index].astype(np.float32)
        moved: Array = self.pointmap_in_cam(index) @ pose[:3, :3].T + pose[:3, 3]
        return moved

    def scene_flow(self, index: int) -> Array | None:  # -> (H, W, 3) float32
        """Return how far the surface seen at each pixel moves in the world until the next frame; computed, not stored.

        Zero where the surface is still; NaN where depth is unknown, or the surface leaves the view or is hidden then.
        None for the last frame, before a cut, and where the store holds no flow (``maps: geometry``).
        """
        i = self._checked(index)
        flow = _float32(self._stored.optional("flow", i))
        sigma = self._stored.optional("flow_uncertainty", i)
        if flow is None or i + 1 >= len(self) or self.segment[i] != self.segment[i + 1]:
            return None
        if sigma is not None:
            flow[sigma > HIDDEN_SIGMA_PX] = np.nan
        moved = scene_flow(
            flow, self.depth(i), self.depth(i + 1), self.K[i], self.K[i + 1],
            self.world_from_cam[i], self.world_from_cam[i + 1],
        )  # fmt: skip
        still = dequantise(self._stored.map("motion_prob", i)) <= 0.5
        return np.where(still[..., None] & np.isfinite(moved), np.float32(0), moved)

    def tracks_in_frame(self, index: int) -> FrameTracks | None:
        """Return the followed points of one frame, or None where none were asked for."""
        if "track_id" not in self._stored.names:
            return None
        i = self._checked(index)
        return FrameTracks(
            id=self._stored.read("track_id", i),
            uv=self._stored.read("track_uv", i),
            visible=self._stored.read("track_visible", i),
            depth=self._stored.read("track_depth", i) * np.float32(self.depth_scale[i]),
        )

    def tracks(self, start: int = 0, stop: int | None = None) -> TrackSet:
        """Return the followed points of frames ``start`` … ``stop − 1``, by point.

        Raises:
            StoreError: the run followed none.
        """
        chosen = range(len(self))[start:stop]
        rows = slice(chosen.start, chosen.stop)
        names = ("track_id", "track_uv", "track_visible", "track_depth")
        slots = {name: self._stored.read(name, rows) for name in names}
        slots["track_depth"] = slots["track_depth"] * self.depth_scale[rows, None]
        return by_point(slots, self.K[rows], self.world_from_cam[rows], chosen.start)

    def _frame(self, i: int) -> PosedFrame:
        return PosedFrame(
            index=i,
            timestamp_ns=int(self.timestamp_ns[i]),
            rgb=self._stored.map("rgb", i),
            K=self.K[i],
            world_from_cam=self.world_from_cam[i],
            pose_covariance=self.pose_covariance[i],
            depth=self.depth(i),
            confidence=dequantise(self._stored.map("confidence", i)),
            motion_prob=dequantise(self._stored.map("motion_prob", i)),
            flow=_float32(self._stored.optional("flow", i)),
            flow_uncertainty=_float32(self._stored.optional("flow_uncertainty", i)),
            semantics=self._stored.optional("semantics", i),
            tracks=self.tracks_in_frame(i),
            is_keyframe=bool(self.keyframe[i]),
            is_tracked=bool(self.is_tracked[i]),
            segment=int(self.segment[i]),
            is_metric=self.is_metric,
        )

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of a store with {len(self)} frames")
        return index % len(self)


def _float32(value: Array | None) -> Array | None:
    return None if value is None else value.astype(np.float32)


class _Slice(Sequence[PosedFrame]):
    """Some frames of a store, still lazy."""

    def __init__(self, store: Store, indices: range) -> None:
        self._store = store
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, key: int) -> PosedFrame: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[PosedFrame]: ...
    def __getitem__(self, key: int | slice) -> PosedFrame | Sequence[PosedFrame]:
        if isinstance(key, slice):
            return _Slice(self._store, self._indices[key])
        return self._store[self._indices[key]]

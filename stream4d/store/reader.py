"""Read a store lazily: frames by index or time, arrays as numpy, pointmaps computed on the way out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from stream4d.store.files import MapReader
from stream4d.store.integrity import OPTIONAL, check_intact
from stream4d.store.metadata import read_attributes, read_root
from stream4d.store.schema import BY_NAME
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
        self._group = group
        self._arrays: Mapping[str, Any] = dict(group.arrays())
        self._length = int(self.attrs["committed"])
        self._local: dict[str, MapReader] = {}
        if folder is not None:
            for name, array in self._arrays.items():
                if name in BY_NAME and BY_NAME[name].is_map:
                    self._local[name] = MapReader(folder / name, array.ndim)

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
        return tuple(sorted(self._arrays))

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one array as stored: quantised, and before ``depth_scale`` and pending revisions.

        Raises:
            StoreError: this store does not hold it.
        """
        if name not in self._arrays:
            raise StoreError(
                f"{self.path} holds no {name!r} (maps: {self._maps_setting}); "
                f"it holds {', '.join(self.array_names)}"
            )
        return self._arrays[name]

    @functools.cached_property
    def timestamp_ns(self) -> Array:
        """(T,) int64 nanoseconds from the start of the source."""
        return self._rows("timestamp_ns")

    @functools.cached_property
    def K(self) -> Array:
        """(T, 3, 3) float64 intrinsics in pixels of the stored frames."""
        return self._revised("K")

    @functools.cached_property
    def world_from_cam(self) -> Array:
        """(T, 4, 4) float64 camera poses."""
        return self._revised("world_from_cam")

    @functools.cached_property
    def pose_covariance(self) -> Array:
        """(T, 6, 6) float64, see ``PosedFrame``."""
        return self._revised("pose_covariance")

    @functools.cached_property
    def depth_scale(self) -> Array:
        """(T,) float64 factor of the stored depth."""
        return self._revised("depth_scale")

    @functools.cached_property
    def keyframe(self) -> Array:
        """(T,) bool."""
        return self._rows("keyframe")

    @functools.cached_property
    def is_tracked(self) -> Array:
        """(T,) bool."""
        return self._rows("is_tracked")

    @functools.cached_property
    def segment(self) -> Array:
        """(T,) int32."""
        return self._rows("segment")

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
        stored = self._map("depth", index).astype(np.float32, copy=False)
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
        flow = _float32(self._optional("flow", i))
        sigma = self._optional("flow_uncertainty", i)
        if flow is None or i + 1 >= len(self) or self.segment[i] != self.segment[i + 1]:
            return None
        if sigma is not None:
            flow[sigma > HIDDEN_SIGMA_PX] = np.nan
        moved = scene_flow(
            flow, self.depth(i), self.depth(i + 1), self.K[i], self.K[i + 1],
            self.world_from_cam[i], self.world_from_cam[i + 1],
        )  # fmt: skip
        still = dequantise(self._map("motion_prob", i)) <= 0.5
        return np.where(still[..., None] & np.isfinite(moved), np.float32(0), moved)

    def tracks_in_frame(self, index: int) -> FrameTracks | None:
        """Return the followed points of one frame, or None where none were asked for."""
        if "track_id" not in self._arrays:
            return None
        i = self._checked(index)
        return FrameTracks(
            id=self._read("track_id", i),
            uv=self._read("track_uv", i),
            visible=self._read("track_visible", i),
            depth=self._read("track_depth", i) * np.float32(self.depth_scale[i]),
        )

    def tracks(self, start: int = 0, stop: int | None = None) -> TrackSet:
        """Return the followed points of frames ``start`` … ``stop − 1``, by point.

        Raises:
            StoreError: the run followed none.
        """
        chosen = range(len(self))[start:stop]
        rows = slice(chosen.start, chosen.stop)
        names = ("track_id", "track_uv", "track_visible", "track_depth")
        slots = {name: self._read(name, rows) for name in names}
        slots["track_depth"] = slots["track_depth"] * self.depth_scale[rows, None]
        return by_point(slots, self.K[rows], self.world_from_cam[rows], chosen.start)

    def _frame(self, i: int) -> PosedFrame:
        return PosedFrame(
            index=i,
            timestamp_ns=int(self.timestamp_ns[i]),
            rgb=self._map("rgb", i),
            K=self.K[i],
            world_from_cam=self.world_from_cam[i],
            pose_covariance=self.pose_covariance[i],
            depth=self.depth(i),
            confidence=dequantise(self._map("confidence", i)),
            motion_prob=dequantise(self._map("motion_prob", i)),
            flow=_float32(self._optional("flow", i)),
            flow_uncertainty=_float32(self._optional("flow_uncertainty", i)),
            semantics=self._optional("semantics", i),
            tracks=self.tracks_in_frame(i),
            is_keyframe=bool(self.keyframe[i]),
            is_tracked=bool(self.is_tracked[i]),
            segment=int(self.segment[i]),
            is_metric=self.is_metric,
        )

    def _map(self, name: str, i: int) -> Array:
        value = self._optional(name, i)
        if value is None:
            raise StoreError(f"{self.path} is damaged: {name} of frame {i} is missing")
        return value

    def _optional(self, name: str, i: int) -> Array | None:
        """Return one frame of a map as stored, or None where the frame (or the store) has none."""
        if name in OPTIONAL and name not in self._arrays:
            return None
        array = self.array(name)
        if name not in self._local:
            value = self._read(name, i)
            is_absent = np.isnan(value) if value.dtype.kind == "f" else value == array.fill_value
            return None if name in OPTIONAL and is_absent.all() else value
        with self._reporting(name):
            chunk = self._local[name](i)
            if chunk is None:
                return None
            return np.frombuffer(bytearray(chunk), array.dtype).reshape(array.shape[1:])

    def _rows(self, name: str) -> Array:
        return self._read(name, slice(None))

    def _read(self, name: str, key: int | slice) -> Array:
        array = self.array(name)
        with self._reporting(name):
            return np.asarray(array[key])

    @contextmanager
    def _reporting(self, name: str) -> Iterator[None]:
        """Turn whatever a damaged file causes into one kind of error."""
        try:
            yield
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.path} is damaged: cannot read {name} ({reason})") from None

    def _revised(self, name: str) -> Array:
        """Return rows with a revision that was published but not yet worked in."""
        rows = self._rows(name)
        pending = self.attrs.get("pending_revision")
        if pending and name in pending:
            rows[np.array(pending["index"])] = np.array(pending[name])
        return rows

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of a store with {len(self)} frames")
        return index % len(self)

    @property
    def _maps_setting(self) -> str:
        return str(self.attrs.get("config", {}).get("store", {}).get("maps", "?"))


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

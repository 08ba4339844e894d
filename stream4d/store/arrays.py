"""The open arrays of a store that is being written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stream4d.config import StoreConfig
from stream4d.errors import StoreError
from stream4d.packets import PosedFrame
from stream4d.store import schema
from stream4d.store.array_metadata import array_metadata, has_checksums
from stream4d.store.encode import Compressor, encode_map
from stream4d.store.files import MapFile, RowFile, replace_file


class ArraySet:
    """All arrays that a run writes, and their metadata.

    Args:
        settings: which maps, how precise, how compressed.
        height, width: size of the frames.
        tracks: points followed at a time.
    """

    def __init__(self, settings: StoreConfig, height: int, width: int, *, tracks: int = 0) -> None:
        self._settings = settings
        self._size = (height, width)
        self._specs = list(schema.arrays_for(settings.maps))
        if tracks:
            self._specs += schema.track_arrays(tracks)
        self._compress = Compressor(settings.compression)
        self._folder = Path()
        self._unchecked: set[str] = set()
        """Maps that an early version began without checksums."""
        self.maps: dict[str, MapFile] = {}
        self.rows: dict[str, RowFile] = {}

    def open(self, folder: Path, committed: int) -> None:
        """Open or create every array in ``folder``; what lies beyond ``committed`` frames is cut off.

        Raises:
            OSError, ValueError: a file cannot be written, or is damaged.
        """
        self._folder = folder
        semantics = schema.BY_NAME["semantics"]
        if (folder / semantics.name).is_dir() and semantics not in self._specs:
            self._specs.append(semantics)
        for spec in self._specs:
            self._open(spec, committed)

    def _open(self, spec: schema.ArraySpec, committed: int) -> None:
        folder = self._folder / spec.name
        folder.mkdir(exist_ok=True)
        if (folder / "zarr.json").exists():
            document = json.loads((folder / "zarr.json").read_bytes())
        else:
            document = self._document(spec, committed)
            replace_file(folder / "zarr.json", json.dumps(document).encode())
        if spec.is_map:
            is_checked = has_checksums(document)
            if not is_checked:
                self._unchecked.add(spec.name)
            dims = 1 + len(spec.dims)
            self.maps[spec.name] = MapFile(folder, dims, committed, is_checked=is_checked)
        else:
            self.rows[spec.name] = RowFile(folder, spec, committed)

    def add_semantics(self, committed: int, waiting: int) -> None:
        """Begin the optional array, where it has not begun; earlier frames hold no label.

        Args:
            committed: frames that are safe.
            waiting: frames written since then.

        Raises:
            StoreError: it cannot be written.
        """
        spec = schema.BY_NAME["semantics"]
        if spec.name in self.maps:
            return
        try:
            self._open(spec, committed)
        except OSError as error:
            raise StoreError(f"cannot write {self._folder / spec.name}: {error.strerror}") from None
        self._specs.append(spec)
        for _ in range(waiting):
            self.maps[spec.name].append(None)

    def encode(self, name: str, frame: PosedFrame, depth_scale: float) -> bytes | None:
        """Return a frame's chunk of one map, or None where the frame has none. Threads may share this."""
        value = encode_map(name, frame, self._dtype(schema.BY_NAME[name]), depth_scale)
        return None if value is None else self._compress(value)

    def append(self, rows: Mapping[str, Any], chunks: Mapping[str, bytes | None]) -> None:
        """Add one frame to every array; it is in the files after ``flush``."""
        for name, row in rows.items():
            self.rows[name].append(row)
        for name, chunk in chunks.items():
            self.maps[name].append(chunk)

    def flush(self) -> None:
        """Write what was appended."""
        for rows in self.rows.values():
            rows.flush()
        for maps in self.maps.values():
            maps.flush()

    def close(self) -> None:
        """Let all files go. What was not flushed is forgotten."""
        for file in self.maps.values():
            file.close()

    def documents(self, frames: int) -> dict[str, Any]:
        """Return the metadata of all arrays at a length of ``frames``."""
        return {spec.name: self._document(spec, frames) for spec in self._specs}

    def _document(self, spec: schema.ArraySpec, frames: int) -> dict[str, Any]:
        height, width = self._size
        return array_metadata(
            spec,
            frames,
            height,
            width,
            dtype=self._dtype(spec),
            level=self._settings.compression,
            is_checked=spec.name not in self._unchecked,
        )

    def _dtype(self, spec: schema.ArraySpec) -> str:
        return self._settings.depth_dtype if spec.name == "depth" else spec.dtype


def row_values(frame: PosedFrame, depth_scale: float) -> dict[str, Any]:
    """Return what the small arrays hold of a frame."""
    tracks = frame.tracks
    followed = tracks and {
        "track_id": tracks.id,
        "track_uv": tracks.uv,
        "track_visible": tracks.visible,
        "track_depth": tracks.depth / np.float32(depth_scale),
    }
    return {
        **(followed or {}),
        "index": frame.index,
        "timestamp_ns": frame.timestamp_ns,
        "K": frame.K,
        "world_from_cam": frame.world_from_cam,
        "pose_covariance": frame.pose_covariance,
        "depth_scale": depth_scale,
        "keyframe": frame.is_keyframe,
        "is_tracked": frame.is_tracked,
        "segment": frame.segment,
    }

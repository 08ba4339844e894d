"""Files of a store that survive being killed: atomic replacement, growing shards, growing chunks of rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

from stream4d.packets import Array
from stream4d.store.schema import FRAMES_PER_CHUNK, FRAMES_PER_SHARD, ArraySpec

EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
"""Offset and length of a chunk that is not there, after the zarr sharding codec."""
INDEX_BYTES = FRAMES_PER_SHARD * 16 + 4


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, finds the old or the new one whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
    os.replace(partial, path)


def read_index(path: Path) -> Array:  # -> (FRAMES_PER_SHARD, 2) uint64: offset, length
    """Read the index of a shard.

    Raises:
        OSError: the file is missing.
        ValueError: the file is too short, or the checksum does not match.
    """
    with path.open("rb") as file:
        raw = file.read(INDEX_BYTES)
    if len(raw) < INDEX_BYTES or raw[-4:] != _checksum(raw[:-4]):
        raise ValueError(f"shard {path} is damaged")
    return np.frombuffer(raw[:-4], "<u8").reshape(-1, 2).copy()


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


class MapFile:
    """The growing shards of one map. Committed chunks are never moved or overwritten.

    Args:
        folder: the array's folder.
        dims: how many dimensions the array has, the frame's included.
        committed: frames that stay; chunks after them are forgotten.

    Raises:
        OSError, ValueError: the shard that is to grow cannot be read.
    """

    def __init__(self, folder: Path, dims: int, committed: int) -> None:
        self._folder = folder
        self._suffix = ".0" * (dims - 1)
        self._count = committed
        self._file: BinaryIO | None = None
        self._index = np.full((FRAMES_PER_SHARD, 2), EMPTY, "<u8")
        self._end = INDEX_BYTES
        self._cut_after(committed)

    def _path(self, shard: int) -> Path:
        return self._folder / f"c.{shard}{self._suffix}"

    def _cut_after(self, committed: int) -> None:
        shard, kept = divmod(committed, FRAMES_PER_SHARD)
        for path in self._folder.glob("c.*"):
            number = int(path.name.split(".")[1])
            if number > shard or (number == shard and kept == 0):
                path.unlink()
        path = self._path(shard)
        if not path.exists():
            return
        self._index[:kept] = read_index(path)[:kept]
        present = self._index[self._index[:, 0] != EMPTY]
        self._end = int((present[:, 0] + present[:, 1]).max(initial=np.uint64(INDEX_BYTES)))
        self._file = path.open("r+b", buffering=0)
        self.flush()
        self._file.truncate(self._end)

    def append(self, chunk: bytes | None) -> None:
        """Add the next frame; None is a frame without this map."""
        slot = self._count % FRAMES_PER_SHARD
        if slot == 0:
            self.close()
            self._index[:] = EMPTY
            self._end = INDEX_BYTES
        if chunk is not None:
            if self._file is None:
                self._file = self._path(self._count // FRAMES_PER_SHARD).open("w+b", buffering=0)
            self._write(self._end, chunk)
            self._index[slot] = self._end, len(chunk)
            self._end += len(chunk)
        self._count += 1

    def flush(self) -> None:
        """Publish the chunks appended so far in the shard's index."""
        if self._file is not None:
            raw = self._index.tobytes()
            self._write(0, raw + _checksum(raw))

    def close(self) -> None:
        """Publish, and let the file go."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, offset: int, data: bytes) -> None:
        assert self._file is not None
        self._file.seek(offset)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


class RowFile:
    """The growing chunks of one small array. Only the last chunk is held; a chunk file is replaced whole."""

    def __init__(self, folder: Path, spec: ArraySpec, committed: int) -> None:
        self._folder = folder
        self._suffix = ".0" * len(spec.sizes)
        self._dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._shape = (FRAMES_PER_CHUNK, *spec.sizes)
        self._fill = spec.fill
        self._codec = Zstd(level=1)
        self._count = committed
        self._is_changed = False
        last = (committed - 1) // FRAMES_PER_CHUNK
        self._rows = self._load(last) if committed else self._blank()

    def append(self, value: Array | int | float | bool) -> None:
        """Add the row of the next frame."""
        slot = self._count % FRAMES_PER_CHUNK
        if slot == 0 and self._count:
            self.flush()
            self._rows = self._blank()
        self._rows[slot] = value
        self._count += 1
        self._is_changed = True

    def flush(self) -> None:
        """Write the rows appended so far."""
        if self._is_changed:
            self._store((self._count - 1) // FRAMES_PER_CHUNK, self._rows)
            self._is_changed = False

    def get(self, indices: Array) -> Array:
        """Return rows that were appended, by frame index."""
        chunks = {number: self._chunk(number) for number in np.unique(indices // FRAMES_PER_CHUNK)}
        return np.stack(
            [chunks[i // FRAMES_PER_CHUNK][i % FRAMES_PER_CHUNK] for i in indices.tolist()]
        )

    def put(self, indices: Array, values: Array) -> None:
        """Replace rows, chunk by chunk, and write them."""
        for number in np.unique(indices // FRAMES_PER_CHUNK).tolist():
            here = indices // FRAMES_PER_CHUNK == number
            rows = self._chunk(number)
            rows[indices[here] % FRAMES_PER_CHUNK] = values[here]
            self._store(number, rows)

    def _chunk(self, number: int) -> Array:
        is_last = self._count and number == (self._count - 1) // FRAMES_PER_CHUNK
        return self._rows if is_last else self._load(number)

    def _path(self, number: int) -> Path:
        return self._folder / f"c.{number}{self._suffix}"

    def _blank(self) -> Array:
        return np.full(self._shape, self._fill, self._dtype)

    def _load(self, number: int) -> Array:
        raw = self._codec.decode(self._path(number).read_bytes())
        return np.frombuffer(raw, self._dtype).reshape(self._shape).copy()

    def _store(self, number: int, rows: Array) -> None:
        replace_file(self._path(number), self._codec.encode(rows.tobytes()))

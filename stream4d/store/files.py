"""Files of a store that survive being killed: atomic replacement, growing shards, growing chunks of rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from numcodecs import blosc

from stream4d.packets import Array
from stream4d.replacement import replacing
from stream4d.store.schema import FRAMES_PER_CHUNK, FRAMES_PER_SHARD, ArraySpec

EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
"""Offset and length of a chunk that is not there, after the zarr sharding codec."""
INDEX_BYTES = FRAMES_PER_SHARD * 16 + 4


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file; a kill at any moment leaves the old or the new one."""
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_at(file: BinaryIO, offset: int, data: bytes) -> None:
    """Write all of ``data`` at a position of an unbuffered file."""
    file.seek(offset)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def read_index(path: Path) -> Array:  # -> (FRAMES_PER_SHARD, 2) uint64: offset, length
    """Read the index of a shard.

    Raises:
        OSError: the file is missing.
        ValueError: the file is too short, or the checksum does not match.
    """
    for pause_s in (0.0, 0.002, 0.02):  # a writer may be replacing it at this very moment
        time.sleep(pause_s)
        with path.open("rb") as file:
            raw = file.read(INDEX_BYTES)
        if len(raw) == INDEX_BYTES and raw[-4:] == _checksum(raw[:-4]):
            return np.frombuffer(raw[:-4], "<u8").reshape(-1, 2).copy()
    raise ValueError(f"shard {path} is damaged")


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


class MapReader:
    """Read single frames of a local map. Faster than zarr's way, and what is missing is never read as fill.

    Args:
        folder: the array's folder.
        dims: how many dimensions the array has, the frame's included.
        is_checked: chunks end in a checksum.
    """

    def __init__(self, folder: Path, dims: int, *, is_checked: bool) -> None:
        self._folder = folder
        self._is_checked = is_checked
        self._suffix = ".0" * (dims - 1)
        self._shard = -1
        self._index: Array | None = None

    def __call__(self, frame: int) -> bytes | None:
        """Return the uncompressed bytes of a frame's chunk, or None where the frame has none.

        Raises:
            ValueError, RuntimeError, OSError: the shard is damaged.
        """
        shard, slot = divmod(frame, FRAMES_PER_SHARD)
        path = self._folder / f"c.{shard}{self._suffix}"
        if shard != self._shard:
            self._index = read_index(path) if path.exists() else None
            self._shard = shard
        if self._index is None or self._index[slot, 0] == EMPTY:
            return None
        offset, length = self._index[slot].tolist()
        with path.open("rb") as file:
            file.seek(offset)
            chunk = file.read(length)
        if len(chunk) != length:
            raise ValueError(f"{path} is cut short")
        if self._is_checked:
            chunk, checksum = chunk[:-4], chunk[-4:]
            if checksum != _checksum(chunk):
                raise ValueError(f"{path} holds other bytes than were written, in frame {frame}")
        return bytes(blosc.decompress(chunk))


class MapFile:
    """The growing shards of one map. Committed chunks are never moved or overwritten.

    Args:
        folder: the array's folder.
        dims: how many dimensions the array has, the frame's included.
        committed: frames that stay; chunks after them are forgotten.
        is_checked: chunks end in a checksum.

    Raises:
        OSError, ValueError: the shard that is to grow cannot be read.
    """

    def __init__(self, folder: Path, dims: int, committed: int, *, is_checked: bool) -> None:
        self._folder = folder
        self._suffix = ".0" * (dims - 1)
        self._is_checked = is_checked
        self._count = committed
        self._file: BinaryIO | None = None
        self._index = np.full((FRAMES_PER_SHARD, 2), EMPTY, "<u8")
        self._end = INDEX_BYTES
        self._waiting: list[bytes] = []
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
            self.flush()
            self.close()
            self._index[:] = EMPTY
            self._end = INDEX_BYTES
        if chunk is not None:
            if self._file is None:
                self._file = self._path(self._count // FRAMES_PER_SHARD).open("w+b", buffering=0)
            if self._is_checked:
                chunk += _checksum(chunk)
            self._index[slot] = self._end, len(chunk)
            self._end += len(chunk)
            self._waiting.append(chunk)
        self._count += 1

    def flush(self) -> None:
        """Write the chunks appended so far, then publish them in the shard's index."""
        if self._file is not None:
            data = b"".join(self._waiting)
            write_at(self._file, self._end - len(data), data)
            self._waiting.clear()
            raw = self._index.tobytes()
            write_at(self._file, 0, raw + _checksum(raw))

    def close(self) -> None:
        """Let the file go. What was not flushed is forgotten."""
        self._waiting.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


class RowFile:
    """The growing chunks of one small array, uncompressed: rows are written into their place in the file.

    Rows that are committed are only touched by ``put``.

    Raises:
        OSError: a chunk file cannot be read or written.
        ValueError: a chunk file is cut short.
    """

    def __init__(self, folder: Path, spec: ArraySpec, committed: int) -> None:
        self._folder = folder
        self._suffix = ".0" * len(spec.sizes)
        self._dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._blank = np.full((FRAMES_PER_CHUNK, *spec.sizes), spec.fill, self._dtype)
        self._row_bytes = self._blank[:1].nbytes
        self._count = committed
        self._waiting: list[Array] = []

    def append(self, value: Array | int | float | bool) -> None:
        """Add the row of the next frame; it is in the file after ``flush``."""
        self._waiting.append(np.broadcast_to(value, self._blank.shape[1:]).astype(self._dtype))

    def flush(self) -> None:
        """Write the rows appended so far."""
        if self._waiting:
            first, rows = self._count, np.stack(self._waiting)
            self._count += len(rows)
            self._waiting.clear()
            self.put(np.arange(first, self._count), rows)

    def get(self, indices: Array) -> Array:
        """Return rows that were flushed, by frame index."""
        rows = [self._read(number) for number in range(int(indices.max()) // FRAMES_PER_CHUNK + 1)]
        return np.concatenate(rows)[indices]

    def put(self, indices: Array, values: Array) -> None:
        """Write rows at increasing frame indices, each run of neighbours at once."""
        starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
        for run in np.split(np.arange(len(indices)), starts[1:]):
            first = int(indices[run[0]])
            while len(run):
                number, slot = divmod(first, FRAMES_PER_CHUNK)
                here = run[: FRAMES_PER_CHUNK - slot]
                self._write(number, slot, values[here].astype(self._dtype).tobytes())
                first, run = first + len(here), run[len(here) :]

    def _write(self, number: int, slot: int, data: bytes) -> None:
        path = self._folder / f"c.{number}{self._suffix}"
        if not path.exists():
            replace_file(path, self._blank.tobytes())
        with path.open("r+b", buffering=0) as file:
            write_at(file, slot * self._row_bytes, data)

    def _read(self, number: int) -> Array:
        raw = (self._folder / f"c.{number}{self._suffix}").read_bytes()
        return np.frombuffer(raw, self._dtype).reshape(self._blank.shape)

"""The arrays of a store as they lie in its files: quantised, and with depth before its scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stream4d.errors import StoreError
from stream4d.packets import Array
from stream4d.store.array_metadata import has_checksums
from stream4d.store.files import MapReader
from stream4d.store.integrity import OPTIONAL
from stream4d.store.metadata import ADVICE
from stream4d.store.schema import BY_NAME


class StoredArrays:
    """Reads rows and maps by name. Maps in a local folder are read from their shards, without zarr's detours.

    Args:
        path: what messages call the store.
        group: the store's root.
        attributes: of the root.
        folder: where it is local.
    """

    def __init__(
        self, path: str, group: zarr.Group, attributes: Mapping[str, Any], folder: Path | None
    ) -> None:
        self._path = path
        self._attributes = attributes
        self._arrays: Mapping[str, zarr.Array[Any]] = dict(group.arrays())
        self._local: dict[str, MapReader] = {}
        if folder is not None:
            for name, array in self._arrays.items():
                if name in BY_NAME and BY_NAME[name].is_map:
                    is_checked = has_checksums(array.metadata.to_dict())
                    self._local[name] = MapReader(folder / name, array.ndim, is_checked=is_checked)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all arrays, in order."""
        return tuple(sorted(self._arrays))

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one array.

        Raises:
            StoreError: this store does not hold it.
        """
        if name not in self._arrays:
            maps = self._attributes.get("config", {}).get("store", {}).get("maps", "?")
            raise StoreError(
                f"{self._path} holds no {name!r} (maps: {maps}); it holds {', '.join(self.names)}"
            )
        return self._arrays[name]

    def map(self, name: str, i: int) -> Array:
        """Return one frame of a map.

        Raises:
            StoreError: it is missing or damaged.
        """
        value = self.optional(name, i)
        if value is None:
            raise StoreError(f"{self._path} is damaged: {name} of frame {i} is missing: {ADVICE}")
        return value

    def optional(self, name: str, i: int) -> Array | None:
        """Return one frame of a map, or None where the frame (or the store) has none."""
        if name in OPTIONAL and name not in self._arrays:
            return None
        array = self.array(name)
        if name not in self._local:
            value = self.read(name, i)
            is_absent = np.isnan(value) if value.dtype.kind == "f" else value == array.fill_value
            return None if name in OPTIONAL and is_absent.all() else value
        with self._reporting(name):
            chunk = self._local[name](i)
            if chunk is None:
                return None
            return np.frombuffer(bytearray(chunk), array.dtype).reshape(array.shape[1:])

    def rows(self, name: str) -> Array:
        """Return a whole array."""
        return self.read(name, slice(None))

    def read(self, name: str, key: int | slice) -> Array:
        """Return one row, or some.

        Raises:
            StoreError: the file is damaged.
        """
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
            raise StoreError(
                f"{self._path} is damaged: cannot read {name} ({reason}): {ADVICE}"
            ) from None

    def revised(self, name: str) -> Array:
        """Return rows with a revision that was published but not yet worked in."""
        rows = self.rows(name)
        pending = self._attributes.get("pending_revision")
        if pending and name in pending:
            rows[np.array(pending["index"])] = np.array(pending[name])
        return rows

"""Notice what is missing. Zarr itself reads absent files as fill values, which would pass for data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stream4d.errors import StoreError
from stream4d.store import schema
from stream4d.store.files import EMPTY, read_index
from stream4d.store.metadata import ADVICE

OPTIONAL = frozenset({"flow", "flow_uncertainty", "semantics"})
"""Maps that a frame may lack, so that a whole shard of them may be absent."""


def check_intact(path: Path, root: Mapping[str, Any]) -> None:
    """Check that every file of the committed frames is there, and the newest shards whole.

    Raises:
        StoreError: names the first file that is missing or cut short.
    """
    arrays = root.get("consolidated_metadata", {}).get("metadata")
    if not isinstance(arrays, Mapping):
        raise StoreError(f"{path} is damaged: its zarr.json lists no arrays: {ADVICE}")
    frames = int(root["attributes"]["committed"])
    for name, document in arrays.items():
        spec = schema.BY_NAME.get(name)
        if spec is not None and frames:
            _check_array(path / name, spec, frames, len(document["shape"]))


def _check_array(folder: Path, spec: schema.ArraySpec, frames: int, dims: int) -> None:
    rows = schema.FRAMES_PER_SHARD if spec.is_map else schema.FRAMES_PER_CHUNK
    last = (frames - 1) // rows
    try:
        present = set(os.listdir(folder))
    except OSError:
        raise StoreError(f"store is damaged: {folder} is missing: {ADVICE}") from None
    names = [f"c.{number}{'.0' * (dims - 1)}" for number in range(last + 1)]
    if spec.name not in OPTIONAL:
        for name in names:
            if name not in present:
                raise StoreError(f"store is damaged: {folder / name} is missing: {ADVICE}")
    if spec.is_map and names[last] in present:
        _check_shard(folder / names[last], frames - last * rows)


def _check_shard(path: Path, frames: int) -> None:
    try:
        index = read_index(path)[:frames]
    except (OSError, ValueError) as error:
        raise StoreError(f"store is damaged: {error}: {ADVICE}") from None
    present = index[index[:, 0] != EMPTY]
    end = int((present[:, 0] + present[:, 1]).max()) if len(present) else 0
    if path.stat().st_size < end:
        raise StoreError(f"store is damaged: {path} is cut short: {ADVICE}")

"""The zarr v3 document of one array: how its chunks are laid out and packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stream4d.store import schema

_CHECKSUM = {"name": "crc32c"}


def array_metadata(
    spec: schema.ArraySpec,
    frames: int,
    height: int,
    width: int,
    *,
    dtype: str,
    level: int,
    is_checked: bool = True,
) -> dict[str, Any]:
    """Return the zarr v3 metadata document of one array; the chunks of a map that ``is_checked`` end in a checksum."""
    inner = spec.frame_shape(height, width)
    rows = schema.FRAMES_PER_SHARD if spec.is_map else schema.FRAMES_PER_CHUNK
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
        "codecs": _map_codecs(inner, dtype, level, is_checked)
        if spec.is_map
        else [_bytes_codec(dtype)],
        "attributes": attributes,
        "dimension_names": ["index", *spec.dims],
        "storage_transformers": [],
    }


def has_checksums(document: Mapping[str, Any]) -> bool:
    """Tell whether the chunks of a map end in a checksum; stores of early versions have none."""
    inner = document["codecs"][0]["configuration"]["codecs"]
    return any(codec["name"] == "crc32c" for codec in inner)


def _bytes_codec(dtype: str) -> dict[str, Any]:
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _map_codecs(
    inner: tuple[int, ...], dtype: str, level: int, is_checked: bool
) -> list[dict[str, Any]]:
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
        "codecs": [
            _bytes_codec(dtype),
            {"name": "blosc", "configuration": blosc},
            *([_CHECKSUM] if is_checked else []),
        ],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, _CHECKSUM],
        "index_location": "start",
    }
    return [{"name": "sharding_indexed", "configuration": sharding}]

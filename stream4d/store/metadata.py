"""The root document of a store: make it, read it, and refuse what cannot be read or resumed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from stream4d._version import __version__
from stream4d.errors import StoreCompleteError, StoreError
from stream4d.packets import VideoInfo
from stream4d.store import schema

_FREE_TO_CHANGE = frozenset(
    {"view", "threads", "store.compression", "store.state_every", "reader.queue", "model.device"}
)
"""Settings that do not change what is computed: a resume may use others."""

ADVICE = "copy it again from where it is whole, or delete it and reconstruct"
"""What to do about a damaged store."""


def store_attributes(
    info: VideoInfo, config: Mapping[str, Any], card: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the root attributes of a store that holds nothing yet."""
    return {
        "format": schema.FORMAT,
        "format_version": schema.FORMAT_VERSION,
        "stream4d_version": __version__,
        "committed": 0,
        "complete": False,
        "scale": "relative",
        "source": dataclasses.asdict(info),
        # Through JSON and back, so that a comparison with what was stored compares like with like.
        "config": json.loads(json.dumps(config)),
        "model_card": json.loads(json.dumps(card or {})),
        "conventions": schema.CONVENTIONS,
        "revisions": 0,
    }


def root_document(attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the root ``zarr.json``: attributes, and the metadata of all arrays."""
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": attributes,
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": arrays,
        },
    }


def read_root(path: Path) -> dict[str, Any]:
    """Read the root ``zarr.json`` of a local store.

    Raises:
        StoreError: nothing there, not a zarr group, or not readable.
    """
    if not path.exists():
        raise StoreError(f"no store at {path}")
    try:
        root = json.loads((path / "zarr.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path} is not a stream4d store: choose another path") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise StoreError(f"{path} is damaged: its zarr.json is not valid JSON: {ADVICE}") from None
    if not isinstance(root, dict):
        raise StoreError(f"{path} is damaged: its zarr.json holds no group: {ADVICE}")
    return root


def read_attributes(root: Mapping[str, Any], path: object) -> dict[str, Any]:
    """Return the root attributes, checked.

    Raises:
        StoreError: written by something else, by a newer stream4d, or incomplete.
    """
    attributes = root.get("attributes")
    if not isinstance(attributes, dict) or attributes.get("format") != schema.FORMAT:
        raise StoreError(f"{path} is zarr, but not a stream4d store: choose another path")
    version = attributes.get("format_version")
    if not isinstance(version, int) or version > schema.FORMAT_VERSION:
        raise StoreError(
            f"{path} has store format {version}, this stream4d reads up to {schema.FORMAT_VERSION}: "
            "upgrade with `pip install -U stream4d`"
        )
    missing = [name for name in ("committed", "complete", "source") if name not in attributes]
    if missing:
        raise StoreError(f"{path} is damaged: its attributes lack {', '.join(missing)}: {ADVICE}")
    return attributes


def check_resumable(path: Path, ours: Mapping[str, Any]) -> None:
    """Raise unless the run that left ``path`` unfinished had this source and these settings.

    Raises:
        StoreCompleteError: it had, and has finished.
        StoreError: names the first thing that differs.
    """
    theirs = read_attributes(read_root(path), path)
    for name, was, now in _differences(theirs, ours):
        raise StoreError(
            f"{path} was begun with {name} = {was!r}, now it is {now!r}: "
            "resume with the same source and settings, or give --overwrite"
        )
    if theirs["complete"]:
        raise StoreCompleteError(
            f"{path} is complete ({theirs['committed']} frames), there is nothing to resume: "
            "give --overwrite to compute it again"
        )


def finished_frames(
    path: Path, source: str, config: Mapping[str, Any], *, refined: bool = False
) -> int | None:
    """Return how many frames a store has that is complete, of a source of this name and these settings; else None.

    Args:
        path: of the store.
        source: as it was given to the run.
        config: settings, as dumped.
        refined: it must have been refined too.
    """
    try:
        attributes = read_attributes(read_root(path), path)
    except StoreError:
        return None
    was = PurePath(str(attributes["source"]["source"])).name, _flat(attributes.get("config", {}))
    now = PurePath(source).name, _flat(json.loads(json.dumps(config)))
    is_finished = attributes["complete"] and (not refined or "refined" in attributes)
    return int(attributes["committed"]) if is_finished and was == now else None


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    def source(attributes: Mapping[str, Any]) -> dict[str, Any]:
        known = attributes["source"]
        return {
            "source": PurePath(str(known["source"])).name,
            "width": known["width"],
            "height": known["height"],
        }

    was = source(theirs) | _flat(theirs.get("config", {})) | _model(theirs)
    now = source(ours) | _flat(ours["config"]) | _model(ours)
    return [(n, was.get(n), now.get(n)) for n in sorted(was | now) if was.get(n) != now.get(n)]


def _model(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": attributes.get("model_card", {}).get("name")}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in _FREE_TO_CHANGE:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat

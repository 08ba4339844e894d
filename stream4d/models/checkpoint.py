"""Read checkpoints without trusting them: a local file, or one of the Hugging Face hub.

Only tensors, plain containers and ``argparse.Namespace`` come out of a pickle; constructor strings in it are parsed as
data (`parse_constructor`), never evaluated.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stream4d.errors import WeightsError
from stream4d.models.hub import HUB_ID, download, first_line

_WRAPPERS = ("state_dict", "model", "module", "net", "weights")
_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds."""

    source: str
    """Path or hub id, for messages."""
    tensors: dict[str, Tensor]
    """Flat name → tensor, wrappers removed. Backed by the file where the format allows it."""
    args: dict[str, Any] = field(default_factory=dict)
    """What the file says of its own construction (pickle ``args`` or ``config.json``), unparsed."""


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Read a local file or a hub repository.

    Args:
        source: path of a ``.safetensors``, ``.pt``, ``.pth``, ``.ckpt`` or ``.bin`` file, or ``owner/name`` on the
            Hugging Face hub (``owner/name:file`` picks one file, ``datasets/owner/name:file`` one of a data set).

    Raises:
        WeightsError: not found, truncated, or holding anything but plain data.
        MissingDependencyError: a hub id is given and ``huggingface_hub`` is not installed.
    """
    path = Path(source)
    if path.is_file():
        return _read_file(path, str(source))
    if path.is_dir():
        raise WeightsError(f"{source} is a folder: give the checkpoint file in it")
    looks_like_file = path.suffix.lower() in _FILE_SUFFIXES and ":" not in str(source)
    if HUB_ID.match(str(source)) and not looks_like_file:
        return _read_file(download(str(source)), str(source))
    raise WeightsError(f"weights {str(source)!r}: no such file, and not a hub id (owner/name)")


def _read_file(path: Path, source: str) -> Checkpoint:
    if _is_safetensors(path):
        return Checkpoint(source=source, tensors=_read_safetensors(path), args=_read_config(path))
    return _read_pickle(path, source)


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors" or (path.suffix == "" and _starts_with_json(path))


def _starts_with_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error})") from error


def _read_config(path: Path) -> dict[str, Any]:
    config = path.with_name("config.json")
    if not config.is_file():
        return {}
    try:
        loaded = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(f"{config} is not readable JSON ({error})") from error
    return loaded if isinstance(loaded, dict) else {}


def _read_pickle(path: Path, source: str) -> Checkpoint:
    loaded = _load_restricted(path)
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    args = loaded.get("args", {})
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    tensors = _flatten(loaded)
    if not tensors:
        raise WeightsError(f"{path} holds no tensors: is it a checkpoint?")
    return Checkpoint(source=source, tensors=tensors, args=args if isinstance(args, dict) else {})


def _load_restricted(path: Path) -> Any:
    # mmap keeps the tensors in the file until they are used; only the zip format can do it.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # "unusual pickle protocol": read or refused below
        try:
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
            if found is None:
                raise WeightsError(f"{path} is not a readable checkpoint: truncated?") from error
            raise WeightsError(
                f"{path} is refused: loading it would run {found[1]!r}, and a checkpoint must be plain data"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
            raise WeightsError(f"{path} is not a whole checkpoint ({first_line(error)})") from error


def _flatten(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the tensors: the dictionary itself, a wrapped one, or several side by side (MUSt3R)."""
    own = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    groups = {str(k): v for k, v in loaded.items() if isinstance(v, Mapping)}
    if own and not any(name in groups for name in _WRAPPERS):
        return own
    for name in _WRAPPERS:
        if name in groups:
            return _flatten(groups[name])
    parts = {name: _tensors(group) for name, group in groups.items()}
    return {f"{name}.{key}": t for name, part in parts.items() for key, t in part.items()}


def _tensors(group: Mapping[str, Any]) -> dict[str, Tensor]:
    return {str(k): v for k, v in group.items() if isinstance(v, Tensor)}


def parse_constructor(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``"Name(a=1, b=('exp', -inf, inf))"`` as a name and its keyword arguments, as data.

    Nested calls become ``(name, arguments)`` pairs. Nothing is evaluated.

    Raises:
        WeightsError: the text is anything but one call with literal keyword arguments.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        value = _literal(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise WeightsError(f"cannot read checkpoint argument {text[:80]!r} as data") from error
    if not isinstance(tree, ast.Call):
        raise WeightsError(f"checkpoint argument {text[:80]!r} is not of the form Name(key=value)")
    name, arguments = value
    return name, arguments


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            return name, {k.arg: _literal(k.value) for k in keywords if k.arg is not None}
        case ast.Name(id="inf"):
            return math.inf
        case ast.Name(id="nan"):
            return math.nan
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_literal(operand)
        case ast.Tuple(elts=items):
            return tuple(_literal(item) for item in items)
        case ast.List(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {
                _literal(k): _literal(v) for k, v in zip(keys, values, strict=True) if k is not None
            }
        case ast.Constant(value=value):
            return value
    raise ValueError(f"not a literal: {ast.dump(node)[:80]}")

"""Read checkpoints without trusting them, and fit them to a network strictly.

A checkpoint is a local file or a Hugging Face hub id. Only tensors, plain containers and ``argparse.Namespace``
come out of a pickle; constructor strings in it are parsed as data (`parse_constructor`), never evaluated.

::

    source ── read_checkpoint ──▶ Checkpoint(tensors, args) ── KeyMap ──▶ fit(net on "meta", assign=True)
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import math
import pickle
import re
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stream4d.errors import MissingDependencyError, WeightsError

HUB_FILES = ("model.safetensors", "model.pt", "pytorch_model.bin")
"""What is looked for in a hub repository, in this order, unless the id names a file."""

_WRAPPERS = ("state_dict", "model", "module", "net", "weights")
_HUB_ID = re.compile(r"^(datasets/)?[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w./-]+)?$")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMap:
    """How the names in public files become the names in our network."""

    prefixes: tuple[str, ...] = ()
    """Removed from the front of every name that has it (``model.``, ``module.``)."""
    renames: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement), each applied once to every name, in order."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of (renamed) entries that the network does not need: unused or training-only."""

    def rename(self, name: str) -> str:
        """Translate one name."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def apply(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate all names and leave out what is ignored.

        Files may hold one tensor under several names (aliases of one module); they collapse into one.

        Raises:
            WeightsError: two different tensors end up with the same name.
        """
        out: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            new = self.rename(name)
            if any(re.match(pattern, new) for pattern in self.ignored):
                continue
            if new in out and not _same(out[new], tensor):
                raise WeightsError(
                    f"checkpoint entry {name!r} contradicts another copy of {new!r}: is the file damaged?"
                )
            out.setdefault(new, tensor)
        return out


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.is_meta or b.is_meta:
        return a.shape == b.shape
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)


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
    if _HUB_ID.match(str(source)) and not looks_like_file:
        return _read_file(_download(str(source)), str(source))
    raise WeightsError(f"weights {str(source)!r}: no such file, and not a hub id (owner/name)")


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    except ImportError:
        raise MissingDependencyError(
            "huggingface_hub", needed_for=f"downloading {hub_id!r}", extra="hub"
        ) from None
    repo, _, wanted = hub_id.partition(":")
    kind = "dataset" if repo.startswith("datasets/") else "model"
    names = (wanted,) if wanted else HUB_FILES
    # Asked once, because the hub's own client tries for most of a minute for each name.
    unreachable = _why_hub_is_unreachable()

    def fetch(name: str) -> Path:
        return Path(
            hf_hub_download(
                repo.removeprefix("datasets/"),
                name,
                repo_type=kind,
                local_files_only=unreachable is not None,
            )
        )

    for name in names:
        try:
            path = fetch(name)
            if path.suffix == ".safetensors":
                # Sizes and resolution stand beside the tensors; few repositories have none.
                with contextlib.suppress(EntryNotFoundError):
                    fetch("config.json")
            return path
        except EntryNotFoundError:  # also what is not in the cache while the hub is out of reach
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise WeightsError(
                f"cannot download {hub_id!r}: {_first_line(error)}. "
                "Download it yourself and pass the file's path"
            ) from error
    if unreachable is not None:
        raise WeightsError(
            f"cannot reach the Hugging Face hub for {hub_id!r} ({unreachable}): "
            "check the network, or pass a local file with --weights"
        )
    raise WeightsError(f"{hub_id!r} on the hub holds none of {', '.join(names)}")


def _why_hub_is_unreachable() -> str | None:
    """Return why no connection to the hub comes about, or None if one does (or a proxy may know a way)."""
    from huggingface_hub import constants

    hub = urllib.parse.urlsplit(constants.ENDPOINT)
    if hub.hostname is None or urllib.request.getproxies():
        return None
    try:
        port = hub.port or (443 if hub.scheme == "https" else 80)
        socket.create_connection((hub.hostname, port), timeout=10).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)


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
            raise WeightsError(
                f"{path} is not a whole checkpoint ({_first_line(error)})"
            ) from error


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


def fit(net: nn.Module, checkpoint: Checkpoint, key_map: KeyMap, *, family: str) -> None:
    """Put the checkpoint's tensors into a network built on the ``meta`` device.

    The tensors are assigned, not copied: peak memory is one copy of the weights. Names and shapes must fit
    exactly, after the key map.

    Raises:
        WeightsError: naming the first missing, unexpected and misshapen entries.
    """
    found = key_map.apply(checkpoint.tensors)
    wanted = {name: tensor.shape for name, tensor in net.state_dict().items()}
    report = _mismatch(wanted, {name: tensor.shape for name, tensor in found.items()})
    if report:
        raise WeightsError(f"{checkpoint.source} is not a {family} checkpoint: {report}")
    net.load_state_dict(found, strict=True, assign=True)
    net.requires_grad_(False)


def _mismatch(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    misshapen = sorted(k for k in wanted.keys() & found.keys() if wanted[k] != found[k])
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_first(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_first(unexpected)})")
    if misshapen:
        name = misshapen[0]
        shapes = f"{name}: {tuple(found[name])} in the file, {tuple(wanted[name])} in the network"
        parts.append(f"{len(misshapen)} misshapen ({shapes})")
    return "; ".join(parts)


def _first(names: Iterable[str], count: int = 2) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def randomise(net: nn.Module, seed: int = 0) -> None:
    """Give a network built on ``meta`` quick random weights, to measure speed and memory without a checkpoint.

    Matrices are normal with variance 1 / fan-in, biases zero, gains one: activations keep a sensible size.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        elif tensor.ndim >= 2:
            fan_in = max(1, tensor[0].numel())
            state[name] = torch.empty(tensor.shape).normal_(0, fan_in**-0.5, generator=generator)
        else:
            is_gain = name.endswith(("weight", "gamma", "running_var"))
            state[name] = torch.full(tensor.shape, 1.0 if is_gain else 0.0)
    net.load_state_dict(state, strict=True, assign=True)
    net.requires_grad_(False)

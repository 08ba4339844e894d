"""Fit checkpoints to a network strictly.

::

    source ── read_checkpoint ──▶ Checkpoint(tensors, args) ── KeyMap ──▶ fit(net on "meta", assign=True)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stream4d.errors import WeightsError
from stream4d.models.checkpoint import Checkpoint


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

"""Flatten the chain's dataclasses into arrays and back, so that a run can be stopped and resumed exactly."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np

from stream4d.packets import Array, State

T = TypeVar("T")


def pack(prefix: str, value: Any) -> State:
    """Return ``prefix.field → array`` for a dataclass of arrays, tuples of arrays, numbers and Nones."""
    out: State = {}
    for f in dataclasses.fields(value):
        out |= _pack_one(f"{prefix}.{f.name}", getattr(value, f.name))
    return out


def _pack_one(name: str, value: Any) -> State:
    if value is None:
        return {}
    if isinstance(value, tuple):
        return {f"{name}.{i}": np.asarray(item) for i, item in enumerate(value)}
    return {name: np.array(value)}  # copies: the chain goes on changing its arrays


def unpack(prefix: str, state: State, target: T) -> T:
    """Set the fields of ``target`` from ``pack``'s arrays; fields without one become None."""
    for f in dataclasses.fields(target):  # type: ignore[arg-type]
        name = f"{prefix}.{f.name}"
        if f"{name}.0" in state:
            items = [
                state[f"{name}.{i}"] for i in range(sum(k.startswith(f"{name}.") for k in state))
            ]
            setattr(target, f.name, tuple(np.array(item) for item in items))
        elif name in state:
            setattr(target, f.name, _plain(state[name], getattr(target, f.name, None)))
        else:
            setattr(target, f.name, None)
    return target


def _plain(array: Array, like: Any) -> Any:
    if isinstance(like, bool):
        return bool(array)
    if isinstance(like, int):
        return int(array)
    if isinstance(like, float):
        return float(array)
    return np.array(array)


def nested(prefix: str, state: State) -> State:
    """Put ``prefix.`` before all names."""
    return {f"{prefix}.{name}": array for name, array in state.items()}


def part(prefix: str, state: State) -> State:
    """Return the arrays whose names begin with ``prefix.``, without it."""
    return {
        name.removeprefix(f"{prefix}."): array
        for name, array in state.items()
        if name.startswith(f"{prefix}.")
    }

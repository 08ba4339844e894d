"""Golden files of the public models: read them, and compare every tensor in them.

The full set lies beside the checkout on the maintainers' machines; a reduced one (weights and final outputs) is in
``tests/data/golden``. Both have the same layout, so that a test does not care which one it reads: it must reproduce
all outputs that the file holds. Each file has one test that calls `Golden.check`, which fails where a tensor is neither
given to our code nor compared with what it makes; the same holds for the rows of tables (`Golden.check_rows`).
``test_golden.py`` asserts that no file is without such a test.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stream4d.models.checkpoint import Checkpoint
from stream4d.models.weights import KeyMap, fit

ROOT = Path(__file__).resolve().parents[1]
FULL = ROOT.parent / "shared" / "golden"
REDUCED = ROOT / "tests" / "data" / "golden"


def folder(kind: str) -> Path:
    """Return the folder of ``tiny``, ``post`` or ``manifests``: the full set where there is one.

    ``STREAM4D_GOLDEN=reduced`` in the environment takes the reduced set, as a user's clone does.
    """
    full = FULL.is_dir() and os.environ.get("STREAM4D_GOLDEN") != "reduced"
    return (FULL if full else REDUCED) / kind


def find(kind: str, name: str) -> Path:
    """Return the sidecar or manifest of a golden file; skips where only the full set has it."""
    path = folder(kind) / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"golden {kind}/{name} is in the full set only")
    return path


class Tensors(Mapping[str, Tensor]):
    """Named tensors that remember which of them were read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.read: set[str] = set()
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Golden:
    """One golden file: ``weights``, ``inputs``, ``outputs`` (or just ``tensors``) and the sidecar ``info``."""

    def __init__(self, kind: str, name: str) -> None:
        path = find(kind, name)
        self.kind = kind
        self.name = name
        self.info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        path = path.with_suffix(".safetensors")
        self.tensors = Tensors(load_file(path) if path.is_file() else {})
        self.weights = self._part("weight.")
        if "weights_from" in self.info:
            without = tuple(self.info["weights_without"])
            other = Golden(kind, self.info["weights_from"]).weights
            other = {k: v for k, v in other.items() if not k.startswith(without or "-")}
            self.weights = other | self.weights
        self.inputs = Tensors(self._part("input."))
        self.outputs = self._part("output.")

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def checkpoint(self) -> Checkpoint:
        """Return the weights as a checkpoint."""
        return Checkpoint(source=f"golden {self.name}", tensors=self.weights)

    def load(self, net: Callable[[], nn.Module], key_map: KeyMap) -> nn.Module:
        """Build a network on ``meta`` and give it the golden weights."""
        with torch.device("meta"):
            built = net()
        fit(built, self.checkpoint(), key_map, family=self.name)
        return built.eval()

    def check(
        self,
        got: Mapping[str, Tensor | np.ndarray | float],
        *,
        given: str | None = None,
        rtol: float | None = None,
        loose: Mapping[str, float] | None = None,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        """Compare every tensor of the file that is not an input, and print the largest error.

        Args:
            got: what our code makes, named as in the file.
            given: pattern (full match) of the inputs of a file that does not mark them itself.
            rtol: tolerance relative to each tensor's largest magnitude; by default the sidecar's, or 1e-5.
            loose: pattern → tolerance of tensors that cannot be equal to rounding (the test says why).
            left_out: name → why nothing of ours is compared with that tensor, or made from that input.
        """
        left_out = left_out or {}
        suggested = self.info.get("tolerance", {}).get("suggested", {})
        rtol = rtol or suggested.get("rtol_of_tensor_max", 1e-5)
        ill = self.info.get("ill_conditioned_outputs", [])
        limits = dict.fromkeys(ill, 100 * rtol) | dict(loose or {})
        wanted, inputs = self._wanted_and_given(given)
        wanted = {k: v for k, v in wanted.items() if k not in left_out}
        missing, unread = (
            sorted(wanted.keys() - got.keys()),
            sorted(inputs.keys() - inputs.read - left_out.keys()),
        )
        assert wanted, f"golden {self.name} holds no outputs"
        assert not missing, f"golden {self.name}: not computed: {missing}"
        assert not unread, f"golden {self.name}: inputs that no computation read: {unread}"
        errors: dict[str, tuple[float, float]] = {}
        for key, value in wanted.items():
            made = torch.as_tensor(got[key])
            assert made.shape == value.shape, (key, made.shape, value.shape)
            error = relative_error(made, value)
            limit = next((v for k, v in limits.items() if re.search(k, key)), rtol)
            assert error <= limit, f"{self.name} {key}: relative error {error:.2e} > {limit:.0e}"
            errors[key] = error, limit
        _print_worst(self, errors, len(inputs), left_out)

    def _wanted_and_given(self, given: str | None) -> tuple[dict[str, Tensor], Tensors]:
        if self.outputs:
            return self.outputs, self.inputs
        is_given = {k: bool(given and re.fullmatch(given, k)) for k in self.tensors}
        read = self.tensors.read.copy()
        inputs = Tensors({k: v for k, v in self.tensors.items() if is_given[k]})
        inputs.read = read & set(inputs)
        return {k: v for k, v in self.tensors.items() if not is_given[k]}, inputs

    def check_rows(
        self,
        table: str,
        compute: Callable[..., tuple[object, object]],
        *,
        left_out: Callable[..., bool] | None = None,
    ) -> None:
        """Compare every row of a table in the sidecar.

        Args:
            compute: row → (what our code says, what the row says).
            left_out: row → True where our code differs on purpose (the test says why).
        """
        rows: Sequence[Any] = self.info[table]
        rows = list(rows.items()) if isinstance(rows, Mapping) else rows
        compared = [row for row in rows if left_out is None or not left_out(*row)]
        for row in compared:
            got, wanted = compute(**row) if isinstance(row, Mapping) else compute(*row)
            assert got == wanted, (self.name, row)
        print(f"golden {self.kind}/{self.name} {table}: {len(compared)} of {len(rows)} rows equal")


def _print_worst(
    golden: Golden,
    errors: Mapping[str, tuple[float, float]],
    given: int,
    left_out: Mapping[str, str],
) -> None:
    """Print how many tensors were compared, and for each tolerance the largest error and its place."""
    parts = []
    for limit in sorted({limit for _, limit in errors.values()}):
        of_limit = {k: error for k, (error, own) in errors.items() if own == limit}
        worst = max(of_limit, key=lambda k: of_limit[k])
        parts.append(f"{len(of_limit)} within {limit:.0e} (worst {of_limit[worst]:.1e}, {worst})")
    parts += [f"left out {name}: {why}" for name, why in left_out.items()]
    compared = f"{len(errors)} of {len(errors) + len(left_out)} tensors compared, {given} given"
    print(f"golden {golden.kind}/{golden.name}: {compared}; {'; '.join(parts)}")


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest magnitude of ``wanted``; of masks, the share that differs."""
    if wanted.numel() == 0:
        return 0.0
    if wanted.dtype == torch.bool:
        return (got != wanted).float().mean().item()
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(got.to(wanted.dtype), wanted) else float("inf")
    top = wanted.double().abs().max().item()
    return (got.double() - wanted.double()).abs().max().item() / max(top, 1e-30)


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a public checkpoint."""
    text = find("manifests", name).read_text(encoding="utf-8")
    return {k: tuple(v) for k, v in json.loads(text).items()}


def check_manifest(name: str, net: Callable[[], nn.Module], key_map: KeyMap) -> nn.Module:
    """Load a checkpoint of the manifest's names and shapes (no data) strictly into a full-size network."""
    tensors = {k: torch.empty(v, device="meta") for k, v in manifest(name).items()}
    with torch.device("meta"):
        built = net()
    fit(built, Checkpoint(source=name, tensors=tensors), key_map, family=name)
    return built


class Recorder:
    """Keeps the outputs of named modules while a network runs: ``rec["a.b"]`` is a list, one entry a call."""

    def __init__(self, net: nn.Module, *names: str) -> None:
        self.calls: dict[str, list[Any]] = {name: [] for name in names}
        self._hooks = [
            net.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, name=name: self.calls[name].append(out)
            )
            for name in names
        ]

    def __getitem__(self, name: str) -> list[Any]:
        return self.calls[name]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

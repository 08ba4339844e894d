"""Golden files of the public models: read them, and compare every tensor in them.

The full set lies beside the checkout on the maintainers' machines; a reduced one (weights and final outputs) is in
``tests/data/golden``. Both have the same layout, so that a test does not care which one it reads: it must reproduce
all outputs that the file holds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stream4d.models.weights import Checkpoint, KeyMap, fit

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


class Golden:
    """One golden file: ``weights``, ``inputs``, ``outputs`` and the sidecar."""

    def __init__(self, kind: str, name: str) -> None:
        path = find(kind, name)
        self.name = name
        self.info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        path = path.with_suffix(".safetensors")
        self.tensors: dict[str, Tensor] = load_file(path) if path.is_file() else {}
        self.weights = self._part("weight.")
        if "weights_from" in self.info:
            without = tuple(self.info["weights_without"])
            other = Golden(kind, self.info["weights_from"]).weights
            other = {k: v for k, v in other.items() if not k.startswith(without or "-")}
            self.weights = other | self.weights
        self.inputs = self._part("input.")
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

    def check(self, got: Mapping[str, Tensor], *, skip: str | None = None) -> float:
        """Compare every output of the file; return the largest error relative to its tensor's maximum."""
        rtol = self.info["tolerance"]["suggested"]["rtol_of_tensor_max"]
        loose = self.info.get("ill_conditioned_outputs", [])
        wanted = {k: v for k, v in self.outputs.items() if skip is None or not re.search(skip, k)}
        assert wanted, f"golden {self.name} holds no outputs"
        missing = sorted(wanted.keys() - got.keys())
        assert not missing, f"golden {self.name}: not computed: {missing}"
        worst, at = 0.0, ""
        for key, value in wanted.items():
            assert got[key].shape == value.shape, (key, got[key].shape, value.shape)
            error = relative_error(got[key], value)
            if any(re.search(pattern, key) for pattern in loose):
                assert error < 100 * rtol, f"{self.name} {key}: {error:.2e} (ill-conditioned)"
                continue
            assert error <= rtol, f"{self.name} {key}: relative error {error:.2e} > {rtol:.0e}"
            if error > worst:
                worst, at = error, key
        print(f"golden {self.name}: {len(wanted)} tensors, worst {worst:.1e} of {rtol:.0e} at {at}")
        return worst


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, relative to the largest magnitude of ``wanted``."""
    if wanted.numel() == 0:
        return 0.0
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

"""What a run leaves: weights that load, ship, average and begin another run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stream4d.errors import TrainingError
from stream4d.models.registry import create_model
from stream4d.models.temporal_weights import FORMAT
from stream4d.train.loop import Trainer
from stream4d.train.ship import averaged, ship
from tests.tiny_runs import TINY, tiny


def test_shipped_format_loads_as_a_model(tmp_path: Path) -> None:
    trainer = Trainer(tiny(steps=2), tmp_path)
    trainer.run()
    model = create_model("temporal", weights=tmp_path / "ema.safetensors")
    assert model.net.config == TINY.net  # type: ignore[attr-defined]


def test_shipping_halves_the_file_and_forgets_the_machine(tmp_path: Path) -> None:
    trainer = Trainer(tiny(steps=1), tmp_path / "run")
    trainer.run()
    source = tmp_path / "run" / "ema.safetensors"
    shipped = ship(source, tmp_path / "weights" / "temporal.safetensors")
    assert shipped.stat().st_size < 0.6 * source.stat().st_size
    with safe_open(shipped, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["licence"] == "Apache-2.0"
    assert not {"photos", "start_from", "xfeat"} & json.loads(metadata["recipe"]).keys()
    create_model("temporal", weights=shipped)
    with pytest.raises(TrainingError, match="cannot read"):
        ship(tmp_path / "none.safetensors", tmp_path / "a.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(TrainingError, match="not a run's"):
        ship(tmp_path / "b.safetensors", tmp_path / "a.safetensors")


def test_shipping_averages_runs_of_one_network(tmp_path: Path) -> None:
    values = torch.arange(4.0)
    for name, tensor in (("a", values), ("b", 3 * values), ("c", values[:2])):
        save_file({"x": tensor}, tmp_path / f"{name}.safetensors", {"format": FORMAT})
    tensors, _ = averaged(tmp_path / "a.safetensors", [tmp_path / "b.safetensors"])
    assert torch.equal(tensors["x"], 2 * values)
    with pytest.raises(TrainingError, match="another network"):
        averaged(tmp_path / "a.safetensors", [tmp_path / "c.safetensors"])


def test_a_run_starts_from_another(tmp_path: Path) -> None:
    first = Trainer(tiny(steps=2), tmp_path / "a")
    first.run()
    for name in ("last.pt", "ema.safetensors"):
        second = Trainer(tiny(start_from=str(tmp_path / "a" / name)), tmp_path / name)
        for key, value in first.ema.items():
            assert torch.equal(second.net.state_dict()[key], value), key

"""Recipes: what is wrong in one is named, and the shipped ones load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stream4d.errors import TrainingError
from stream4d.train.batches import Batches
from stream4d.train.criterion import LossWeights
from stream4d.train.loop import Trainer
from stream4d.train.recipe import Stage, dump_recipe, load_recipe, recipe_from
from tests.tiny_runs import TINY, tiny

RECIPES = Path(__file__).resolve().parents[1] / "configs" / "train"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, "Did you mean 'steps'"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"learning_rate": "fast"}, "learning_rate must be a number"),
        ({"layered": 2}, "layered must be a number between 0 and 1"),
        ({"stages": [{"height": 100}]}, "multiples of 32"),
        ({"stages": [{"until": 0.5}]}, "rising shares up to 1"),
        ({"stages": {"until": 1}}, "must be a list"),
        ({"stages": [{"wide": 64}]}, "Did you mean 'width'"),
        ({"net": {"tokens": 30}}, "multiple of"),
        ({"loss": {"flow": -1}}, "weight of loss 'flow'"),
        ({"loss": {"flwo": 1}}, "Did you mean 'flow'"),
        ({"scenes": {"fov_deg": [90, 30]}}, "fov_deg must be a range"),
        ({"layers": {"still": 3}}, "still must lie in"),
    ],
)
def test_bad_recipes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        recipe_from(values)


def test_bad_recipe_files(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot read recipe"):
        load_recipe(tmp_path / "none.yaml")
    file = tmp_path / "recipe.yaml"
    file.write_text("steps: [")
    with pytest.raises(TrainingError, match="cannot read recipe"):
        load_recipe(file)
    file.write_text("- 3")
    with pytest.raises(TrainingError, match="keys and values"):
        load_recipe(file)


def test_missing_inputs(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no photo found"):
        Batches(tiny(photos=str(tmp_path)))
    with pytest.raises(TrainingError, match="name:path"):
        Batches(tiny(real=("sintel",)))
    with pytest.raises(TrainingError, match="cannot read initial weights"):
        Trainer(tiny(start_from=str(tmp_path / "none.pt")), tmp_path / "run")


def test_recipes_round_trip_and_the_shipped_ones_load() -> None:
    recipe = tiny(loss=LossWeights(flow=2.0))
    assert recipe_from(dump_recipe(recipe)) == recipe
    shipped = sorted(RECIPES.glob("*.yaml"))
    assert shipped
    for path in shipped:
        load_recipe(path)


def test_stages_follow_one_another() -> None:
    recipe = tiny(steps=10, stages=(Stage(until=0.5), Stage(until=1.0, height=192, width=256)))
    assert [recipe.stage(i).width for i in (0, 4, 5, 9)] == [160, 160, 256, 256]


def test_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    trainer = Trainer(tiny(steps=100, warmup=10), tmp_path)
    rates = [trainer.learning_rate(i) for i in range(100)]
    assert rates[0] < rates[5] < rates[9]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.01 * TINY.learning_rate)

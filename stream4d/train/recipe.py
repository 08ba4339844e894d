"""A training recipe: everything that determines a run, read from YAML, checked before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream4d.config import merge
from stream4d.errors import ConfigError, ModelError, TrainingError
from stream4d.models.temporal_net import STRIDE, NetConfig
from stream4d.train.criterion import LossWeights
from stream4d.train.layers import LayerOptions
from stream4d.train.options import SceneOptions


def _number(name: str, value: Any, low: float, high: float, *, integer: bool = False) -> None:
    kinds = (int,) if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if integer else "a number"
        raise TrainingError(f"{name} must be {kind} between {low:g} and {high:g}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of the curriculum."""

    until: float = 1.0
    """The stage ends at this share of all steps."""
    height: int = 128
    """Rows of a frame, a multiple of 32."""
    width: int = 160
    """Columns of a frame, a multiple of 32."""
    frames: int = 2
    """Frames per rendered clip (layered clips have two)."""
    batch: int = 4
    """Clips per step and process."""

    def __post_init__(self) -> None:
        _number("until", self.until, 0, 1)
        for name, low in (("height", STRIDE), ("width", STRIDE), ("frames", 2), ("batch", 1)):
            _number(name, getattr(self, name), low, 100_000, integer=True)
        if self.height % STRIDE or self.width % STRIDE:
            raise TrainingError(
                f"height and width must be multiples of {STRIDE}, got {self.height} and {self.width}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All settings of a run."""

    steps: int = 1000
    """Optimiser steps of the whole run; the learning rate's cosine ends there."""
    seed: int = 0
    """Seed of data and initial weights: the same recipe gives the same run."""
    learning_rate: float = 4e-4
    warmup: int = 200
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 1e-4
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Decay of the averaged weights, which are validated and shipped."""
    amp: bool = True
    """Run the network under bfloat16 autocast."""
    threads: int = 0
    """CPU threads of each process (0: torch's choice)."""
    workers: int = 0
    """Threads that prepare batches ahead (0: prepare in line)."""
    save_minutes: float = 4.0
    """Minutes between checkpoints."""
    log_every: int = 50
    validate_every: int = 500
    """Steps between validations on the fixed synthetic set."""
    validation_clips: int = 8
    start_from: str | None = None
    """Checkpoint or safetensors file whose weights the run starts with."""
    xfeat: str | None = None
    """XFeat checkpoint (Apache-2.0) for the encoder's grey branch, where ``start_from`` is not given."""
    photos: str | None = None
    """Folder of photos for textures; without it textures are procedural."""
    layered: float = 0.5
    """Share of steps on layered 2D clips; the rest is rendered in 3D."""
    real: tuple[str, ...] = ()
    """Real data as ``name:path`` of ``train.datasets``; each is drawn as often as rendered clips."""
    stages: tuple[Stage, ...] = (Stage(),)
    net: NetConfig = field(default_factory=NetConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    scenes: SceneOptions = field(default_factory=SceneOptions)
    layers: LayerOptions = field(default_factory=LayerOptions)

    def __post_init__(self) -> None:
        _number("steps", self.steps, 1, 10**9, integer=True)
        for name, low, high in (
            ("learning_rate", 1e-9, 1.0),
            ("weight_decay", 0, 1),
            ("clip", 1e-6, 1e6),
            ("ema", 0, 0.99999),
            ("layered", 0, 1),
            ("save_minutes", 0, 1e6),
        ):
            _number(name, getattr(self, name), low, high)
        for name in ("warmup", "seed", "threads", "workers", "validation_clips"):
            _number(name, getattr(self, name), 0, 10**9, integer=True)
        for name in ("log_every", "validate_every"):
            _number(name, getattr(self, name), 1, 10**9, integer=True)
        ends = [stage.until for stage in self.stages]
        if not ends or ends != sorted(ends) or ends[-1] != 1.0:
            raise TrainingError(f"stages must end at rising shares up to 1.0, got {ends}")

    def stage(self, step: int) -> Stage:
        """Say which stage a step belongs to."""
        return next(s for s in self.stages if step < s.until * self.steps or s is self.stages[-1])


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        TrainingError: no such file, not YAML, an unknown key (names the nearest) or a value that makes no sense.
    """
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"cannot read recipe {path}: {reason}") from None
    if not isinstance(values, Mapping):
        raise TrainingError(f"recipe {path} must hold keys and values, got {type(values).__name__}")
    return recipe_from(values, where=path.name)


def recipe_from(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Build a recipe from plain data, as ``dump`` gave it or YAML holds it."""
    values = dict(values)
    stages = values.pop("stages", None)
    if "real" in values:
        values["real"] = tuple(values["real"] or ())
    for name in ("scenes", "layers"):
        group = values.get(name)
        if isinstance(group, Mapping):
            values[name] = {k: tuple(v) if isinstance(v, list) else v for k, v in group.items()}
    try:
        if stages is not None:
            if not isinstance(stages, list) or not all(isinstance(s, Mapping) for s in stages):
                raise TrainingError(f"stages in {where} must be a list of groups, got {stages!r}")
            values["stages"] = tuple(
                merge(Stage(), s, where=f"{where}.stages[{i}]") for i, s in enumerate(stages)
            )
        return merge(Recipe(), values, where=where)
    except (ConfigError, ModelError, TypeError) as error:
        raise TrainingError(str(error)) from None


def dump_recipe(recipe: Recipe) -> dict[str, Any]:
    """Turn a recipe into plain data that ``recipe_from`` reads."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(recipe))
    return plain


def _plain(value: Any) -> Any:
    """Turn tuples into lists, so that YAML stays plain."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value

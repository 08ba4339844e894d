"""The recipe of a training run that takes a second."""

from __future__ import annotations

import dataclasses
from typing import Any

from stream4d.models.temporal_net import NetConfig
from stream4d.train.options import SceneOptions
from stream4d.train.recipe import Recipe, Stage

TINY = Recipe(
    steps=9,
    warmup=4,
    learning_rate=1e-3,
    log_every=4,
    validate_every=1000,
    validation_clips=1,
    layered=1.0,
    amp=False,
    net=NetConfig(quarter=16, tokens=32, depth=1, heads=2, queries=4, memory_frames=1, hidden=16),
    stages=(Stage(height=64, width=64, batch=2),),
    scenes=SceneOptions(atlases=1, tiles=8),
)


def tiny(**changes: Any) -> Recipe:
    return dataclasses.replace(TINY, **changes)

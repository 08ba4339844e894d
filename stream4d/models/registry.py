"""Names of models, and how to make one. A family is imported only when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

from stream4d.errors import ModelError
from stream4d.models.base import ModelCard, PointmapModel

MODELS = {
    "classical": "stream4d.models.classical:ClassicalModel",
    "temporal": "stream4d.models.temporal:TemporalModel",
    "dust3r": "stream4d.models.dust3r:Dust3rModel",
    "vggt": "stream4d.models.vggt:VggtModel",
    "monst3r": "stream4d.models.monst3r:Monst3rModel",
    "must3r": "stream4d.models.must3r:Must3rModel",
    "streamvggt": "stream4d.models.streamvggt:StreamVggtModel",
    "da3-small": "stream4d.models.da3:Da3Model",
    "da3-base": "stream4d.models.da3:Da3Model",
    "da3-large": "stream4d.models.da3:Da3Model",
    "da3-giant": "stream4d.models.da3:Da3Model",
    "da3-nested": "stream4d.models.da3:Da3Model",
    "mapanything": "stream4d.models.mapanything:MapAnythingModel",
    "mapanything-apache": "stream4d.models.mapanything:MapAnythingModel",
    "siu3r": "stream4d.models.siu3r:Siu3rModel",
}
"""Name → "module:Class". The class has ``cards: dict[str, ModelCard]`` (one for each of its names, plain data)
and ``create(name, *, weights, device, **options)``."""


def list_models() -> list[str]:
    """List the names that ``create_model`` knows, in the order of the registry."""
    return list(MODELS)


def _resolve(name: str) -> Any:
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ModelError(f"unknown model {name!r}.{hint} Known: {', '.join(MODELS)}")
    module, _, attribute = MODELS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def model_card(name: str) -> ModelCard:
    """Return the card of a model without building it.

    Raises:
        ModelError: the name is not in the registry; the message gives the nearest one.
    """
    card: ModelCard = _resolve(name).cards[name]
    return card


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
    **options: Any,
) -> PointmapModel:
    """Build a model by name.

    Args:
        name: registry name, see ``list_models``.
        weights: checkpoint file or Hugging Face hub id; None takes what the package ships.
        device: torch device string.
        options: fields of the family's own config.

    Raises:
        ModelError: unknown name, or the model cannot run as asked.
        WeightsError: the checkpoint is missing, unsafe or does not fit.
    """
    model: PointmapModel = _resolve(name).create(name, weights=weights, device=device, **options)
    return model

"""``stream4d models``: what can be run, under which licence, at which size."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import textwrap
from collections.abc import Sequence

from stream4d import logs
from stream4d.models.base import ModelCard

EXAMPLES = """\
examples:
  stream4d models                    all models with licence, resolution and size
  stream4d models vggt               one model: paper, weights, options
  stream4d models --json             the same as data
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``stream4d models``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="one model, in full")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """List the models, or describe one.

    Raises:
        ModelError: ``args.name`` is not in the registry.
    """
    from stream4d.models.registry import list_models, model_card

    cards = [model_card(name) for name in ([args.name] if args.name else list_models())]
    if args.json:
        logs.show(json.dumps([dataclasses.asdict(card) for card in cards], indent=2))
    elif args.name:
        _show_one(cards[0])
    else:
        _show_table(cards)
    return 0


def _show_table(cards: Sequence[ModelCard]) -> None:
    header = ("MODEL", "SIZE", "STREAMS", "METRIC", "WEIGHTS' LICENCE", "HUB", "RESOLUTION")
    rows = [
        (
            card.name,
            _size(card.parameters_m),
            f"{card.streaming} {card.window}/{card.overlap}",
            "yes" if card.is_metric else "no",
            _short_licence(card),
            card.hub_id or "-",
            card.resolution,
        )
        for card in cards
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        logs.show("  ".join(cells).rstrip())
    logs.show()
    logs.show("STREAMS: how, frames per window / overlap. NC: the weights forbid commercial use.")
    logs.show("Next: stream4d models NAME   or   stream4d video.mp4 --model NAME")


def _short_licence(card: ModelCard) -> str:
    text = card.weights_licence.split(" (")[0]
    already_says = "NC" in text or "Non-Commercial" in text
    return text if card.is_commercial_ok or already_says else f"{text} (NC)"


def _show_one(card: ModelCard) -> None:
    rows = [
        ("model", card.name),
        ("what", card.summary),
        ("paper", card.paper or "-"),
        ("weights", card.weights_licence),
        (
            "commercial use",
            "allowed" if card.is_commercial_ok else "FORBIDDEN by the weights' licence",
        ),
        ("hub", card.hub_id or ("a file of your own" if card.needs_weights else "in the package")),
        ("size", _size(card.parameters_m)),
        ("resolution", card.resolution),
        ("metric", "yes, metres" if card.is_metric else "no, up to scale"),
        ("streaming", f"{card.streaming}, window {card.window}, overlap {card.overlap}"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        lines = textwrap.wrap(value, 100 - width) or [""]
        logs.show(f"{name:<{width}}  " + f"\n{'':<{width}}  ".join(lines))
    options = _options(card.name)
    if options:
        logs.show()
        logs.show(
            'options (--set "model.options={NAME: VALUE}", or model.options in a config file):'
        )
        for name, value in options:
            logs.show(f"  {name} = {value}")


def _options(name: str) -> list[tuple[str, str]]:
    """Return what may be set of a model, with its defaults."""
    from stream4d.models.family import ForeignModel
    from stream4d.models.registry import MODELS

    module, _, attribute = MODELS[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    is_foreign = issubclass(cls, ForeignModel)
    config = cls.configure(name, None, {}) if is_foreign else cls.options_class()
    shared = [("precision", repr("float32"))] if is_foreign else []
    return shared + [(f.name, repr(getattr(config, f.name))) for f in dataclasses.fields(config)]


def _size(parameters_m: float) -> str:
    if not parameters_m:
        return "-"
    return f"{parameters_m:.3g} M" if parameters_m < 1000 else f"{parameters_m / 1000:.2f} G"

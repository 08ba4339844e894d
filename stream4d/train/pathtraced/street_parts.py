"""What a street is made of: its road, and things that stand still along it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stream4d.train.pathtraced.footprints import Footprint
from stream4d.train.pathtraced.furniture import Piece
from stream4d.train.pathtraced.road import Road

_NAMES = {
    "lamp": re.compile(r"lamppost|street l|park light"),
    "roadside": re.compile(
        r"bench|bank|trashcan|hydrant|railing|mailbox|plant box|^cone|recycling"
    ),
    "green": re.compile(r"^bush|hedge"),
    "tree": re.compile(r"palm|cypress"),
    "hall": re.compile(r"container|garden hut|barnum"),
}
_UPRIGHT_M = 1.5
"""Characters that are taller stand."""
_VEHICLE_M = 1.4
"""Vehicles that are longer are driven on roads; forklifts, which look sideways, are wider than long."""


def street_role(piece: Piece) -> str:
    """``vehicle``, ``person``, ``lamp``, ``roadside``, ``green``, ``tree``, ``hall``, or ``none`` (left out)."""
    width, depth, height = piece.size
    if piece.category == "Vehicles":
        return "vehicle" if depth > max(width, _VEHICLE_M) else "none"
    if piece.category == "Characters":
        return "person" if piece.role == "figure" and height > _UPRIGHT_M else "none"
    if piece.category in ("Exterior", "Lights", "Miscellaneous") and piece.elevation == 0:
        for role, names in _NAMES.items():
            if names.search(piece.name.lower()):
                return role
    return "none"


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that stands still."""

    kind: str
    """``piece``, or what is built: ``house``, ``tree``, ``wall``, ``sign``, ``pole``."""
    ground: Footprint
    """What it takes of the ground; of a tree its trunk."""
    height: float
    base: float = 0.0
    """Height of what it stands on."""
    piece: Piece | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Street:
    """A road and what stands along it."""

    kind: str
    road: Road
    things: tuple[Thing, ...]

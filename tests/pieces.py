"""Models of a catalogue that no file is behind."""

from __future__ import annotations

from pathlib import Path

from stream4d.train.pathtraced.furniture import Piece


def piece(name: str, category: str, *size: float, elevation: float = 0.0) -> Piece:
    """Return a piece of width, depth and height in metres."""
    width, depth, height = size
    return Piece(name, category, Path(name), (width, depth, height), elevation, None)

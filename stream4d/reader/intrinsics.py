"""Read a camera given on the command line: numbers, or a JSON, YAML or text file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stream4d.errors import ConfigError

Numbers = tuple[float, ...]

_FORMS = "fx,fy,cx,cy, or a file with fx, fy, cx, cy (JSON, YAML), 4 numbers, or a 3×3 matrix"


def parse_intrinsics(text: str) -> tuple[Numbers, Numbers | None]:
    """Return (fx, fy, cx, cy) and the lens distortion, or None where none is given.

    Args:
        text: ``fx,fy,cx,cy``, optionally followed by ``k1,k2,p1,p2[,k3]``; or the path of a file that holds
            the same numbers, a 3×3 matrix, or keys ``fx fy cx cy`` (also inside ``camera``, as in a
            ``sequence.json``) with an optional list ``distortion``.

    Raises:
        ConfigError: no such file, or its content is none of these.
    """
    if _looks_like_numbers(text):
        return _from_numbers(_floats(text, f"intrinsics {text!r}"), text)
    path = Path(text)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if "," in text and not path.exists():
            return _from_numbers(
                _floats(text, f"intrinsics {text!r}"), text
            )  # says what is wrong with them
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"cannot read intrinsics {text!r} ({reason}): give {_FORMS}") from None
    data = _structured(content, path)
    if isinstance(data, Mapping):
        return _from_mapping(data, text)
    return _from_numbers(_floats(content, f"intrinsics {text!r}"), text)


def parse_distortion(text: str) -> Numbers:
    """Return k1, k2, p1, p2[, k3] from comma-separated text.

    Raises:
        ConfigError: not 4, 5 or 8 numbers.
    """
    values = _floats(text, f"distortion {text!r}", "k1,k2,p1,p2[,k3]")
    if len(values) not in (4, 5, 8):
        raise ConfigError(f"distortion must be k1,k2,p1,p2[,k3], got {len(values)} numbers: {text}")
    return values


def _looks_like_numbers(text: str) -> bool:
    return re.fullmatch(r"[-+.\deE,;\s]+", text) is not None


def _floats(text: str, what: str, forms: str = _FORMS) -> Numbers:
    lines = [line.partition("#")[0] for line in text.splitlines()]
    try:
        values = tuple(float(word) for word in re.split(r"[\s,;\[\]]+", " ".join(lines)) if word)
    except ValueError:
        raise ConfigError(f"{what} hold something else than numbers: give {forms}") from None
    if not all(math.isfinite(value) for value in values):
        raise ConfigError(f"{what} hold a number that is not finite")
    return values


def _structured(content: str, path: Path) -> Any:
    """Return parsed JSON or YAML, or None for plain text."""
    import yaml

    try:
        if path.suffix.lower() == ".json":
            return json.loads(content)
        return yaml.safe_load(content)
    except (json.JSONDecodeError, yaml.YAMLError):
        if path.suffix.lower() in (".json", ".yaml", ".yml"):
            raise ConfigError(f"{path} is not valid {path.suffix[1:].upper()}") from None
        return None


def _from_mapping(data: Mapping[str, Any], source: str) -> tuple[Numbers, Numbers | None]:
    camera = data.get("camera", data)
    if not isinstance(camera, Mapping):
        raise ConfigError(f"{source} holds no camera: give {_FORMS}")
    missing = [key for key in ("fx", "fy", "cx", "cy") if key not in camera]
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(missing)}: give {_FORMS}")
    try:
        values = tuple(float(camera[key]) for key in ("fx", "fy", "cx", "cy"))
        distortion = tuple(float(value) for value in camera.get("distortion") or ())
    except (TypeError, ValueError):
        raise ConfigError(f"{source} holds a camera whose values are not numbers") from None
    return _from_numbers(values + distortion, source)


def _from_numbers(values: Numbers, source: str) -> tuple[Numbers, Numbers | None]:
    if len(values) == 9 and values[6:] == (0.0, 0.0, 1.0) and values[1] == values[3] == 0.0:
        values = (values[0], values[4], values[2], values[5])
    if len(values) not in (4, 8, 9, 12):
        raise ConfigError(f"intrinsics {source!r} hold {len(values)} numbers: give {_FORMS}")
    camera, distortion = values[:4], values[4:]
    if min(camera[:2]) <= 0:
        raise ConfigError(
            f"focal lengths must be positive, got fx, fy = {camera[0]:g}, {camera[1]:g}"
        )
    return camera, distortion if any(distortion) else None

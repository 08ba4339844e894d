"""A module imports from its own package and from lower tiers only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "stream4d"
TIERS = [
    {
        "packets",
        "errors",
        "config",
        "logs",
        "claim",
        "devices",
        "interrupt",
        "processes",
        "replacement",
        "_version",
    },
    {"geometry"},
    {"reader", "models", "pose", "store", "viz"},
    {"predicting"},
    {"pipeline"},
    {"train", "eval", "export", "batch", "commands", "cli"},
]
TIER = {name: level for level, names in enumerate(TIERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _imported(path: Path) -> set[str]:
    """Top-level parts of stream4d that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = (node.module or "").split(".")
            if base == ["stream4d"]:
                found |= {alias.name for alias in node.names}
            elif base[0] == "stream4d":
                found.add(base[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("stream4d.")}
    return {name for name in found if name in TIER}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for other in _imported(path) - {own}:
        lower = TIER[other] < TIER[own]
        same_tier = TIER[own] == TIER[other] and TIER[own] in (0, len(TIERS) - 1)
        assert lower or same_tier, f"{own} must not import {other}"


def test_packages_in_pyproject_are_complete() -> None:
    import tomllib

    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(tomllib.loads(text)["tool"]["setuptools"]["packages"])
    on_disk = {
        ".".join(p.parent.relative_to(PACKAGE.parent).parts) for p in PACKAGE.rglob("__init__.py")
    }
    assert on_disk <= listed, f"not in pyproject.toml: {on_disk - listed}"

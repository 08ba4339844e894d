"""No golden file of a family that the package has is without the test that compares all of it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from golden import FULL, REDUCED

ELSEWHERE = ("cut3r", "pi3")
"""Families that have golden files but are not in the package yet."""


def compared_names() -> set[str]:
    """Return all strings in tests that make a `Golden` and check all of it, or check a manifest."""
    found = set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                text = ast.unparse(node)
                checks = (".check(", ".check_rows(", "manifest(")
                if any(check in text for check in checks):
                    found |= strings(node)
    return found


def strings(node: ast.AST) -> set[str]:
    """Return all string constants under a node, decorators included."""
    return {
        n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }


@pytest.mark.parametrize("folder", [FULL, REDUCED], ids=["full", "reduced"])
@pytest.mark.parametrize("kind", ["manifests", "tiny", "post"])
def test_every_file_is_compared(folder, kind):
    if not folder.is_dir():
        pytest.skip("the full set of golden files is not beside this checkout")
    files = {
        p.name.removesuffix(".json").removesuffix(".meta") for p in (folder / kind).glob("*.json")
    }
    ours = {name for name in files if not name.startswith(ELSEWHERE)}
    compared = compared_names()
    unknown = ours - compared
    assert not unknown, f"golden files of {kind} that no test compares: {sorted(unknown)}"

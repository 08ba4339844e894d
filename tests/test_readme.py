"""The README's Python runs as it stands, and its commands exist."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from stream4d.cli import COMMANDS, build_parser
from tests.videos import textured_pan, write_video

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "recordings").mkdir()
    write_video(tmp_path / "recordings" / "room_walker.mp4", textured_pan(12))  # a short stand-in
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize(
    "line", re.findall(r"^ {4}stream4d (.+?)(?: +#.*)?$", README, re.MULTILINE)
)
def test_commands_parse(line: str) -> None:
    words = line.split()
    name = words.pop(0) if words[0] in COMMANDS else "run"
    assert isinstance(build_parser(name).parse_args(words), argparse.Namespace)


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()

"""The command line. ``stream4d SOURCE`` runs; a first word that is a command does that instead.

Each command is a module with ``add_arguments(parser)`` and ``run(args) -> status``, imported when it is asked
for; heavy imports sit inside ``run``, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from stream4d import logs
from stream4d._version import __version__
from stream4d.errors import Stream4DError
from stream4d.interrupt import sigterm_as_ctrl_c

RUN = "run"
COMMANDS = {
    RUN: ("stream4d.commands.run", "reconstruct a source (the word `run` may be left out)"),
    "batch": ("stream4d.batch.cli", "reconstruct many videos, each into its own store"),
    "replay": ("stream4d.commands.replay", "look at a store or an .rrd recording again"),
    "info": ("stream4d.commands.info", "describe a store or a video; --picture draws it"),
    "export": ("stream4d.export.cli", "write a store as PLY, GLB, COLMAP, nerfstudio, TUM …"),
    "refine": ("stream4d.commands.refine", "refine a finished store over all frames at once"),
    "models": ("stream4d.models.cli", "list models with licence, resolution and size"),
    "eval": ("stream4d.eval.cli", "measure against ground truth"),
    "train": ("stream4d.train.cli", "train the model `temporal`, or score its weights"),
    "demo": ("stream4d.commands.demo", "reconstruct the bundled clip"),
}
"""Command → (module, one line of help)."""


class _Parser(argparse.ArgumentParser):
    """Report a wrong flag on one line instead of a page of usage."""

    hint = ""
    """What to say behind the message."""

    def error(self, message: str) -> NoReturn:
        logs.say(f"stream4d: {message}{self.hint} (see `{self.prog} --help`)")
        raise SystemExit(2)


def build_parser(name: str) -> _Parser:
    """Build the parser of one command; ``run``'s is also the root's and lists the commands."""
    module_name, help_ = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = _Parser(
        prog="stream4d" if name == RUN else f"stream4d {name}",
        description=f"{help_}\n\n{module.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if name == RUN:
        lines = [f"  stream4d {name:<8} {text}" for name, (_, text) in COMMANDS.items()]
        parser.usage = "stream4d SOURCE [options]   |   stream4d COMMAND [options]"
        parser.description = (
            "A video of a moving world in, a 4D scene out, while it plays.\n\n" + module.EXAMPLES
        )
        parser.epilog = "\n".join(
            ["commands:", *lines, "", "`stream4d COMMAND --help` tells more."]
        )
        parser.add_argument("--version", action="version", version=f"stream4d {__version__}")
    module.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    logs.open_closed_streams()
    _show_what_the_terminal_can()
    try:
        if not words:
            build_parser(RUN).print_help()
            return 2
        name = words.pop(0) if words[0] in COMMANDS else RUN
        parser = build_parser(name)
        parser.hint = _meant_command(words) if name == RUN else ""
        args = parser.parse_args(words)
        logs.configure(-1 if getattr(args, "quiet", False) else getattr(args, "verbose", 0))
        with sigterm_as_ctrl_c():
            return int(importlib.import_module(COMMANDS[name][0]).run(args))
    except Stream4DError as error:
        return _fail(f"{error}{_meant_command(words)}")
    except PermissionError as error:
        # A folder that may not be looked into fails wherever a path is first asked about.
        if error.filename is None:
            raise
        return _fail(f"no permission for {error.filename}: change its rights, or choose another")
    except KeyboardInterrupt:
        logs.say("stream4d: interrupted")
        return 130


def _fail(reason: str) -> int:
    told = " ".join(reason.splitlines())  # a file's name may hold a newline
    logs.say(f"stream4d: {told}")
    return 1


def _show_what_the_terminal_can() -> None:
    """Let a name or sign that the terminal's encoding lacks become a question mark, not a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _meant_command(words: Sequence[str]) -> str:
    """Name the command that a source which does not exist was perhaps meant to be."""
    if not words or os.path.exists(
        words[0]
    ):  # unlike Path.exists, False for a name that is too long
        return ""
    close = difflib.get_close_matches(words[0], COMMANDS, n=1)
    return f" (did you mean the command {close[0]!r}?)" if close else ""


if __name__ == "__main__":
    raise SystemExit(main())

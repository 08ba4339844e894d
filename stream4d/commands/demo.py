"""``stream4d demo``: reconstruct the bundled clip. No download, no camera."""

from __future__ import annotations

import argparse

from stream4d.commands import run as run_command
from stream4d.config import bundled
from stream4d.errors import VideoError

CLIP = "room_walker.mp4"
EXAMPLES = """\
examples:
  stream4d demo                                 bundled clip into demo.zarr, a recording and a picture
  stream4d demo --view native                   watch it live
  stream4d demo --config quality --overwrite    any option of a run works here too
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run, with the demo's own defaults."""
    run_command.add_run_options(parser)
    parser.set_defaults(out="demo.zarr", **{"view.save_rrd": "demo.rrd"})


def run(args: argparse.Namespace) -> int:
    """Reconstruct the bundled clip, and draw what came out."""
    clip = bundled("recordings", "recordings") / CLIP
    if not clip.is_file():
        raise VideoError(f"the bundled clip {CLIP} is not installed: reinstall stream4d")
    args.source = str(clip)
    status = run_command.run(args)
    if status == 0:
        from stream4d.commands import info

        info.draw(args.out, "demo.png")
    return status

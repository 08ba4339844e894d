"""Render rooms or streets for training: ``python -m stream4d.train.pathtraced OUT --scene rooms --clips 600``.

Needs Blender as a Python module and the furniture, in an environment of its own (run from the repository):

    python3.11 -m venv blender && blender/bin/pip install bpy==4.2.0 'numpy<2' opencv-python-headless
    blender/bin/python -m stream4d.train.pathtraced.furniture
    blender/bin/python -m stream4d.train.pathtraced OUT --photos textures
    blender/bin/python -m stream4d.train.pathtraced OUT --scene streets --per-set 3 --photos textures

The same seed gives the same sets and paths; a run that was stopped goes on where it was. Train on it with
``real: [sintel:OUT]`` in a recipe.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stream4d.errors import Stream4DError, TrainingError
from stream4d.train.pathtraced.furniture import DEFAULT_FOLDER, read_catalogue

if TYPE_CHECKING:
    from stream4d.train.pathtraced.stage import Stage

logger = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stream4d.train.pathtraced",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to fill, in the layout of MPI Sintel")
    parser.add_argument(
        "--scene", choices=("rooms", "streets"), default="rooms", help="default: %(default)s"
    )
    parser.add_argument("--clips", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=4, help="frames a clip (default: 4)")
    parser.add_argument("--size", default="256x192", help="WIDTHxHEIGHT (default: 256x192)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--first-set",
        type=int,
        default=0,
        help="begin with this set, to share OUT among processes",
    )
    parser.add_argument("--per-set", type=int, default=6, help="clips on each set (default: 6)")
    parser.add_argument("--samples", type=int, default=3, help="light paths a pixel (default: 3)")
    parser.add_argument(
        "--moving",
        type=float,
        help="share of clips with movers (default: rooms 0.25, streets 0.75)",
    )
    parser.add_argument(
        "--furniture", type=Path, default=DEFAULT_FOLDER, help="default: %(default)s"
    )
    parser.add_argument("--photos", type=Path, help="folder of pictures for walls, posters, signs")
    return parser


def _stage(scene: str) -> type[Stage]:
    """Return what builds the sets of a scene; it needs Blender."""
    if scene == "streets":
        from stream4d.train.pathtraced.street import StreetStage

        return StreetStage
    from stream4d.train.pathtraced.room import RoomStage

    return RoomStage


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and min(int(width), int(height)) >= 16):
        raise TrainingError(f"--size must be WIDTHxHEIGHT, like 256x192; got {text!r}")
    return int(width), int(height)


def run(args: argparse.Namespace) -> int:
    """Render what is missing of the clips asked for; returns how many were rendered.

    Raises:
        TrainingError: no bpy, no furniture, a size that makes no sense, or a full disk.
    """
    size = _size(args.size)
    for name in ("clips", "frames", "per_set", "samples"):
        if (number := getattr(args, name)) < 1:
            raise TrainingError(f"--{name.replace('_', '-')} must be at least 1, got {number}")
    if importlib.util.find_spec("bpy") is None:
        raise TrainingError(
            "rendering rooms and streets needs Blender as a Python module, which is not installed: "
            "`pip install bpy==4.2.0 'numpy<2' opencv-python-headless` in a Python 3.11 environment of its own"
        )
    catalogue = read_catalogue(args.furniture)
    photos = sorted(args.photos.rglob("*.jpg")) if args.photos else []
    from stream4d.train.pathtraced.clips import ClipMaker
    from stream4d.train.pathtraced.render import Renderer

    with tempfile.TemporaryDirectory() as scratch:
        renderer = Renderer(size, Path(scratch), args.samples)
        maker = ClipMaker(args, _stage(args.scene)(catalogue, photos), renderer)
        done, start = 0, time.monotonic()
        for start_clip in range(0, args.clips, args.per_set):
            number = args.first_set + start_clip // args.per_set
            done += maker.render_set(number, min(args.per_set, args.clips - start_clip))
            pace = (time.monotonic() - start) / max(done, 1)
            logger.info("set %d: %d clips rendered, %.1f s a clip", number, done, pace)
    return done


def main() -> int:
    """Run, and print an error of ours on one line."""
    args = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(args)
    except Stream4DError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``stream4d batch``: reconstruct many videos, each into its own store."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stream4d import config as settings
from stream4d import logs
from stream4d.commands.run import FIRST_RUN, add_settings, resolve_config
from stream4d.config import RunConfig, ViewConfig
from stream4d.errors import ConfigError
from stream4d.interrupt import first_ctrl_c

if TYPE_CHECKING:
    from stream4d.batch.jobs import Job
    from stream4d.batch.runner import Runner

logger = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  stream4d batch clips/ --out stores/             every video and image folder in clips/, one store each
  stream4d batch a.mp4 b.mp4 --config quality     the options of a run hold for all of them
  stream4d batch --list videos.txt --workers 4    a path per line, four at a time
The same command again skips what is finished and goes on with what is not.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sources, where their stores go, and the settings of a run."""
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="video files, folders of them, image folders"
    )
    parser.add_argument("--list", metavar="FILE", help="a source per line, # comments; -: stdin")
    group = parser.add_argument_group("output")
    group.add_argument("--out", default=".", metavar="FOLDER", help="for the stores [here]")
    group.add_argument("--overwrite", action="store_true", help="compute all anew, replace stores")
    group.add_argument("--refine", action="store_true", help="refine each store when it is done")
    group = parser.add_argument_group("work")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="videos at a time [1]")
    group.add_argument(
        "--ray", nargs="?", const="auto", metavar="ADDRESS",
        help="on the machines of a Ray cluster, which see the same folders [the one that runs here; local: a new one]",
    )  # fmt: skip
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Reconstruct all; 1 where one failed, 130 after Ctrl-C."""
    from stream4d.batch.board import Board
    from stream4d.batch.jobs import find_sources, plan

    config = _config(args)
    sources, folder = find_sources(args.sources, args.list), _folder(args.out)
    if args.ray:  # other machines work in other folders
        sources, folder = [os.path.abspath(source) for source in sources], folder.absolute()
    dumped = settings.dump(config)
    jobs = plan(sources, folder, dumped, overwrite=args.overwrite, refine=args.refine)
    board, runner = Board(jobs), _runner(jobs, args, config)
    was_stopped = False

    def stop() -> None:
        nonlocal was_stopped
        was_stopped = True
        runner.stop()

    progress = logs.Progress(None, quiet=args.quiet, patience=FIRST_RUN)
    with progress, first_ctrl_c(stop, announce="stopping after the windows in hand"):
        for event in runner.events():
            for _ in range(board.take(event)):
                progress.advance(board.note())
            progress.expect(board.expected)
            if event.outcome is not None and event.outcome.reason:
                logger.warning("%s failed: %s", event.job.source, event.outcome.reason)
    if not args.quiet:
        logs.show(board.table())
        if was_stopped or board.failed:
            logs.show("the same command again takes up what is missing")
    return 130 if was_stopped else int(board.failed)


def _config(args: argparse.Namespace) -> RunConfig:
    """Return the settings of every run."""
    config = resolve_config(args)
    if config.view != ViewConfig():
        raise ConfigError(
            "a batch opens no view and writes no recordings: leave out the view's settings"
        )
    if args.refine and config.store.maps == "none":
        raise ConfigError("--refine needs images in the stores: leave out store.maps=none")
    if args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {args.workers}")
    from stream4d.models.registry import model_card

    model_card(config.model.name)  # an unknown model is told once, not by every run
    if args.workers > 1 and not config.threads and not args.ray:
        share = max(1, (os.cpu_count() or 1) // args.workers)
        config = dataclasses.replace(config, threads=share)
    return config


def _folder(name: str) -> Path:
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder


def _runner(jobs: list[Job], args: argparse.Namespace, config: RunConfig) -> Runner:
    if args.ray:
        from stream4d.batch.cluster import RayRunner

        return RayRunner(jobs, args.workers, args.ray, config)
    from stream4d.batch.runner import LocalRunner

    return LocalRunner(jobs, args.workers)

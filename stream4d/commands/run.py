"""``stream4d SOURCE``: reconstruct one source into a store, with progress and a summary."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
import typing
from pathlib import Path
from typing import Any

from stream4d import config as settings
from stream4d import logs
from stream4d.config import RunConfig
from stream4d.errors import ConfigError, StoreCompleteError
from stream4d.interrupt import first_ctrl_c

EXAMPLES = """\
examples:
  stream4d video.mp4                                camera path, depth, masks and flow into video.zarr
  stream4d walk.mov --view native --save-rrd w.rrd  watch it live and keep the recording
  stream4d frames/ --intrinsics 517,516,318,255     a folder of images from a known camera
"""
FIRST_RUN = (
    "getting ready: the first run on a machine compiles its kernels, which takes up to a minute"
)


def _field(path: str) -> tuple[dataclasses.Field[Any], Any]:
    """Return the config field at a dotted path such as ``reader.stride``, and its type."""
    group: Any = RunConfig
    *parents, name = path.split(".")
    for parent in parents:
        group = typing.get_type_hints(group)[parent]
    hint = typing.get_type_hints(group)[name]
    return next(f for f in dataclasses.fields(group) if f.name == name), hint


def _add_setting(group: argparse._ArgumentGroup, flag: str, path: str, **extra: Any) -> None:
    """Add a flag for one config field: its help, default and choices come from there."""
    field, hint = _field(path)
    options = [hint, *typing.get_args(hint)]
    if "choices" not in extra and typing.get_origin(hint) is typing.Literal:
        extra["choices"] = typing.get_args(hint)
    elif "action" not in extra and "type" not in extra:
        extra["type"] = next((t for t in (int, float) if t in options), str)
    default = "" if field.default in (None, dataclasses.MISSING) else f" [{field.default}]"
    group.add_argument(
        flag, dest=path, default=argparse.SUPPRESS, help=field.metadata["doc"] + default, **extra
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the source and every option of a run."""
    parser.add_argument(
        "source", metavar="SOURCE", help="video file, image folder or glob, webcam, stream URL"
    )
    add_run_options(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run; ``stream4d demo`` takes them too."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="STORE", help="zarr store to write [NAME.zarr here]")
    group.add_argument("--overwrite", action="store_true", help="replace an existing store")
    group.add_argument("--resume", action="store_true", help="go on with an unfinished store")
    group.add_argument(
        "--refine", action="store_true", help="at the end, refine all cameras at once, offline"
    )
    _add_setting(group, "--save-rrd", "view.save_rrd", metavar="FILE")
    _add_setting(group, "--view", "view.mode")
    _add_setting(group, "--view-host", "view.host", metavar="ADDRESS")
    _add_setting(group, "--view-port", "view.port", metavar="N")
    group.add_argument(
        "--progress", choices=("bar", "json"), default="bar",
        help="json: for programs, a line of JSON on stdout per frame and one at the end [bar]",
    )  # fmt: skip
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how frames are computed; ``stream4d batch`` takes them too."""
    group = parser.add_argument_group("which frames")
    _add_setting(group, "--resolution", "reader.resolution", metavar="PX")
    _add_setting(group, "--start", "reader.start", metavar="S")
    _add_setting(group, "--end", "reader.end", metavar="S")
    _add_setting(group, "--stride", "reader.stride", metavar="N")
    _add_setting(group, "--fps", "reader.fps", metavar="RATE")
    _add_setting(group, "--max-frames", "reader.max_frames", metavar="N")
    _add_setting(group, "--backend", "reader.backend")

    group = parser.add_argument_group("camera")
    group.add_argument(
        "--intrinsics",
        metavar="fx,fy,cx,cy|FILE",
        help="known camera in pixels of the source image; FILE: JSON, YAML or text",
    )
    group.add_argument("--distortion", metavar="k1,k2,p1,p2[,k3]", help="OpenCV lens distortion")

    group = parser.add_argument_group("model")
    _add_setting(group, "--model", "model.name", metavar="NAME")
    _add_setting(group, "--weights", "model.weights", metavar="FILE|HUB_ID")
    _add_setting(group, "--device", "model.device", metavar="NAME")
    _add_setting(group, "--window", "window.size", metavar="T")
    _add_setting(group, "--overlap", "window.overlap", metavar="T")

    group = parser.add_argument_group("run")
    _add_setting(group, "--tracks", "tracks", metavar="N")
    group.add_argument(
        "--config", metavar="NAME|FILE", help="preset (fast, balanced, quality) or a YAML file"
    )
    group.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting, e.g. --set chain.keyframes=12 (repeatable)",
    )
    _add_setting(group, "--seed", "seed", metavar="N")
    _add_setting(group, "--threads", "threads", metavar="N")
    group.add_argument("-v", "--verbose", action="count", default=0, help="more log lines")
    group.add_argument("-q", "--quiet", action="store_true", help="errors only")


def resolve_config(args: argparse.Namespace) -> RunConfig:
    """Combine defaults < ``--config`` < flags."""
    config = RunConfig() if args.config is None else settings.load(args.config)
    for assignment in args.assignments:
        config = _assign(config, assignment)
    values: dict[str, Any] = {}
    for dest, value in vars(args).items():
        head, _, tail = dest.rpartition(".")
        if head:
            values.setdefault(head, {})[tail] = value
        elif dest in ("tracks", "seed", "threads"):
            values[dest] = value
    if args.intrinsics is not None or args.distortion is not None:
        values.setdefault("reader", {}).update(_camera(args.intrinsics, args.distortion))
    return settings.merge(config, values, where="options")


def _assign(config: RunConfig, assignment: str) -> RunConfig:
    import yaml

    key, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"--set takes KEY=VALUE, got {assignment!r}")
    try:
        nested: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set cannot read the value {text!r} of {key}") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return settings.merge(config, nested, where="--set")


def _camera(intrinsics: str | None, distortion: str | None) -> dict[str, Any]:
    if distortion is not None and intrinsics is None:
        raise ConfigError("--distortion needs --intrinsics: give the camera matrix too")
    from stream4d.reader.intrinsics import parse_distortion, parse_intrinsics

    values: dict[str, Any] = {}
    if intrinsics is not None:
        values["intrinsics"], values["distortion"] = parse_intrinsics(intrinsics)
    if distortion is not None:
        values["distortion"] = parse_distortion(distortion)
    return values


def default_store_path(source: str) -> Path:
    """Name the store after the source: ``clips/walk.mp4`` → ``walk.zarr`` in the current folder.

    Where the source's own name says nothing (``shots/office/frames``), its folder's is taken.
    """
    from stream4d.reader.sources import is_live_or_url

    source = source.removeprefix("file://")
    if is_live_or_url(source):
        name = source.partition("://")[2].split("/")[0].split(":")[0] or "webcam"
        return Path(f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.zarr")
    path = Path(source)
    if any(letter in path.name for letter in "*?[") and not os.path.exists(path):
        path = path.parent  # a glob is named after its folder
    # os.path: unlike Path.is_dir, False for a name that is too long
    name = path.stem if path.suffix and not os.path.isdir(path) else path.name
    says_nothing = name in ("frames", "images", "rgb", "")
    if says_nothing or (
        name == "video" and path.name != source
    ):  # `video.mp4` right here is itself
        name = path.resolve().parent.name
    return Path(f"{name or 'scene'}.zarr")


def run(args: argparse.Namespace) -> int:
    """Reconstruct one source, show progress, and end with a summary."""
    if args.out is None:
        args.out = default_store_path(args.source)  # once: that of a live source has the time
    try:
        status = _reconstruct(args)
    except StoreCompleteError as error:
        if not _is_silent(args):
            logs.show(str(error))
        status = 0
    if args.refine and status == 0:
        from stream4d.commands.refine import refine_store

        refine_store(args.out, None, quiet=_is_silent(args))
    return status


def _is_silent(args: argparse.Namespace) -> bool:
    """Tell whether nothing is to be said in words."""
    return bool(args.quiet or args.progress == "json")


def _reconstruct(args: argparse.Namespace) -> int:
    from stream4d.commands.summary import RunSummary
    from stream4d.pipeline import Reconstruction

    config = resolve_config(args)
    if args.refine and config.store.maps == "none":
        raise ConfigError("--refine needs images in the store: leave out store.maps=none")
    out, quiet = args.out, _is_silent(args)
    with Reconstruction(
        args.source, config, out=out, overwrite=args.overwrite, resume=args.resume
    ) as run:
        summary = RunSummary(run.info, out, frames_before=run.first_frame)
        if not quiet:
            logs.show(summary.opening(run.model.card.name))
        total, done = run.info.frame_count, run.first_frame
        progress = (
            logs.JsonProgress(total, done=done)
            if args.progress == "json"
            else logs.Progress(total, quiet=quiet, done=done, patience=FIRST_RUN)
        )
        with progress, first_ctrl_c(run.stop, announce="stopping after this window"):
            for frame in run:
                summary.add(frame)
                progress.advance()
    if args.progress == "json":
        logs.show_json(summary.figures())
    if not quiet:
        stopped, dropped = not run.is_finished, run.reader.dropped
        logs.show(summary.closing(interrupted=stopped, overwrites=args.overwrite, dropped=dropped))
    if run.view is not None:
        if summary.frames:  # else there is nothing to look at
            if run.view.page and not quiet:
                logs.show("the web view stays up until Ctrl-C")
            run.view.wait()
        run.view.close()
    return 0 if run.is_finished else 130

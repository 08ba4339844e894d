"""``stream4d replay``: look at a store or an .rrd recording again."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stream4d import logs
from stream4d.config import ViewConfig
from stream4d.errors import StoreError
from stream4d.packets import PosedFrame

EXAMPLES = """\
examples:
  stream4d replay video.zarr                    in the Rerun viewer, at the speed of the video
  stream4d replay video.zarr --view web         in the browser, on 127.0.0.1
  stream4d replay video.zarr --save-rrd v.rrd   write a recording instead of opening a view
  stream4d replay v.rrd                         open a recording
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``stream4d replay``."""
    parser.add_argument("path", metavar="STORE|FILE.rrd")
    parser.add_argument("--view", choices=("native", "web", "none"), help="which viewer [native]")
    parser.add_argument("--view-host", default="127.0.0.1", metavar="ADDRESS", help="[127.0.0.1]")
    parser.add_argument("--view-port", type=int, default=9090, metavar="N", help="[9090]")
    parser.add_argument("--save-rrd", metavar="FILE", help="write a Rerun recording")
    parser.add_argument("--speed", type=float, default=1.0, help="1: as filmed, 0: at once [1]")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="first frame [0]")
    parser.add_argument("--end", type=int, metavar="N", help="frame to stop before [last]")


def run(args: argparse.Namespace) -> int:
    """Show a store frame by frame, or hand a recording to the viewer."""
    from stream4d.viz.replay import open_recording, replay

    if Path(args.path).suffix == ".rrd":
        open_recording(
            args.path, mode=args.view or "native", host=args.view_host, port=args.view_port
        )
        return 0
    from stream4d.store.reader import open_store

    store = open_store(args.path)
    if len(store) == 0:
        raise StoreError(f"{args.path} holds no frames yet: nothing to replay")
    mode: Any = args.view or ("none" if args.save_rrd else "native")
    config = ViewConfig(mode=mode, save_rrd=args.save_rrd, host=args.view_host, port=args.view_port)
    frames = range(len(store))[args.start : args.end]
    if not frames:
        raise StoreError(
            f"{args.path} has {len(store)} frames, none from --start {args.start} to before --end"
        )
    _ = store[frames[0]]  # a store without images says so before a view opens
    with logs.Progress(len(frames)) as progress:

        def shown() -> Iterator[PosedFrame]:
            for index in frames:
                yield store[index]
                progress.advance()

        replay(shown(), store.info, config, speed=args.speed, overwrite=args.overwrite)
    if args.save_rrd:
        logs.show(
            f"wrote {args.save_rrd}: open it with `stream4d replay {shlex.quote(args.save_rrd)}`"
        )
    return 0

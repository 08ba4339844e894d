"""``stream4d info``: describe a store or a video, and draw a store."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from stream4d import logs
from stream4d.config import ReaderConfig
from stream4d.errors import StoreError

EXAMPLES = """\
examples:
  stream4d info video.zarr                       frames, camera path, focal, settings
  stream4d info video.zarr --picture video.png   image, depth, motion, flow and camera path
  stream4d info video.mp4                        what the reader makes of a source
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``stream4d info``."""
    parser.add_argument("path", metavar="STORE|SOURCE")
    parser.add_argument("--picture", metavar="FILE.png", help="draw the store into a picture")


def run(args: argparse.Namespace) -> int:
    """Describe what is at the path."""
    is_video = _is_video(args.path)
    if is_video and args.picture:
        raise StoreError(f"--picture draws a store, and {args.path} is none: reconstruct it first")
    if is_video:
        rows = _describe_video(args.path)
    else:
        rows = _describe_store(args.path)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        logs.show(f"{name:<{width}}  {value}")
    if args.picture:
        draw(args.path, args.picture)
    return 0


def draw(store_path: str, picture: str) -> None:
    """Write the contact sheet of a store."""
    from stream4d.store.reader import open_store
    from stream4d.viz.contact_sheet import write_contact_sheet

    write_contact_sheet(open_store(store_path), picture)
    logs.show(f"drew {picture}")


def _is_video(path: str) -> bool:
    return not (Path(path) / "zarr.json").exists() and not path.rstrip("/").endswith(".zarr")


def _describe_video(source: str) -> list[tuple[str, str]]:
    from stream4d.reader import open_video

    with open_video(source, ReaderConfig()) as reader:
        info = reader.info
    return [
        ("source", info.source),
        ("reader", f"{info.backend} ({info.reason})" if info.reason else info.backend),
        ("frames", str(info.frame_count or "unknown")),
        ("rate", f"{info.fps:.4g} fps"),
        ("size", f"{info.source_width}×{info.source_height}, rotated {info.rotation_deg}°"),
        ("processed at", f"{info.width}×{info.height}"),
    ]


def _describe_store(path: str) -> list[tuple[str, str]]:
    from stream4d.store.reader import open_store

    store = open_store(path)
    rows = [
        ("store", str(path)),
        ("source", store.info.source),
        ("frames", f"{len(store)}{'' if store.is_complete else ' so far (--resume goes on)'}"),
        ("size", f"{store.info.width}×{store.info.height}"),
    ]
    if len(store) == 0:
        return rows
    seconds = (store.timestamp_ns[-1] - store.timestamp_ns[0]) / 1e9
    centres, segments = store.world_from_cam[:, :3, 3], store.segment
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    path_length = float(steps[segments[1:] == segments[:-1]].sum())
    unit = "m" if store.attrs.get("scale") == "metric" else "units (scale unknown)"
    return [
        *rows,
        ("duration", f"{seconds:.2f} s"),
        ("path length", f"{path_length:.4g} {unit}"),
        ("focal", f"{np.median(store.K[:, 0, 0]):.1f} px"),
        ("keyframes", str(int(np.count_nonzero(store.keyframe)))),
        ("tracked", f"{100 * np.mean(store.is_tracked):.1f} % of frames"),
        ("segments", str(int(segments.max()) + 1)),
        ("model", str(store.attrs.get("model_card", {}).get("name", "?"))),
        ("written by", f"stream4d {store.attrs.get('stream4d_version', '?')}"),
    ]

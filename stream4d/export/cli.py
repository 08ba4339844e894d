"""``stream4d export``: write a store in formats that other programs read."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stream4d import logs
from stream4d.errors import ExportError, Stream4DError

logger = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  stream4d export video.zarr --format ply               video.ply: the static scene as coloured points
  stream4d export video.zarr --format tum --out path.txt
  stream4d export video.zarr --format colmap nerfstudio --out sets --stride 5
                                                        sets/video_colmap and sets/video_nerfstudio
"""

FORMATS = {
    "ply": ("stream4d.export.ply:write_ply", ".ply", "static cloud, coloured points"),
    "moving": ("stream4d.export.ply:write_moving_ply", "_moving", "folder: what moves, per frame"),
    "glb": ("stream4d.export.glb:write_glb", ".glb", "static cloud, camera path and frusta"),
    "splat": ("stream4d.export.splat:write_splat", "_splat.ply", "3D Gaussians to start from"),
    "siu3r": (
        "stream4d.export.siu3r:write_siu3r",
        "_siu3r.ply",
        "labelled 3D Gaussians of two frames, --stride apart, by SIU3R",
    ),
    "colmap": ("stream4d.export.colmap:write_colmap", "_colmap", "folder: binary model, pictures"),
    "colmap-text": ("stream4d.export.colmap:write_colmap", "_colmap_text", "the same as text"),
    "nerfstudio": (
        "stream4d.export.nerfstudio:write_nerfstudio",
        "_nerfstudio",
        "folder: transforms.json, pictures, depth, masks",
    ),
    "tracks": ("stream4d.export.tracks:write_tracks", "_tracks.npz", "followed points, 2D and 3D"),
    "tracks-csv": (
        "stream4d.export.tracks:write_tracks_csv",
        "_tracks.csv",
        "the same, a line per point and frame",
    ),
    "tum": ("stream4d.export.trajectory:write_tum", "_tum.txt", "timestamp tx ty tz qx qy qz qw"),
    "kitti": ("stream4d.export.trajectory:write_kitti", "_kitti.txt", "3×4 matrices, 12 numbers"),
    "json": (
        "stream4d.export.trajectory:write_json",
        "_cameras.json",
        "all that is known of cameras",
    ),
}
"""Format → ("module:function", ending of the default name, what it is)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``stream4d export``."""
    parser.add_argument("store", metavar="STORE")
    lines = "; ".join(f"{name}: {text}" for name, (_, _, text) in FORMATS.items())
    parser.add_argument(
        "--format", nargs="+", required=True, choices=FORMATS, metavar="NAME", help=lines
    )
    parser.add_argument(
        "--out", metavar="PATH", help="file or folder; with several formats the folder they go into"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier exports")
    parser.add_argument(
        "--weights", metavar="FILE|HUB_ID", help="of SIU3R, for the format siu3r [from the hub]"
    )
    group = parser.add_argument_group("selection")
    group.add_argument("--stride", type=int, default=1, metavar="N", help="every n-th frame [1]")
    group.add_argument("--segment", type=int, metavar="N", help="part between two cuts [longest]")
    group.add_argument("--max-points", type=int, metavar="N", help="bound of the cloud [1000000]")
    group.add_argument("--voxel", type=float, metavar="SIZE", help="point spacing [from the depth]")
    group.add_argument(
        "--min-confidence",
        type=float,
        default=0.2,
        metavar="P",
        help="of the depth of a point [0.2]",
    )


def run(args: argparse.Namespace) -> int:
    """Write the store in each of the formats."""
    from stream4d.store.reader import open_store

    return export(open_store(args.store), Path(args.store), args)


def export(source: Any, store_path: Path, args: argparse.Namespace) -> int:
    """Write ``source``, opened from ``store_path``, as ``args`` ask; all targets are checked first.

    Of several formats each that fails is told, and 1 returned; the others are written.
    """
    targets = {name: _target(name, store_path, args) for name in dict.fromkeys(args.format)}
    _check_targets(targets, overwrite=args.overwrite)
    if len(targets) > 1:
        _make_folder(next(iter(targets.values())).parent)
    status = 0
    for name, path in targets.items():
        try:
            _write(name, source, path, args)
        except Stream4DError as error:
            if len(targets) == 1:
                raise
            logger.error("%s: %s", name, error)
            status = 1
        else:
            logs.show(f"{name}: {path}")
    return status


def _write(name: str, source: Any, path: Path, args: argparse.Namespace) -> None:
    write, options = _writer(name, args)
    write(source, path, selection=_selection(name, args), overwrite=args.overwrite, **options)


def _target(name: str, store_path: Path, args: argparse.Namespace) -> Path:
    ending = FORMATS[name][1]
    stem = store_path.name.removesuffix(".zarr")
    if args.out is None:
        return store_path.parent / f"{stem}{ending}"
    out = Path(args.out)
    goes_inside = len(set(args.format)) > 1 or (out.is_dir() and Path(ending).suffix)
    return out / f"{stem}{ending}" if goes_inside else out


def _check_targets(targets: dict[str, Path], *, overwrite: bool) -> None:
    """Refuse before anything is written."""
    taken = [path for path in targets.values() if path.exists()]
    if taken and not overwrite:
        raise ExportError(
            f"{taken[0]} exists: choose another --out, or replace it with --overwrite"
        )
    for path in targets.values():
        if len(targets) == 1 and not path.absolute().parent.is_dir():
            raise ExportError(f"cannot write {path}: there is no folder {path.parent}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot make the folder {folder}: {error.strerror}") from None


def _writer(name: str, args: argparse.Namespace) -> tuple[Callable[..., None], dict[str, Any]]:
    import importlib

    module, _, function = FORMATS[name][0].partition(":")
    options: dict[str, Any] = {}
    if name == "colmap-text":
        options["text"] = True
    if name == "siu3r" and args.weights:
        from stream4d.models.registry import create_model

        options["model"] = create_model("siu3r", weights=args.weights)
    return getattr(importlib.import_module(module), function), options


def _selection(name: str, args: argparse.Namespace) -> Any:
    from stream4d.export import colmap
    from stream4d.export.source import Selection

    selection = Selection(segment=args.segment, stride=args.stride, voxel=args.voxel)
    keep = dataclasses.replace(selection.keep, min_confidence=args.min_confidence)
    default = colmap.MAX_POINTS if name.startswith("colmap") else selection.max_points
    max_points = default if args.max_points is None else args.max_points
    return dataclasses.replace(selection, keep=keep, max_points=max_points)

"""``stream4d refine``: refine a finished store over all its frames at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stream4d import logs
from stream4d.packets import Array

if TYPE_CHECKING:
    from stream4d.pose.offline import Refinement
    from stream4d.store.reader import Store

EXAMPLES = """\
examples:
  stream4d refine video.zarr                     better camera path, focal length and depth scale, in place
  stream4d refine video.zarr --out better.zarr   the same into another store
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``stream4d refine``."""
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--out", metavar="STORE", help="write another store [replace this one]")
    parser.add_argument("--overwrite", action="store_true", help="replace a store at --out")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="more log lines")
    parser.add_argument("-q", "--quiet", action="store_true", help="errors only")


def run(args: argparse.Namespace) -> int:
    """Refine a store; the original stays where nothing gets better, and after Ctrl-C."""
    refine_store(args.store, args.out, overwrite=args.overwrite, quiet=args.quiet)
    return 0


def refine_store(
    path: str | Path, out: str | Path | None, *, overwrite: bool = False, quiet: bool = False
) -> Refinement:
    """Refine the store at ``path`` into ``out``, or in place; return what was found.

    Raises:
        StoreError: it is unfinished or holds no images, ``out`` is taken, or another process writes one of them.
    """
    from stream4d.pose.offline import refine
    from stream4d.store.reader import open_store
    from stream4d.store.rewrite import Rewrite

    with Rewrite(path, out, overwrite=overwrite) as rewrite:
        store = open_store(path)
        if len(store):
            _ = store[0]  # a store without images says so at once
        with _Bar(quiet) as bar:
            result = refine(store, calibrated=_is_calibrated(store), on_step=bar.show)
        if result.is_better or out is not None:
            rows = {
                "world_from_cam": result.cameras.world_from_cam,
                "K": result.cameras.K,
                "depth_scale": store.depth_scale * result.cameras.depth_scale,
                "pose_covariance": _covariances(store, result),
            }
            rewrite.write(rows, {"refined": _record(result)})
    if not quiet:
        for line in _report(result, Path(out or path)):
            logs.show(line)
    return result


class _Bar:
    """A progress bar whose length is known at its first step."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._progress: logs.Progress | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)

    def show(self, _done: int, total: int) -> None:
        if self._progress is None:
            self._progress = logs.Progress(total, unit="step", quiet=self._quiet)
        self._progress.advance()


def _is_calibrated(store: Store) -> bool:
    config = store.attrs.get("config", {})
    free = config.get("chain", {}).get("refine_focal", True)
    return config.get("reader", {}).get("intrinsics") is not None or not free


def _covariances(store: Store, result: Refinement) -> Array:  # (T, 6, 6)
    """Return what is known of the errors: NaN where the path was refined, for what was stated is of the path before."""
    out = np.array(store.pose_covariance)
    for part in result.parts:
        if part.is_better:
            out[part.first : part.stop] = np.nan
    return out


def _record(result: Refinement) -> list[dict[str, object]]:
    return [
        {
            "frames": [part.first, part.stop],
            "cost": list(part.cost),
            "is_better": part.is_better,
            "reason": part.reason,
        }
        for part in result.parts
    ]


def _report(result: Refinement, where: Path) -> list[str]:
    if not result.parts:
        return ["nothing to refine: no part of the video has three keyframes"]
    lines = []
    for part in result.parts:
        before, after = part.cost
        what = f"frames {part.first}–{part.stop - 1}"
        if part.is_better:
            lines.append(f"{what}: cost of unseen points {before:.3g} → {after:.3g} σ²")
        else:
            lines.append(f"{what}: kept as they were ({part.reason})")
    return [*lines, f"refined {where}" if result.is_better else f"{where} is as it was"]

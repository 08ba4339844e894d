"""The state from which an interrupted run goes on: plain arrays in one file, replaced atomically."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stream4d.errors import StoreError
from stream4d.packets import State
from stream4d.replacement import replacing

FILE_NAME = "resume.npz"
_FRAMES, _REVISIONS = "__frames__", "__revisions__"


@dataclass(frozen=True, slots=True, eq=False)
class ResumePoint:
    """Where a resumed run begins again."""

    state: State
    """What the pipeline gave to the last snapshot."""
    snapshot_frames: int
    """Frames that were committed when the snapshot was taken."""
    frames_committed: int
    """Frames that are committed: those from ``snapshot_frames`` on come again and are passed over."""


def save_snapshot(store: Path, state: State, frames: int, revisions: int) -> None:
    """Write the state that belongs to ``frames`` committed frames.

    Raises:
        ValueError: an entry is not a plain array.
        OSError: it cannot be written.
    """
    arrays = {name: np.asarray(value) for name, value in state.items()}
    for name, value in arrays.items():
        if value.dtype.hasobject:
            raise ValueError(f"resume state {name!r} holds Python objects")
    entries = {**arrays, _FRAMES: np.array(frames), _REVISIONS: np.array(revisions)}
    with replacing(store / FILE_NAME) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, value in entries.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, value, allow_pickle=False)


def load_snapshot(store: Path, committed: int) -> tuple[ResumePoint | None, int]:
    """Return the resume point, or None without a snapshot, and how many revisions it contains.

    Raises:
        StoreError: the file is damaged, or belongs to more frames than are committed.
    """
    path = store / FILE_NAME
    if not path.exists():
        return None, 0
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            state: State = {name: archive[name] for name in archive.files}
        frames, revisions = int(state.pop(_FRAMES)), int(state.pop(_REVISIONS))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path} is damaged ({error}): delete it to replay from the first frame, or --overwrite"
        ) from None
    if frames > committed:
        raise StoreError(
            f"{path} belongs to {frames} frames but {committed} are committed: --overwrite"
        )
    return ResumePoint(state, frames, committed), revisions


def remove_snapshot(store: Path) -> None:
    """Delete the snapshot of a run that has ended."""
    (store / FILE_NAME).unlink(missing_ok=True)

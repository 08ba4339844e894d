"""Where a store is written: what may be replaced, how it gets there, and that only one run writes it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stream4d.claim import claim
from stream4d.errors import StoreError
from stream4d.store.metadata import check_resumable, read_attributes, read_root


def only_writer(path: Path) -> contextlib.AbstractContextManager[None]:
    """Be the only one who writes the store at ``path``, or replaces it, until the ``with`` block ends.

    Raises:
        StoreError: another process does.
        OSError: the folder around it cannot be written.
    """
    home = path.resolve()
    return claim(home.with_name(f".{home.name}.lock"), path, StoreError)


def has_store_to_resume(path: Path, *, overwrite: bool, resume: bool) -> bool:
    """Tell whether there is a store to go on with.

    Raises:
        StoreError: what is there must not be touched.
    """
    # os.path: unlike Path.exists, False for a name that is too long, which writing tells of
    if not os.path.exists(path) or (path.is_dir() and not any(path.iterdir())):
        if not path.parent.is_dir():
            raise StoreError(
                f"the folder {path.parent} does not exist: create it, or choose another --out"
            )
        if not os.access(path.parent, os.W_OK):
            raise StoreError(f"the folder {path.parent} cannot be written: choose another --out")
        return False
    attributes = read_attributes(read_root(path), path)  # refuses what is not a stream4d store
    if not overwrite and not resume:
        go_on = "" if attributes["complete"] else "--resume to go on with it, "
        raise StoreError(f"{path} exists: give {go_on}--overwrite to replace it, or another --out")
    return resume


def begins_anew(
    path: Path, attributes: Mapping[str, Any], *, overwrite: bool, resume: bool
) -> bool:
    """Tell whether a run with these root attributes begins a new store, or goes on with the one there.

    Raises:
        StoreError: what is there must not be touched, or was begun otherwise.
    """
    if not has_store_to_resume(path, overwrite=overwrite, resume=resume):
        return True
    check_resumable(path, attributes)
    return False


def check_nobody_writes(path: Path) -> None:
    """Raise now rather than when writing begins: what comes between, such as loading a model, may take minutes.

    Raises:
        StoreError: another process writes there.
    """
    with contextlib.suppress(OSError), only_writer(path):
        pass  # a folder that cannot be written is told of by those who look at it


def fresh_folder(path: Path) -> Path:
    """Make the hidden folder beside ``path`` that becomes the store at the first commit."""
    folder = path.with_name(f".{path.name}.partial")
    if folder.exists():  # left by a run that was killed
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


def move_into_place(folder: Path, path: Path) -> None:
    """Let the new store take its name; an old store there goes, but not before."""
    if not path.exists():
        os.rename(folder, path)
        return
    old = path.with_name(f".{path.name}.old")
    if old.exists():
        shutil.rmtree(old)
    os.rename(path, old)
    os.rename(folder, path)
    shutil.rmtree(old)


def write_failure(path: Path, error: BaseException, committed: int) -> str:
    """Say in one line why writing failed and what is safe."""
    reason = getattr(error, "strerror", None) or str(error)
    kept = f"; {committed} frames are safe, --resume goes on from there" if committed else ""
    return f"cannot write {path}: {reason}{kept}"

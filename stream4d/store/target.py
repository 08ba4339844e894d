"""Where a store is written: what may be replaced, how it gets there, and that only one run writes it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import BinaryIO

from stream4d.errors import StoreError
from stream4d.store.metadata import read_attributes, read_root

_LOCK_NAME = ".writing"


def has_store_to_resume(path: Path, *, overwrite: bool, resume: bool) -> bool:
    """Tell whether there is a store to go on with.

    Raises:
        StoreError: what is there must not be touched.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        if not path.parent.is_dir():
            raise StoreError(
                f"the folder {path.parent} does not exist: create it, or choose another --out"
            )
        return False
    attributes = read_attributes(read_root(path), path)  # refuses what is not a stream4d store
    if not overwrite and not resume:
        go_on = "" if attributes["complete"] else "--resume to go on with it, "
        raise StoreError(f"{path} exists: give {go_on}--overwrite to replace it, or another --out")
    return resume


def fresh_folder(path: Path) -> Path:
    """Make the hidden folder beside ``path`` that becomes the store at the first commit."""
    folder = path.with_name(f".{path.name}.partial")
    if folder.exists():  # left by a run that was killed, unless one is at it
        lock(folder).close()
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


def lock(folder: Path) -> BinaryIO:
    """Claim a store folder for this process until the file returned is closed, or the process dies.

    Raises:
        StoreError: another process is writing there.
    """
    file = (folder / _LOCK_NAME).open("wb")
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise StoreError(
                f"another process is writing {folder}: wait for it, or stop it"
            ) from None
    return file


def remove_lock(folder: Path) -> None:
    """Take the lock file out of a finished store."""
    (folder / _LOCK_NAME).unlink(missing_ok=True)

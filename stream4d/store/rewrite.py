"""Write a finished store anew with other rows: the maps stay as they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stream4d.errors import StoreError
from stream4d.packets import Array
from stream4d.store.files import RowFile, replace_file
from stream4d.store.integrity import check_intact
from stream4d.store.metadata import read_attributes, read_root
from stream4d.store.schema import BY_NAME
from stream4d.store.target import (
    fresh_folder,
    has_store_to_resume,
    lock,
    move_into_place,
    remove_lock,
)


def check_rewritable(source: str | Path, target: str | Path | None, *, overwrite: bool) -> None:
    """Raise before the work rather than after it.

    Raises:
        StoreError: the source is unfinished, damaged or remote, or the target is taken.
    """
    if "://" in str(source) or "://" in str(target):
        raise StoreError(f"stores are rewritten in local folders: copy {source} here first")
    path = Path(source).absolute()
    root = read_root(path)
    if not read_attributes(root, path)["complete"]:
        raise StoreError(f"{path} is unfinished: give the same run --resume to finish it first")
    check_intact(path, root)
    if target is not None and Path(target).absolute() != path:
        has_store_to_resume(Path(target).absolute(), overwrite=overwrite, resume=False)


def rewrite(
    source: str | Path,
    target: str | Path | None,
    rows: Mapping[str, Array],
    attributes: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write ``source`` with whole arrays of rows replaced; ``target`` None replaces the store itself.

    The new store is made in a hidden folder and takes its name when it is whole: whatever happens before that,
    Ctrl-C included, leaves both places as they were.

    Raises:
        StoreError: see ``check_rewritable``; or the disk is full.
    """
    check_rewritable(source, target, overwrite=overwrite)
    path = Path(source).absolute()
    to = path if target is None else Path(target).absolute()
    root = read_root(path)
    root["attributes"] |= attributes
    folder = fresh_folder(to)
    try:
        with lock(folder):
            # The old store goes when the new one takes its place, so that they may share the large files.
            _copy(path, folder, os.link if to == path else shutil.copyfile)
            frames = np.arange(root["attributes"]["committed"])
            for name, values in rows.items():
                RowFile(folder / name, BY_NAME[name], len(frames)).put(frames, values)
            replace_file(folder / "zarr.json", json.dumps(root).encode())
        remove_lock(folder)
        move_into_place(folder, to)
    except OSError as error:
        raise StoreError(f"cannot write {to}: {error.strerror}; {path} is as it was") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(source: Path, folder: Path, share: Callable[[str, str], Any]) -> None:
    def copy(a: str, b: str) -> Any:
        name = Path(a).parent.name
        is_map = name in BY_NAME and BY_NAME[name].is_map and Path(a).name.startswith("c.")
        try:
            return (share if is_map else shutil.copyfile)(a, b)
        except PermissionError:  # a file system without hard links
            return shutil.copyfile(a, b)

    shutil.copytree(source, folder, copy_function=copy, dirs_exist_ok=True)

"""Write a finished store anew with other rows: the maps stay as they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from stream4d.errors import StoreError
from stream4d.packets import Array
from stream4d.store.files import RowFile, replace_file
from stream4d.store.integrity import check_intact
from stream4d.store.metadata import read_attributes, read_root
from stream4d.store.schema import BY_NAME
from stream4d.store.target import (
    check_nobody_writes,
    fresh_folder,
    has_store_to_resume,
    move_into_place,
    only_writer,
)


class Rewrite:
    """A claim on a finished store and the place of its new version, for as long as the ``with`` block.

    Entering raises before the work what would stop it at its end; nobody else writes either place meanwhile.

    Args:
        source: the store to read.
        target: where the new version goes; None replaces the store itself.
        overwrite: replace a store at ``target``.

    Raises:
        StoreError: on entering; the source is unfinished, damaged or remote, the target is taken, or another
            process writes one of them.
    """

    def __init__(
        self, source: str | Path, target: str | Path | None = None, *, overwrite: bool = False
    ) -> None:
        if "://" in str(source) or "://" in str(target):
            raise StoreError(f"stores are rewritten in local folders: copy {source} here first")
        self._path = Path(source).absolute()
        self._to = self._path if target is None else Path(target).absolute()
        self._overwrite = overwrite
        self._claims = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as claims:
            check_nobody_writes(self._path)
            self._root = read_root(self._path)
            if not read_attributes(self._root, self._path)["complete"]:
                raise StoreError(
                    f"{self._path} is unfinished: give the same run --resume to finish it first"
                )
            check_intact(self._path, self._root)
            if self._to != self._path:
                has_store_to_resume(self._to, overwrite=self._overwrite, resume=False)
            try:
                claims.enter_context(only_writer(self._to))
            except OSError as error:
                raise StoreError(f"cannot write {self._to}: {error.strerror}") from None
            self._claims = claims.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._claims.close()

    def write(self, rows: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
        """Write the store with whole arrays of rows replaced, and with these root attributes more.

        The new store is made in a hidden folder and takes its name when it is whole: whatever happens before that,
        Ctrl-C included, leaves both places as they were.

        Raises:
            StoreError: the disk is full, or the source is no longer the store that was read.
        """
        if read_root(self._path) != self._root:
            raise StoreError(f"{self._path} was replaced meanwhile: start again")
        root = {**self._root, "attributes": {**self._root["attributes"], **attributes}}
        folder = fresh_folder(self._to)
        try:
            # The old store goes when the new one takes its place, so that they may share the large files.
            _copy(self._path, folder, os.link if self._to == self._path else shutil.copyfile)
            frames = np.arange(root["attributes"]["committed"])
            for name, values in rows.items():
                RowFile(folder / name, BY_NAME[name], len(frames)).put(frames, values)
            replace_file(folder / "zarr.json", json.dumps(root).encode())
            move_into_place(folder, self._to)
        except OSError as error:
            raise StoreError(
                f"cannot write {self._to}: {error.strerror}; {self._path} is as it was"
            ) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _copy(source: Path, folder: Path, share: Callable[[str, str], Any]) -> None:
    """Copy a store; not with ``copytree``, which gathers errors and goes on where the disk is full."""
    for old in source.rglob("*"):
        new = folder / old.relative_to(source)
        if old.is_dir():
            new.mkdir(parents=True, exist_ok=True)
            continue
        new.parent.mkdir(parents=True, exist_ok=True)
        name = old.parent.name
        is_map = name in BY_NAME and BY_NAME[name].is_map and old.name.startswith("c.")
        try:
            (share if is_map else shutil.copyfile)(str(old), str(new))
        except PermissionError:  # a file system without hard links
            shutil.copyfile(old, new)

"""Where exports go: written beside the target under another name, and moved there when complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stream4d.errors import ExportError
from stream4d.replacement import replacing


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary file to write; it takes the place of ``path`` if nothing fails, else it vanishes.

    Raises:
        ExportError: the target exists (without ``overwrite``) or cannot be written.
    """
    _check(path, overwrite=overwrite)
    if path.is_dir():
        raise ExportError(f"{path} is a folder; give the name of a file")
    try:
        with replacing(path) as partial:
            yield partial
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def new_folder(path: Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the place of ``path`` if nothing fails, else it vanishes.

    Args:
        path: the folder to make.
        marker: a file, relative to the folder, that every export of this format has. An existing folder
            without it is something else and is never replaced.
        overwrite: replace an earlier export.

    Raises:
        ExportError: the target exists (without ``overwrite``), is not an earlier export, or cannot be written.
    """
    is_empty = path.is_dir() and not any(path.iterdir())
    if not is_empty:
        _check(path, overwrite=overwrite)
        if path.exists() and not (path / marker).exists():
            raise ExportError(f"{path} is not an earlier export (it has no {marker}): not replaced")
    try:
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        _replace_folder(partial, path)
    except ExportError as error:  # of a file in it, which has never had another name for the user
        raise ExportError(str(error).replace(str(partial), str(path))) from None
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(new: Path, path: Path) -> None:
    """Move ``new`` to ``path``; what was there stays until the move has worked."""
    if not path.exists():
        os.replace(new, path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-old-"))
    os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old)


def _check(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ExportError(f"{path} exists: choose another name, or replace it with --overwrite")


def _umask() -> int:
    # There is no way to read the mask without setting it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask

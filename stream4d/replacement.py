"""Files that are replaced whole: a reader, or a kill at any moment, finds the old one or the new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path``, hidden and of the same suffix, to write; what is there then takes its place.

    Where the ``with`` block raises, it vanishes and the old file stays.

    Raises:
        OSError: it cannot be made, or cannot take the place.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        partial.touch()
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise

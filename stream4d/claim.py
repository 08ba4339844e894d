"""Only one process writes one place: a lock that says who holds it, and vanishes with its process.

The lock is a file beside (or in) what is written, never part of it; readers do not look at it. What counts is the
operating system's lock on that file, not that the file is there: after ``kill -9`` it may stay, and stops nobody.
On POSIX it is a record lock: forked workers that outlive their parent do not inherit it, and network file systems
pass it on where they know locks at all.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stream4d.errors import Stream4DError

logger = logging.getLogger(__name__)

_BYTE = 1 << 20
"""The byte that is locked: far behind what is written, since Windows lets nobody read a locked byte."""
_TAKEN = (errno.EAGAIN, errno.EACCES)
"""What the systems say where another process holds the lock."""

_held: dict[Path, str] = {}
"""Lock files that this process holds, and since when. A record lock does not keep runs of one process apart, and
is lost where the process opens and closes its file once more: so this is asked first."""
_guard = threading.Lock()


@contextlib.contextmanager
def claim(lock_file: Path, target: Path, error: type[Stream4DError]) -> Iterator[None]:
    """Keep other processes, and other runs in this one, from writing ``target`` meanwhile.

    Where the file system knows no locks, a warning is all there is.

    Args:
        lock_file: made where it is missing, removed in the end. Its folder must exist.
        target: what is protected, for the message.
        error: raised where it is taken.

    Raises:
        Stream4DError: of the given type; another process, or another run in this one, writes ``target``.
        OSError: the lock file cannot be made.
    """
    lock_file = lock_file.parent.resolve() / lock_file.name
    with _guard:
        file = None if lock_file in _held else _open_locked(lock_file, target)
        if file is None:
            holder = _held.get(lock_file) or _read_holder(lock_file)
            raise error(
                f"{target} is being written by {holder}: wait for its end, stop it, or choose another --out"
            )
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        _held[lock_file] = f"this very process since {since}"
    owner = os.getpid()
    try:
        with contextlib.suppress(
            OSError
        ):  # a full disk: the lock holds, it only cannot say for whom
            file.truncate(0)
            me = {"pid": owner, "host": socket.gethostname(), "since": since}
            file.write(json.dumps(me).encode())
        yield
    finally:
        if os.getpid() == owner:  # and not a forked worker on its way out
            _release(file, lock_file)


def _open_locked(path: Path, target: Path) -> BinaryIO | None:
    """Open the lock file and lock it; None where another process has."""
    while True:
        file = path.open("a+b", buffering=0)
        try:
            _lock(file.fileno())
        except OSError as error:
            if error.errno in _TAKEN:
                file.close()
                return None
            _warn_once(target, error.strerror)
            return file
        if _is_at(path, file):
            return file
        file.close()  # its holder removed it between our opening and locking: there may be a new one


def _lock(number: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(number, _BYTE, os.SEEK_SET)
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        os.lseek(number, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _BYTE)


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _release(file: BinaryIO, path: Path) -> None:
    """Remove the lock file while it is locked, so that nobody else's goes; Windows wants it closed first."""
    if sys.platform == "win32":
        file.close()
    with contextlib.suppress(OSError):
        path.unlink()
    file.close()
    with _guard:
        del _held[path]


def _read_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        where = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
        return f"process {holder['pid']}{where} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun, or could not write
        return "another process"


@functools.cache
def _warn_once(target: Path, reason: str) -> None:
    logger.warning(
        "cannot lock %s (%s): make sure that nothing else writes there meanwhile", target, reason
    )

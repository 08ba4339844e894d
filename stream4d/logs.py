"""What the command line shows: log lines, the one progress bar, plain output. Libraries never configure these."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from stream4d.errors import Stream4DError

PATIENCE_S = 4.0
"""How long work may stay silent before its first result."""
LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"


class _ProgressSafeHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Write log lines above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except OSError:
            self.handleError(record)


def configure(verbosity: int = 0) -> None:
    """Send log lines to stderr: -1 errors only, 0 warnings, 1 info, 2 and above debug."""
    # OpenCV's own warning about a broken image would stand beside our error. It reads this when it is imported.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = _ProgressSafeHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT if verbosity > 0 else "%(message)s"))
    logger = logging.getLogger("stream4d")
    logger.handlers[:] = [handler]
    logger.setLevel(level)


def show(text: str = "", *, unread: int = 0) -> None:
    """Write a line of result to stdout; a closed pipe (``| head``) ends the program quietly.

    Args:
        text: the line.
        unread: the exit status where nobody reads on.

    Raises:
        Stream4DError: stdout goes where nothing can be written: a file on a full disk.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        # Python would flush again at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(unread) from None
        raise Stream4DError(f"cannot write to the standard output: {error.strerror}") from None


def show_json(values: Mapping[str, object]) -> None:
    """Write a line of JSON to stdout; where its reader has gone the work ends as by the signal SIGPIPE."""
    show(json.dumps(values), unread=141)


def say(text: str) -> None:
    """Write a line to stderr, if anybody can read it: work goes on without."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")


def open_closed_streams() -> None:
    """Let what is said go nowhere where a standard stream is closed (``>&-``), instead of into the next open file."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The system gives the lowest free number, which is the one that is missing.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


class Progress:
    """The one progress bar: frames done, rate and time left.

    Where stderr is no terminal, a line every ten seconds says how far the work is.

    Args:
        total: how many there will be, or None.
        unit: what is counted.
        quiet: show nothing.
        done: how many an earlier run has done.
        patience: what to say where the first result takes longer than a few seconds.
    """

    def __init__(
        self,
        total: int | None,
        *,
        unit: str = "frame",
        quiet: bool = False,
        done: int = 0,
        patience: str = "",
    ) -> None:
        from tqdm import tqdm

        self._interactive = sys.stderr.isatty()
        self._quiet = quiet
        self._total = total
        self._unit = unit
        self._before = self._done = done
        self._first = self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=unit,
            disable=quiet or not self._interactive,
            dynamic_ncols=True,
            smoothing=0.05,
            leave=False,
        )
        self._patience = threading.Timer(PATIENCE_S, self._say, [patience])
        self._patience.daemon = True
        if patience and not quiet:
            self._patience.start()

    def _say(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._patience.cancel()
        self._bar.close()

    def expect(self, total: int | None) -> None:
        """Change how many there will be."""
        self._total = self._bar.total = total

    def advance(self, note: str = "") -> None:
        """Count one more; ``note`` is shown behind the bar."""
        self._done += 1
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update()
        now = time.monotonic()
        if self._done == self._before + 1:
            self._patience.cancel()
            # What comes before the first result (loading, compiling) says nothing of the rate.
            self._first = self._last_line = now
        if not self._interactive and not self._quiet and now - self._last_line > 10:
            self._last_line = now
            rate = (self._done - self._before - 1) / (now - self._first)
            of = ""
            if self._total:
                left = max(self._total - self._done, 0) / rate
                of = f" of {self._total}, {left:.0f} s left"
            rest = f"; {note}" if note else ""
            say(f"{self._done} {self._unit}s{of}, {rate:.1f}/s{rest}")


class JsonProgress:
    """Progress for programs: a line of JSON on stdout at the beginning and for each step.

    Args:
        total: how many there will be, or None.
        done: how many an earlier run has done.
    """

    def __init__(self, total: int | None, *, done: int = 0) -> None:
        self._total, self._done = total, done

    def __enter__(self) -> Self:
        self._tell()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def advance(self) -> None:
        """Count one more."""
        self._done += 1
        self._tell()

    def _tell(self) -> None:
        show_json({"done": self._done, "of": self._total})

"""Ctrl-C: the first one ends work cleanly, the second at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def first_ctrl_c(stop: Callable[[], None], *, announce: str) -> Iterator[None]:
    """Call ``stop`` at the first SIGINT and say ``announce``; the second raises ``KeyboardInterrupt``."""
    stopping = False

    def on_signal(_signum: int, _stack: object) -> None:
        nonlocal stopping
        if stopping:
            raise KeyboardInterrupt
        stopping = True
        stop()
        sys.stderr.write(f"\n{announce} (Ctrl-C again: at once)\n")

    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

"""Ctrl-C and SIGTERM: the first one ends work cleanly, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stream4d import logs

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""SIGTERM is how ``kill``, systemd and containers ask."""


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise ``KeyboardInterrupt``, so that what was begun is tidied up; in the main thread, that is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def first_ctrl_c(stop: Callable[[], None], *, announce: str) -> Iterator[None]:
    """Call ``stop`` at the first SIGINT or SIGTERM and say ``announce``; the second raises ``KeyboardInterrupt``."""
    stopping = False

    def on_signal(_signum: int, _stack: object) -> None:
        nonlocal stopping
        if stopping:
            raise KeyboardInterrupt
        stopping = True
        stop()
        logs.say(f"\n{announce} (Ctrl-C again: at once)")

    previous = {each: signal.signal(each, on_signal) for each in STOP_SIGNALS}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)

"""Work ahead in a thread, with a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()
_POLL_S = 0.05


def prefetch(items: Iterable[T], size: int, name: str = "decode") -> Generator[T]:
    """Yield ``items``, made by a thread that runs at most ``size`` items ahead.

    An exception in the thread is raised here, after the items before it. Closing or dropping the generator
    ends the thread and waits for it.
    """
    ahead: queue.Queue[Any] = queue.Queue(maxsize=size)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_fill, args=(items, ahead, stopped), name=f"stream4d-{name}", daemon=True
    )
    thread.start()
    try:
        while True:
            item, error = ahead.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


def _fill(items: Iterable[Any], ahead: queue.Queue[Any], stopped: threading.Event) -> None:
    iterator = iter(items)
    try:
        for item in iterator:
            if not _put(ahead, (item, None), stopped):
                break
        else:
            _put(ahead, (_END, None), stopped)
    except BaseException as error:
        _put(ahead, (_END, error), stopped)
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _put(ahead: queue.Queue[Any], entry: Any, stopped: threading.Event) -> bool:
    """Wait for room; give up when the consumer has left."""
    while not stopped.is_set():
        try:
            ahead.put(entry, timeout=_POLL_S)
            return True
        except queue.Full:
            continue
    return False

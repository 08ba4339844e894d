"""Two ways to hand work to a thread: a mailbox that forgets, and a queue that waits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """One slot: a new item replaces one that was not fetched. The giver never waits."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self.dropped = 0
        """Items that were replaced before anyone fetched them."""

    def put(self, item: T) -> None:
        """Leave an item; never blocks."""
        with self._condition:
            self.dropped += self._item is not None
            self._item = item
            self._condition.notify()

    def get(self) -> T | None:
        """Wait for an item; None after ``close`` once the slot is empty."""
        with self._condition:
            self._condition.wait_for(lambda: self._item is not None or self._closed)
            item, self._item = self._item, None
            return item

    def close(self) -> None:
        """Let ``get`` return what is left, then None."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()


class WaitingQueue(Generic[T]):
    """A bounded queue: nothing is lost, a full queue makes the giver wait."""

    def __init__(self, size: int) -> None:
        self._queue: queue.Queue[T | None] = queue.Queue(size)
        self._stopped = threading.Event()
        self.dropped = 0
        """Always 0; here so that both kinds report alike."""

    def put(self, item: T | None) -> None:
        """Add an item; waits while the queue is full, returns at once when nobody fetches any more."""
        while not self._stopped.is_set():
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue

    def get(self) -> T | None:
        """Wait for an item; None after ``close`` once the queue is empty."""
        return self._queue.get()

    def close(self) -> None:
        """Let ``get`` return what is left, then None."""
        self.put(None)

    def stop(self) -> None:
        """Say that nobody will fetch any more."""
        self._stopped.set()


class Worker(Generic[T]):
    """A thread that feeds items to ``handle`` until its source closes; keeps the first error."""

    def __init__(
        self, name: str, source: Mailbox[T] | WaitingQueue[T], handle: Callable[[T], None]
    ) -> None:
        self.error: Exception | None = None
        self._source = source
        self._handle = handle
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (item := self._source.get()) is not None:
            try:
                self._handle(item)
            except Exception as error:  # any fault of a view must reach the owner, not vanish
                self.error = error
                break
        if isinstance(self._source, WaitingQueue):
            self._source.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Close the source and wait for the rest; False if that took longer than ``timeout`` seconds."""
        self._source.close()
        self._thread.join(timeout)
        return not self._thread.is_alive()

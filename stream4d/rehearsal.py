"""Goes through steps in a thread that a run needs later, so that their kernels are at hand by then.

On a machine's first run they are compiled, which takes as long as hundreds of frames: not while a camera waits. Later
runs read them from numba's cache, in a tenth of a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


class Rehearsal:
    """A thread that goes through the steps, once.

    It is no daemon: an interpreter that ends in the midst of compiling would crash.
    """

    def __init__(self, steps: Sequence[Callable[[], None]]) -> None:
        self._steps = steps
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, where that has not been done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stream4d-rehearsal")
            self._thread.start()

    def stop(self) -> None:
        """Skip what has not begun; a later run does it. Does not wait for the step in hand."""
        self._stopped.set()

    def wait(self) -> None:
        """Wait for the end."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        for step in self._steps:
            if not self._stopped.is_set():
                step()

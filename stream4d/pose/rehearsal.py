"""Closes a loop of three nodes in a thread, so that the kernels are at hand before the first real loop.

On a machine's first run they are compiled, which takes as long as hundreds of frames: not while a camera waits. Later
runs read them from numba's cache, in a tenth of a second.
"""

from __future__ import annotations

import threading

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose import _kernels_loops, graph, recognise


class Rehearsal:
    """A thread that goes through the steps of closing a loop, once.

    It is no daemon: an interpreter that ends in the midst of compiling would crash.
    """

    def __init__(self) -> None:
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
        for step in (_recognise, _measure, _optimise):
            if not self._stopped.is_set():
                step()


def _recognise() -> None:
    """Fit a similarity to one patch in one camera, as ``recognise`` does to many."""
    first = np.zeros(1, np.int64)
    _kernels_loops.fit_similarity(
        np.ones(4), np.ones((1, 3)), np.ones(1), np.ones(1), np.eye(3, 4)[None].copy(), first, first,
        np.zeros((1, 2)), np.ones((1, 3)), np.eye(3, 4), recognise.SCHEDULE, np.zeros(1), np.zeros((7, 7)),
    )  # fmt: skip


def _measure() -> None:
    graph.optimise(*_triangle(), np.zeros(3, bool))


def _optimise() -> None:
    graph.optimise(*_triangle(), np.arange(3) > 0)


def _triangle() -> tuple[Array, graph.Edges]:
    """Return three nodes on a line and a loop that does not quite agree with their steps."""
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = 0, 1, 2
    nodes = np.array([[0, 1], [1, 2], [0, 2]])
    measured = transforms.invert(poses[nodes[:, 0]]) @ poses[nodes[:, 1]]
    measured[2, 0, 3] += 0.1
    is_loop = np.array([False, False, True])
    return poses, graph.Edges(nodes, measured, np.tile(np.eye(7), (3, 1, 1)), is_loop)

"""Which source frames are taken: start, end, stride or rate, and how many."""

from __future__ import annotations

import numpy as np

from stream4d.config import ReaderConfig
from stream4d.packets import Array

SECOND_NS = 1_000_000_000
_SLACK_NS = 1_000_000
"""Containers round times to as little as 1 ms: a frame that is due within it is due."""


class Selector:
    """Decide frame by frame, in order. The same decisions whether or not the whole timeline is known."""

    def __init__(self, config: ReaderConfig) -> None:
        self._start_ns = round(config.start * SECOND_NS)
        self._end_ns = None if config.end is None else round(config.end * SECOND_NS)
        self._stride = config.stride
        self._period_ns = None if config.fps is None else SECOND_NS / config.fps
        self._max_frames = config.max_frames
        self._seen = 0
        self._taken = 0
        self._due_ns = float(self._start_ns)

    def is_over(self, timestamp_ns: int) -> bool:
        """Tell that no frame from this time on will be taken."""
        past_end = self._end_ns is not None and timestamp_ns >= self._end_ns
        return past_end or (self._max_frames is not None and self._taken >= self._max_frames)

    def takes(self, timestamp_ns: int) -> bool:
        """Decide on the next frame of the source."""
        if timestamp_ns < self._start_ns or self.is_over(timestamp_ns):
            return False
        taken = self._by_stride() if self._period_ns is None else self._by_rate(timestamp_ns)
        self._taken += taken
        return taken

    def _by_stride(self) -> bool:
        self._seen += 1
        return (self._seen - 1) % self._stride == 0

    def _by_rate(self, timestamp_ns: int) -> bool:
        """Take the first frame at or after each due time; due times stay on one grid, so nothing drifts."""
        assert self._period_ns is not None
        if timestamp_ns + _SLACK_NS < self._due_ns:
            return False
        late = (timestamp_ns + _SLACK_NS - self._due_ns) // self._period_ns
        self._due_ns += (late + 1) * self._period_ns
        return True


def select(timeline: Array, config: ReaderConfig) -> Array:
    """Return the source indices taken from a known timeline, increasing."""
    selector = Selector(config)
    return np.array([i for i, t in enumerate(timeline.tolist()) if selector.takes(t)], np.int64)


def even_timeline(count: int, fps: float) -> Array:
    """Return the times of ``count`` frames at a constant rate, ns."""
    return np.round(np.arange(count) * (SECOND_NS / fps)).astype(np.int64)

"""A frame on its way to a view, and the Rerun stream that takes it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import rerun as rr

from stream4d.packets import PosedFrame
from stream4d.viz.scene_log import Timing

APPLICATION = "stream4d"
QUEUE = 8
"""Frames waiting for the recording file, or for the viewer in a replay."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame on its way to a view."""

    frame: PosedFrame
    captured_ns: int
    """On the monotonic clock."""
    timing: Timing | None
    """As known on arrival; None: not shown."""

    def timing_in_view(self) -> Timing | None:
        """Return the timing with the latency up to this moment."""
        latency_ms = (time.monotonic_ns() - self.captured_ns) / 1e6
        return self.timing and Timing(self.timing.fps, latency_ms)


def new_recording(name: str, batches: rr.ChunkBatcherConfig | None = None) -> rr.RecordingStream:
    """Start the data of a view; ``name`` is what the viewer calls it."""
    recording = rr.RecordingStream(APPLICATION, batcher_config=batches)
    recording.send_recording_name(name)
    # Wall clock and log order would only clutter the list of timelines.
    recording.set_log_time_enabled(False)
    recording.set_log_tick_enabled(False)
    return recording

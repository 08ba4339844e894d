"""The viewer as a sink: a live Rerun window or web page, a recording file, or both at once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from stream4d.config import ViewConfig
from stream4d.packets import PosedFrame, PoseRevision, State
from stream4d.viz.arrival import Arrival, new_recording
from stream4d.viz.live_view import LiveView
from stream4d.viz.recording_file import RecordingFile, check_target
from stream4d.viz.scene_log import SceneLog, Timing
from stream4d.viz.viewer_process import ViewerProcess, start_native, start_web

FPS_SECONDS = 3.0
"""Time over which fps is averaged; frames come in bursts, one per window."""


class RerunSink:
    """Shows posed frames in Rerun; does nothing where neither a view nor a recording is asked for.

    Args:
        config: what to open, and where.
        name: what the viewer calls this run.
        overwrite: replace an existing recording file.
        drop: False shows every frame and lets the giver wait: for a replay.
        earlier: frames of the run that this one resumes: they begin its recording, which replaces an existing one.
        clock: turns ``PosedFrame.timestamp_ns`` into the moment of capture on ``time.monotonic_ns``, for the
            latency of a live source. Default: latency counts from ``write``.

    Raises:
        Stream4DError: on entering: no display, no viewer, port taken, file not writable or present already.
    """

    def __init__(
        self,
        config: ViewConfig,
        name: str,
        *,
        overwrite: bool = False,
        drop: bool = True,
        earlier: Sequence[PosedFrame] = (),
        clock: Callable[[int], int] | None = None,
    ) -> None:
        self._config = config
        self._name = name
        self._overwrite = overwrite
        self._drop = drop
        self._earlier = earlier
        self._clock = clock
        self._live: LiveView | None = None
        self._file: RecordingFile | None = None
        self._arrivals: deque[int] = deque()
        self._entered_ns = 0

    @property
    def page(self) -> str | None:
        """Address of the web view, or None."""
        return self._live.viewer.page if self._live else None

    @property
    def dropped(self) -> int:
        """Frames that the live view did not show."""
        return self._live.source.dropped if self._live else 0

    def __enter__(self) -> Self:
        self._entered_ns = time.monotonic_ns()
        max_points, timing = self._config.max_points, self._drop
        path = Path(self._config.save_rrd) if self._config.save_rrd else None
        if path is not None:
            check_target(path, overwrite=self._overwrite or len(self._earlier) > 0)
        if self._config.mode != "none":
            viewer = _start_viewer(self._config)
            recording = new_recording(self._name)
            recording.connect_grpc(viewer.url)
            log = SceneLog(recording, max_points=max_points, timing=timing, fit_at_end=False)
            self._live = LiveView(viewer, recording, log, drop=self._drop)
        if path is not None:
            self._file = RecordingFile(path, self._name, max_points=max_points, timing=timing)
            for frame in self._earlier:
                self._file.write(Arrival(frame, self._entered_ns, None))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the recording; a window or page stays open (see ``wait`` and ``close``)."""
        if self._live is not None:
            self._live.finish()
        if self._file is not None:
            self._file.finish(failed=exc_type is not None)

    def write(self, frame: PosedFrame) -> None:
        """Pass a frame to the views. Waits only where a recording cannot keep up."""
        arrival = self._receive(frame)
        if self._live is not None:
            self._live.write(arrival)
        if self._file is not None:
            self._file.write(arrival)

    def revise(self, revision: PoseRevision) -> None:
        """Move camera path and cloud to better poses."""
        if self._live is not None:
            self._live.revise(revision)
        if self._file is not None:
            self._file.write(revision)

    def commit(self, resume_state: Callable[[], State]) -> None:
        """Do nothing: a view keeps nothing to resume from."""

    def wait(self) -> None:
        """Keep serving the web view until the user interrupts or it ends; returns at once without one."""
        if self._live is not None and self.page is not None:
            try:
                self._live.viewer.wait()
            except KeyboardInterrupt:
                self.close()

    def close(self) -> None:
        """End the web server. A native window belongs to the user and stays."""
        if self._live is not None and self.page is not None:
            self._live.viewer.close()

    def _receive(self, frame: PosedFrame) -> Arrival:
        now = time.monotonic_ns()
        captured = self._clock(frame.timestamp_ns) if self._clock else now
        if not self._drop:
            return Arrival(frame, captured, None)
        latency_ms = (now - captured) / 1e6 if self._clock else None
        return Arrival(frame, captured, Timing(self._fps(now), latency_ms))

    def _fps(self, now: int) -> float | None:
        """Count the frames of the last seconds."""
        self._arrivals.append(now)
        span = int(FPS_SECONDS * 1e9)
        while self._arrivals[0] < now - span:
            self._arrivals.popleft()
        elapsed = min(now - self._entered_ns, span)
        return len(self._arrivals) * 1e9 / elapsed if elapsed > span // 6 else None


def _start_viewer(config: ViewConfig) -> ViewerProcess:
    if config.mode == "native":
        return start_native()
    return start_web(config.host, config.port)

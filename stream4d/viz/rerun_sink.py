"""The viewer as a sink: a live Rerun window or web page, a recording file, or several at once.

The live view takes the latest frame from a one-slot mailbox: it drops, never delays the pipeline, and a fault of
the view ends the view, not the run. A recording holds every frame: its queue is bounded and waits.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import rerun as rr

from stream4d.config import ViewConfig
from stream4d.errors import Stream4DError
from stream4d.packets import PosedFrame, PoseRevision, State, VideoInfo
from stream4d.viz.mailbox import Mailbox, WaitingQueue, Worker
from stream4d.viz.scene_log import SceneLog, Timing
from stream4d.viz.viewer_process import ViewerProcess, start_native, start_web

logger = logging.getLogger(__name__)

APPLICATION = "stream4d"
QUEUE = 8
"""Frames waiting for the recording file, or for the viewer in a replay."""
FPS_SECONDS = 3.0
"""Time over which fps is averaged; frames come in bursts, one per window."""
BATCHES = rr.ChunkBatcherConfig(flush_tick=10.0, flush_num_bytes=1 << 17)
"""Of a recording, per entity: longer columns than for a live view. The file's writer keeps a list of all batches, and
the batches themselves until they are full: 128 KiB keeps the sum flat (+1 kB per frame over 3000 frames)."""
CHECK_EVERY = 64
"""Frames between looks at whether the recording's writer, which does not tell, still writes."""
ANSWER_SECONDS = 10.0
"""How long a live view may take to accept a frame before it counts as hung."""
FULL_BYTES = 1 << 20
"""A disk with less room than this counts as full."""
REVISIONS = 64
"""Revisions kept for a live view that is busy."""


@dataclass(frozen=True, slots=True)
class _Arrival:
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


class _LiveView:
    """A viewer process and the thread that feeds it."""

    def __init__(
        self, viewer: ViewerProcess, recording: rr.RecordingStream, log: SceneLog, *, drop: bool
    ) -> None:
        self.viewer = viewer
        self._recording = recording
        self._log = log
        self._revisions: deque[PoseRevision] = deque(maxlen=REVISIONS)
        self._warned = False
        self.source: Mailbox[_Arrival] | WaitingQueue[_Arrival] = (
            Mailbox() if drop else WaitingQueue(QUEUE)
        )
        self._worker = Worker("view", self.source, self._show)

    def write(self, arrival: _Arrival) -> None:
        if self._worker.error is None:
            self.source.put(arrival)
        elif not self._warned:
            self._warned = True
            logger.warning("the live view has ended: %s. The run goes on", self._worker.error)

    def revise(self, revision: PoseRevision) -> None:
        self._revisions.append(revision)

    def finish(self) -> None:
        """Show what is left, and leave the viewer open."""
        done = self._worker.join(ANSWER_SECONDS)
        if done and self._worker.error is None and self.viewer.is_running:
            self._drain_revisions()
            self._log.finish()
            self._recording.flush(timeout_sec=ANSWER_SECONDS)
            self._recording.disconnect()
        if self.viewer.page is None:
            self.viewer.detach()

    def _show(self, arrival: _Arrival) -> None:
        if not self.viewer.is_running:
            raise Stream4DError("its window or server was closed")
        self._log.log(arrival.frame, arrival.timing_in_view())
        # After the frame: a revision may speak of it.
        self._drain_revisions()
        # Waiting for the viewer here is what makes the mailbox drop; unflushed data would pile up in memory.
        self._recording.flush(timeout_sec=ANSWER_SECONDS)

    def _drain_revisions(self) -> None:
        while self._revisions:
            self._log.revise(self._revisions.popleft())


class _RecordingFile:
    """An ``.rrd`` file and the thread that writes it. The file gets its name when it is complete."""

    def __init__(self, path: Path, name: str, *, max_points: int, timing: bool) -> None:
        self._path = path
        # Keeps the suffix: the viewer opens a recording that a crash left behind.
        self._partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self._recording = _new_recording(name, BATCHES)
        try:
            self._recording.save(self._partial)
        except RuntimeError as error:
            raise self._failure(str(error)) from None
        self._log = SceneLog(self._recording, max_points=max_points, timing=timing)
        self._queue: WaitingQueue[_Arrival | PoseRevision] = WaitingQueue(QUEUE)
        self._frames = 0
        self._worker = Worker("recording", self._queue, self._record)

    def write(self, item: _Arrival | PoseRevision) -> None:
        self._check()
        self._queue.put(item)

    def finish(self, *, failed: bool = False) -> None:
        """Write the rest and give the file its name; a run that failed before its first frame leaves none.

        Raises:
            Stream4DError: not all of it could be written; what there is keeps the name of a partial file.
        """
        self._worker.join()
        try:
            self._check()
            self._log.finish()
            self._flush()
        finally:
            self._recording.disconnect()
            if failed and not self._frames:
                self._partial.unlink()
        if self._partial.exists():
            os.replace(self._partial, self._path)

    def _record(self, item: _Arrival | PoseRevision) -> None:
        if isinstance(item, PoseRevision):
            self._log.revise(item)
            return
        self._log.log(item.frame, item.timing)
        self._frames += 1
        if self._frames % CHECK_EVERY == 0:
            self._flush()

    def _flush(self) -> None:
        """Wait for the writer; Rerun only says that it has ended, the disk why."""
        try:
            self._recording.flush()
        except RuntimeError as error:
            is_full = shutil.disk_usage(self._path.parent).free < FULL_BYTES
            reason = "no space left on the disk" if is_full else str(error)
            kept = f"what was written is in {self._partial}"
            raise self._failure(f"{reason}; {kept}") from error

    def _check(self) -> None:
        error = self._worker.error
        if error is not None:
            raise (
                error if isinstance(error, Stream4DError) else self._failure(str(error))
            ) from error

    def _failure(self, reason: str) -> Stream4DError:
        return Stream4DError(f"cannot write the recording {self._path}: {reason}")


class RerunSink:
    """Shows posed frames in Rerun; does nothing where neither a view nor a recording is asked for.

    Args:
        config: what to open, and where.
        info: the source, for its name.
        name: what the viewer calls this run.
        overwrite: replace an existing recording file.
        drop: False shows every frame and lets the giver wait: for a replay.
        clock: turns ``PosedFrame.timestamp_ns`` into the moment of capture on ``time.monotonic_ns``, for the
            latency of a live source. Default: latency counts from ``write``.

    Raises:
        Stream4DError: on entering: no display, no viewer, port taken, file not writable or present already.
    """

    def __init__(
        self,
        config: ViewConfig,
        info: VideoInfo,
        name: str,
        *,
        overwrite: bool = False,
        drop: bool = True,
        clock: Callable[[int], int] | None = None,
    ) -> None:
        self._config = config
        self._info = info
        self._name = name
        self._overwrite = overwrite
        self._drop = drop
        self._clock = clock
        self._live: _LiveView | None = None
        self._file: _RecordingFile | None = None
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
            _check_target(path, overwrite=self._overwrite)
        if self._config.mode != "none":
            viewer = _start_viewer(self._config)
            recording = _new_recording(self._name)
            recording.connect_grpc(viewer.url)
            log = SceneLog(recording, max_points=max_points, timing=timing, fit_at_end=False)
            self._live = _LiveView(viewer, recording, log, drop=self._drop)
        if path is not None:
            self._file = _RecordingFile(path, self._name, max_points=max_points, timing=timing)
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

    def _receive(self, frame: PosedFrame) -> _Arrival:
        now = time.monotonic_ns()
        captured = self._clock(frame.timestamp_ns) if self._clock else now
        if not self._drop:
            return _Arrival(frame, captured, None)
        latency_ms = (now - captured) / 1e6 if self._clock else None
        return _Arrival(frame, captured, Timing(self._fps(now), latency_ms))

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


def _new_recording(name: str, batches: rr.ChunkBatcherConfig | None = None) -> rr.RecordingStream:
    recording = rr.RecordingStream(APPLICATION, batcher_config=batches)
    recording.send_recording_name(name)
    # Wall clock and log order would only clutter the list of timelines.
    recording.set_log_time_enabled(False)
    recording.set_log_tick_enabled(False)
    return recording


def _check_target(path: Path, *, overwrite: bool) -> None:
    """Raise before the run starts rather than at its end."""
    if path.suffix != ".rrd":
        raise Stream4DError(f"a recording must end in .rrd, got {str(path)!r}")
    if path.exists() and not overwrite:
        raise Stream4DError(f"the recording {path} exists: choose another name or `--overwrite`")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise Stream4DError(
            f"cannot write {path}: {path.parent} is not a folder that can be written"
        )

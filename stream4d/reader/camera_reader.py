"""Webcams and live network streams: a capture thread that keeps only the newest frames, and reconnects."""

from __future__ import annotations

import functools
import logging
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import av

from stream4d.errors import VideoError
from stream4d.packets import Array
from stream4d.reader.backend import Decoded
from stream4d.reader.container import (
    decoded_frames,
    open_container,
    probe_stream,
    video_stream,
)
from stream4d.reader.pixels import to_rgb
from stream4d.reader.selection import SECOND_NS

logger = logging.getLogger(__name__)

RING = 8
"""Captured frames that wait at most; a newer one pushes out the oldest."""
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses between attempts to reconnect; the last one repeats."""
GIVE_UP_S = 60.0
"""A source that stays away this long has ended."""
_JUMP_NS = SECOND_NS
"""Stream times that disagree with the clock by more than this have been reset."""

_DEVICE_FORMATS = {"Linux": "v4l2", "Darwin": "avfoundation", "Windows": "dshow"}
_STREAM_OPTIONS = {"rtsp_transport": "tcp", "fflags": "nobuffer"}
_TIMEOUT_S = (10.0, 10.0)
"""How long to wait for a connection and for the next packet."""
_POLL_S = 0.5
"""Waits are cut into these, so that Ctrl-C is heard on every system."""

Opener = Callable[[], AbstractContextManager[Any]]


class CameraBackend:
    """Capture a camera or live URL.

    Capture begins at once and ends with ``close``. ``stream`` yields each captured frame at most once.

    Args:
        source: ``webcam``, ``webcam:N``, ``webcam:NAME``, ``/dev/videoN`` or a URL.
        opener: opens the container; replaces ``source`` in tests.
        give_up_s: how long to try to reconnect before the stream counts as ended.

    Raises:
        VideoError: no such camera, or nobody answers at the URL.
    """

    name = "camera"

    def __init__(
        self, source: str, opener: Opener | None = None, *, give_up_s: float | None = None
    ) -> None:
        self.source = source
        self.dropped = 0
        self.clock_start_ns: int | None = None
        self._open = opener or functools.partial(open_live, source)
        self._give_up_s = GIVE_UP_S if give_up_s is None else give_up_s
        self._ring: deque[tuple[int, int, Any]] = deque(maxlen=RING)
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._ended = False
        self._error: VideoError | None = None
        self._index = 0
        self._last_ns = -1
        self._thread = threading.Thread(target=self._capture, name="stream4d-capture", daemon=True)
        self._thread.start()
        self.probe = replace(self._first_probe(), is_live=True, timeline=None, frame_count=None)

    def read(self, indices: Array) -> Iterator[Decoded]:
        """Live frames cannot be chosen by index."""
        raise VideoError(f"{self.source} is live: its frames cannot be read again")

    def stream(self) -> Iterator[Decoded]:
        """Yield the oldest frame kept, waiting for the next; ends when the source has ended."""
        while self._wait():
            with self._changed:
                index, time_ns, frame = self._ring.popleft()
            yield Decoded(index, time_ns, functools.partial(self._convert, frame))
        if self._error is not None:
            logger.warning("%s has ended: %s", self.source, self._error)

    def close(self) -> None:
        """Stop capturing and let the camera go."""
        self._stopped.set()
        self._end(None)
        self._thread.join(timeout=10)

    def _wait(self) -> bool:
        """Wait for a frame; False when none will come."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._ring or self._ended, _POLL_S):
                pass
            return bool(self._ring)

    def _convert(self, frame: Any) -> Array:
        rgb = to_rgb(frame)
        if rgb.shape != (self.probe.height, self.probe.width, 3):
            raise VideoError(
                f"{self.source} changed its size from {self.probe.width}×{self.probe.height} to "
                f"{rgb.shape[1]}×{rgb.shape[0]}: start a new run"
            )
        return rgb

    def _first_probe(self) -> Any:
        self._wait()
        if self._error is not None:
            raise self._error
        return self._probe

    def _capture(self) -> None:
        """Run in the thread: connect, capture, and connect again until told to stop or given up."""
        lost_at: float | None = None
        attempt = 0
        while not self._stopped.is_set():
            before = self._index
            error = self._capture_once()
            if self._index > before:
                lost_at, attempt = None, 0
            if self._stopped.is_set():
                break
            now = time.monotonic()
            lost_at = now if lost_at is None else lost_at
            if self._index == 0 or now - lost_at > self._give_up_s:
                self._end(error or VideoError(f"{self.source} sends no frames"))
                return
            pause = BACK_OFF_S[min(attempt, len(BACK_OFF_S) - 1)]
            logger.warning("%s: connection lost, trying again in %g s", self.source, pause)
            self._stopped.wait(min(pause, self._give_up_s))
            attempt += 1
        self._end(None)

    def _capture_once(self) -> VideoError | None:
        """Capture until the connection ends; return what went wrong, if anything did."""
        clock = _LiveClock()
        try:
            with self._open() as container:
                stream = video_stream(container, self.source)
                for frame in decoded_frames(container, stream):
                    if self._index == 0:
                        self._probe = probe_stream(container, stream, frame)
                    self._keep(frame, clock.time_ns(frame.pts, stream.time_base))
                    if self._stopped.is_set():
                        break
        except VideoError as error:
            return error
        return None

    def _keep(self, frame: Any, captured_ns: int) -> None:
        with self._changed:
            if self.clock_start_ns is None:
                self.clock_start_ns = captured_ns
            self._last_ns = max(captured_ns - self.clock_start_ns, self._last_ns + 1)
            self.dropped += len(self._ring) == self._ring.maxlen
            self._ring.append((self._index, self._last_ns, frame))
            self._index += 1
            self._changed.notify_all()

    def _end(self, error: VideoError | None) -> None:
        with self._changed:
            self._ended = True
            self._error = self._error or error
            self._changed.notify_all()


class _LiveClock:
    """Place the stream's own regular times on the monotonic clock; start again when they jump."""

    def __init__(self) -> None:
        self._offset_ns: int | None = None

    def time_ns(self, pts: int | None, time_base: Any) -> int:
        now = time.monotonic_ns()
        if pts is None or time_base is None:
            return now
        stream_ns = pts * time_base.numerator * SECOND_NS // time_base.denominator
        if self._offset_ns is None or abs(stream_ns + self._offset_ns - now) > _JUMP_NS:
            self._offset_ns = now - stream_ns
        return int(stream_ns + self._offset_ns)


def open_live(source: str) -> AbstractContextManager[Any]:
    """Open a camera of this machine or a live URL."""
    if "://" in source:
        return open_container(source, options=_STREAM_OPTIONS, timeout=_TIMEOUT_S)
    return _open_camera(source)


@contextmanager
def _open_camera(source: str) -> Iterator[Any]:
    system = platform.system()
    device = source.partition(":")[2] or "0" if source.startswith("webcam") else source
    if system == "Linux" and device.isdigit():
        device = f"/dev/video{device}"
    if system == "Windows" and not device.startswith("video="):
        device = f"video={_windows_name(device)}"
    options = {"framerate": "30"} if system == "Darwin" else {}
    with ExitStack() as stack:
        opening = open_container(
            device, format=_DEVICE_FORMATS.get(system, "v4l2"), options=options
        )
        try:
            container = stack.enter_context(opening)
        except VideoError:
            raise VideoError(
                f"no camera answers at {device}: connect one, close other programs that use it, or "
                "choose another with webcam:N"
            ) from None
        yield container


def _windows_name(device: str) -> str:
    """Return the name of the N-th camera: DirectShow knows cameras by name only."""
    if not device.isdigit():
        return device
    names = [d.name for d in av.enumerate_input_devices("dshow") if "video" in d.media_types]
    if int(device) >= len(names):
        raise VideoError(f"no camera {device}: found {', '.join(names) or 'none'}")
    return str(names[int(device)])

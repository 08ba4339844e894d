"""Open any source as a stream of ``Frame`` packets at processed size."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from stream4d.config import ReaderConfig
from stream4d.errors import VideoError
from stream4d.packets import Array, Frame, VideoInfo
from stream4d.reader.backend import Backend, Decoded
from stream4d.reader.prefetch import prefetch
from stream4d.reader.preprocess import Preprocessor, processed_size
from stream4d.reader.selection import SECOND_NS, Selector, even_timeline, select
from stream4d.reader.sources import choose_backend

logger = logging.getLogger(__name__)


def open_video(source: str | Path, config: ReaderConfig | None = None) -> VideoReader:
    """Open a video file, image folder or glob, sequence folder, webcam or stream URL.

    Args:
        source: a path; a glob such as ``frames/*.png``; ``webcam``, ``webcam:1`` or ``/dev/video1``; or a URL
            (rtsp, http, udp, srt …).

    Raises:
        VideoError: the source cannot be read, or no frame of it is selected.
        ConfigError: intrinsics or distortion make no sense.
    """
    config = config or ReaderConfig()
    backend, reason = choose_backend(str(source), config)
    return VideoReader(str(source), backend, config, reason)


class VideoReader:
    """A stream of processed frames; decoding runs ahead in a thread. Use as a context manager.

    Iterating begins at the first frame each time, except for a live source, which goes on.
    """

    info: VideoInfo

    def __init__(self, source: str, backend: Backend, config: ReaderConfig, reason: str) -> None:
        self._backend = backend
        self._config = config
        self._picks = _picks(source, backend, config)
        self._running: list[Generator[Frame]] = []
        probe = backend.probe
        size = processed_size(probe.width * probe.pixel_aspect, probe.height, config.resolution)
        self._prepare = Preprocessor((probe.width, probe.height), size, config)
        self.info = VideoInfo(
            source=source,
            backend=backend.name,
            width=size[0],
            height=size[1],
            source_width=probe.width,
            source_height=probe.height,
            fps=_rate(self._picks, backend, config),
            frame_count=_count(self._picks, backend, config),
            rotation_deg=probe.rotation_deg,
            is_live=probe.is_live,
            reason=reason,
        )

    @property
    def dropped(self) -> int:
        """Frames of a live source that came faster than they were taken."""
        return int(getattr(self._backend, "dropped", 0))

    @property
    def clock_start_ns(self) -> int | None:
        """``time.monotonic_ns()`` at timestamp 0 of a live source, for measuring latency; else None."""
        return cast("int | None", getattr(self._backend, "clock_start_ns", None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding threads. Iterators that are still open end too."""
        for frames in self._running:
            frames.close()
        self._running.clear()
        close = getattr(self._backend, "close", None)
        if close is not None:
            close()

    def __iter__(self) -> Iterator[Frame]:
        return self.frames_from(0)

    def frames_from(self, index: int) -> Iterator[Frame]:
        """Yield the frames from processed ``index`` on, identical to those of a full pass.

        A live source cannot be rewound: it goes on with its newest frame, numbered from ``index``.
        """
        frames = self._frames(max(0, index))
        ahead = frames if self._backend.probe.is_live else prefetch(frames, self._config.queue)
        running = cast("Generator[Frame]", ahead)
        self._running.append(running)
        return running

    def _frames(self, first: int) -> Iterator[Frame]:
        decoded = self._decoded(first)
        count = 0
        for count, item in enumerate(decoded, start=1):
            rgb = self._prepare(item.rgb())
            yield Frame(
                index=first + count - 1,
                timestamp_ns=item.timestamp_ns,
                rgb=rgb,
                source_index=item.source_index,
                K=self._prepare.K,
            )
        if count == 0 and first == 0:
            raise VideoError(_nothing_selected(self.info.source, self._config))

    def _decoded(self, first: int) -> Iterator[Decoded]:
        if self._picks is not None:
            return self._backend.read(self._picks[first:])
        taken = _taken(self._backend.stream(), Selector(self._config))
        return taken if self._backend.probe.is_live else itertools.islice(taken, first, None)


def _taken(decoded: Iterator[Decoded], selector: Selector) -> Iterator[Decoded]:
    for item in decoded:
        if selector.takes(item.timestamp_ns):
            yield item
        if selector.is_over(item.timestamp_ns):
            return


def _picks(source: str, backend: Backend, config: ReaderConfig) -> Array | None:
    """Return the selected source indices where all times are known beforehand."""
    timeline = backend.probe.timeline
    if timeline is None:
        return None
    picks = select(timeline, config)
    if not len(picks):
        raise VideoError(_nothing_selected(source, config, float(timeline[-1]) / SECOND_NS))
    return picks


def _nothing_selected(source: str, config: ReaderConfig, duration_s: float | None = None) -> str:
    length = "" if duration_s is None else f", which is {duration_s:.2f} s long,"
    end = "" if config.end is None else f" and before {config.end:g} s"
    return (
        f"no frame of {source}{length} lies at {config.start:g} s or later{end}: "
        "choose an earlier --start or a later --end"
    )


def _count(picks: Array | None, backend: Backend, config: ReaderConfig) -> int | None:
    probe = backend.probe
    if picks is not None:
        return len(picks)
    if probe.is_live or probe.frame_count is None:
        return None
    return len(select(even_timeline(probe.frame_count, probe.fps), config)) or None


def _rate(picks: Array | None, backend: Backend, config: ReaderConfig) -> float:
    probe = backend.probe
    if picks is not None and probe.timeline is not None and len(picks) > 1:
        times: Any = probe.timeline[picks]
        return float((len(picks) - 1) * SECOND_NS / np.maximum(times[-1] - times[0], 1))
    if config.fps is not None:
        return min(config.fps, probe.fps)
    return probe.fps / config.stride

"""Video files and recorded URLs through PyAV (FFmpeg): sequential decoding, seeking only to begin later."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from stream4d.packets import Array
from stream4d.reader.backend import Decoded
from stream4d.reader.container import (
    announced_seconds,
    decoded_frames,
    first_frame,
    open_container,
    probe_stream,
    video_stream,
)
from stream4d.reader.pixels import to_rgb
from stream4d.reader.selection import SECOND_NS

logger = logging.getLogger(__name__)

INDEXED_BYTES = 4 << 30
"""Files up to this size have all packets read once (not decoded) for exact times and counts: about 1 s per GB."""
CUT_SHORT = 0.95
"""A file that holds less than this share of the seconds that its header announces was cut short."""
_SEEK_FROM = 64
"""Frames nearer to the start than this are reached by decoding."""


class PyavBackend:
    """Decode one file or finite URL in order.

    Raises:
        VideoError: the source is missing, not a video, has no video stream, or nothing in it decodes.
    """

    name = "pyav"

    def __init__(self, source: str) -> None:
        self.source = source
        with open_container(source) as container:
            stream = video_stream(container, source)
            first = first_frame(container, stream, source)
            self.probe = probe_stream(container, stream, first)
            time_base = stream.time_base
            announced_s = announced_seconds(stream)
            # AVI stores no presentation times: what FFmpeg reports is the order of decoding.
            self._has_times = container.format.name != "avi"
        self._pts: Array | None = None
        if (
            self._has_times
            and Path(source).is_file()
            and Path(source).stat().st_size <= INDEXED_BYTES
        ):
            self._pts, keyframes = _presentation_times(source)
            if self._pts is not None and keyframes:
                self.keyframe_spacing = len(self._pts) / keyframes
        if self._pts is not None:
            timeline = _timeline(self._pts, time_base)
            self.probe = replace(self.probe, timeline=timeline)
            held_s = timeline[-1] / SECOND_NS + 1 / self.probe.fps
            if announced_s is not None and held_s < CUT_SHORT * announced_s:
                logger.warning(
                    "%s was cut short: it holds %.3g s of the %.3g s that it announces",
                    source,
                    held_s,
                    announced_s,
                )

    def replace_times(self, timeline: Array) -> None:
        """Take times from beside the video instead of from the container, where they fit."""
        if self._pts is None or len(timeline) != len(self._pts):
            have = "unknown" if self._pts is None else len(self._pts)
            logger.warning(
                "timestamps.txt has %d lines but %s has %s frames: using the container's times",
                len(timeline),
                self.source,
                have,
            )
            return
        self.probe = replace(self.probe, timeline=timeline)

    def read(self, indices: Array) -> Iterator[Decoded]:
        """Yield the frames at ``indices``, decoding from the keyframe before the first of them."""
        assert self._pts is not None
        assert self.probe.timeline is not None
        if not len(indices):
            return
        wanted = dict(zip(self._pts[indices].tolist(), indices.tolist(), strict=True))
        last_pts = int(self._pts[indices[-1]])
        with open_container(self.source) as container:
            stream = video_stream(container, self.source)
            _seek_before(container, stream, self._pts, int(indices[0]))
            for frame in decoded_frames(container, stream):
                index = wanted.pop(frame.pts, None)
                if index is not None:
                    yield Decoded(
                        index, int(self.probe.timeline[index]), functools.partial(to_rgb, frame)
                    )
                if not wanted or (frame.pts is not None and frame.pts > last_pts):
                    break
        if wanted:
            logger.warning(
                "%s: %d of %d frames could not be decoded (damaged or cut short); going on without them",
                self.source,
                len(wanted),
                len(indices),
            )

    def stream(self) -> Iterator[Decoded]:
        """Yield every frame; times come from the container, and from the rate where it has none."""
        with open_container(self.source) as container:
            stream = video_stream(container, self.source)
            clock = _Clock(self.probe.fps, stream.time_base)
            for index, frame in enumerate(decoded_frames(container, stream)):
                pts = frame.pts if self._has_times else None
                yield Decoded(index, clock.time_ns(index, pts), functools.partial(to_rgb, frame))


class _Clock:
    """Turn presentation stamps into ns from the first frame, always increasing."""

    def __init__(self, fps: float, time_base: Any) -> None:
        self._period_ns = SECOND_NS / fps
        self._time_base = time_base
        self._first: int | None = None
        self._last_ns = -1

    def time_ns(self, index: int, pts: int | None) -> int:
        if pts is None or self._time_base is None:
            time_ns = round(index * self._period_ns)
        else:
            if self._first is None:
                self._first = pts
            base = self._time_base
            time_ns = (pts - self._first) * base.numerator * SECOND_NS // base.denominator
        self._last_ns = max(time_ns, self._last_ns + 1)
        return self._last_ns


def _timeline(pts: Array, time_base: Any) -> Array:
    """Return nanoseconds from the first stamp, in exact integer arithmetic."""
    offsets = (pts - pts[0]).tolist()
    return np.array(
        [t * time_base.numerator * SECOND_NS // time_base.denominator for t in offsets], np.int64
    )


def _presentation_times(source: str) -> tuple[Array | None, int]:
    """Return the sorted (N,) presentation stamps of all packets, and how many are keyframes.

    The stamps are None where they are missing or not unique.
    """
    stamps: list[int] = []
    keyframes = 0
    with open_container(source) as container:
        stream = video_stream(container, source)
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.pts is None:
                    return None, 0
                stamps.append(packet.pts)
                keyframes += packet.is_keyframe
        except av.error.FFmpegError as error:
            logger.debug("%s: indexing stopped early: %s", source, error)
    times = np.array(sorted(stamps), np.int64)
    is_usable = len(times) > 0 and bool((np.diff(times) > 0).all())
    return (times if is_usable else None), keyframes


def _seek_before(container: Any, stream: Any, pts: Array, index: int) -> None:
    """Go to a keyframe well before a frame, so that it decodes exactly as in a full pass.

    One keyframe more than needed is decoded: with open groups of pictures, frames that follow the nearest
    keyframe may still refer to the group before it.
    """
    if index < _SEEK_FROM:
        return
    try:
        container.seek(int(pts[index]), stream=stream, backward=True)
        nearest = next(_keyframe_stamps(container, stream), None)
        earlier = int(np.searchsorted(pts, nearest)) - 1 if nearest is not None else -1
        container.seek(int(pts[max(earlier, 0)]), stream=stream, backward=True)
    except av.error.FFmpegError as error:
        logger.debug("seeking failed, decoding from the start: %s", error)
        container.seek(0)


def _keyframe_stamps(container: Any, stream: Any) -> Iterator[int]:
    for packet in container.demux(stream):
        if packet.pts is not None and packet.is_keyframe:
            yield packet.pts

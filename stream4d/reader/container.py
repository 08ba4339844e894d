"""FFmpeg's containers: opened, described and decoded so that damage is passed over and failures are told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import av.error

from stream4d.errors import VideoError
from stream4d.reader.backend import Probe
from stream4d.reader.pixels import clockwise_rotation

logger = logging.getLogger(__name__)

_NETWORK_TIMEOUT_S = (10.0, 30.0)


@contextmanager
def open_container(source: str, **options: Any) -> Iterator[Any]:
    """Open for reading; every way it can fail becomes one ``VideoError``."""
    if "://" in source:
        options.setdefault("timeout", _NETWORK_TIMEOUT_S)
    try:
        container = av.open(source, **options)
    except av.error.FileNotFoundError:
        raise VideoError(f"no such video: {source}") from None
    except av.error.PermissionError:
        raise VideoError(f"no permission to read {source}") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if "://" in source:
            raise VideoError(
                f"cannot open {source} ({_reason(error)}): check the address and the network"
            ) from None
        raise VideoError(
            f"{source} is not a video that FFmpeg can read ({_reason(error)}): "
            "the file may be damaged, cut short, or of another kind"
        ) from None
    with container:
        yield container


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def video_stream(container: Any, source: str) -> Any:
    """Return the video stream to decode, set to use all cores; cover art does not count."""
    streams = [s for s in container.streams.video if not _is_cover_art(s)]
    if not streams:
        raise VideoError(f"{source} has no video stream (audio only?): give a file with pictures")
    streams[0].thread_type = "AUTO"
    return streams[0]


def _is_cover_art(stream: Any) -> bool:
    disposition = getattr(stream, "disposition", None)
    return disposition is not None and "attached_pic" in str(getattr(disposition, "name", "") or "")


def decoded_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Yield decoded frames; damaged packets are passed over, a damaged end is an end."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.EOFError):
            return
        except av.error.FFmpegError as error:
            logger.debug("demuxing stopped: %s", error)
            return
        try:
            yield from packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            logger.debug("a packet could not be decoded: %s", error)


def first_frame(container: Any, stream: Any, source: str) -> Any:
    """Decode the first frame; a stream without one is a ``VideoError``."""
    frame = next(decoded_frames(container, stream), None)
    if frame is None:
        raise VideoError(
            f"no frame of {source} can be decoded: the file is empty, damaged or cut short"
        )
    return frame


def probe_stream(container: Any, stream: Any, first: Any) -> Probe:
    """Describe a stream from its header and its first frame."""
    rotation = clockwise_rotation(first)
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    width, height = first.width, first.height
    if rotation % 180:
        width, height, aspect = height, width, 1 / aspect
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    fps = float(rate) if rate else 25.0
    return Probe(
        width=width,
        height=height,
        fps=fps,
        rotation_deg=rotation,
        pixel_aspect=aspect,
        frame_count=_frame_count(container, stream, fps),
    )


def _frame_count(container: Any, stream: Any, fps: float) -> int | None:
    if stream.frames:
        return int(stream.frames)
    if stream.duration and stream.time_base:
        return max(1, round(float(stream.duration * stream.time_base) * fps))
    if container.duration:
        return max(1, round(float(container.duration) / float(av.time_base) * fps))
    return None


def announced_seconds(stream: Any) -> float | None:
    """Return how long the header says that the stream is; the container's length may be that of its sound."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska, as FFmpeg writes it: hours, minutes and seconds.
    try:
        hours, minutes, seconds = (float(x) for x in stream.metadata["DURATION"].split(":"))
    except (KeyError, ValueError):
        return None
    return 3600 * hours + 60 * minutes + seconds

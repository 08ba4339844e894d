"""Tiny videos and images whose every frame tells its number by its brightness."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

DARKEST, STEP, LEVELS = 8, 4, 60
"""Frame i has brightness DARKEST + STEP * (i mod LEVELS)."""
RED = (250, 10, 10)


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Grey that tells the index, with a red block in the upper left corner."""
    image = np.full((height, width, 3), DARKEST + STEP * (index % LEVELS), np.uint8)
    image[: height // 4, : width // 4] = RED
    return image


def number_of(rgb: np.ndarray) -> int:
    """Tell which frame this is, from its middle. FFmpeg's 10-bit conversion is 2 levels too dark."""
    height, width = rgb.shape[:2]
    middle = rgb[height // 3 : height // 3 * 2, width // 3 : width // 3 * 2]
    return round((float(middle.mean()) - DARKEST + 1) / STEP)


def red_corner(rgb: np.ndarray) -> str:
    """Tell which corner is red."""
    height, width = rgb.shape[:2]
    corners = {"upper left": (2, 2), "upper right": (2, width - 3)}
    corners |= {"lower right": (height - 3, width - 3), "lower left": (height - 3, 2)}
    return max(corners, key=lambda name: int(rgb[corners[name]][0]) - int(rgb[corners[name]][1]))


def write_video(
    path: Path,
    *,
    frames: int = 24,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    fps: int = 25,
    times_ms: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode numbered pictures; ``times_ms`` gives a variable frame rate."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        base = Fraction(1, 1000) if times_ms else Fraction(1, fps)
        stream.codec_context.time_base = base
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.time_base = base
            frame.pts = times_ms[index] if times_ms else index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """Encode a second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for index in range(8):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 8000, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotate_header(path: Path, clockwise_deg: int) -> None:
    """Write the display matrix that phones write into the track header of an MP4 or MOV."""
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise_deg]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    one, unit = 1 << 16, 1 << 30
    assert data[at : at + 36] == struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, unit)
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, unit)
    path.write_bytes(data)

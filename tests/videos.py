"""Tiny videos that tests write for themselves."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from stream4d.packets import Array


def write_video(path: Path, frames: Array, *, fps: int = 10, codec: str = "libx264") -> Path:
    """Encode (T, H, W, 3) uint8 frames; H and W even."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for rgb in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def textured_pan(frames: int, size: tuple[int, int] = (96, 128), step: int = 1) -> Array:
    """(T, H, W, 3) uint8: a window sliding over a band-limited random texture."""
    H, W = size
    rng = np.random.default_rng(0)
    import cv2

    coarse = rng.integers(0, 255, (H // 4, (W + frames * step) // 4 + 1, 3), dtype=np.uint8)
    wide = cv2.resize(coarse, ((W + frames * step), H), interpolation=cv2.INTER_CUBIC)
    return np.stack([wide[:, i * step : i * step + W] for i in range(frames)])

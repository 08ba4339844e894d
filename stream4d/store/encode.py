"""Turn posed frames into what the store holds, and back: quantising, halving, compressing."""

from __future__ import annotations

import cv2
import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc

from stream4d.packets import Array, PosedFrame

_HALF_MAX = float(np.finfo(np.float16).max)
_SAFE_MEDIAN = (2.0**-6, 2.0**10)
"""Median depths that float16 holds as they are, with room for 64 times more and full precision for 256 times less."""
_SAMPLE_STEP = 97


def depth_scale_for(depth: Array, dtype: str) -> float:
    """Return the power of two by which depth is divided before it is stored; 1 wherever float16 can hold it."""
    if dtype != "float16":
        return 1.0
    sample = depth.ravel()[::_SAMPLE_STEP]
    sample = sample[np.isfinite(sample) & (sample > 0)]
    if not sample.size:
        return 1.0
    median = float(np.median(sample))
    low, high = _SAFE_MEDIAN
    return 1.0 if low <= median <= high else float(2.0 ** round(np.log2(median)))


def encode_map(name: str, frame: PosedFrame, dtype: str, depth_scale: float) -> Array | None:
    """Return one map of a frame as it is stored, or None where the frame has none."""
    value: Array | None = getattr(frame, name)
    if value is None:
        return None
    if name in ("confidence", "motion_prob"):
        return quantise(value)
    if name == "depth" and depth_scale != 1:
        value = value / np.float32(depth_scale)
    return to_half(value) if dtype == "float16" else np.ascontiguousarray(value, dtype)


def quantise(probability: Array) -> Array:  # float in [0, 1] -> uint8
    """Round to 255 steps; what is not a number becomes 0."""
    # One vectorised pass that rounds and saturates; NaN saturates to 0.
    quantised: Array = cv2.convertScaleAbs(np.maximum(probability, 0), alpha=255)
    return quantised.reshape(probability.shape)


def dequantise(stored: Array) -> Array:  # uint8 -> float32 in [0, 1]
    """Undo ``quantise``."""
    return _LEVELS[stored]


_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)


def to_half(value: Array) -> Array:
    """Convert to float16; what it cannot hold (beyond 65504, infinite) becomes NaN, as unknown."""
    largest = max(np.fmax.reduce(value, axis=None), -np.fmin.reduce(value, axis=None))
    if largest >= _HALF_MAX:
        value = np.where(np.abs(value) < _HALF_MAX, value, np.float32(np.nan))
    return value.astype(np.float16)


class Compressor:
    """Compress one chunk as the blosc codec of the array's metadata says. Threads may share it."""

    def __init__(self, level: int) -> None:
        self._codec = Blosc(cname="zstd", clevel=min(level, 9), shuffle=BITSHUFFLE)

    def __call__(self, chunk: Array) -> bytes:
        """Return the compressed bytes."""
        return bytes(self._codec.encode(np.ascontiguousarray(chunk)))

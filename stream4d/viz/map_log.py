"""Depth, confidence and flow in the viewer, in colours that do not flicker."""

from __future__ import annotations

import cv2
import rerun as rr

from stream4d.packets import Array, PosedFrame
from stream4d.viz import blueprint as names
from stream4d.viz import colors

MAP_SIZE = 256
"""Long side of depth, flow and confidence pictures in the viewer."""


class MapLog:
    """Remembers the ranges that the colours stand for."""

    def __init__(self, recording: rr.RecordingStream) -> None:
        self._rec = recording
        self._near, self._far = Follow(), Follow()
        self._flow_longest = Follow()

    def log(self, frame: PosedFrame) -> None:
        """Show the maps of one frame."""
        confidence = _shrink(frame.confidence)
        depth = colors.known_depth(_shrink(frame.depth), confidence)
        self._rec.log(names.DEPTH, jpeg(colors.color_depth(depth, self._steady_bounds(depth))))
        self._rec.log(names.CONFIDENCE, jpeg(colors.color_confidence(confidence)))
        if frame.flow is not None:
            flow = _shrink(frame.flow)
            longest = self._flow_longest.update(colors.flow_range(flow))
            self._rec.log(names.FLOW, jpeg(colors.color_flow(flow, longest)))

    def _steady_bounds(self, depth: Array) -> tuple[float, float] | None:
        """Follow the range of depth slowly, so that colours do not flicker."""
        bounds = colors.depth_range(depth)
        return bounds and (self._near.update(bounds[0]), self._far.update(bounds[1]))


class Follow:
    """A positive number that follows its updates slowly, in proportion."""

    def __init__(self) -> None:
        self.value: float | None = None

    def update(self, value: float) -> float:
        """Move a tenth of the way, and return where that is."""
        self.value = value if self.value is None else self.value**0.9 * value**0.1
        return self.value


def jpeg(rgb: Array, quality: int = 85) -> rr.EncodedImage:
    """Compress a picture (H, W, 3)."""
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return rr.EncodedImage(contents=data.tobytes(), media_type="image/jpeg")


def png(rgba: Array) -> rr.EncodedImage:
    """Compress a layer (H, W, 4) without loss."""
    _, data = cv2.imencode(
        ".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 3]
    )
    return rr.EncodedImage(contents=data.tobytes(), media_type="image/png")


def _shrink(array: Array) -> Array:
    """Take every n-th pixel: keeps NaN and flow values as they are."""
    step = max(1, round(max(array.shape[:2]) / MAP_SIZE))
    return array[step // 2 :: step, step // 2 :: step]

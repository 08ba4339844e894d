"""What a decoder offers to the reader: a probe of the source, and frames decoded on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from stream4d.packets import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What is known of a source before it is read."""

    width: int
    """Columns after rotation."""
    height: int
    """Rows after rotation."""
    fps: float
    """Frames per second of the source; an average where the rate varies."""
    timeline: Array | None = None
    """(N,) int64 presentation times of all source frames in ns from the first, increasing; None: unknown."""
    frame_count: int | None = None
    """Roughly how many frames the source has, where there is no timeline."""
    rotation_deg: int = 0
    """Clockwise rotation from the container that the decoder applies."""
    pixel_aspect: float = 1.0
    """Width of a pixel divided by its height, after rotation."""
    is_live: bool = False
    """True where frames come at their own pace and cannot be read again."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """One decoded frame; its pixels are converted only if they are wanted."""

    source_index: int
    timestamp_ns: int
    rgb: Callable[[], Array]
    """Returns (H, W, 3) uint8 at source size, rotated."""


class Backend(Protocol):
    """One way to decode. Every call of ``read`` or ``stream`` opens the source afresh."""

    name: str
    probe: Probe

    def read(self, indices: Array) -> Iterator[Decoded]:
        """Yield the frames at the increasing source ``indices``. Needs ``probe.timeline``."""

    def stream(self) -> Iterator[Decoded]:
        """Yield every frame in order."""

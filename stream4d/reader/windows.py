"""Sliding windows over a stream of frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stream4d.packets import Frame, Window


def sliding_windows(
    frames: Iterable[Frame], size: int, overlap: int, *, first_window: int = 0
) -> Iterator[Window]:
    """Yield windows of ``size`` frames, each sharing ``overlap`` frames with the one before.

    The last window may be shorter. Every frame is new in exactly one window. At most ``size`` frames are held.

    Args:
        first_window: index of the first window yielded. On resume (above 0) ``frames`` must begin with the
            ``overlap`` frames that the previous window shares with this one.

    Raises:
        ValueError: size below 1, or overlap outside [0, size).
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"need size >= 1 and 0 <= overlap < size, got {size = }, {overlap = }")
    held: list[Frame] = []
    index, shared = first_window, overlap if first_window else 0
    for frame in frames:
        held.append(frame)
        if len(held) == size:
            yield Window(index=index, frames=tuple(held), overlap=shared)
            held = held[size - overlap :]
            index, shared = index + 1, overlap
    if len(held) > shared:
        yield Window(index=index, frames=tuple(held), overlap=shared)

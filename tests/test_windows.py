"""Sliding windows: every frame is new exactly once, whatever size, overlap, length and resume point."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream4d.packets import Frame
from stream4d.reader.windows import sliding_windows

PIXEL = np.zeros((1, 1, 3), np.uint8)


def frames(count: int, first: int = 0) -> Iterator[Frame]:
    for index in range(first, count):
        yield Frame(index=index, timestamp_ns=index, rgb=PIXEL)


shapes = st.integers(1, 9).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


@given(shapes, st.integers(0, 40))
def test_each_frame_is_new_once(shape: tuple[int, int], count: int) -> None:
    size, overlap = shape
    windows = list(sliding_windows(frames(count), size, overlap))
    assert [f.index for w in windows for f in w.new_frames] == list(range(count))
    assert [w.index for w in windows] == list(range(len(windows)))
    for before, after in zip(windows, windows[1:], strict=False):
        assert len(before.frames) == size
        assert after.overlap == overlap
        shared = [f.index for f in after.frames[:overlap]]
        assert shared == [f.index for f in before.frames[size - overlap :]]


@given(shapes, st.integers(1, 40), st.data())
def test_resuming_at_any_window_gives_the_same_windows(
    shape: tuple[int, int], count: int, data: st.DataObject
) -> None:
    size, overlap = shape
    whole = list(sliding_windows(frames(count), size, overlap))
    done = data.draw(st.integers(1, len(whole)))
    next_frame = max(0, whole[done - 1].frames[-1].index + 1 - overlap)
    rest = sliding_windows(frames(count, next_frame), size, overlap, first_window=done)
    assert [(w.index, w.overlap, [f.index for f in w.frames]) for w in rest] == [
        (w.index, w.overlap, [f.index for f in w.frames]) for w in whole[done:]
    ]


def test_windows_come_as_soon_as_they_are_full() -> None:
    taken: list[int] = []

    def counted() -> Iterator[Frame]:
        for frame in frames(100):
            taken.append(frame.index)
            yield frame

    next(sliding_windows(counted(), 6, 2))
    assert len(taken) == 6


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_impossible_shapes(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        next(sliding_windows(frames(3), size, overlap))

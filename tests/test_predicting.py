"""Predictions made ahead of their use: order, states that belong to their window, errors, an end in time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from stream4d.errors import ModelError
from stream4d.models.base import RunsAhead, Session
from stream4d.packets import Frame, Prediction, State, Window
from stream4d.predicting import predict


class Counting:
    """A session that counts its windows; step 5 fails where ``breaks``."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.steps = 0
        self.threads: set[threading.Thread] = set()
        self._breaks = breaks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def step(self, window: Window) -> Prediction:
        self.threads.add(threading.current_thread())
        self.steps += 1
        if self._breaks and self.steps == 5:
            raise ModelError("broken")
        return Prediction(depth=np.full((1, 2, 2), window.index, np.float32))

    def state(self) -> State:
        return {"steps": np.array(self.steps)}

    def restore(self, state: State) -> None: ...


class Ahead(Counting):
    """The same, and its states last."""

    def snapshot(self) -> Callable[[], State]:
        state = self.state()
        return lambda: state


def windows(count: int) -> list[Window]:
    frame = Frame(index=0, timestamp_ns=0, rgb=np.zeros((2, 2, 3), np.uint8))
    return [Window(index=i, frames=(frame,), overlap=0) for i in range(count)]


@pytest.mark.parametrize("kind", [Counting, Ahead])
def test_steps_come_in_order_with_the_state_of_their_window(kind: type[Counting]) -> None:
    session: Session = kind()
    for i, step in enumerate(predict(session, windows(20))):
        assert step.window.index == i
        assert step.prediction.depth is not None
        assert step.prediction.depth[0, 0, 0] == i
        assert step.session_state()["steps"] == i + 1


def test_only_a_session_whose_states_last_runs_ahead() -> None:
    here = threading.current_thread()
    for kind in (Counting, Ahead):
        session = kind()
        assert len(list(predict(session, windows(3)))) == 3
        assert (session.threads == {here}) == (not isinstance(session, RunsAhead))


def test_it_runs_two_windows_ahead_at_most_and_ends_when_closed() -> None:
    session = Ahead()
    steps = predict(session, windows(1000))
    next(steps)
    steps.close()
    assert session.steps <= 3  # taken, queued, in the thread's hand
    assert not any(thread.is_alive() for thread in session.threads)


def test_an_error_arrives_after_the_steps_before_it() -> None:
    steps = predict(Ahead(breaks=True), windows(20))
    assert [next(steps).window.index for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ModelError, match="broken"):
        next(steps)

"""Predictions of a video's windows, made by a thread one window ahead of their use where the session allows it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple

from stream4d.models.base import RunsAhead, Session
from stream4d.packets import Prediction, State, Window
from stream4d.reader.prefetch import prefetch


class Step(NamedTuple):
    """What a session made of a window."""

    window: Window
    prediction: Prediction
    session_state: Callable[[], State]
    """Gives the session's state after this window."""


def predict(session: Session, windows: Iterable[Window]) -> Generator[Step]:
    """Yield the session's steps in order; closing the generator ends the thread and waits for it.

    While the chain places one window, a session that ``RunsAhead`` predicts the next.
    """
    if isinstance(session, RunsAhead):
        return prefetch(_ahead(session, windows, _torch_threads()), 1, "predict")
    return (Step(window, session.step(window), session.state) for window in windows)


def _ahead(session: Session, windows: Iterable[Window], threads: int) -> Generator[Step]:
    """Run in a thread that leaves every second core to those who work meanwhile."""
    assert isinstance(session, RunsAhead)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(max(1, threads // 2))
    for window in windows:
        yield Step(window, session.step(window), session.snapshot())


def _torch_threads() -> int:
    """Say how many threads torch uses here; without importing it, which is half of the time to start."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else 0

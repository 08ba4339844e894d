"""The thread that makes dense maps: order, corrections in between, errors."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from stream4d.pose import dense, densify


def state_at(depth: float) -> dense.DenseState:
    return dense.DenseState(np.full((2, 2), 1 / depth), np.ones((2, 2)), np.zeros((2, 2)))


def test_a_correction_meets_the_frame_that_left_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its maps take, and not the one that leaves after it."""
    begun_with: list[float | None] = []

    def slow(sight: Any, before: dense.DenseState | None) -> tuple[dense.DenseState, Any]:
        time.sleep(0.05)
        begun_with.append(None if before is None else float(1 / before.rho[0, 0]))
        return state_at(sight), sight

    monkeypatch.setattr(densify, "_densify", slow)
    maker = densify.Densifier()
    pose = np.eye(3, 4) + 1.0
    drawn: list[Any] = [maker.make(2.0)]  # type: ignore[arg-type]
    maker.move(pose, 3.0)
    drawn += [maker.make(5.0), maker.make(7.0)]  # type: ignore[arg-type]
    known = maker.state()
    assert known is not None
    assert known.rho[0, 0] == pytest.approx(1 / 7)
    assert begun_with == [None, pytest.approx(6.0), pytest.approx(5.0)]
    assert [future.result() for future in drawn] == [2.0, 5.0, 7.0]


def test_moving_scales_lengths_and_takes_the_pose() -> None:
    maker = densify.Densifier(state_at(2.0))
    maker.move(np.eye(3, 4) + 1.0, 3.0)
    known = maker.state()
    assert known is not None
    np.testing.assert_allclose(known.rho, 1 / 6)
    np.testing.assert_allclose(known.info, 9.0)
    np.testing.assert_array_equal(known.pose, np.eye(3, 4) + 1.0)


def test_an_error_in_the_thread_reaches_who_asks_for_the_maps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no maps")

    monkeypatch.setattr(densify, "_densify", broken)
    future = densify.Densifier().make(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no maps"):
        future.result()

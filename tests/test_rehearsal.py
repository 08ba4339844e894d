"""The rehearsal of loop closure: the kernels that a real loop calls, of the same types, and nothing else."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numba
import pytest

from stream4d.geometry import _kernels_algebra
from stream4d.pose import _kernels_graph, _kernels_loops, _kernels_similarity, loops
from stream4d.pose.rehearsal import Rehearsal
from tests.test_loops import TIMES, Journey

KERNELS = {
    _kernels_loops: ("fit_similarity",),
    _kernels_graph: ("edge_costs", "edge_system", "reduce_chain", "expand_chain"),
    _kernels_similarity: ("move_similarity",),
    _kernels_algebra: ("solve_positive",),
}
"""What loop closure calls from Python."""


def recorded(patch: pytest.MonkeyPatch, act: Callable[[], Any]) -> dict[str, set[tuple[Any, ...]]]:
    """Return the types of arguments that each kernel was called with meanwhile."""
    calls: dict[str, set[tuple[Any, ...]]] = {}

    def listen(module: types.ModuleType, name: str) -> None:
        kernel, seen = getattr(module, name), calls.setdefault(name, set())

        def call(*arguments: Any) -> Any:
            seen.add(tuple(map(numba.typeof, arguments)))
            return kernel(*arguments)

        patch.setattr(module, name, call)

    with patch.context() as patch:
        for module, names in KERNELS.items():
            for name in names:
                listen(module, name)
        act()
    return calls


def rehearse() -> None:
    rehearsal = Rehearsal()
    rehearsal.start()
    rehearsal.start()
    rehearsal.wait()


def test_a_real_loop_needs_no_kernel_that_was_not_rehearsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numba compiles each combination of types apart, memory layout included."""
    closer = loops.LoopCloser()
    real = recorded(monkeypatch, lambda: Journey(closer).walk(TIMES))
    assert closer.closed
    assert all(real.values())
    assert recorded(monkeypatch, rehearse) == real


def test_a_stopped_rehearsal_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_stopped() -> None:
        rehearsal = Rehearsal()
        rehearsal.stop()
        rehearsal.start()
        rehearsal.wait()

    assert not any(recorded(monkeypatch, begin_stopped).values())

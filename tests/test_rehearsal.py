"""What is rehearsed: the kernels that a real loop or a hard frame pair calls, of the same types, and nothing else."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numba
import pytest

from stream4d.geometry import _kernels_algebra
from stream4d.models import _kernels_rigid, _kernels_sweep, epipolar_sweep
from stream4d.models.epipolar_sweep import mend_hard_pair
from stream4d.pose import _kernels_graph, _kernels_loops, _kernels_similarity, loops
from stream4d.pose.rehearsal import LOOP_STEPS
from stream4d.rehearsal import Rehearsal
from tests.test_epipolar_sweep import HARD, hard_pair
from tests.test_loops import TIMES, Journey

KERNELS = {
    _kernels_loops: ("fit_similarity",),
    _kernels_graph: ("edge_costs", "edge_system", "reduce_chain", "expand_chain"),
    _kernels_similarity: ("move_similarity",),
    _kernels_algebra: ("solve_positive",),
}
"""What loop closure calls from Python."""


SWEEP_KERNELS = {
    _kernels_sweep: ("census", "line_costs", "aggregate", "cheapest", "costs_of_flow"),
    _kernels_rigid: ("fit_rotation", "baseline_moments", "fit_motion"),
}
"""What a hard frame pair calls."""


def recorded(
    patch: pytest.MonkeyPatch,
    act: Callable[[], Any],
    kernels: dict[types.ModuleType, tuple[str, ...]] = KERNELS,
) -> dict[str, set[tuple[Any, ...]]]:
    """Return the types of arguments that each kernel was called with meanwhile."""
    calls: dict[str, set[tuple[Any, ...]]] = {}

    def listen(module: types.ModuleType, name: str) -> None:
        kernel, seen = getattr(module, name), calls.setdefault(name, set())

        def call(*arguments: Any) -> Any:
            seen.add(tuple(map(numba.typeof, arguments)))
            return kernel(*arguments)

        patch.setattr(module, name, call)

    with patch.context() as patch:
        for module, names in kernels.items():
            for name in names:
                listen(module, name)
        act()
    return calls


def rehearse() -> None:
    rehearsal = Rehearsal(LOOP_STEPS)
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


@pytest.mark.parametrize("given", [True, False])
def test_a_hard_pair_needs_no_kernel_that_was_not_rehearsed(
    given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, flows = hard_pair()
    K = HARD.K if given else None
    real = recorded(monkeypatch, lambda: mend_hard_pair(first, second, flows, K), SWEEP_KERNELS)
    assert all(real.values())
    assert recorded(monkeypatch, epipolar_sweep.rehearse, SWEEP_KERNELS) == real


def test_a_stopped_rehearsal_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_stopped() -> None:
        rehearsal = Rehearsal(LOOP_STEPS)
        rehearsal.stop()
        rehearsal.start()
        rehearsal.wait()

    assert not any(recorded(monkeypatch, begin_stopped).values())

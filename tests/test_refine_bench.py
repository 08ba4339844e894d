"""The reference of the refinement's benchmark: the same objective as the solver's, and it is minimised."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream4d.errors import EvaluationError
from stream4d.eval.refine_bench import Reference, compare, cost, dense_problem
from stream4d.pose.global_adjustment import Problem
from stream4d.store.reader import open_store
from tests.test_offline import recording, stored


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    _, run = recording(drift=0.004, frames=11)
    return dense_problem(open_store(stored(tmp_path_factory.mktemp("run") / "a.zarr", run)), 12)


def test_the_reference_has_the_solvers_objective(problem: Problem) -> None:
    reference = Reference(problem)
    # float32 sums of some thousand terms
    assert float(reference.objective().detach()) == pytest.approx(cost(problem), rel=1e-4)
    reference.run(8, 0.1, 60.0)
    problem_after = problem.thinned(1)
    reference.put_into(problem_after)
    assert cost(problem_after) < 0.9 * cost(problem)
    # Away from the start too, where smoothness and map scales count.
    assert float(reference.objective().detach()) == pytest.approx(cost(problem_after), rel=1e-3)


def test_what_was_not_run_is_called_extrapolated(problem: Problem) -> None:
    whole = list(compare(problem, 2, 60.0))
    assert sum("after 2 steps" in line for line in whole) == 3
    assert not any("extrapolated" in line for line in whole)
    cut = list(compare(problem, 50, 1e-9))
    assert sum("after 1 steps" in line for line in cut) == 3
    assert sum("all 50 steps would take" in line and "extrapolated" in line for line in cut) == 3


def test_a_store_of_one_frame_is_refused(tmp_path: Path) -> None:
    _, run = recording(drift=0.0, frames=1)
    with pytest.raises(EvaluationError, match="two frames"):
        dense_problem(open_store(stored(tmp_path / "a.zarr", run)), 12)

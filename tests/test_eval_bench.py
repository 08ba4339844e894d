"""The budgets table: ratios, pass and fail."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import pytest

from stream4d.eval import bench, bench_parts


@pytest.mark.parametrize("larger_is_better", [True, False])
def test_ratios(larger_is_better: bool) -> None:
    """1 is just met, larger is better, whichever way the unit runs."""
    budget = bench.Budget(what="x", unit="u", floor=10, aim=20, larger_is_better=larger_is_better)
    twice_as_good = 20 if larger_is_better else 5
    assert budget.ratio(twice_as_good, budget.floor) == pytest.approx(2)
    assert bench.Line(budget=budget, value=twice_as_good).is_met
    missed = bench.Line(budget=budget, value=9 if larger_is_better else 11)
    assert not missed.is_met
    assert "FAIL" in bench.table([missed])


def test_long_video_runs_forwards_and_backwards(tmp_path: Path) -> None:
    """Neighbouring images are neighbours in the clip, also where it turns."""
    folder = bench_parts.write_long_video(tmp_path / "video", 150)
    images = sorted(folder.iterdir())
    assert len(images) == 150
    targets = [int(path.resolve().stem) for path in images]
    assert max(abs(a - b) for a, b in itertools.pairwise(targets)) == 1
    assert cv2.imread(str(images[149])).shape == (288, 384, 3)


def test_bundle_step_converges() -> None:
    """The timed step is a real one: it lowers the cost of a disturbed map."""
    step = bench_parts.bundle_step()
    assert step().cost > 0  # type: ignore[attr-defined]


def test_a_run_that_compiled_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's memory is no growth of ours; it comes once on a machine."""
    answers = [{"compiled": 3.0, "end_mb": 450.0}, {"compiled": 0.0, "end_mb": 340.0}]
    monkeypatch.setattr(bench, "_worker_says", lambda command: answers.pop(0))
    assert bench._run_pipeline(4, "", 384)["end_mb"] == 340
    assert not answers

"""The budgets table: ratios, pass and fail."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import cv2
import pytest

from stream4d.eval import bench, bench_parts, bench_pipeline


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


def test_the_chain_alone_is_timed_over_any_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Per frame that it posed, not per frame asked for; what is no video gets one line."""
    lines = tmp_path / "lines.json"
    arguments = ["--chain", str(bench_parts.bundled_clip()), "--json", str(lines)]
    bench.main([*arguments, "--frames", "20"])
    (chain,) = json.loads(lines.read_text())
    assert chain["what"].startswith("pose chain")
    assert 1 < chain["value"] < 1000
    assert bench.main(["--chain", str(tmp_path / "none.mp4")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_is_measured_once_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's memory is no growth of ours; where it came nevertheless, the table says so."""
    run = {
        "fps": 20,
        "peak_mb": 400,
        "end_mb": 450,
        "early_mb": 340,
        "early_cpu_s": 1,
        "late_cpu_s": 1,
    }
    told = ["", json.dumps({**run, "compiled": 3})]
    commands: list[list[str]] = []

    def answer(command: list[str]) -> str:
        commands.append(command)
        return told.pop(0)

    monkeypatch.setattr(bench_pipeline, "_run", answer)
    monkeypatch.setattr(bench_parts, "write_long_video", lambda folder, count: folder)
    lines = bench.measure_long(10_000)
    warm_up, measured = commands
    assert warm_up[0] == "stream4d"
    assert warm_up[warm_up.index("--max-frames") + 1] == str(bench_pipeline.WARM_UP)
    assert measured[-1] == str(bench_pipeline.LONG_SPAN)
    assert "3 kernels were compiled meanwhile" in bench.table(lines)


def test_what_cannot_be_measured_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_parts, "write_long_video", lambda path, frames: path)
    assert bench.main([]) == 1
    told = capfd.readouterr().err
    assert "no such file or folder" in told
    assert "nothing measured" in told
    assert "Traceback" not in told
    with pytest.raises(SystemExit):
        bench.main(["--json", str(tmp_path / "none" / "lines.json")])
    assert "no folder" in capfd.readouterr().err

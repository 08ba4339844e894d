"""Figures of offline refinement: what a run with drift gains, and how the table says it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stream4d import cli
from stream4d.eval.refined import refined_figures, refined_lines, refined_table
from stream4d.eval.scorer import SequenceScorer
from stream4d.eval.sequence import load_folder
from tests.test_eval_runs import write_sequence
from tests.test_offline import ORBIT, recording, stored

FRAMES = 13


def test_a_run_with_drift_gets_better_figures(tmp_path: Path) -> None:
    _, run = recording(drift=0.004, frames=FRAMES, focal=1.04)
    info = dataclasses.replace(ORBIT.info(FRAMES), width=ORBIT.width, height=ORBIT.height)
    truth = load_folder(write_sequence(tmp_path / "orbit", ORBIT, FRAMES))
    scorer = SequenceScorer(truth, info, calibrated=False)
    for frame in run.frames:
        scorer.add(frame)
    before, _ = scorer.results()
    refined = refined_figures(scorer, stored(tmp_path / "a.zarr", run))
    after = refined["figures"]
    assert before["focal_error_percent"] == pytest.approx(4)
    assert after["focal_error_percent"] < 1
    assert after["ate_m"] < 0.3 * before["ate_m"]
    assert after["rpe_rot_deg"] < 0.5 * before["rpe_rot_deg"]
    assert after["depth_abs_rel"] < 0.02
    assert refined["parts"][0]["is_better"]
    assert refined["parts"][0]["cost"][1] < refined["parts"][0]["cost"][0]


def test_a_store_that_cannot_be_refined_says_why(tmp_path: Path) -> None:
    _, run = recording(drift=0.004, frames=4)
    scorer = SequenceScorer(
        load_folder(write_sequence(tmp_path / "orbit", ORBIT, 4)), ORBIT.info(4), calibrated=False
    )
    refined = refined_figures(scorer, stored(tmp_path / "a.zarr", run, complete=False))
    assert "unfinished" in refined["reason"]


def test_the_table_shows_before_and_after() -> None:
    def row(name: str, status: str = "ok") -> dict[str, object]:
        return {
            "name": name, "status": status, "ate_m": 0.5, "rpe_trans_m": 0.25, "rpe_rot_deg": 2.0,
            "focal_error_percent": None, "depth_abs_rel": 0.125,
        }  # fmt: skip

    parts = [
        {"first": 0, "stop": 30, "is_better": True, "cost": [4.0, 2.0], "reason": ""},
        {"first": 30, "stop": 40, "is_better": False, "cost": [8.0, 10.0], "reason": "no better"},
    ]
    after = {"ate_m": 0.25, "rpe_trans_m": 0.125, "rpe_rot_deg": 1.0, "focal_error_percent": None,
             "depth_abs_rel": 0.0625}  # fmt: skip
    results = {
        "sequences": [row("two"), row("broken", "failed"), row("pairs"), row("none"), row("short")],
        "details": {
            "two": {"refined": {"figures": after, "parts": parts, "cpu_s": 12.34}},
            "broken": {},
            "pairs": {},
            "none": {"refined": {"reason": "holds no images"}},
            "short": {"refined": {"figures": after, "parts": [], "cpu_s": 0.04}},
        },
    }
    heading, lines = refined_lines(results)
    assert all(len(line) == len(heading) for line in lines)
    assert lines[0] == [
        "two", "0.5000", "0.2500", "0.2500", "0.1250", "2.000", "1.000", "–", "–", "0.125", "0.062",
        "5.000", "4.000", "1/2", "12.3",
    ]  # fmt: skip
    assert [line[0] for line in lines] == ["two", "none", "short"]
    assert lines[1][-2] == "holds no images"
    assert lines[2][-4:] == ["–", "–", "0/0", "0.0"]
    assert refined_table(results).count("\n") == 4


def test_one_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sequence(tmp_path / "orbit", count=8)
    flags = ["--model", "classical", "--refine", "-q", "--calibrated"]
    assert cli.main(["eval", str(tmp_path / "orbit"), *flags]) == 0
    assert "refined offline, before → after" in capsys.readouterr().out

"""What ``stream4d refine`` makes of a run: the same figures before and after, of the same frames."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stream4d.commands.refine import refine_store
from stream4d.errors import StoreError
from stream4d.eval.calibration import focal_error_percent
from stream4d.eval.report import MISSING, aligned
from stream4d.eval.scorer import SequenceScorer
from stream4d.packets import PoseRevision
from stream4d.store.reader import open_store

FIGURES = (
    ("ate_m", "ATE m", "{:.4f}"),
    ("rpe_trans_m", "RPE-t m", "{:.4f}"),
    ("rpe_rot_deg", "RPE-r °", "{:.3f}"),
    ("focal_error_percent", "focal %", "{:.1f}"),
    ("depth_abs_rel", "AbsRel", "{:.3f}"),
)
"""Key, heading and format of what the table shows before and after."""


def refined_figures(scorer: SequenceScorer, path: Path) -> dict[str, Any]:
    """Refine the finished store of a run in place, and score it anew.

    Args:
        scorer: has scored the run; it is left with the refined cameras.
        path: the store.

    Returns:
        ``figures`` as in a row, ``parts`` (what was refined and whether it got better), ``cpu_s``; or the ``reason``
        why there is nothing.
    """
    before = open_store(path).depth_scale
    began = time.process_time()
    try:
        result = refine_store(path, None, quiet=True)
    except StoreError as error:
        return {"reason": str(error)}
    seconds = time.process_time() - began
    store = open_store(path)
    scorer.revise(
        PoseRevision(
            indices=np.arange(len(store)),
            world_from_cam=store.world_from_cam,
            scale=store.depth_scale / before,
        )
    )
    row, _ = scorer.results()
    truth_K = scorer.truth_K(store.info.width, store.info.height)
    if truth_K is not None:
        row["focal_error_percent"] = focal_error_percent(store.K[-1], truth_K)
    return {
        "figures": {key: row[key] for key, _, _ in FIGURES},
        "parts": [asdict(part) for part in result.parts],
        "cpu_s": seconds,
    }


def refined_lines(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heading and lines: each figure before and after, the cost of unseen points, what was kept, CPU time."""
    heading = ["sequence"]
    for _, title, _ in FIGURES:
        heading += [title, "→"]
    heading += ["unseen σ²", "→", "better", "CPU s"]
    rows = [row for row in results["sequences"] if row["status"] == "ok"]
    details = results["details"]
    return heading, [
        _line(row, details[row["name"]]["refined"])
        for row in rows
        if "refined" in details[row["name"]]  # pairs of images have none
    ]


def _line(row: dict[str, Any], refined: dict[str, Any]) -> list[str]:
    if "reason" in refined:
        return [row["name"], *[MISSING] * (2 * len(FIGURES) + 2), refined["reason"], MISSING]
    line = [row["name"]]
    for key, _, form in FIGURES:
        line += [_number(row[key], form), _number(refined["figures"][key], form)]
    parts = refined["parts"]
    frames = [part["stop"] - part["first"] for part in parts]
    for i in range(2):
        mean = np.average([part["cost"][i] for part in parts], weights=frames) if parts else None
        line.append(_number(mean, "{:.3f}"))
    better = sum(part["is_better"] for part in parts)
    return [*line, f"{better}/{len(parts)}", f"{refined['cpu_s']:.1f}"]


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)


def refined_table(results: dict[str, Any]) -> str:
    """Return the table for a terminal."""
    heading, lines = refined_lines(results)
    return "\n".join(["refined offline, before → after", *aligned([heading, *lines])])

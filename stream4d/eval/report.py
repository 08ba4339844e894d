"""Results as text: the table on the terminal and the tables of a results page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

COLUMNS = (
    ("path_m", "path m", "{:.2f}"),
    ("ate_m", "ATE m", "{:.4f}"),
    ("ate_percent", "ATE %", "{:.2f}"),
    ("rpe_trans_m", "RPE-t m", "{:.4f}"),
    ("rpe_rot_deg", "RPE-r °", "{:.3f}"),
    ("focal_error_percent", "focal %", "{:.1f}"),
    ("depth_abs_rel", "AbsRel", "{:.3f}"),
    ("depth_delta1", "δ<1.25", "{:.3f}"),
    ("mask_j", "J", "{:.3f}"),
    ("mask_f", "F", "{:.3f}"),
    ("static_share", "static", "{:.3f}"),
    ("flow_epe", "EPE px", "{:.2f}"),
    ("flow_dis_epe", "(DIS)", "{:.2f}"),
    ("flow_fl_percent", "Fl %", "{:.1f}"),
    ("flow_dis_fl_percent", "(DIS)", "{:.1f}"),
    ("pose_in_1sigma", "in 1σ", "{:.2f}"),
    ("fps", "fps", "{:.1f}"),
    ("latency_s", "first s", "{:.1f}"),
    ("peak_rss_mb", "RSS MB", "{:.0f}"),
)
"""Key of a row, heading, format."""
MISSING = "–"


def cells(
    results: dict[str, Any], keys: Sequence[str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return heading and lines (one per sequence, then the mean); columns without any figure are left out."""
    rows = results["sequences"]
    shown = [
        column
        for column in COLUMNS
        if (keys is None or column[0] in keys) and any(row[column[0]] is not None for row in rows)
    ]
    heading = ["sequence", "frames", *(title for _, title, _ in shown)]
    lines = [[row["name"], _frames(row), *_figures(row, shown)] for row in rows]
    mean = results["mean"]
    done = mean["sequences"] - mean["failed"]
    lines.append([f"mean of {done}/{mean['sequences']}", _frames(mean), *_figures(mean, shown)])
    return heading, lines


def text_table(results: dict[str, Any]) -> str:
    """Return the table for a terminal, and the reasons of failed sequences under it."""
    heading, lines = cells(results)
    body = aligned([heading, *lines])
    rule = "─" * len(body[0])
    body = [body[0], rule, *body[1:-1], rule, body[-1]]
    kind = "calibrated" if results["calibrated"] else "uncalibrated"
    failures = [f"  {name}: {reason}" for name, reason in failed(results)]
    notes = ["failed:", *failures] if failures else []
    return "\n".join([f"model {results['model']}, {kind}", *body, *notes])


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table for a terminal; the first column is left-aligned, the others right."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in table
    ]


def markdown_table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a GitHub table; the first column is left-aligned, the others right."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heading, rule, *lines))


def failed(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, reason) of every failed sequence."""
    return [(row["name"], row["reason"]) for row in results["sequences"] if row["status"] != "ok"]


def _frames(row: dict[str, Any]) -> str:
    if row.get("status", "ok") != "ok":
        return "failed"
    posed = row["frames_with_pose"]
    return f"{MISSING if posed is None else posed}/{row['frames']}"


def _figures(row: dict[str, Any], shown: Sequence[tuple[str, str, str]]) -> list[str]:
    return [MISSING if row[key] is None else form.format(row[key]) for key, _, form in shown]

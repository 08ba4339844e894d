"""Pictures of results: trajectory, error over time, calibration. Made from the JSON alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stream4d.eval.runner import safe_name

TRUTH, OURS = "0.55", "#d1495b"


def figures(row: dict[str, Any], details: dict[str, Any]) -> dict[str, Figure]:
    """Return the pictures that one sequence has data for, by kind."""
    made = {}
    plot, confidence = details.get("plot"), details.get("confidence")
    is_still = row["path_m"] is not None and row["ate_m"] is None
    if plot and not is_still:  # a camera that only turns draws a dot
        made["trajectory"] = _figure(lambda axes: _trajectory(axes, row, plot))
    if plot and "error_m" in plot and not is_still:
        made["error"] = _figure(lambda axes: _error(axes, row, plot))
    if confidence:
        made["calibration"] = _figure(lambda axes: _calibration(axes, row, confidence))
    return made


def write_plots(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``NAME-KIND.png`` for every sequence into ``folder`` and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row in results["sequences"]:
        for kind, figure in figures(row, results["details"].get(row["name"], {})).items():
            path = folder / f"{safe_name(row['name'])}-{kind}.png"
            path.write_bytes(png(figure))
            written.append(path)
    return written


def png(figure: Figure, dpi: int = 100) -> bytes:
    """Render a figure."""
    buffer = io.BytesIO()
    # Without the creation date two equal runs give equal files.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _figure(draw: Callable[[Axes], None]) -> Figure:
    figure = Figure(figsize=(5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    return figure


def _trajectory(axes: Axes, row: dict[str, Any], plot: dict[str, Any]) -> None:
    """Draw the two axes along which the path extends most."""
    ours = np.array(plot["estimate"])
    truth = np.array(plot["truth"]) if "truth" in plot else None
    reference = ours if truth is None else truth
    i, j = np.sort(np.argsort(np.ptp(reference, axis=0))[-2:])
    if truth is not None:
        axes.plot(truth[:, i], truth[:, j], color=TRUTH, linewidth=2.5, label="ground truth")
    axes.plot(ours[:, i], ours[:, j], color=OURS, linewidth=1.2, label=_path_label(row))
    axes.plot(*ours[0, [i, j]], "o", color=OURS, markersize=4)
    unit = "m" if truth is not None else "arbitrary units"
    axes.set(title=row["name"], xlabel=f"{'xyz'[i]} ({unit})", ylabel=f"{'xyz'[j]} ({unit})")
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)


def _path_label(row: dict[str, Any]) -> str:
    if row["ate_m"] is None:
        return "estimate"
    return f"estimate, ATE {row['ate_m']:.3f} m"


def _error(axes: Axes, row: dict[str, Any], plot: dict[str, Any]) -> None:
    axes.plot(plot["time_s"], plot["error_m"], color=OURS)
    axes.fill_between(plot["time_s"], plot["error_m"], color=OURS, alpha=0.15, linewidth=0)
    axes.set(title=row["name"], xlabel="time (s)", ylabel="position error after Sim(3) (m)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)


def _calibration(axes: Axes, row: dict[str, Any], confidence: dict[str, Any]) -> None:
    stated = np.array(confidence["stated"], np.float64)
    observed = np.array(confidence["observed"], np.float64)
    share = np.array(confidence["count"]) / max(1, np.sum(confidence["count"]))
    centres = (np.arange(len(share)) + 0.5) / len(share)
    axes.bar(centres, share, width=0.9 / len(share), color="0.85", label="share of pixels")
    axes.plot([0, 1], [0, 1], color=TRUTH, linewidth=1, label="honest")
    axes.plot(stated, observed, "o-", color=OURS, label=f"ours, error {confidence['ece']:.3f}")
    axes.set(
        title=row["name"],
        xlabel="stated confidence",
        ylabel=f"depth within {100 * confidence['within']:.0f} %",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend(frameon=False)

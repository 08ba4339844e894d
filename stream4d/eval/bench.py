"""Checks the budgets of the design: ``python -m stream4d.eval.bench``.

Each line gives the measured value and its ratio to the floor and to the aim, so that 1.00 is just met and larger is
better. The budgets are for two CPU cores without a GPU. Times are medians. The exit status is 1 where a floor is
missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream4d import logs
from stream4d.errors import Stream4DError
from stream4d.eval.bench_pipeline import run_pipeline
from stream4d.eval.report import aligned


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One line of the table."""

    what: str
    """What is measured."""
    unit: str
    """Its unit."""
    floor: float
    """Must be met."""
    aim: float
    """Should be met."""
    larger_is_better: bool = False
    """True for rates."""

    def ratio(self, value: float, target: float) -> float:
        """Return how well a target is met: 1 is just met, 2 is twice as good."""
        return value / target if self.larger_is_better else target / value


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A budget and what was measured."""

    budget: Budget
    """The budget."""
    value: float
    """The measurement, in the budget's unit."""
    note: str = ""
    """What spoils the measurement, if anything does."""

    @property
    def is_met(self) -> bool:
        """True where the floor is met."""
        return self.budget.ratio(self.value, self.budget.floor) >= 1


FPS = Budget(what="pipeline, 384×288, view off", unit="fps", floor=8, aim=20, larger_is_better=True)
PEAK = Budget(what="peak memory", unit="GB", floor=1.5, aim=1.0)
GROWTH = Budget(what="memory at the end against frame 100", unit="×", floor=1.1, aim=1.02)
LONG_GROWTH = Budget(what="memory at the end against frame 1100", unit="×", floor=1.1, aim=1.02)
LONG_COST = Budget(
    what="CPU time of the last 1000 frames against 100-1100", unit="×", floor=1.1, aim=1.0
)
COST = Budget(what="cost of the last frames against 100-200", unit="×", floor=1.1, aim=1.0)
ALIGN = Budget(what="Sim(3) alignment, 512×288 overlap", unit="ms", floor=15, aim=4)
CHAIN = Budget(what="pose chain alone, 384×288", unit="ms a frame", floor=25, aim=25)
BUNDLE = Budget(what="bundle step, 10 keyframes × 96 patches", unit="ms", floor=10, aim=3)
STORE = Budget(what="store append, 384×288, all arrays", unit="ms", floor=8, aim=3)
HELP = Budget(what="stream4d --help", unit="s", floor=0.5, aim=0.2)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table; 1 where a floor is missed."""
    parser = argparse.ArgumentParser(prog="python -m stream4d.eval.bench", description=__doc__)
    parser.add_argument(
        "--frames", type=int, default=600, help="length of the pipeline run, at least 300 [600]"
    )
    parser.add_argument(
        "--long",
        type=int,
        metavar="N",
        help="only run the pipeline, into a store, over N frames (at least 2200): are time and memory flat?",
    )
    parser.add_argument(
        "--chain",
        type=Path,
        metavar="VIDEO",
        help="only time the pose chain alone over the first --frames frames of a video, camera unknown",
    )
    parser.add_argument(
        "--resolution",
        type=int,
        default=384,
        help="long side of the frames of the run, pixels [384]",
    )
    parser.add_argument("--model", default="", help="model [the default model]")
    parser.add_argument("--json", type=Path, help="write the lines as JSON")
    args = parser.parse_args(arguments)
    if args.json and not args.json.parent.is_dir():  # told now, not after minutes
        parser.error(f"--json: there is no folder {args.json.parent}")
    try:
        if args.chain:
            lines = [measure_chain(args.frames, args.chain)]
        elif args.long:
            lines = measure_long(max(2200, args.long), args.model, args.resolution)
        else:
            lines = measure(max(300, args.frames), args.model, args.resolution)
    except Stream4DError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except subprocess.CalledProcessError as error:  # it has said why
        sys.stderr.write(f"nothing measured: the run ended with status {error.returncode}\n")
        return 1
    logs.show(table(lines))
    logs.show(_circumstances())
    if args.json:
        args.json.write_text(json.dumps([_as_dict(line) for line in lines], indent=1) + "\n")
    return int(not all(line.is_met for line in lines))


def measure_long(frames: int, model: str = "", resolution: int = 384) -> list[Line]:
    """Run the pipeline over a stream so long that whatever grows shows: the bundled clip, to and fro."""
    run = run_pipeline(frames, model, resolution, is_long=True)
    note = _note(run)
    return [
        Line(budget=FPS, value=run["fps"], note=note),
        Line(budget=PEAK, value=run["peak_mb"] / 1000, note=note),
        Line(budget=LONG_GROWTH, value=run["end_mb"] / run["early_mb"], note=note),
        Line(budget=LONG_COST, value=run["late_cpu_s"] / run["early_cpu_s"], note=note),
    ]


def measure_chain(frames: int, video: Path | None = None) -> Line:
    """Time the pose chain alone with ``classical``; without a video over the bundled clip, to and fro."""
    from stream4d.eval.bench_parts import chain_seconds, write_long_video

    with tempfile.TemporaryDirectory(prefix="stream4d-bench-") as folder:
        video = video or write_long_video(Path(folder) / "video", frames)
        return Line(budget=CHAIN, value=1000 * chain_seconds(video, frames))


def measure(frames: int, model: str = "", resolution: int = 384) -> list[Line]:
    """Measure every budget."""
    from stream4d.eval import bench_parts

    run = run_pipeline(frames, model, resolution)
    note = _note(run)
    return [
        Line(budget=FPS, value=run["fps"], note=note),
        Line(budget=PEAK, value=run["peak_mb"] / 1000, note=note),
        Line(budget=GROWTH, value=run["end_mb"] / run["early_mb"], note=note),
        Line(budget=COST, value=run["late_s"] / run["early_s"], note=note),
        measure_chain(frames),
        Line(budget=ALIGN, value=1000 * median_seconds(bench_parts.overlap_alignment())),
        Line(budget=BUNDLE, value=1000 * median_seconds(bench_parts.bundle_step(), repeats=50)),
        Line(budget=STORE, value=1000 * store_append_seconds()),
        Line(budget=HELP, value=help_seconds()),
    ]


def table(lines: list[Line]) -> str:
    """Return the lines as text."""
    heading = ["what", "measured", "floor", "ratio", "aim", "ratio", ""]
    rows = [
        [
            line.budget.what,
            f"{line.value:.3g} {line.budget.unit}",
            f"{line.budget.floor:g}",
            f"{line.budget.ratio(line.value, line.budget.floor):.2f}",
            f"{line.budget.aim:g}",
            f"{line.budget.ratio(line.value, line.budget.aim):.2f}",
            ("pass" if line.is_met else "FAIL") + (f" ({line.note})" if line.note else ""),
        ]
        for line in lines
    ]
    figures = aligned([row[:-1] for row in [heading, *rows]])
    verdicts = [row[-1] for row in [heading, *rows]]
    return "\n".join("  ".join(both) for both in zip(figures, verdicts, strict=True))


def median_seconds(call: Callable[[], object], repeats: int = 15) -> float:
    """Return the median time of a call, after two that compile and warm up."""
    call()
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def store_append_seconds(frames: int = 96, window: int = 8) -> float:
    """Return the time per frame of writing and committing to a store, with the end of the last window."""
    from stream4d.eval.bench_parts import posed_frames, video_info
    from stream4d.store.writer import StoreWriter

    made = list(posed_frames(window))

    with tempfile.TemporaryDirectory(prefix="stream4d-bench-") as folder:
        store = StoreWriter(Path(folder) / "s.zarr", info=video_info(frames), config={}, card=None)
        started = time.perf_counter()
        with store:
            for i in range(frames):
                store.write(dataclasses.replace(made[i % window], index=i))
                if i % window == window - 1:
                    store.commit(dict)
        return (time.perf_counter() - started) / frames


def help_seconds(repeats: int = 7) -> float:
    """Return the median wall time of ``stream4d --help``."""
    from stream4d.eval.bench_parts import help_command

    def call() -> None:
        subprocess.run(help_command(), check=True, stdout=subprocess.DEVNULL)

    return median_seconds(call, repeats)


def _note(run: dict[str, float]) -> str:
    compiled = round(run["compiled"])
    return f"{compiled} kernels were compiled meanwhile: measure again" if compiled else ""


def _circumstances() -> str:
    """Say what helps to compare machines: the time of a fixed task, and how busy the machine is."""
    from stream4d.eval.bench_parts import dis_pair

    unit = f"unit of this machine: DIS on one pair of frames takes {1000 * median_seconds(dis_pair()):.1f} ms"
    if not hasattr(os, "getloadavg"):
        return unit
    return f"{unit}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _as_dict(line: Line) -> dict[str, Any]:
    budget = line.budget
    return {
        "what": budget.what,
        "unit": budget.unit,
        "value": line.value,
        "floor": budget.floor,
        "aim": budget.aim,
        "floor_ratio": budget.ratio(line.value, budget.floor),
        "aim_ratio": budget.ratio(line.value, budget.aim),
        "is_met": line.is_met,
    }


if __name__ == "__main__":
    raise SystemExit(main())

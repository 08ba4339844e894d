"""Runs every shipped model over a folder of clips and writes the results page: ``make results``.

``python -m stream4d.eval.results --data CLIPS --out docs/results.md``. Finished sequences are kept in ``--work`` while
model, settings and code are the same, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

from stream4d import config as settings
from stream4d import logs
from stream4d.config import ModelConfig, RunConfig
from stream4d.errors import EvaluationError, WeightsError
from stream4d.eval.results_page import results_page
from stream4d.eval.runner import Job, Results, run_jobs
from stream4d.eval.sequence import EvalSequence, load_folder

ACCURACY = ("ate_m", "rpe_trans_m", "rpe_rot_deg", "depth_abs_rel", "mask_j", "flow_epe")
"""Figures that must repeat from run to run (times do not)."""
COMMAND = "make results"
"""What the page says it was made by: this module with ``--data`` set to the shared evaluation clips."""
REPEATED = 3
"""How many of the shortest clips run twice."""


def main(arguments: list[str] | None = None) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m stream4d.eval.results", description="write the results page"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of sequence folders")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"), help="page to write")
    parser.add_argument(
        "--work", type=Path, default=Path("build/results"), help="where JSON is kept"
    )
    parser.add_argument("--models", nargs="+", help="models [those that need no download]")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds per sequence")
    args = parser.parse_args(arguments)
    clips, here = find_clips(args.data), machine()
    models = args.models or shipped_models()
    runs = [
        measure(model, clips, calibrated, args.work, args.timeout)
        for model in models
        for calibrated in (False, True)
    ]
    repeat = repeatability(runs[0], clips, args.timeout)
    page = results_page(runs, here, COMMAND, repeat)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page, encoding="utf-8")
    logs.show(f"wrote {args.out}")
    return 0


def find_clips(data: Path) -> list[tuple[Path, EvalSequence]]:
    """Load every sequence folder below ``data`` that has ground truth.

    Raises:
        EvaluationError: there is none.
    """
    clips = []
    for folder in sorted(path for path in data.iterdir() if path.is_dir()):
        try:
            sequence = load_folder(folder)
        except EvaluationError:
            continue  # a folder of something else
        if sequence.truth is not None or sequence.masks or sequence.depth or sequence.pairs:
            clips.append((folder, sequence))
    if not clips:
        raise EvaluationError(f"{data} holds no sequence with ground truth")
    return clips


def shipped_models() -> list[str]:
    """Name the models that run without a download, and whose weights this package holds."""
    from stream4d.models.registry import create_model, list_models, model_card

    names = []
    for name in list_models():
        if model_card(name).needs_weights:
            continue
        try:
            create_model(name)
        except WeightsError:  # a checkout without the weights file
            continue
        names.append(name)
    return names


def measure(
    model: str,
    clips: list[tuple[Path, EvalSequence]],
    calibrated: bool,
    work: Path,
    timeout_s: float,
) -> dict[str, Any]:
    """Measure one model; calibrated runs take only clips with a known camera."""
    chosen = [clip for clip in clips if not calibrated or clip[1].camera is not None]
    config = RunConfig(model=ModelConfig(name=model, device="cpu"))
    file = work / f"{model}-{'calibrated' if calibrated else 'uncalibrated'}.json"
    results = Results(model, calibrated=calibrated, config=settings.dump(config), path=file)
    results.resume()
    jobs = [_job(folder, sequence) for folder, sequence in chosen]
    if any(job.name not in results.rows for job in jobs):
        _warm_up(chosen, config, timeout_s)
    with logs.Progress(sum(job.frames for job in jobs)) as progress:
        run_jobs(jobs, results, timeout_s=timeout_s, on_frame=progress.advance)
    results.keep([job.name for job in jobs])
    results.write()
    return results.as_dict()


def repeatability(
    run: dict[str, Any], clips: list[tuple[Path, EvalSequence]], timeout_s: float
) -> str:
    """Run the shortest clips a second time and say how far accuracy figures moved."""
    done = {row["name"]: row for row in run["sequences"] if row["status"] == "ok"}
    videos = [clip for clip in clips if clip[1].name in done and not clip[1].pairs]
    shortest = sorted(videos, key=lambda clip: clip[1].frame_count)[:REPEATED]
    again = Results(run["model"], calibrated=run["calibrated"], config=run["run"]["config"])
    run_jobs([_job(*clip) for clip in shortest], again, timeout_s=timeout_s)
    moved = [
        abs(again.rows[name][key] - done[name][key]) / max(abs(done[name][key]), 1e-9)
        for name in again.rows
        for key in ACCURACY
        if done[name][key] is not None and again.rows[name][key] is not None
    ]
    if not moved:
        return ""
    names = ", ".join(f"`{name}`" for name in again.rows)
    most = max(100 * max(moved), 0.001)  # rounding of the last digit is not worth a number
    return f"A second run of {names} moved no accuracy figure by more than {most:.1g} %."


def machine() -> str:
    """Describe this machine in words, other work on it included: that slows what is measured."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = f", shared with other work at the start (load {load:.1f}: times are too long)"
    return f"{os.cpu_count()} CPU cores ({name}), no GPU used{busy if load > 1 else ''}"


def _warm_up(clips: list[tuple[Path, EvalSequence]], config: RunConfig, timeout_s: float) -> None:
    """Run a few frames and forget them: the first run after an install compiles kernels for later ones."""
    videos = [clip for clip in clips if not clip[1].pairs]
    short = dataclasses.replace(config, reader=dataclasses.replace(config.reader, max_frames=40))
    results = Results(config.model.name, calibrated=False, config=settings.dump(short))
    run_jobs([_job(*clip) for clip in videos[:1]], results, timeout_s=timeout_s)


def _job(folder: Path, sequence: EvalSequence) -> Job:
    return Job(name=sequence.name, dataset=None, root=folder.resolve(), frames=sequence.frame_count)


if __name__ == "__main__":
    raise SystemExit(main())

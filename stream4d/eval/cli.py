"""``stream4d eval``: measure a model on sequences with ground truth."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream4d import config as settings
from stream4d import logs
from stream4d.config import RunConfig
from stream4d.errors import EvaluationError, MissingDependencyError

if TYPE_CHECKING:
    from stream4d.eval.runner import Job, Results

EXAMPLES = """\
examples:
  stream4d eval clips/tum_fr1_xyz clips/davis_dog              a table, uncalibrated
  stream4d eval clips/* --calibrated --json out.json --resume  with the true cameras; goes on where it stopped
  stream4d eval --dataset sintel --root MPI-Sintel --html sintel.html --plot plots/
"""
DEFAULT_TIMEOUT_S = 1800.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to measure, with which model, and where results go."""
    parser.add_argument(
        "sequences", nargs="*", type=Path, metavar="SEQ_DIR", help="folders in stream4d's layout"
    )
    group = parser.add_argument_group("benchmarks")
    group.add_argument(
        "--dataset", metavar="NAME", help="a published benchmark (--list names them)"
    )
    group.add_argument("--root", type=Path, metavar="DIR", help="its folder, as published")
    group.add_argument("--list", action="store_true", help="list the benchmarks and stop")

    group = parser.add_argument_group("model")
    group.add_argument("--model", default="", metavar="NAME", help="model [the default model]")
    group.add_argument("--weights", metavar="FILE|HUB_ID", help="checkpoint [the shipped one]")
    group.add_argument("--device", metavar="NAME", help="auto, cpu, cuda … [auto]")
    group.add_argument("--calibrated", action="store_true", help="give the true camera to the run")
    group.add_argument("--resolution", type=int, metavar="PX", help="long side of the frames [384]")
    group.add_argument("--config", metavar="NAME|FILE", help="preset or YAML file of settings")
    group.add_argument(
        "--max-frames", type=int, metavar="N", help="stop each sequence after N frames"
    )
    group.add_argument(
        "--refine",
        action="store_true",
        help="keep a store, refine it offline as `stream4d refine` does, and show figures before and after",
    )

    group = parser.add_argument_group("results")
    group.add_argument("--json", type=Path, metavar="FILE", help="write figures as JSON")
    group.add_argument("--plot", type=Path, metavar="DIR", help="write pictures and trajectories")
    group.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page")
    group.add_argument("--resume", action="store_true", help="keep finished sequences of --json")
    group.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help=f"a sequence that takes longer has failed [{DEFAULT_TIMEOUT_S:g}]",
    )
    group.add_argument("-v", "--verbose", action="count", default=0, help="more log lines")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write what was asked for. 1 where every sequence failed, otherwise 0."""
    _require_packages()
    if args.list:
        return _list_benchmarks()
    if not args.timeout > 0:
        raise EvaluationError(f"--timeout must be above 0 seconds, got {args.timeout:g}")
    config = _config(args)
    jobs = find_jobs(args.sequences, args.dataset, args.root, args.max_frames)
    results = _results(args, config)
    _prepare_outputs(args)
    results.write()  # a file that cannot be written is better known before an hour of work
    try:
        _measure(jobs, results, args)
    except KeyboardInterrupt:
        hint = "; go on with --resume" if args.json else ""
        logs.show(f"interrupted: {len(results.rows)} of {len(jobs)} sequences are done{hint}")
        return 130
    results.keep([job.name for job in jobs])
    results.write()
    _write_reports(args, results.as_dict())
    _show_tables(results.as_dict(), refined=args.refine)
    return int(all(row["status"] != "ok" for row in results.rows.values()))


def _results(args: argparse.Namespace, config: RunConfig) -> Results:
    """Begin with no rows, or with the finished ones of ``--json`` where they are to be kept."""
    from stream4d.eval.runner import Results

    results = Results(
        config.model.name,
        calibrated=args.calibrated,
        config=settings.dump(config),
        path=args.json,
        refine=args.refine,
    )
    if args.resume and args.json is None:
        raise EvaluationError("--resume needs --json FILE: that is where finished rows are kept")
    if args.resume:
        results.resume()
    return results


def _measure(jobs: list[Job], results: Results, args: argparse.Namespace) -> None:
    from stream4d.eval.runner import run_jobs

    total = sum(job.frames for job in jobs)
    with logs.Progress(total, quiet=args.quiet) as progress:
        run_jobs(
            jobs,
            results,
            timeout_s=args.timeout,
            trajectories=args.plot,
            on_frame=progress.advance,
        )


def _show_tables(results: dict[str, Any], *, refined: bool) -> None:
    from stream4d.eval.refined import refined_table
    from stream4d.eval.report import text_table

    logs.show(text_table(results))
    if refined:
        logs.show("\n" + refined_table(results))


def find_jobs(
    folders: list[Path], dataset: str | None, root: Path | None, max_frames: int | None
) -> list[Job]:
    """List what is to be measured. A folder that cannot be read is listed too: it will be a failed row.

    Raises:
        EvaluationError: nothing to do, two sequences of one name, or a benchmark that cannot be read.
    """
    from stream4d.eval.protocols import load_dataset
    from stream4d.eval.runner import Job

    if (dataset is None) != (root is None):
        raise EvaluationError(
            "--dataset and --root belong together: NAME and the folder of the data"
        )
    if not folders and dataset is None:
        raise EvaluationError("nothing to measure: give sequence folders, or --dataset and --root")
    limit = max_frames or sys.maxsize
    jobs = [_folder_job(folder, limit) for folder in _sequence_folders(folders)]
    if dataset is not None and root is not None:
        jobs += [
            Job(
                name=sequence.name,
                dataset=dataset,
                root=root.resolve(),
                frames=min(limit, sequence.frame_count),
            )
            for sequence in load_dataset(dataset, root)
        ]
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvaluationError(f"more than one sequence is called {', '.join(twice)}")
    return jobs


def _sequence_folders(paths: list[Path]) -> list[Path]:
    """Leave out plain files, so that a pattern like ``clips/*`` may match a README."""
    folders = [path for path in paths if path.is_dir()]
    for path in paths:
        if not path.exists() or (path not in folders and len(paths) == 1):
            raise EvaluationError(f"{path} is not a folder")
    return folders


def _folder_job(folder: Path, limit: int) -> Job:
    from stream4d.eval.runner import Job
    from stream4d.eval.sequence import load_folder

    folder = folder.resolve()
    try:
        sequence = load_folder(folder)
    except EvaluationError:  # the worker meets it again, and says it in the row
        return Job(name=folder.name, dataset=None, root=folder, frames=0)
    return Job(
        name=sequence.name, dataset=None, root=folder, frames=min(limit, sequence.frame_count)
    )


def _config(args: argparse.Namespace) -> RunConfig:
    config = RunConfig() if args.config is None else settings.load(args.config)
    model = {
        key: value
        for key, value in (("name", args.model), ("weights", args.weights), ("device", args.device))
        if value
    }
    reader = {
        key: value
        for key, value in (("resolution", args.resolution), ("max_frames", args.max_frames))
        if value is not None
    }
    config = settings.merge(config, {"model": model, "reader": reader}, where="options")
    from stream4d.models.registry import model_card

    model_card(config.model.name)  # an unknown model fails here, once, and not in every sequence
    return config


def _prepare_outputs(args: argparse.Namespace) -> None:
    for folder in (args.plot, args.html and args.html.parent):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EvaluationError(f"cannot make {folder}: {error.strerror}") from None


def _write_reports(args: argparse.Namespace, results: dict[str, Any]) -> None:
    if args.plot:
        from stream4d.eval.plots import write_plots

        write_plots(results, args.plot)
    if args.html:
        from stream4d.eval.html import html_page

        args.html.write_text(html_page(results, _command(args)), encoding="utf-8")


def _command(args: argparse.Namespace) -> str:
    words = ["stream4d", "eval", *(str(folder) for folder in args.sequences)]
    for flag, value in (
        ("--dataset", args.dataset),
        ("--root", args.root),
        ("--model", args.model),
    ):
        words += [flag, str(value)] if value else []
    for flag, is_given in (("--calibrated", args.calibrated), ("--refine", args.refine)):
        words += [flag] if is_given else []
    return shlex.join(words)


def _list_benchmarks() -> int:
    from stream4d.eval.protocols import PROTOCOLS

    for name, protocol in PROTOCOLS.items():
        logs.show(f"{name:<15} {protocol.summary}")
    return 0


def _require_packages() -> None:
    import importlib.util

    for package in ("evo", "scipy", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, needed_for="stream4d eval", extra="eval")

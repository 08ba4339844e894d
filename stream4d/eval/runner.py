"""Measures many sequences, each in a process of its own, and keeps what is finished.

A sequence that raises, crashes, is killed or takes too long is a row that says ``failed``: it counts, and the others go
on. The JSON file is replaced atomically after every row, so an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stream4d._version import __version__
from stream4d.errors import EvaluationError
from stream4d.eval.row import ROW_FIELDS, empty_row
from stream4d.eval.worker import Spec
from stream4d.processes import Child
from stream4d.replacement import replacing

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sequence to measure."""

    name: str
    """Its name in the results."""
    dataset: str | None
    """Benchmark name, or None for a folder."""
    root: Path
    """The folder, or the benchmark's root."""
    frames: int
    """Frames that it should give, for the progress bar."""


class Results:
    """Rows and details in the form that is written as JSON.

    Args:
        model: name of the model.
        calibrated: the true camera was given.
        config: settings of the runs, as dumped.
        path: JSON file to keep up to date, or None.
        refine: refine each run offline, and score that too.
    """

    def __init__(
        self,
        model: str,
        *,
        calibrated: bool,
        config: dict[str, Any],
        path: Path | None = None,
        refine: bool = False,
    ) -> None:
        self.model = model
        self.calibrated = calibrated
        self.run: dict[str, Any] = {
            "format": FORMAT,
            "version": __version__,
            "code": code_digest(),
            "config": config,
            "refine": refine,
        }
        self.rows: dict[str, dict[str, Any]] = {}
        self.details: dict[str, dict[str, Any]] = {}
        self._path = path

    def resume(self) -> None:
        """Take over finished rows of the file, if model, settings and code are the same.

        Raises:
            EvaluationError: the file is not one of ours.
        """
        if self._path is None or not self._path.is_file():
            return
        old = read_results(self._path)
        same = (old["model"], old["calibrated"]) == (self.model, self.calibrated)
        if not same or old.get("run") != json.loads(json.dumps(self.run)):
            return
        for row in old["sequences"]:
            if row["status"] == "ok":
                self.rows[row["name"]] = row
                self.details[row["name"]] = old.get("details", {}).get(row["name"], {})

    def add(self, row: dict[str, Any], details: dict[str, Any]) -> None:
        """Take one finished row and write the file."""
        self.rows[row["name"]] = row
        self.details[row["name"]] = details
        self.write()

    def keep(self, names: Sequence[str]) -> None:
        """Order rows as ``names`` and drop others (a resumed file may hold more)."""
        self.rows = {name: self.rows[name] for name in names}
        self.details = {name: self.details[name] for name in names}

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file holds; numbers that are not finite become null."""
        cleaned: dict[str, Any] = _finite(
            {
                "model": self.model,
                "calibrated": self.calibrated,
                "sequences": list(self.rows.values()),
                "mean": mean_row(self.rows.values()),
                "details": self.details,
                "run": self.run,
            }
        )
        return cleaned

    def write(self) -> None:
        """Replace the JSON file, if there is one."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as part:
                part.write_text(dump_json(self.as_dict()), encoding="utf-8")
        except OSError as error:
            raise EvaluationError(f"cannot write {self._path}: {error.strerror}") from None


def dump_json(results: dict[str, Any]) -> str:
    """Return JSON with one line per sequence, so that two files can be compared by eye and by diff."""
    between = ",\n  "
    parts = []
    for key, value in results.items():
        body = json.dumps(value, ensure_ascii=False)
        if key == "sequences":
            lines = [json.dumps(row, ensure_ascii=False) for row in value]
            body = f"[\n  {between.join(lines)}\n ]"
        elif key == "details":
            lines = [f"{json.dumps(name)}: {json.dumps(item)}" for name, item in value.items()]
            body = f"{{\n  {between.join(lines)}\n }}"
        parts.append(f' "{key}": {body}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_results(path: Path) -> dict[str, Any]:
    """Read a JSON file of results.

    Raises:
        EvaluationError: it is missing or not one of ours.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = [row["name"] for row in data["sequences"]]
        complete = all(set(row) == set(ROW_FIELDS) for row in data["sequences"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} holds no evaluation results: {error!r}") from None
    if not complete or len(set(names)) != len(names) or "model" not in data:
        raise EvaluationError(f"{path} holds results of another format: write to a new file")
    return dict(data)


def mean_row(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of every figure over the sequences that have it, and how many are behind it.

    A failed sequence has no figures; ``failed`` says how many there are, and its frames count as frames without a
    pose.
    """
    rows = list(rows)
    mean: dict[str, Any] = {
        "sequences": len(rows),
        "failed": sum(row["status"] != "ok" for row in rows),
        "frames": sum(row["frames"] for row in rows),
        "frames_with_pose": sum(row["frames_with_pose"] or 0 for row in rows),
    }
    for key in ROW_FIELDS[5:]:
        values = [row[key] for row in rows if row["status"] == "ok" and row[key] is not None]
        mean[key] = sum(values) / len(values) if values else None
    return mean


def code_digest() -> str:
    """Return a digest of the package's sources and weights: equal digests give equal results."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.is_file()):
        if "__pycache__" in path.parts or path.suffix in (".nbi", ".nbc"):
            continue
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run_jobs(
    jobs: Sequence[Job],
    results: Results,
    *,
    timeout_s: float,
    trajectories: Path | None = None,
    on_frame: Callable[[str], None] = lambda name: None,
) -> None:
    """Measure every job that ``results`` does not hold yet."""
    for job in jobs:
        if job.name in results.rows:
            for _ in range(job.frames):
                on_frame(job.name)
            continue
        file = None if trajectories is None else trajectories / f"{safe_name(job.name)}.tum"
        spec = Spec(
            dataset=job.dataset,
            root=str(job.root),
            name=job.name,
            calibrated=results.calibrated,
            config=results.run["config"],
            trajectory_file=None if file is None else str(file),
            refine=results.run["refine"],
        )
        row, details = run_worker(
            spec, expected=job.frames, timeout_s=timeout_s, on_frame=partial(on_frame, job.name)
        )
        results.add(row, details)


def safe_name(name: str) -> str:
    """Turn a sequence name into a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def run_worker(
    spec: Spec, *, expected: int, timeout_s: float, on_frame: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one sequence in a new process and return (row, details), whatever happens to it."""
    found, frames = None, 0
    with Child(worker_command(spec), timeout_s=timeout_s) as child:
        for message in child.messages():
            if "row" in message:
                found = message
            else:
                frames = int(message["frames"])
                on_frame()
    for _ in range(expected - frames):
        on_frame()
    if found is not None and child.status == 0:
        return found["row"], found["details"]
    return empty_row(spec.name, "failed", child.ending, frames), {}


def worker_command(spec: Spec) -> list[str]:
    """Return the command that runs one sequence."""
    return [sys.executable, "-m", "stream4d.eval.worker", json.dumps(asdict(spec))]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

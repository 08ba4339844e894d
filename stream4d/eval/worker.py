"""Runs one sequence in a process of its own: ``python -m stream4d.eval.worker SPEC``.

A process per sequence makes peak memory and crashes real. The parent reads lines of JSON from stdout: ``{"frames": n}``
while it runs, then one ``{"row", "details"}``. Whatever the run itself prints goes to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from stream4d import config as settings
from stream4d.config import RunConfig
from stream4d.errors import Stream4DError
from stream4d.packets import PosedFrame, PoseRevision, State

if TYPE_CHECKING:
    from stream4d.eval.scorer import SequenceScorer
    from stream4d.eval.sequence import EvalSequence

MIN_FRAMES_SHARE = 0.9
"""A run that gives a smaller share of the frames has failed."""

NO_CAMERA = "no true camera is known: ran uncalibrated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a worker is asked to do; plain data, so that it travels as JSON."""

    dataset: str | None
    """Benchmark name, or None for a sequence folder."""
    root: str
    """The folder, or the benchmark's root."""
    name: str
    """Name of the sequence."""
    calibrated: bool
    """Give the true camera to the run."""
    config: dict[str, Any]
    """``RunConfig`` as dumped."""
    trajectory_file: str | None = None
    """Write the final trajectory (TUM) here."""
    refine: bool = False
    """Keep a store, refine it offline, and score that too."""


def main(text: str) -> int:
    """Run the spec given as JSON; the exit status is 0 even where the row says failed."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of the run must not mix with the lines of JSON

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    frames = 0

    def on_frames(count: int) -> None:
        nonlocal frames
        frames = count
        send({"frames": count})

    spec = Spec(**json.loads(text))
    try:
        row, details = evaluate(spec, on_frames)
    except Stream4DError as error:
        from stream4d.eval.row import empty_row

        reason = f"{type(error).__name__}: {error}"
        row, details = empty_row(spec.name, "failed", reason, frames), {}
    send({"row": row, "details": details})
    return 0


def evaluate(spec: Spec, on_frames: Callable[[int], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one sequence and return (row, details).

    Raises:
        Stream4DError: the run failed, or its ground truth is malformed.
    """
    from stream4d.eval.protocols import load_named

    sequence = load_named(spec.dataset, Path(spec.root), spec.name)
    config = settings.merge(RunConfig(), spec.config)
    if sequence.pairs:
        from stream4d.eval.flow_pairs import evaluate_pairs

        return evaluate_pairs(sequence, config, on_frames)
    return _evaluate_video(
        sequence, _with_camera(config, sequence, spec.calibrated), spec, on_frames
    )


def _with_camera(config: RunConfig, sequence: EvalSequence, calibrated: bool) -> RunConfig:
    if not calibrated:
        return config
    camera = sequence.camera
    if camera is None:
        return config
    K = camera.K
    reader = dataclasses.replace(
        config.reader,
        intrinsics=(float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])),
        distortion=camera.distortion or None,
    )
    return dataclasses.replace(config, reader=reader)


def _evaluate_video(
    sequence: EvalSequence, config: RunConfig, spec: Spec, on_frames: Callable[[int], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    from stream4d.eval.process import peak_rss_mb
    from stream4d.eval.scorer import SequenceScorer
    from stream4d.eval.trajectory import write_tum
    from stream4d.pipeline import Reconstruction

    revisions = RevisionSink()
    with _kept_store(spec.refine) as store:
        with _as_source(sequence) as source:
            started = time.perf_counter()
            with Reconstruction(source, config, out=store, sinks=[revisions]) as run:
                ready = time.perf_counter()
                scorer = SequenceScorer(sequence, run.info, calibrated=spec.calibrated)
                timing = score_stream(run, scorer, revisions, on_frames)
        peak = peak_rss_mb()  # before the final scores, which are ours and not the run's
        row, details = scorer.results()
        if spec.trajectory_file:
            write_tum(Path(spec.trajectory_file), scorer.trajectory())
        if store is not None:
            from stream4d.eval.refined import refined_figures

            details["refined"] = refined_figures(scorer, store)
    row.update(fps=timing.fps, peak_rss_mb=peak)
    row["latency_s"] = None if timing.first_s is None else ready - started + timing.first_s
    details["startup_s"] = ready - started
    details["frames_expected"] = _expected_frames(sequence, config)
    if spec.calibrated and sequence.camera is None:
        row["reason"] = NO_CAMERA
    if row["frames"] < MIN_FRAMES_SHARE * details["frames_expected"]:
        row["status"] = "failed"
        row["reason"] = f"only {row['frames']} of {details['frames_expected']} frames"
    return row, details


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTiming:
    """Time spent in the pipeline, without the time spent scoring."""

    frames: int
    """Frames that came."""
    seconds: float
    """Seconds in the pipeline, from the first request to the end."""
    first_s: float | None
    """Seconds to the first frame."""

    @property
    def fps(self) -> float | None:
        """Frames per second of pipeline time."""
        return self.frames / self.seconds if self.frames and self.seconds > 0 else None


def score_stream(
    frames: Iterable[PosedFrame],
    scorer: SequenceScorer,
    revisions: RevisionSink,
    on_frames: Callable[[int], None],
) -> StreamTiming:
    """Feed a stream of posed frames to the scorer and time the stream alone."""
    stream = iter(frames)
    count, seconds, first = 0, 0.0, None
    while True:
        asked = time.perf_counter()
        frame = next(stream, None)
        seconds += time.perf_counter() - asked
        for revision in revisions.drain():
            scorer.revise(revision)
        if frame is None:
            return StreamTiming(frames=count, seconds=seconds, first_s=first)
        count += 1
        first = seconds if first is None else first
        scorer.add(frame)
        on_frames(count)


class RevisionSink:
    """Keeps the revisions that the pipeline sends, until they are drained."""

    def __init__(self) -> None:
        self._revisions: list[PoseRevision] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def write(self, frame: PosedFrame) -> None:
        """Ignore frames: the scorer takes them from the pipeline itself."""

    def revise(self, revision: PoseRevision) -> None:
        """Keep a revision."""
        self._revisions.append(revision)

    def commit(self, resume_state: Callable[[], State]) -> None:
        """Ignore window boundaries."""

    def drain(self) -> list[PoseRevision]:
        """Return what came since the last call."""
        drained, self._revisions = self._revisions, []
        return drained


@contextmanager
def _kept_store(wanted: bool) -> Iterator[Path | None]:
    """Give a path for the run's store, gone in the end; None where none is wanted."""
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="stream4d-eval-") as folder:
        yield Path(folder) / "run.zarr"


@contextmanager
def _as_source(sequence: EvalSequence) -> Iterator[str]:
    """Give the sequence as something the reader opens; picked frames become a folder of links."""
    if sequence.source is not None:
        yield str(sequence.source)
        return
    with tempfile.TemporaryDirectory(prefix="stream4d-eval-") as folder:
        for i, path in enumerate(sequence.frames):
            _link(path.resolve(), Path(folder) / f"{i:06d}{path.suffix.lower()}")
        yield folder


def _link(source: Path, link: Path) -> None:
    import shutil

    try:
        link.symlink_to(source)
    except OSError:  # file systems without links
        shutil.copyfile(source, link)


def _expected_frames(sequence: EvalSequence, config: RunConfig) -> int:
    limit = config.reader.max_frames
    return sequence.frame_count if limit is None else min(limit, sequence.frame_count)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))

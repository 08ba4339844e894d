"""Runs the jobs of a batch, each as ``stream4d SOURCE`` in a process of its own, several at a time.

A video that cannot be read, a crash and a lack of memory end one job; the others go on.
"""

from __future__ import annotations

import json
import queue
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from stream4d.batch.jobs import Job, frames_done
from stream4d.processes import Child

INTERRUPTED = 130
"""Exit status of a run that Ctrl-C ended cleanly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended."""

    status: Literal["done", "done before", "failed", "stopped", "not begun"]
    """``stopped``: it goes on from there when the batch is run again."""
    frames: int = 0
    """Frames in the store, as far as is known."""
    fps: float | None = None
    """Frames per second of this run."""
    tracked: float | None = None
    """Share of this run's frames whose pose was measured."""
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job: it came so far, or it ended."""

    job: Job
    """The job."""
    done: int = 0
    """Frames so far, those of an earlier run included."""
    of: int | None = None
    """Frames that it will have, if that is known."""
    outcome: Outcome | None = None
    """How it ended, if it did."""


class Runner(Protocol):
    """What runs jobs."""

    def events(self) -> Iterator[Event]:
        """Yield what happens until every job has ended."""

    def stop(self) -> None:
        """Begin no more jobs; those that run end after the window in hand. May be called from a signal handler."""


def reconstruct(
    job: Job, tell: Callable[[Event], None], started: Callable[[Child], None] = lambda child: None
) -> Outcome:
    """Do one job and return how it ended, whatever happens to it.

    Args:
        job: what to do.
        tell: is told of every frame.
        started: is given the process.
    """
    before = frames_done(job)
    if before is not None:
        return Outcome(status="done before", frames=before)
    done, figures = 0, None
    with (
        tempfile.TemporaryDirectory(prefix="stream4d-batch-") as folder,
        Child(_command(job, Path(folder)), takes_ctrl_c=False) as child,
    ):
        started(child)
        for message in child.messages():
            if "done" in message:
                done = int(message["done"])
                tell(Event(job=job, done=done, of=message["of"]))
            else:
                figures = message
    if child.status not in (0, INTERRUPTED):
        return Outcome(status="failed", frames=done, reason=_reason(child.ending))
    if figures is None:
        return Outcome(status="done before" if child.status == 0 else "stopped", frames=done)
    return Outcome(
        status="done" if child.status == 0 else "stopped",
        frames=int(figures["frames"]),
        fps=figures["fps"],
        tracked=figures["tracked"] / max(figures["computed"], 1),
    )


class LocalRunner:
    """Runs jobs on this machine.

    Args:
        jobs: what to do, in this order.
        workers: how many at a time.
    """

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self._jobs, self._workers = jobs, workers
        self._events: queue.Queue[Event | BaseException] = queue.Queue()
        self._children: set[Child] = set()
        self._stopped = False
        self._guard = threading.RLock()  # a signal may come while this very thread holds it

    def events(self) -> Iterator[Event]:
        """Yield what happens until every job has ended."""
        left = len(self._jobs)
        with ThreadPoolExecutor(self._workers) as pool:
            for job in self._jobs:
                pool.submit(self._do, job)
            try:
                while left:
                    event = self._events.get()
                    if isinstance(event, BaseException):
                        raise event
                    left -= event.outcome is not None
                    yield event
            except BaseException:
                self._stopped = True
                self._each(Child.kill)
                raise

    def stop(self) -> None:
        """Begin no more jobs; those that run end after the window in hand."""
        self._stopped = True
        self._each(Child.interrupt)

    def _each(self, act: Callable[[Child], None]) -> None:
        with self._guard:
            for child in self._children:
                act(child)

    def _do(self, job: Job) -> None:
        children: list[Child] = []

        def started(child: Child) -> None:
            with self._guard:
                children.append(child)
                self._children.add(child)
                if self._stopped:
                    child.interrupt()

        try:
            outcome = Outcome(status="not begun")
            if not self._stopped:
                outcome = reconstruct(job, self._events.put, started)
            self._events.put(Event(job=job, outcome=outcome))
        except BaseException as error:  # a mistake of ours must not leave ``events`` waiting
            self._events.put(error)
        finally:
            with self._guard:
                self._children.difference_update(children)


def _command(job: Job, folder: Path) -> list[str]:
    import yaml

    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(job.config))), encoding="utf-8")
    flags = ["--overwrite" if job.overwrite else "--resume", *(["--refine"] if job.refine else [])]
    command = [sys.executable, "-m", "stream4d", "run", "--progress", "json"]
    return [*command, "--config", str(config), "--out", job.out, *flags, "--", job.source]


def _reason(ending: str) -> str:
    """Leave out what is before an error's own sentence."""
    return ending.removeprefix("exit status 1: ").removeprefix("stream4d: ")

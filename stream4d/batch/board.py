"""What is known of a batch while it runs: how far it is, and in the end the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from stream4d.batch.jobs import Job
from stream4d.batch.runner import Event, Outcome


class Board:
    """Frames done and expected, and how each job ended."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._done: dict[str, int] = {}
        self._of: dict[str, int] = {}
        self._outcomes: dict[str, Outcome] = {}

    def take(self, event: Event) -> int:
        """Note what happened; returns how many frames were computed since the last event of this job."""
        key = event.job.out
        if event.outcome is not None:
            self._outcomes[key] = event.outcome
            self._of[key] = self._done.get(key, 0)  # what did not come will not come
            return 0
        # The first event of a job tells what an earlier run has done: no work of this one.
        new = event.done - self._done.get(key, event.done)
        self._done[key] = event.done
        if event.of is not None:
            self._of[key] = event.of
        return new

    @property
    def failed(self) -> bool:
        """True where a job failed."""
        return any(outcome.status == "failed" for outcome in self._outcomes.values())

    @property
    def expected(self) -> int | None:
        """Frames of the whole batch; videos that are not open yet count as the mean of the others."""
        known = [frames for frames in self._of.values() if frames]
        if not known:
            return None
        waiting = len(self._jobs) - len(self._of)
        return sum(known) + round(waiting * sum(known) / len(known))

    def note(self) -> str:
        """Say which videos have ended, on a line."""
        return f"{len(self._outcomes)} of {len(self._jobs)} videos"

    def table(self) -> str:
        """Return a line per job and a sum."""
        heading = ("video", "status", "frames", "fps", "tracked", "")
        rows = [heading, *(_row(job, self._outcomes[job.out]) for job in self._jobs)]
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  "
            + "  ".join(f"{row[k]:>{widths[k]}}" for k in (2, 3, 4))
            + f"  {row[5]}"
            for row in rows
        ]
        counts = Counter(self._outcomes[job.out].status for job in self._jobs)
        told = ", ".join(f"{count} {status}" for status, count in counts.items())
        plural = "" if len(self._jobs) == 1 else "s"
        lines.append(f"{len(self._jobs)} video{plural}: {told}")
        return "\n".join(line.rstrip() for line in lines)


def _row(job: Job, outcome: Outcome) -> tuple[str, ...]:
    return (
        PurePath(job.source).name or job.source,
        outcome.status,
        str(outcome.frames) if outcome.frames else "–",
        "–" if outcome.fps is None else f"{outcome.fps:.1f}",
        "–" if outcome.tracked is None else f"{100 * outcome.tracked:.0f} %",
        outcome.reason or ("" if outcome.status == "not begun" else job.out),
    )

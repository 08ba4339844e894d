"""Runs the jobs of a batch on the machines of a Ray cluster, which see sources and stores under the same paths."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from stream4d.batch.jobs import Job
from stream4d.batch.runner import Event, Outcome, reconstruct
from stream4d.config import RunConfig
from stream4d.errors import ConfigError, MissingDependencyError

POLL_S = 0.5
"""How long to wait for a job before looking whether to stop."""


class RayRunner:
    """Runs each job as a Ray task, which starts a process of its own where it is.

    Args:
        jobs: what to do, in this order.
        workers: how many at a time; 1: as many as there is room for.
        address: of the cluster; ``auto``: the one of this machine, ``local``: a new one, on this machine only.
        config: of the runs. Each takes its threads from the cluster, and one GPU where its device is one.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: there is no cluster at the address.
    """

    def __init__(self, jobs: Sequence[Job], workers: int, address: str, config: RunConfig) -> None:
        try:
            import ray
        except ImportError:
            raise MissingDependencyError("ray", needed_for="--ray", extra="batch") from None
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":  # nobody else shall reach it
            options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"no Ray cluster at {address} ({reason}): start one with `ray start --head`, or give --ray local"
            ) from None
        self._ray: Any = ray
        self._task: Any = ray.remote(
            num_cpus=max(1, config.threads),
            num_gpus=int(config.model.device.startswith("cuda")),
            max_retries=0,
        )(_do)
        self._waiting = list(jobs)
        self._running: dict[Any, Job] = {}
        self._limit = workers if workers > 1 else len(jobs)
        self._stopped = False

    def events(self) -> Iterator[Event]:
        """Yield how each job ended, when it has: frames are told together."""
        try:
            while self._waiting or self._running:
                self._begin()
                if self._stopped:
                    yield from self._leave_out()
                ready, _ = self._ray.wait(list(self._running), timeout=POLL_S)
                for task in ready:
                    job, outcome = self._running.pop(task), self._outcome(task)
                    if outcome.status != "done before":
                        yield Event(job=job, done=0, of=outcome.frames)
                        yield Event(job=job, done=outcome.frames, of=outcome.frames)
                    yield Event(job=job, outcome=outcome)
        finally:
            self._ray.shutdown()

    def stop(self) -> None:
        """Begin no more jobs and end those that run: what they have committed stays."""
        self._stopped = True

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self._limit and not self._stopped:
            job = self._waiting.pop(0)
            self._running[self._task.remote(job)] = job

    def _leave_out(self) -> Iterator[Event]:
        for task in self._running:
            self._ray.cancel(task)
        for job in self._waiting:
            yield Event(job=job, outcome=Outcome(status="not begun"))
        self._waiting.clear()

    def _outcome(self, task: Any) -> Outcome:
        from ray.exceptions import RayError, TaskCancelledError

        try:
            outcome: Outcome = self._ray.get(task)
        except TaskCancelledError:
            return Outcome(status="stopped")
        except RayError as error:
            lines = str(error).strip().splitlines()
            return Outcome(status="failed", reason=lines[-1].strip() if lines else repr(error))
        return outcome


def _do(job: Job) -> Outcome:
    return reconstruct(job, lambda event: None)

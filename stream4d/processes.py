"""Work in a process of its own, which tells of itself in lines of JSON: a crash there is a sentence here."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self


class Child:
    """A running command that writes lines of JSON to its stdout; leaving the ``with`` block waits for its end.

    Args:
        command: program and arguments.
        timeout_s: kill it after so long.
        takes_ctrl_c: where the terminal's Ctrl-C reaches it too; else only ``interrupt`` does.
    """

    def __init__(
        self, command: Sequence[str], *, timeout_s: float | None = None, takes_ctrl_c: bool = True
    ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed on leaving)
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, text=True, start_new_session=not takes_ctrl_c
        )  # fmt: skip
        self._timeout_s = timeout_s
        self._has_expired = False
        self._timer = threading.Timer(timeout_s or 0, self._expire)
        if timeout_s is not None:
            self._timer.start()
        self.ending = ""
        """How it ended, in words, once it has: by which status or signal, and its last line of stderr."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self.kill()
        status = self._process.wait()
        self._timer.cancel()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self.ending = self._describe(status)
        self._errors.close()

    @property
    def status(self) -> int | None:
        """Its exit status, negative where a signal killed it; None while it runs."""
        return self._process.returncode

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what it says until it closes its stdout; lines that are no JSON objects are left out."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:  # cut off in the middle, or somebody's print
                continue
            if isinstance(message, dict):
                yield message

    def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def _expire(self) -> None:
        self._has_expired = True
        self.kill()

    def _describe(self, status: int) -> str:
        if self._has_expired:
            return f"took longer than {self._timeout_s:g} s"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = lines[-1].strip() if lines else "no message"
        if status < 0:
            name = signal.Signals(-status).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"killed by {name}{hint}: {last}"
        return f"exit status {status}: {last}"

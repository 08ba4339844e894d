"""Starts the Rerun viewer, native or web, as a process of its own, bound to one address.

The SDK's own ``spawn`` and ``serve_web_viewer`` listen on all interfaces, and report a taken port only in
their log. A child process takes ``--bind``, ends with an error that can be read, and keeps the viewer's
buffers out of the pipeline's memory.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from stream4d.errors import MissingDependencyError, Stream4DError

logger = logging.getLogger(__name__)

START_SECONDS = 20.0
"""How long a viewer may take to open its port; a cold start on a loaded laptop takes about three."""
SERVER_MEMORY = "512MiB"
"""What the web server keeps for browsers that connect late; then the oldest data go."""


def rerun_executable() -> Path:
    """Find the viewer that belongs to the installed SDK.

    Raises:
        MissingDependencyError: the SDK or its viewer is not installed.
    """
    try:
        import rerun_cli
    except ImportError:
        raise MissingDependencyError("rerun-sdk", needed_for="the viewer", extra="view") from None
    folder = Path(rerun_cli.__file__).parent
    for name in ("rerun", "rerun.exe", "Rerun.app/Contents/MacOS/Rerun"):
        if (folder / name).is_file():
            return folder / name
    raise Stream4DError(
        f"the Rerun viewer is missing from {folder}: reinstall it with `pip install rerun-sdk`"
    )


def check_display() -> None:
    """Raise at once where no window can open: the viewer itself would take seconds to say so."""
    needs_server = sys.platform.startswith("linux")
    if needs_server and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise Stream4DError(
            "cannot open a window: no display (DISPLAY and WAYLAND_DISPLAY are empty). "
            "Use `--view web`, or `--save-rrd FILE` and open the file elsewhere"
        )


def free_port(host: str) -> int:
    """Return a port that nobody uses right now."""
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Raise if the address cannot be listened on."""
    try:
        with socket.socket(_family(host)) as probe:
            # As servers do: a port whose last connections are winding down is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise Stream4DError(
            f"cannot listen on {host}:{port} for the viewer: {error}. "
            "Choose another with `--view-port` (0: any free one), or end what uses it"
        ) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class ViewerProcess:
    """A running viewer. ``url`` is where the SDK sends data, ``page`` what a browser opens."""

    def __init__(
        self, arguments: Sequence[str], *, host: str, port: int, web_port: int | None, detach: bool
    ) -> None:
        self.page: str | None = None
        reachable = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        named = f"[{reachable}]" if ":" in reachable else reachable
        self.url = f"rerun+http://{named}:{port}/proxy"
        if web_port is not None:
            self.page = f"http://{named}:{web_port}/?url={quote(self.url, safe='')}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [str(rerun_executable()), "--bind", host, "--port", str(port), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # A window that outlives the run must not get its Ctrl-C.
            start_new_session=True,
        )
        self._watch: subprocess.Popen[bytes] | None = None
        if not detach:
            atexit.register(self.close)
            self._watch = _end_with_us(self._process.pid)
        try:
            for each in (port, web_port):
                if each is not None:
                    self._wait_for_port(reachable, each)
        except BaseException:
            self.close()
            raise

    @property
    def is_running(self) -> bool:
        """False once the user closed the window, or the server died."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Return when the viewer ends."""
        self._process.wait()

    def close(self) -> None:
        """End the viewer."""
        atexit.unregister(self.close)
        if self._watch is not None:
            self._watch.kill()
            self._watch.communicate()
            self._watch = None
        if self.is_running:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def detach(self) -> None:
        """Leave the window to the user: nobody waits for it any more."""
        atexit.unregister(self.close)
        # Popen warns when it is collected while its child runs; here that is the intention.
        self._process.returncode = self._process.poll() or 0
        self._log.close()

    def _wait_for_port(self, host: str, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if not self.is_running:
                raise Stream4DError(f"the Rerun viewer ended at once: {self._last_words()}")
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=0.2):
                return
            time.sleep(0.05)
        raise Stream4DError(
            f"the Rerun viewer did not listen on {host}:{port} within {START_SECONDS:.0f} s"
        )

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        errors = [line for line in lines if line.startswith("Error")] or lines
        return " ".join(
            next((line for line in reversed(errors) if line.strip()), "no output").split()
        )


def _end_with_us(pid: int) -> subprocess.Popen[bytes] | None:
    """Start a shell that ends process ``pid`` when this one dies, however it dies (``kill -9`` too).

    It reads from a pipe that only this process holds open. Windows has no such shell: there ``close`` must do.
    """
    if os.name != "posix":
        return None
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read _; kill "$1"', "sh", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def start_native(files: Sequence[Path] = ()) -> ViewerProcess:
    """Open the viewer's window. It stays when the run ends.

    Raises:
        Stream4DError: no display, no viewer, or the viewer ended at once.
    """
    check_display()
    arguments = ["--hide-welcome-screen", *(str(file) for file in files)]
    if not files:
        arguments.append("--expect-data-soon")
    return ViewerProcess(
        arguments, host="127.0.0.1", port=free_port("127.0.0.1"), web_port=None, detach=True
    )


def start_web(host: str, port: int, files: Sequence[Path] = ()) -> ViewerProcess:
    """Serve the web viewer on ``port`` and its data on the next one (0: any two free ports).

    Raises:
        Stream4DError: a port is taken, no viewer, or the server ended at once.
    """
    data_port = port + 1 if port else free_port(host)
    port = port or free_port(host)
    check_port(host, port)
    check_port(host, data_port)
    arguments = [
        "--serve-web",
        "--web-viewer-port",
        str(port),
        "--server-memory-limit",
        SERVER_MEMORY,
        "--cors-allow-origin",
        f"http://{host}:{port}",
        *(str(file) for file in files),
    ]
    viewer = ViewerProcess(arguments, host=host, port=data_port, web_port=port, detach=False)
    # A warning, so that it is shown by default: without the address there is no view.
    logger.warning("the web view is at %s", viewer.page)
    return viewer

"""Live views that drop and never delay, their viewer processes, and replays."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stream4d.config import ViewConfig
from stream4d.errors import ConfigError, Stream4DError
from stream4d.packets import PosedFrame
from stream4d.viz import (
    replay,
    rerun_sink,
    scene_log,
    viewer_process,
)
from stream4d.viz.mailbox import Mailbox, WaitingQueue, Worker
from stream4d.viz.rerun_sink import RerunSink
from tests.posed import posed_frames
from tests.recordings import record, rows
from tests.synthetic import Scene

SCENE = Scene(width=96, height=72, focal=82.0)
INFO = SCENE.info(12)


@pytest.fixture(scope="module")
def frames() -> list[PosedFrame]:
    return posed_frames(12, SCENE)


# --- threads --------------------------------------------------------------------------------------------------


def test_mailbox_keeps_the_newest_and_counts_the_rest() -> None:
    box: Mailbox[int] = Mailbox()
    for i in range(1, 6):
        box.put(i)
    box.close()
    assert box.get() == 5
    assert box.get() is None
    assert box.dropped == 4


def test_queue_loses_nothing_and_a_dead_reader_blocks_nobody() -> None:
    taken: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.002)
        taken.append(item)
        if item == 30:
            raise ValueError("broken")

    queue: WaitingQueue[int] = WaitingQueue(2)
    worker = Worker("test", queue, slow)
    for i in range(1, 60):
        queue.put(i)
    assert worker.join(5)
    assert taken == list(range(1, 31))
    assert isinstance(worker.error, ValueError)


# --- live views -----------------------------------------------------------------------------------------------


class FakeViewer:
    """A viewer that accepts connections and says nothing."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"rerun+http://127.0.0.1:{self._socket.getsockname()[1]}/proxy"
        self.page: str | None = "http://127.0.0.1/"
        self.is_running = True

    def close(self) -> None:
        self.is_running = False
        self._socket.close()

    def detach(self) -> None:
        pass


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Replace the viewer by a fake that notes the frames; each takes 50 ms."""
    viewer, indices = FakeViewer(), []

    def note(self: scene_log.SceneLog, frame: PosedFrame, timing: object = None) -> None:
        time.sleep(0.05)
        indices.append(frame.index)

    monkeypatch.setattr(scene_log.SceneLog, "log", note)
    monkeypatch.setattr(scene_log.SceneLog, "finish", lambda self: None)
    monkeypatch.setattr(rerun_sink, "_start_viewer", lambda config: viewer)
    monkeypatch.setattr("rerun.RecordingStream.connect_grpc", lambda self, url: None)
    yield indices
    viewer.close()


def test_slow_view_drops_and_never_delays(shown: list[int], frames: list[PosedFrame]) -> None:
    waits = []
    with RerunSink(ViewConfig(mode="web"), "test") as sink:
        for frame in frames:
            start = time.perf_counter()
            sink.write(frame)
            waits.append(time.perf_counter() - start)
            time.sleep(0.01)
    assert np.median(waits) < 0.005  # of the 0.05 that the view takes
    assert shown[-1] == 11
    assert len(shown) < 12
    assert sink.dropped == 12 - len(shown)


def test_replay_shows_every_frame(shown: list[int], frames: list[PosedFrame]) -> None:
    replay.replay(frames, INFO, ViewConfig(mode="web"), speed=0, hold=False)
    assert shown == list(range(12))


def test_closed_window_ends_the_view_not_the_run(
    shown: list[int], frames: list[PosedFrame], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), RerunSink(ViewConfig(mode="web"), "test") as sink:
        sink.write(frames[0])
        time.sleep(0.1)
        assert sink._live is not None
        sink._live.viewer.close()
        for frame in frames[1:]:
            sink.write(frame)
            time.sleep(0.01)
    assert shown == [0]
    assert [r.message for r in caplog.records] == [
        "the live view has ended: its window or server was closed. The run goes on"
    ]


def test_latency_counts_from_capture(
    shown: list[int], frames: list[PosedFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[scene_log.Timing] = []
    monkeypatch.setattr(scene_log.SceneLog, "log", lambda self, frame, timing: seen.append(timing))
    start = time.monotonic_ns() - 500_000_000
    with RerunSink(ViewConfig(mode="web"), "test", clock=lambda t: start + t) as sink:
        sink.write(frames[0])
    assert 500 <= seen[0].latency_ms < 1000


def test_without_display_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_process.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(Stream4DError, match=r"no display.*--view web"):
        RerunSink(ViewConfig(mode="native"), "test").__enter__()


def test_taken_port_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Stream4DError, match=f"cannot listen on 127.0.0.1:{port}.*in use"):
            RerunSink(ViewConfig(mode="web", port=port), "test").__enter__()


def test_viewer_that_ends_at_once_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "rerun"
    fake.write_text("#!/bin/sh\necho 'Error: no graphics adapter' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(viewer_process, "rerun_executable", lambda: fake)
    with pytest.raises(Stream4DError, match="no graphics adapter"):
        viewer_process.start_web("127.0.0.1", 0)


def test_web_view_listens_on_loopback_only_and_ends(frames: list[PosedFrame]) -> None:
    with RerunSink(ViewConfig(mode="web", port=0), "test") as sink:
        assert sink.page is not None
        for frame in frames[:3]:
            sink.write(frame)
        with urllib.request.urlopen(sink.page, timeout=10) as page:
            assert b"rerun" in page.read().lower()
        port = int(sink.page.split(":")[2].split("/")[0])
        assert port in listening("127.0.0.1")
        assert port not in listening("0.0.0.0")
    # The page outlives the run until it is closed.
    assert port in listening("127.0.0.1")
    sink.close()
    assert port not in listening("127.0.0.1")


def test_web_view_dies_with_its_run() -> None:
    code = (
        "import os, signal\n"
        "from stream4d.viz.viewer_process import start_web\n"
        "print(start_web('127.0.0.1', 0).page, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    page = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60).stdout
    port = int(page.split(b":")[2].split(b"/")[0])
    deadline = time.monotonic() + 10
    while port in listening("127.0.0.1"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listening(address: str) -> set[int]:
    """Return the TCP ports that this machine listens on at an IPv4 address."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("needs /proc/net/tcp")
    wanted = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    local = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {int(port, 16) for host, port in local if host == wanted}


# --- replay ---------------------------------------------------------------------------------------------------


def test_pace_follows_the_video(frames: list[PosedFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(replay.time, "monotonic_ns", lambda: int(now[0] * 1e9))
    monkeypatch.setattr(replay.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    times = []
    for frame in replay.paced(frames[:6], speed=2.0):
        times.append(now[0])
        if frame.index == 2:
            now[0] += 1.0  # a stall
    steps = np.diff(times)
    assert steps == pytest.approx([0.02, 0.02, 1.0, 0.02, 0.02], abs=1e-6)


def test_replay_into_a_recording(tmp_path: Path, frames: list[PosedFrame]) -> None:
    path = tmp_path / "again.rrd"
    replay.replay(iter(frames), INFO, ViewConfig(save_rrd=str(path)))
    assert len(list(rows(path, "/world/camera", "translation"))) == 12
    assert not list(rows(path, "/plots/fps", "scalars"))  # of a replay it would say nothing


@pytest.mark.parametrize(("config", "speed"), [(ViewConfig(), 1.0), (ViewConfig(mode="web"), -1.0)])
def test_replay_without_sense_is_refused(config: ViewConfig, speed: float) -> None:
    with pytest.raises(ConfigError):
        replay.replay([], INFO, config, speed=speed)


def test_what_is_no_recording_is_not_opened(tmp_path: Path) -> None:
    text = tmp_path / "notes.rrd"
    text.write_text("hello")
    with pytest.raises(Stream4DError, match="not a Rerun recording"):
        replay.open_recording(text)
    with pytest.raises(Stream4DError, match="No such file"):
        replay.open_recording(tmp_path / "none.rrd")


def test_recording_is_served(tmp_path: Path, frames: list[PosedFrame]) -> None:
    path = tmp_path / "run.rrd"
    record(path, frames[:3])
    viewer = viewer_process.start_web("127.0.0.1", 0, [path])
    try:
        assert viewer.page is not None
        with urllib.request.urlopen(viewer.page, timeout=10) as page:
            assert page.status == 200
    finally:
        viewer.close()
    assert not viewer.is_running

"""Live sources: only the newest frames are kept, lost connections come back, and everything can be stopped."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import number_of, write_video

from stream4d.config import ReaderConfig
from stream4d.errors import VideoError
from stream4d.reader import camera_reader, open_video
from stream4d.reader.base import VideoReader
from stream4d.reader.camera_reader import RING, CameraBackend
from stream4d.reader.container import open_container
from stream4d.reader.prefetch import prefetch


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("live") / "clip.mp4", frames=40)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_reader, "BACK_OFF_S", (0.01, 0.02))
    monkeypatch.setattr(camera_reader, "GIVE_UP_S", 0.3)


def live_reader(backend: CameraBackend, **settings: object) -> VideoReader:
    config = ReaderConfig(**{"resolution": 64, **settings})  # type: ignore[arg-type]
    return VideoReader("fake", backend, config, "a test")


def opener_of(clip: Path, lives: int) -> Any:
    """Connect ``lives`` times, then never again."""
    connections = []

    @contextlib.contextmanager
    def opener() -> Iterator[Any]:
        connections.append(time.monotonic())
        if len(connections) > lives:
            raise VideoError("nobody answers")
        with open_container(str(clip)) as container:
            yield container

    return opener


def test_only_the_newest_frames_are_kept(clip: Path) -> None:
    backend = CameraBackend("fake", opener_of(clip, 1))
    with live_reader(backend) as reader:
        backend._thread.join(timeout=20)  # everything was captured before anything is read
        frames = list(reader)
        assert [number_of(frame.rgb) for frame in frames] == list(range(40 - RING, 40))
        assert [frame.index for frame in frames] == list(range(RING))
        assert [frame.source_index for frame in frames] == list(range(40 - RING, 40))
        assert reader.dropped == 40 - RING
        assert reader.info.is_live
        assert reader.info.frame_count is None


def test_lost_connections_come_back(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = CameraBackend("fake", opener_of(clip, 3))
    with live_reader(backend) as reader:
        times = [frame.timestamp_ns for frame in reader]
        taken = len(times) + reader.dropped
        assert reader.clock_start_ns is not None
        assert 0 <= times[-1] <= time.monotonic_ns() - reader.clock_start_ns + 2 * 10**9
    assert taken == 120
    assert times == sorted(set(times))
    assert caplog.text.count("trying again") >= 3
    assert "has ended: nobody answers" in caplog.text


def test_first_connection_must_work() -> None:
    with pytest.raises(VideoError, match="nobody answers"):
        CameraBackend("fake", opener_of(Path("unused"), 0))


def test_stopping_a_camera_that_never_ends(clip: Path) -> None:
    backend = CameraBackend("fake", opener_of(clip, 10**6))
    with live_reader(backend, max_frames=3) as reader:
        assert len(list(reader)) == 3
    assert not backend._thread.is_alive()


def test_a_camera_that_changes_size_ends_the_run(clip: Path, tmp_path: Path) -> None:
    clips = iter([clip, write_video(tmp_path / "big.mp4", size=(96, 64))])
    backend = CameraBackend("fake", lambda: open_container(str(next(clips, clip))))
    with live_reader(backend) as reader, pytest.raises(VideoError, match=r"64×48 to 96×64"):
        list(reader)


class _Handler(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        data = self.files[self.path]
        self.send_response(200)
        if not self.path.startswith("/live"):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("http")
    ts = write_video(folder / "live.ts", frames=40, options={"g": "10"})
    mp4 = write_video(folder / "clip.mp4", frames=40, container_options={"movflags": "faststart"})
    _Handler.files = {"/live.ts": ts.read_bytes(), "/clip.mp4": mp4.read_bytes()}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def test_finite_video_over_http(server: str) -> None:
    with open_video(f"{server}/clip.mp4", ReaderConfig(resolution=64, stride=5)) as reader:
        assert reader.info.backend == "pyav"
        assert not reader.info.is_live
        assert reader.info.frame_count == 8
        whole = list(reader)
        assert [number_of(frame.rgb) for frame in whole] == list(range(0, 40, 5))
        assert [f.timestamp_ns for f in reader.frames_from(6)] == [30 * 40_000_000, 35 * 40_000_000]


def test_live_stream_over_http(server: str) -> None:
    with open_video(f"{server}/live.ts", ReaderConfig(resolution=64, max_frames=60)) as reader:
        assert reader.info.backend == "camera"
        assert reader.info.is_live
        frames = list(reader)
    # The server hangs up after 40 frames: the rest comes from a second connection.
    assert len(frames) == 60
    assert frames[-1].source_index >= 59


# ── the decode-ahead thread ────────────────────────────────────────────────────────────────────


def test_prefetch_runs_ahead_no_further_than_its_queue() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for index in range(1000):
            made.append(index)
            yield index

    ahead = prefetch(items(), 3)
    assert next(ahead) == 0
    time.sleep(0.2)
    assert len(made) <= 1 + 3 + 1  # taken, queued, in the thread's hand
    ahead.close()  # type: ignore[attr-defined]
    assert len(made) <= 6


def test_prefetch_hands_over_errors_in_order() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise VideoError("broken")

    ahead = prefetch(items(), 8)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(VideoError, match="broken"):
        next(ahead)

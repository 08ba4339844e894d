"""Many videos: one store each, failures apart, nothing twice, and a clean end after Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from stream4d.batch import runner
from stream4d.batch.board import Board
from stream4d.batch.jobs import Job, find_sources, plan
from stream4d.batch.runner import Event, LocalRunner, Outcome
from stream4d.cli import main
from stream4d.errors import ConfigError, StoreError
from stream4d.store.reader import open_store
from tests.videos import textured_pan, write_video

SMALL = ["--resolution", "128"]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_video(folder / "a.mp4", textured_pan(8))
    (folder / "broken.mp4").write_bytes(b"this is no video\n" * 50)
    write_video(folder / "c.mp4", textured_pan(12))
    (folder / "notes.txt").write_text("not a video")
    return folder


def lines_of(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in table.splitlines()}


def test_all_videos_get_a_store_and_a_failure_stops_none(
    clips: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = clips.parent / "stores"
    command = ["batch", str(clips), "--out", str(out), *SMALL]
    assert main([*command, "--workers", "2"]) == 1
    told = capfd.readouterr()
    rows = lines_of(told.out)
    assert rows["a.mp4"][1:3] == ["done", "8"]
    assert rows["c.mp4"][1:3] == ["done", "12"]
    assert rows["broken.mp4"][1] == "failed"
    assert "broken.mp4 is not a video" in told.out
    assert "3 videos: 2 done, 1 failed" in told.out
    assert "broken.mp4 failed: " in told.err
    assert sorted(os.listdir(out)) == ["a.zarr", "c.zarr"]
    assert [len(open_store(out / name)) for name in ("a.zarr", "c.zarr")] == [8, 12]

    before = (out / "a.zarr" / "zarr.json").stat().st_mtime_ns
    (clips / "broken.mp4").unlink()
    assert main(command) == 0, "other --workers change no result"
    rows = lines_of(capfd.readouterr().out)
    assert rows["a.mp4"][1:4] == ["done", "before", "8"]
    assert (out / "a.zarr" / "zarr.json").stat().st_mtime_ns == before

    command = ["batch", str(clips / "c.mp4"), *command[2:]]
    assert main([*command, "--max-frames", "5"]) == 1, "stores of other settings are kept"
    assert "was begun with reader.max_frames" in capfd.readouterr().out
    assert len(open_store(out / "c.zarr")) == 12
    assert main([*command, "--max-frames", "5", "--overwrite", "-q"]) == 0
    assert capfd.readouterr().out == ""
    assert len(open_store(out / "c.zarr")) == 5


def test_ctrl_c_leaves_what_goes_on_later(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_video(tmp_path / f"{name}.mp4", textured_pan(200))
    command = [sys.executable, "-m", "stream4d", "batch", str(tmp_path), "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*command, *SMALL], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and _committed(tmp_path / "first.zarr") < 8:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    rows = lines_of(told)
    assert rows["first.mp4"][1] == "stopped"
    assert rows["second.mp4"][1:3] == ["not", "begun"]
    assert 8 <= int(rows["first.mp4"][2]) < 200
    assert not open_store(tmp_path / "first.zarr").is_complete
    assert not (tmp_path / "second.zarr").exists()


def _committed(path: Path) -> int:
    try:
        return len(open_store(path))
    except StoreError:
        return 0


def job(name: str) -> Job:
    return Job(source=f"{name}.mp4", out=f"{name}.zarr", config={})


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL (out of memory?)"),
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import sys; sys.exit('stream4d: no such file')", "no such file"),
    ],
)
def test_a_run_that_dies_is_a_reason(
    program: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = 'print(\'{"done": 3, "of": 9}\', flush=True); '
    monkeypatch.setattr(
        runner, "_command", lambda job, folder: [sys.executable, "-c", begun + program]
    )
    first, last = LocalRunner([job("a")], 1).events()
    assert (first.done, first.of) == (3, 9)
    assert last.outcome is not None
    assert last.outcome.status == "failed"
    assert last.outcome.frames == 3
    assert reason in last.outcome.reason


def test_the_rest_is_estimated_from_the_videos_that_are_open() -> None:
    board = Board([job("a"), job("b"), job("c")])
    assert board.expected is None
    assert board.take(Event(job=job("a"), done=40, of=100)) == 0, "an earlier run's frames"
    assert board.expected == 300
    assert board.take(Event(job=job("a"), done=41, of=100)) == 1
    board.take(Event(job=job("b"), outcome=Outcome(status="failed", reason="bad")))
    assert board.expected == 200, "what failed at once says nothing of the others"
    board.take(Event(job=job("a"), outcome=Outcome(status="stopped", frames=41)))
    assert board.expected == 82
    assert board.note() == "2 of 3 videos"


class TestSources:
    def test_folders_hold_videos_and_sequences(self, tmp_path: Path) -> None:
        blank = np.zeros((32, 32, 3), np.uint8)
        for name in ("b.mp4", "a.MOV", ".hidden.mp4", "text.txt"):
            (tmp_path / name).write_bytes(b"x")
        cv2.imwrite(str(tmp_path / "a.jpg"), blank)  # a preview
        for name in ("images_here", "empty", "sequence/rgb", "store.zarr/rgb"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "store.zarr" / "zarr.json").write_text("{}")
        cv2.imwrite(str(tmp_path / "images_here" / "0.png"), blank)
        cv2.imwrite(str(tmp_path / "sequence" / "rgb" / "0.png"), blank)
        found = [Path(source).name for source in find_sources([str(tmp_path)], None)]
        assert found == ["a.MOV", "b.mp4", "images_here", "sequence"]
        sequence = str(tmp_path / "sequence")
        assert find_sources([sequence, sequence], None) == [sequence]

    def test_list(self, tmp_path: Path) -> None:
        (tmp_path / "videos.txt").write_text("# mine\none.mp4\n\n  two.mp4  \n")
        assert find_sources(["one.mp4"], str(tmp_path / "videos.txt")) == ["one.mp4", "two.mp4"]

    def test_one_file_written_in_several_ways_is_one(self, tmp_path: Path) -> None:
        listed = tmp_path / "videos.txt"
        listed.write_text("./one.mp4\r\nsub/../one.mp4\n", encoding="utf-8-sig")
        given = ["one.mp4", os.path.abspath("one.mp4")]
        assert find_sources(given, str(listed)) == ["one.mp4"]

    def test_list_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "list.mp4").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="no text in UTF-8"):
            find_sources([], str(tmp_path / "list.mp4"))

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ([], "no videos"),
            ([""], "a source is empty"),
            (["webcam"], "not webcam"),
            (["rtsp://camera/1"], "not rtsp"),
        ],
    )
    def test_refused(self, given: list[str], reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            find_sources(given, None)

    def test_two_videos_of_one_name(self) -> None:
        with pytest.raises(ConfigError, match=r"x/a\.mp4 and y/a\.mp4 would both"):
            plan(["x/a.mp4", "y/a.mp4"], Path("out"), {}, overwrite=False, refine=False)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--workers", "0"], "--workers must be at least 1"),
        (["--set", "view.mode=native"], "opens no view"),
        (["--model", "clasical"], "Did you mean 'classical'"),
        (["--list", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_flags_are_one_line(
    flags: list[str], told: str, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = clips.parent / "stores"
    assert main(["batch", str(clips), "--out", str(out), *flags]) == 1
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1
    assert not out.exists() or not list(out.iterdir())


def test_ray_runs_the_jobs(
    clips: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is an optional extra: stream4d[batch]")
    monkeypatch.chdir(clips.parent)
    command = ["batch", "clips", "--out", "stores", *SMALL, "--ray", "local"]
    assert main(command) == 1
    rows = lines_of(capfd.readouterr().out)
    assert [rows[name][1] for name in ("a.mp4", "broken.mp4", "c.mp4")] == [
        "done",
        "failed",
        "done",
    ]
    assert len(open_store("stores/c.zarr")) == 12

"""Two processes never write one place; readers, and what a killed process left, are in nobody's way."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream4d import claim as claims
from stream4d.claim import claim
from stream4d.cli import main
from stream4d.errors import StoreError
from stream4d.store.reader import open_store
from tests.conftest import ROOT
from tests.test_store_resume import ToyChain, toy_writer
from tests.videos import textured_pan, write_video

HOLD = """
import os, sys, time
from pathlib import Path
from stream4d.claim import claim
from stream4d.errors import StoreError
folder = Path(sys.argv[1])
try:
    with claim(folder / ".a.lock", folder / "a", StoreError):
        {then}
        print("held", flush=True)
        time.sleep(60)
except StoreError:
    print("refused", flush=True)
"""
SLOW_RUN = """
import sys, time
from stream4d.cli import main
from stream4d.store.writer import StoreWriter
commit = StoreWriter.commit
StoreWriter.commit = lambda *given: (commit(*given), time.sleep(0.2))
main(sys.argv[1:])
"""
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@contextlib.contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python in a process of its own, and kill it in the end."""
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        try:
            yield child
        finally:
            child.kill()


def answer(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def ours(folder: Path) -> contextlib.AbstractContextManager[None]:
    return claim(folder / ".a.lock", folder / "a", StoreError)


def test_another_process_is_refused_until_the_holder_dies(tmp_path: Path) -> None:
    with process("-c", HOLD.format(then="pass"), str(tmp_path)) as child:
        assert answer(child) == "held"
        with pytest.raises(StoreError) as refused, ours(tmp_path):
            pass
        assert re.search(
            rf"a is being written by process {child.pid} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: "
            "wait",
            str(refused.value),
        )
        child.kill()
        child.wait()
        assert (tmp_path / ".a.lock").exists(), "a killed process cannot clear up"
        with ours(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


@posix_only
def test_a_worker_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    worker = "child = os.fork()\n        if child == 0: time.sleep(60)\n        print(child)"
    with process("-c", HOLD.format(then=worker), str(tmp_path)) as child:
        worker_pid = int(answer(child))
        try:
            assert answer(child) == "held"
            child.kill()
            child.wait()
            os.kill(worker_pid, 0)  # it lives
            with ours(tmp_path):
                pass
        finally:
            os.kill(worker_pid, signal.SIGKILL)


def test_one_process_does_not_claim_twice(tmp_path: Path) -> None:
    with ours(tmp_path):
        link = tmp_path / "link"
        link.symlink_to(tmp_path, target_is_directory=True)
        for folder in (tmp_path, link):
            with pytest.raises(StoreError, match="this very process"), ours(folder):
                pass
        # Having refused itself, it still keeps others out.
        with process("-c", HOLD.format(then="pass"), str(tmp_path)) as child:
            assert answer(child) == "refused"
    with ours(tmp_path):
        pass


def test_a_file_system_without_locks_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(_number: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claims, "_lock", no_locks)
    for _ in range(2):
        with ours(tmp_path):
            pass
    assert [record.message for record in caplog.records] == [
        f"cannot lock {tmp_path / 'a'} (No locks available): "
        "make sure that nothing else writes there meanwhile"
    ]


@pytest.mark.parametrize("left", [b"", b"\xff{", b"[]", b'{"pid": 1}'])
def test_a_lock_file_that_tells_nothing(tmp_path: Path, left: bytes) -> None:
    (tmp_path / ".a.lock").write_bytes(left)
    assert claims._read_holder(tmp_path / ".a.lock") == "another process"
    with ours(tmp_path):
        pass


@posix_only
def test_a_store_has_one_writer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = str(write_video(tmp_path / "clip.mp4", textured_pan(80)))
    path = tmp_path / "x.zarr"
    run = ["run", clip, "--out", str(path), "-q"]
    with process("-c", SLOW_RUN, *run) as child:
        wait_for(path)
        child.send_signal(signal.SIGSTOP)
        seen = len(open_store(path))
        assert 0 < seen < 80
        refine = ["refine", str(path)]
        for command in (run, [*run, "--resume"], [*run, "--overwrite"], refine):
            assert main(command) == 1
            message = capsys.readouterr().err
            assert f"{path} is being written by process {child.pid} since" in message
            assert message.count("\n") == 1
        assert len(open_store(path)) == seen
        child.kill()
        child.wait()
    assert main([*run, "--resume"]) == 0
    assert len(open_store(path)) == 80
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "x.zarr"]


def test_two_fresh_runs_do_not_replace_each_other(tmp_path: Path) -> None:
    """The second was let in before the first had anything to show."""
    path = tmp_path / "a.zarr"
    first, second = toy_writer(path), toy_writer(path)
    with first:
        with pytest.raises(StoreError, match="being written"), second:
            pass
        for frame in ToyChain().extend(20):
            first.write(frame)
        first.commit()
    with pytest.raises(StoreError, match="exists"), second:
        pass
    assert open_store(path).is_complete


@posix_only
def test_a_run_folder_has_one_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a"
    train = ["train", str(ROOT / "configs/train/smoke.yaml"), "--out", str(out), "-q"]
    with process("-m", "stream4d", *train) as child:
        wait_for(out / ".lock")
        while not (out / ".lock").read_bytes():
            time.sleep(0.01)
        child.send_signal(signal.SIGSTOP)
        before = sorted(os.listdir(out))
        assert main(train) == 1
        assert f"{out} is being written by process {child.pid} since" in capsys.readouterr().err
        assert sorted(os.listdir(out)) == before
        child.kill()
        child.wait()
    assert main([*train, "--resume"]) == 1
    assert "nothing to resume" in capsys.readouterr().err

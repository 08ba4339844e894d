"""Where a store may be written: what is there is left alone, what fails is said, a full disk loses nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from stream4d.errors import StoreCompleteError, StoreError
from stream4d.store.reader import open_store
from tests.stores import (
    assert_same,
    fill,
    interrupted,
    posed,
    writer,
)


def test_existing_store_needs_a_word(tmp_path: Path) -> None:
    fill(tmp_path / "a.zarr", 5)
    with pytest.raises(StoreError, match="exists: give --overwrite"):
        writer(tmp_path / "a.zarr")
    with pytest.raises(StoreCompleteError, match="5 frames"):
        writer(tmp_path / "a.zarr", resume=True)
    with pytest.raises(StoreError, match="contradict"):
        writer(tmp_path / "a.zarr", resume=True, overwrite=True)
    assert len(open_store(tmp_path / "a.zarr")) == 5
    fill(tmp_path / "a.zarr", 3, overwrite=True)
    assert len(open_store(tmp_path / "a.zarr")) == 3
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_overwriting_waits_for_the_first_commit(tmp_path: Path) -> None:
    fill(tmp_path / "a.zarr", 5)
    with interrupted(tmp_path / "a.zarr", overwrite=True) as sink:
        sink.commit()  # nothing to commit yet
        sink.write(posed(0))
    assert len(open_store(tmp_path / "a.zarr")) == 5
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_failed_start_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writer(tmp_path / "a.zarr"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}])
def test_foreign_things_are_never_touched(tmp_path: Path, flags: dict[str, bool]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.txt").write_text("precious")
    with pytest.raises(StoreError, match="not a stream4d store"):
        writer(folder, **flags)
    file = tmp_path / "file.zarr"
    file.write_text("precious")
    with pytest.raises(StoreError, match="not a stream4d store"):
        writer(file, **flags)
    zarr.create_group(tmp_path / "other.zarr").create_array("x", data=np.arange(4))
    with pytest.raises(StoreError, match="not a stream4d store"):
        writer(tmp_path / "other.zarr", **flags)
    assert (folder / "holiday.txt").read_text() == "precious"
    assert file.read_text() == "precious"
    assert zarr.open_group(tmp_path / "other.zarr")["x"][3] == 3


def test_empty_folder_is_a_free_target(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    fill(tmp_path / "a.zarr", 2)
    assert len(open_store(tmp_path / "a.zarr")) == 2


def test_missing_parent_and_urls_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"folder .*nowhere does not exist"):
        writer(tmp_path / "nowhere" / "a.zarr")
    with pytest.raises(StoreError, match="local"):
        writer("s3://bucket/a.zarr")  # type: ignore[arg-type]


def test_unwritable_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(StoreError, match=r"cannot write .*Permission denied"),
        writer(tmp_path / "a"),
    ):
        pass
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_disk_full_keeps_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stream4d.store import files

    path, write_at, room = tmp_path / "a.zarr", files.write_at, [0]

    def limited(file: object, offset: int, data: bytes) -> None:
        if len(data) > room[0]:
            write_at(file, offset, data[: room[0]])  # type: ignore[arg-type]
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(data)
        write_at(file, offset, data)  # type: ignore[arg-type]

    def run_out_of_space() -> None:
        with writer(path) as sink:
            for index in range(40):
                sink.write(posed(index))
                if index == 8:
                    monkeypatch.setattr(files, "write_at", limited)
                    room[0] = 30_000
                if index % 4 == 3:
                    sink.commit(lambda: {"x": np.zeros(1)})

    with pytest.raises(StoreError, match=r"No space left.*8 frames are safe"):
        run_out_of_space()
    monkeypatch.undo()
    store = open_store(path)
    assert not store.is_complete
    for index in range(8):
        assert_same(store[index], posed(index))
    with writer(path, resume=True) as sink:
        for index in range(12):
            sink.write(posed(index))
    assert_same(open_store(path)[11], posed(11))

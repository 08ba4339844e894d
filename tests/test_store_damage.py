"""What a disk does to a store: files cut, gone or with other bytes are reported, never read as data."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from stream4d.errors import StoreError
from stream4d.store import array_metadata, arrays
from stream4d.store.reader import open_store
from tests.stores import assert_same, fill, interrupted, posed, writer


@pytest.mark.parametrize(
    "damage", ["missing shard", "short shard", "missing rows", "no array", "bad index"]
)
def test_truncated_stores_are_noticed(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.zarr"
    fill(path, 40)
    shard = path / "depth" / "c.1.0.0"
    if damage == "missing shard":
        (path / "rgb" / "c.0.0.0.0").unlink()
    elif damage == "short shard":
        os.truncate(shard, shard.stat().st_size - 10)
    elif damage == "missing rows":
        (path / "K" / "c.0.0.0").unlink()
    elif damage == "no array":
        for file in (path / "depth").iterdir():
            file.unlink()
        (path / "depth").rmdir()
    else:
        shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises(StoreError, match="damaged"):
        open_store(path)


def test_damage_inside_a_shard_is_noticed_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    fill(path, 40)
    os.truncate(path / "rgb" / "c.0.0.0.0", 5000)
    store = open_store(path)
    with pytest.raises(StoreError, match="cannot read rgb"):
        store[30]


def flip(shard: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(shard.read_bytes())
    data[at] ^= 0x10
    shard.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["rgb", "depth", "confidence", "motion_prob", "flow", "flow_uncertainty"]
)
def test_one_wrong_bit_is_noticed_on_reading(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zarr"
    fill(path, 2)
    shard = next((path / name).glob("c.0*"))
    flip(shard, shard.stat().st_size - 100)
    store = open_store(path)
    with pytest.raises(
        StoreError, match=rf"cannot read {name} \(.*other bytes than were written"
    ) as caught:
        store[1]
    assert "\n" not in str(caught.value)


def test_zarr_notices_it_too(tmp_path: Path) -> None:
    fill(tmp_path / "a.zarr", 2)
    shard = tmp_path / "a.zarr" / "depth" / "c.0.0.0"
    flip(shard, shard.stat().st_size - 100)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "a.zarr"), "/a.zarr", recursive=True)
    try:
        store = open_store("memory://a.zarr")
        with pytest.raises(StoreError, match="cannot read depth"):
            store[1]
    finally:
        memory.rm("/a.zarr", recursive=True)


def test_stores_of_early_versions_have_no_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read, and a run that resumes one goes on as it was begun."""
    path = tmp_path / "a.zarr"

    def early(*args: object, **kwargs: object) -> object:
        return array_metadata.array_metadata(*args, **{**kwargs, "is_checked": False})  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(arrays, "array_metadata", early)
        with interrupted(path) as sink:
            for index in range(4):
                sink.write(posed(index))
            sink.commit()
    assert_same(open_store(path)[3], posed(3))
    with writer(path, resume=True) as sink:
        for index in range(40):
            sink.write(posed(index))
            if index % 8 == 7:
                sink.commit()
    store = open_store(path)
    assert not array_metadata.has_checksums(store.array("depth").metadata.to_dict())
    for index in (0, 3, 4, 39):
        assert_same(store[index], posed(index))

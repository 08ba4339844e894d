"""The store: what is written is read back, by us, by zarr and by xarray, frame by frame and committed only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr

from stream4d.config import StoreConfig
from stream4d.errors import StoreError
from stream4d.packets import FrameTracks
from stream4d.store import format_page, schema
from stream4d.store.reader import Store, open_store
from tests.posed import posed_frames
from tests.stores import (
    INFO,
    ROOT,
    H,
    W,
    assert_same,
    edit_root,
    fill,
    posed,
    revision,
    writer,
)
from tests.synthetic import Scene


def test_read_gives_what_was_written(tmp_path: Path) -> None:
    fill(tmp_path / "a.zarr", 70)  # crosses shard borders, and the last commit comes with the end
    store = open_store(tmp_path / "a.zarr")
    assert len(store) == 70
    assert store.is_complete
    assert store.info.source == "clip.mp4"
    assert store.info.width == W
    assert store.attrs["model_card"]["name"] == "oracle"
    assert store.attrs["config"]["reader"]["resolution"] == 384
    for index, frame in enumerate(store):
        assert_same(frame, posed(index))


@pytest.mark.parametrize("step", [1, 31, 64])
def test_any_commit_rhythm(tmp_path: Path, step: int) -> None:
    fill(tmp_path / "a.zarr", 65, step)
    store = open_store(tmp_path / "a.zarr")
    for index in (0, 30, 31, 61, 62, 64):
        assert_same(store[index], posed(index))


def test_indexing_slices_and_time(tmp_path: Path) -> None:
    fill(tmp_path / "a.zarr", 20)
    store = open_store(tmp_path / "a.zarr")
    assert store[-1].index == 19
    assert [frame.index for frame in store[4:12:3]] == [4, 7, 10]
    assert [frame.index for frame in store[::-1][:2]] == [19, 18]
    assert store.at_time(5 * 33_333_333 + 1000).index == 5
    assert store.at_time(10**12).index == 19
    assert store.world_from_cam.shape == (20, 4, 4)
    assert store.keyframe.sum() == 7
    with pytest.raises(IndexError, match="20 frames"):
        store[20]


def test_pointmap_in_world_is_the_definition(tmp_path: Path) -> None:
    fill(tmp_path / "a.zarr", 3)
    store = open_store(tmp_path / "a.zarr")
    frame, (u, v) = store[2], (37, 21)
    ray = np.linalg.inv(frame.K) @ (u, v, 1.0)
    want = frame.world_from_cam @ np.append(frame.depth[v, u] * ray, 1.0)
    np.testing.assert_allclose(store.pointmap_in_world(2)[v, u], want[:3], rtol=1e-5)
    assert np.isnan(store.pointmap_in_world(2)[0, 0]).all()


def test_scene_flow_is_how_far_the_mover_goes(tmp_path: Path) -> None:
    scene = Scene(width=W, height=H, focal=40.0)
    with writer(tmp_path / "a.zarr") as sink:
        for frame in posed_frames(3, scene):
            sink.write(dataclasses.replace(frame, tracks=None))
    store = open_store(tmp_path / "a.zarr")
    moved = store.scene_flow(1)
    assert moved is not None
    ball, moving = scene.balls[0], scene.moving(1)
    assert (moved[~moving & np.isfinite(moved[..., 0])] == 0).all()
    error = np.linalg.norm(moved[moving] - (ball.position(2) - ball.position(1)), axis=-1)
    assert np.isfinite(error).mean() > 0.9
    # at the ball's edge its depth in the next frame is read between it and the wall
    assert np.nanmedian(error) < 0.05 * np.linalg.norm(ball.position(2) - ball.position(1))
    assert store.scene_flow(2) is None


def test_frames_may_lack_flow_and_gain_semantics(tmp_path: Path) -> None:
    labels = np.arange(H * W, dtype=np.int32).reshape(H, W)
    with writer(tmp_path / "a.zarr") as sink:
        sink.write(posed(0, flow=None, flow_uncertainty=None))
        sink.write(posed(1))
        sink.commit()
        sink.write(posed(2))
        sink.write(posed(3, semantics=labels))
        sink.commit()
        sink.write(posed(4, flow=None, flow_uncertainty=None))
    store = open_store(tmp_path / "a.zarr")
    assert [frame.flow is None for frame in store] == [True, False, False, False, True]
    assert [frame.semantics is None for frame in store] == [True, True, True, False, True]
    np.testing.assert_array_equal(store[3].semantics, labels)


@pytest.mark.parametrize("maps", ["geometry", "none"])
def test_fewer_maps(tmp_path: Path, maps: str) -> None:
    fill(tmp_path / "a.zarr", 5, store=StoreConfig(maps=maps))  # type: ignore[arg-type]
    store = open_store(tmp_path / "a.zarr")
    assert store.world_from_cam[4, 0, 3] == posed(4).world_from_cam[0, 3]
    if maps == "geometry":
        assert_same(store[4], posed(4, flow=None, flow_uncertainty=None))
    else:
        with pytest.raises(StoreError, match="maps: none"):
            store[4]


def test_depth_of_any_scale_survives_float16(tmp_path: Path) -> None:
    with writer(tmp_path / "a.zarr") as sink:
        for index, factor in enumerate((1e-6, 1.0, 3e7)):
            sink.write(posed(index, depth=posed(index).depth * np.float32(factor)))
    store = open_store(tmp_path / "a.zarr")
    for index, factor in enumerate((1e-6, 1.0, 3e7)):
        want = posed(index).depth * np.float32(factor)
        np.testing.assert_allclose(store[index].depth, want, rtol=2**-11)
    assert store.depth_scale[1] == 1


def test_float32_depth_is_exact(tmp_path: Path) -> None:
    fill(tmp_path / "a.zarr", 2, store=StoreConfig(depth_dtype="float32"))
    np.testing.assert_array_equal(open_store(tmp_path / "a.zarr")[1].depth, posed(1).depth)


def test_values_out_of_range_become_unknown_not_wrong(tmp_path: Path) -> None:
    flow = posed(0).flow.copy()
    flow[1, 1] = (1e6, -np.inf)
    confidence = posed(0).confidence.copy()
    confidence[0, :3] = (-0.5, 1.5, np.nan)
    with writer(tmp_path / "a.zarr") as sink:
        sink.write(posed(0, flow=flow, confidence=confidence))
    frame = open_store(tmp_path / "a.zarr")[0]
    assert np.isnan(frame.flow[1, 1]).all()
    assert frame.confidence[0, :3].tolist() == [0.0, 1.0, 0.0]


def test_metric_only_if_every_frame_is(tmp_path: Path) -> None:
    for name, flags in (("a", (True, True)), ("b", (True, False)), ("c", (False, True))):
        with writer(tmp_path / f"{name}.zarr") as sink:
            for index, is_metric in enumerate(flags):
                sink.write(posed(index, is_metric=is_metric))
        assert open_store(tmp_path / f"{name}.zarr").is_metric == all(flags)


@pytest.mark.parametrize("consolidated", [None, True, False])
def test_xarray_reads_it_without_warnings(tmp_path: Path, consolidated: bool | None) -> None:
    fill(tmp_path / "a.zarr", 40)
    data = xr.open_zarr(tmp_path / "a.zarr", consolidated=consolidated)
    assert data.sizes["index"] == 40
    assert data.depth.dims == ("index", "y", "x")
    want = posed(33)
    np.testing.assert_allclose(data.confidence.sel(index=33), want.confidence, atol=1 / 510 + 1e-6)
    np.testing.assert_array_equal(data.rgb.isel(index=33), want.rgb)
    np.testing.assert_array_equal(data.world_from_cam.isel(index=33), want.world_from_cam)


def test_every_array_is_named_and_described(tmp_path: Path) -> None:
    tracks = FrameTracks(
        id=np.arange(3), uv=np.zeros((3, 2)), visible=np.ones(3, bool), depth=np.ones(3)
    )
    with writer(tmp_path / "a.zarr", tracks=3) as sink:
        sink.write(posed(0, semantics=np.zeros((H, W), np.int32), tracks=tracks))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert set(dict(group.arrays())) == set(schema.BY_NAME)
    sized = {spec.name: spec for spec in schema.track_arrays(3)}
    for name, array in group.arrays():
        spec = sized.get(name, schema.BY_NAME[name])
        assert array.metadata.dimension_names == ("index", *spec.dims)
        assert array.shape == (1, *spec.frame_shape(H, W))
        assert array.attrs["description"] == spec.doc


def test_fsspec_reads_it(tmp_path: Path) -> None:
    fill(tmp_path / "a.zarr", 9)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "a.zarr"), "/a.zarr", recursive=True)
    try:
        assert_same(open_store("memory://a.zarr")[7], posed(7))
    finally:
        memory.rm("/a.zarr", recursive=True)
    with pytest.raises(StoreError, match="memory://nothing"):
        open_store("memory://nothing.zarr")


def test_readers_see_only_committed_frames(tmp_path: Path) -> None:
    with writer(tmp_path / "a.zarr") as sink:
        for index in range(10):
            sink.write(posed(index))
        assert not (tmp_path / "a.zarr").exists()
        sink.commit()
        for index in range(10, 17):
            sink.write(posed(index))
        store = open_store(tmp_path / "a.zarr")
        assert len(store) == 10
        assert not store.is_complete
        assert_same(store[9], posed(9))
        assert xr.open_zarr(tmp_path / "a.zarr").sizes["index"] == 10
    assert len(open_store(tmp_path / "a.zarr")) == 17


def test_stores_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store at"):
        open_store(tmp_path / "a.zarr")
    fill(tmp_path / "a.zarr", 40)
    edit_root(tmp_path / "a.zarr", format_version=99)
    with pytest.raises(StoreError, match="upgrade"):
        open_store(tmp_path / "a.zarr")
    with pytest.raises(StoreError, match="upgrade"):
        writer(tmp_path / "a.zarr", overwrite=True)
    (tmp_path / "a.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node')
    with pytest.raises(StoreError, match="not valid JSON"):
        open_store(tmp_path / "a.zarr")


def test_frames_out_of_order_or_of_another_size(tmp_path: Path) -> None:
    with writer(tmp_path / "a.zarr") as sink:
        sink.write(posed(0))
        with pytest.raises(StoreError, match="expected frame 1, got 2"):
            sink.write(posed(2))
        small = {name: getattr(posed(1), name)[:16] for name in ("rgb", "depth", "confidence")}
        with pytest.raises(StoreError, match="48×16"):
            sink.write(
                posed(1, **small, motion_prob=small["depth"], flow=None, flow_uncertainty=None)
            )
        with pytest.raises(StoreError, match="only 1 are written"):
            sink.revise(revision([1], 1.0))


def test_info_of_another_version_is_read(tmp_path: Path) -> None:
    fill(tmp_path / "a.zarr", 1)
    source = dataclasses.asdict(INFO) | {"new_field": 1}
    edit_root(tmp_path / "a.zarr", source=source)
    assert open_store(tmp_path / "a.zarr").info.fps == 30.0


def test_format_page_is_generated() -> None:
    page = (ROOT / "docs" / "store-format.md").read_text(encoding="utf-8")
    assert page == format_page.document(), (
        "run: python -m stream4d.store.format_page > docs/store-format.md"
    )


def test_store_says_what_it_is(tmp_path: Path) -> None:
    fill(tmp_path / "a.zarr", 2)
    store: Store = open_store(tmp_path / "a.zarr")
    assert "2 frames of 48×32, complete" in repr(store)

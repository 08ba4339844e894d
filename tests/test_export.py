"""Exported trajectories and tracks, what is selected, where it is written, and the command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from evo.tools import file_interface

from stream4d.config import StoreConfig
from stream4d.errors import ExportError
from stream4d.export import cli
from stream4d.export.colmap import write_colmap
from stream4d.export.glb import write_glb
from stream4d.export.nerfstudio import write_nerfstudio
from stream4d.export.output import new_file, new_folder
from stream4d.export.ply import write_moving_ply, write_ply
from stream4d.export.source import Selection, pick_segment
from stream4d.export.splat import write_splat
from stream4d.export.tracks import write_tracks, write_tracks_csv
from stream4d.export.trajectory import write_json, write_kitti, write_tum
from stream4d.geometry.camera import unproject
from stream4d.geometry.transforms import transform_points
from stream4d.packets import Array, PosedFrame, VideoInfo
from stream4d.store.reader import open_store
from stream4d.store.writer import StoreWriter
from tests.posed import Frames, posed_frames
from tests.synthetic import Scene

SCENE = Scene(width=96, height=72, focal=82.0)


@pytest.fixture(scope="module")
def source() -> Frames:
    return Frames(posed_frames(10, SCENE))


# --- trajectories ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_tum, write_kitti, write_json])
def test_store_of_poses_alone_gives_the_same_path(
    tmp_path: Path, source: Frames, write: Callable[..., None]
) -> None:
    info = VideoInfo.of_frames("a.mp4", 96, 72, fps=25)
    settings = StoreConfig(maps="none")
    config = {"tracks": 4}  # as many slots as the frames' points have
    with StoreWriter(tmp_path / "a.zarr", info=info, config=config, store_config=settings) as sink:
        for frame in source.frames:
            sink.write(frame)
    selection = Selection(stride=3)
    write(source, tmp_path / "frames.txt", selection=selection)
    write(open_store(tmp_path / "a.zarr"), tmp_path / "store.txt", selection=selection)
    assert (tmp_path / "store.txt").read_text() == (tmp_path / "frames.txt").read_text()


def test_tum_is_read_by_evo(tmp_path: Path, source: Frames) -> None:
    write_tum(source, tmp_path / "path.txt")
    read = file_interface.read_tum_trajectory_file(tmp_path / "path.txt")
    assert np.allclose(read.poses_se3, source.world_from_cam, atol=1e-7)
    assert np.allclose(read.timestamps, [f.timestamp_ns / 1e9 for f in source.frames], atol=1e-9)


def test_tum_keeps_nanoseconds_of_a_clock(tmp_path: Path, source: Frames) -> None:
    late = dataclasses.replace(source[0], timestamp_ns=1_700_000_000_123_456_789)
    write_tum([late], tmp_path / "path.txt")
    line = (tmp_path / "path.txt").read_text().splitlines()[1]
    assert line.split()[0] == "1700000000.123456789"


def test_kitti_is_read_by_evo(tmp_path: Path, source: Frames) -> None:
    write_kitti(source, tmp_path / "path.txt")
    read = file_interface.read_kitti_poses_file(tmp_path / "path.txt")
    assert np.allclose(read.poses_se3, source.world_from_cam, atol=1e-7)


def test_json_of_a_refined_path_states_no_covariance(tmp_path: Path, source: Frames) -> None:
    refined = [
        dataclasses.replace(frame, pose_covariance=np.full((6, 6), np.nan))
        for frame in source.frames
    ]
    write_json(Frames(refined), tmp_path / "path.json")
    text = (tmp_path / "path.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["cameras"][3]["pose_covariance"] is None


def test_json_says_everything_of_a_camera(tmp_path: Path, source: Frames) -> None:
    write_json(source, tmp_path / "path.json", selection=Selection(stride=3))
    content = json.loads((tmp_path / "path.json").read_text())
    assert [camera["index"] for camera in content["cameras"]] == [0, 3, 6, 9]
    camera, frame = content["cameras"][1], source[3]
    assert np.array_equal(camera["world_from_cam"], frame.world_from_cam)
    assert np.array_equal(camera["K"], frame.K)
    w, *xyz = camera["quat_wxyz"]
    turned = trimesh.transformations.quaternion_matrix([w, *xyz])[:3, :3]
    assert np.allclose(turned, frame.world_from_cam[:3, :3], atol=1e-9)


# --- followed points ------------------------------------------------------------------------------------------


def test_followed_points_by_point_and_by_line(tmp_path: Path, source: Frames) -> None:
    write_tracks(source, tmp_path / "t.npz", selection=Selection(stride=3))
    with np.load(tmp_path / "t.npz") as file:
        tracks = dict(file)
    assert tracks["index"].tolist() == [0, 3, 6, 9]
    assert tracks["uv"].shape == (3, 4, 2)
    assert tracks["visible"].tolist() == [[True] * 4, [False] * 4, [True] * 4]
    write_tracks_csv(source, tmp_path / "t.csv")
    lines = [line.split(",") for line in (tmp_path / "t.csv").read_text().splitlines()]
    assert len(lines) == 1 + 3 * 10
    seen = {(int(n), int(t)): row for n, t, *row in lines[1:]}
    assert seen[1, 3][3:] == ["0", "", "", ""]
    point = np.array(seen[2, 6][4:], float)
    np.testing.assert_allclose(point, tracks["xyz_in_world"][2, 2], rtol=1e-7)
    uv = (12, 30)
    truth = unproject(SCENE.depth(6).astype(np.float32), SCENE.K)[uv]
    np.testing.assert_allclose(point, transform_points(SCENE.world_from_cam(6), truth), rtol=1e-5)


def test_a_run_without_followed_points_says_what_to_do(tmp_path: Path, source: Frames) -> None:
    bare = Frames([dataclasses.replace(frame, tracks=None) for frame in source.frames])
    with pytest.raises(ExportError, match="--tracks N"):
        write_tracks(bare, tmp_path / "t.npz")
    assert not list(tmp_path.iterdir())


# --- selection and targets ------------------------------------------------------------------------------------


def test_the_longest_segment_is_exported_and_it_is_said(
    tmp_path: Path, source: Frames, caplog: pytest.LogCaptureFixture
) -> None:
    cut = Frames([dataclasses.replace(f, segment=int(f.index >= 4)) for f in source.frames])
    with caplog.at_level(logging.WARNING):
        write_tum(cut, tmp_path / "path.txt")
    assert len((tmp_path / "path.txt").read_text().splitlines()) == 1 + 6
    assert "1 cuts; exporting segment 1 (6 of 10 frames)" in caplog.text
    assert pick_segment(cut, 0) == (0, range(4))
    assert pick_segment(list(cut.frames), 1) == (1, range(4, 10))
    with pytest.raises(ExportError, match="no segment 2; segments are 0 to 1"):
        pick_segment(cut, 2)


@pytest.mark.parametrize(
    "values", [{"stride": 0}, {"max_points": 0}, {"voxel": 0.0}, {"voxel": float("nan")}]
)
def test_selection_without_sense_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ExportError, match=next(iter(values))):
        Selection(**values)  # type: ignore[arg-type]


def test_nothing_to_export_is_an_error(tmp_path: Path, source: Frames) -> None:
    with pytest.raises(ExportError, match="no frames"):
        write_tum([], tmp_path / "path.txt")
    unsure = [dataclasses.replace(f, confidence=f.confidence * 0) for f in source.frames[:2]]
    with pytest.raises(ExportError, match="no static points"):
        write_ply(unsure, tmp_path / "room.ply")
    assert list(tmp_path.iterdir()) == []


def test_a_fault_leaves_nothing_behind(tmp_path: Path) -> None:
    old = tmp_path / "old.txt"
    old.write_text("old")

    def fail_in_file() -> None:
        with new_file(old, overwrite=True) as partial:
            partial.write_text("half")
            raise RuntimeError

    def fail_in_folder() -> None:
        with new_folder(tmp_path / "set", marker="a") as partial:
            (partial / "a").write_text("half")
            raise RuntimeError

    for fail in (fail_in_file, fail_in_folder):
        with pytest.raises(RuntimeError):
            fail()
    assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]
    assert old.read_text() == "old"


def test_a_foreign_folder_is_never_replaced(tmp_path: Path, source: Frames) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ExportError, match="not an earlier export"):
        write_nerfstudio(source, photos, overwrite=True)
    assert (photos / "cat.jpg").read_bytes() == b"cat"


def test_an_earlier_export_is_replaced_only_when_asked(tmp_path: Path, source: Frames) -> None:
    folder = tmp_path / "moving"
    write_moving_ply(source, folder)
    with pytest.raises(ExportError, match="--overwrite"):
        write_moving_ply(source, folder)
    write_moving_ply(source, folder, selection=Selection(stride=9), overwrite=True)
    assert len(list(folder.iterdir())) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["moving"]


# --- command --------------------------------------------------------------------------------------------------


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(words)


def test_command_writes_several_formats(
    tmp_path: Path, source: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sets" / "new"
    formats = {k: v for k, v in cli.FORMATS.items() if k != "siu3r"}  # needs its network
    args = parse("clip.zarr", "--format", *formats, "--out", str(out), "--stride", "5")
    assert cli.export(source, Path("clip.zarr"), args) == 0
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"clip{ending}" for _, ending, _ in formats.values()
    )
    assert len(capsys.readouterr().out.splitlines()) == len(formats)


def test_command_writes_the_others_where_one_fails(
    tmp_path: Path,
    source: Frames,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bare = Frames([dataclasses.replace(frame, tracks=None) for frame in source.frames])
    args = parse("c.zarr", "--format", "tum", "tracks", "json", "--out", str(tmp_path))
    assert cli.export(bare, Path("c.zarr"), args) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c_cameras.json", "c_tum.txt"]
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["tum", "json"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.messages[0].startswith("tracks: ")
    assert "--tracks N" in caplog.messages[0]
    with pytest.raises(ExportError, match="--tracks N"):
        cli.export(bare, Path("c.zarr"), parse("c.zarr", "--format", "tracks", "--out", "x.npz"))


def test_command_names_files_after_the_store(tmp_path: Path, source: Frames) -> None:
    cli.export(source, tmp_path / "clip.zarr", parse("clip.zarr", "--format", "tum"))
    assert [p.name for p in tmp_path.iterdir()] == ["clip_tum.txt"]


def test_command_puts_a_file_into_a_folder(tmp_path: Path, source: Frames) -> None:
    cli.export(source, Path("clip.zarr"), parse("x", "--format", "tum", "--out", str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["clip_tum.txt"]


def test_command_checks_all_targets_before_it_writes(tmp_path: Path, source: Frames) -> None:
    (tmp_path / "clip_kitti.txt").write_text("mine")
    args = parse("clip.zarr", "--format", "tum", "kitti", "--out", str(tmp_path))
    with pytest.raises(ExportError, match=r"clip_kitti\.txt exists.*--overwrite"):
        cli.export(source, Path("clip.zarr"), args)
    assert [p.name for p in tmp_path.iterdir()] == ["clip_kitti.txt"]
    args = parse("clip.zarr", "--format", "tum", "--out", str(tmp_path / "no" / "path.txt"))
    with pytest.raises(ExportError, match="no folder"):
        cli.export(source, Path("clip.zarr"), args)


def test_memory_is_bounded_by_one_frame(tmp_path: Path, source: Frames) -> None:
    """Exporters take frames one by one: at no time are two alive."""

    class OneByOne:
        segment = np.zeros(10, int)

        def __init__(self) -> None:
            self.alive: list[weakref.ref[Array]] = []

        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> PosedFrame:
            depth = source[index].depth.copy()
            living = sum(ref() is not None for ref in self.alive)
            assert living <= 1  # the loop variable of the frame before
            self.alive = [ref for ref in self.alive if ref() is not None] + [weakref.ref(depth)]
            return dataclasses.replace(source[index], depth=depth)

    for function, name in (
        (write_ply, "a.ply"),
        (write_glb, "a.glb"),
        (write_splat, "s.ply"),
        (write_tum, "t.txt"),
        (write_colmap, "c"),
        (write_nerfstudio, "n"),
    ):
        function(OneByOne(), tmp_path / name)

"""Exports, read back with other libraries or compared with known answers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import plyfile
import pytest
import trimesh
from evo.tools import file_interface

from stream4d.config import StoreConfig
from stream4d.errors import ExportError
from stream4d.export import cli
from stream4d.export.colmap import write_colmap
from stream4d.export.glb import write_glb
from stream4d.export.images import save_depth
from stream4d.export.nerfstudio import write_nerfstudio
from stream4d.export.output import new_file, new_folder
from stream4d.export.ply import write_moving_ply, write_ply
from stream4d.export.source import Selection, pick_segment, static_cloud
from stream4d.export.splat import SH_C0, write_splat
from stream4d.export.tracks import write_tracks, write_tracks_csv
from stream4d.export.trajectory import write_json, write_kitti, write_tum
from stream4d.geometry.camera import unproject
from stream4d.geometry.transforms import transform_points
from stream4d.packets import Array, PosedFrame, VideoInfo
from stream4d.store.reader import open_store
from stream4d.store.writer import StoreWriter
from stream4d.viz.cloud import PointFilter
from tests.disks import little_room
from tests.posed import Frames, posed_frames
from tests.synthetic import HALF, Scene

SCENE = Scene(width=96, height=72, focal=82.0)
CENTIMETRES = 0.05
"""Points are averages over a voxel of about 4 cm."""


@pytest.fixture(scope="module")
def source() -> Frames:
    return Frames(posed_frames(10, SCENE))


def share_on_walls(points: Array) -> float:
    """Return the share of points (N, 3) that lie on the walls of the room; the rest lies on balls."""
    to_wall = np.abs(HALF - np.abs(points)).min(axis=1)
    return float(np.mean(to_wall < CENTIMETRES))


# --- trajectories --------------------------------------------------------------------------------------------


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


# --- clouds --------------------------------------------------------------------------------------------------


def read_ply(path: Path) -> tuple[Array, Array]:
    vertices = plyfile.PlyData.read(str(path))["vertex"]
    points = np.stack([vertices[axis] for axis in "xyz"], axis=1)
    return points, np.stack([vertices[c] for c in ("red", "green", "blue")], axis=1)


def test_ply_is_the_static_room_with_its_colours(tmp_path: Path, source: Frames) -> None:
    write_ply(source, tmp_path / "room.ply")
    points, rgb = read_ply(tmp_path / "room.ply")
    assert len(points) > 3000
    assert share_on_walls(points) > 0.9
    # Colours: those of the nearest pixel of the frame in the middle.
    frame = source[5]
    R, t = frame.world_from_cam[:3, :3], frame.world_from_cam[:3, 3]
    in_cam = (points - t) @ R
    uv = (in_cam @ frame.K.T)[:, :2] / in_cam[:, 2:]
    u, v = uv.round().astype(int).T
    ok = (in_cam[:, 2] > 0) & (u >= 0) & (u < 96) & (v >= 0) & (v < 72)
    ok[ok] &= np.abs(frame.depth[v[ok], u[ok]] - in_cam[ok, 2]) < CENTIMETRES
    assert ok.sum() > 2000
    grey, truth = rgb[ok].mean(axis=1), frame.rgb[v[ok], u[ok]].mean(axis=1)
    assert np.corrcoef(grey, truth)[0, 1] > 0.7  # the texture changes within a voxel


def test_ply_is_also_read_by_trimesh(tmp_path: Path, source: Frames) -> None:
    write_ply(source, tmp_path / "room.ply")
    cloud = trimesh.load(tmp_path / "room.ply")
    points, rgb = read_ply(tmp_path / "room.ply")
    assert np.allclose(cloud.vertices, points)
    assert np.array_equal(cloud.colors[:, :3], rgb)


@pytest.mark.parametrize("write", [write_nerfstudio, write_colmap])
def test_disk_full_while_exporting_a_folder(
    tmp_path: Path, source: Frames, write: Callable[..., None]
) -> None:
    with (
        little_room(500),
        pytest.raises(ExportError, match=rf"cannot write {tmp_path}/set.*File too large"),
    ):
        write(source, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_selections_that_make_no_sense_are_refused() -> None:
    for make in (
        lambda: Selection(stride=0),
        lambda: Selection(max_points=0),
        lambda: Selection(voxel=-1.0),
        lambda: Selection(keep=PointFilter(min_confidence=7.0)),
    ):
        with pytest.raises(ExportError, match="must be"):
            make()


def test_cloud_obeys_its_bound_and_its_voxel(source: Frames) -> None:
    few = static_cloud(source, Selection(max_points=300))
    assert 50 < len(few) <= 300
    coarse = static_cloud(source, Selection(voxel=0.5))
    cells = np.floor(coarse.points / 0.5)
    assert len(np.unique(cells, axis=0)) > 0.9 * len(coarse)  # averages may cross into a neighbour


def test_one_frame_makes_a_cloud(source: Frames) -> None:
    assert len(static_cloud([source[0]], Selection())) > 1000


def test_moving_points_lie_on_the_balls(tmp_path: Path, source: Frames) -> None:
    write_moving_ply(source, tmp_path / "moving", selection=Selection(stride=5))
    assert sorted(p.name for p in (tmp_path / "moving").iterdir()) == [
        "000000.ply",
        "000005.ply",
        "moving.txt",
    ]
    for index in (0, 5):
        points, _ = read_ply(tmp_path / "moving" / f"{index:06d}.ply")
        assert len(points) > 10
        to_ball = [
            np.abs(np.linalg.norm(points - ball.position(index), axis=1) - ball.radius)
            for ball in SCENE.balls
        ]
        assert np.min(to_ball, axis=0).max() < 1e-3


def test_splats_have_the_layout_and_the_colours(tmp_path: Path, source: Frames) -> None:
    write_splat(source, tmp_path / "splat.ply", opacity=0.1)
    write_ply(source, tmp_path / "room.ply")
    splat = plyfile.PlyData.read(str(tmp_path / "splat.ply"))["vertex"]
    names = [p.name for p in splat.properties]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[54:] == [
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]
    assert len(names) == 62
    points, rgb = read_ply(tmp_path / "room.ply")
    assert np.allclose(np.stack([splat[a] for a in "xyz"], 1), points)
    color = 0.5 + SH_C0 * np.stack([splat[f"f_dc_{i}"] for i in range(3)], 1)
    assert np.allclose(color * 255, rgb, atol=1e-3)
    assert np.allclose(1 / (1 + np.exp(-splat["opacity"])), 0.1, atol=1e-6)
    assert np.allclose(np.exp(splat["scale_0"]), static_cloud(source, Selection()).voxel / 2)
    assert (splat["rot_0"] == 1).all()


def test_glb_is_upright_with_path_and_cameras(tmp_path: Path, source: Frames) -> None:
    write_glb(source, tmp_path / "room.glb")
    scene = trimesh.load(tmp_path / "room.glb", force="scene")
    flip = np.array([1.0, -1.0, -1.0])
    parts = {
        node: (scene.geometry[name], matrix)
        for node in scene.graph.nodes_geometry
        for matrix, name in [scene.graph[node]]
    }
    cloud, matrix = next(part for node, part in parts.items() if node.startswith("static"))
    points = trimesh.transform_points(cloud.vertices, matrix)
    assert share_on_walls(points * flip) > 0.9
    write_ply(source, tmp_path / "room.ply")
    expected, rgb = read_ply(tmp_path / "room.ply")
    assert np.allclose(points, expected * flip, atol=1e-5)
    # Vertex colours are linear; a step of 1/255 is up to 13 steps of sRGB in the dark.
    linear = cloud.colors[:, :3] / 255.0
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(srgb - rgb).max() <= 7
    path, matrix = next(part for node, part in parts.items() if node.startswith("camera_path"))
    positions = trimesh.transform_points(path.vertices, matrix) * flip
    for pose in source.world_from_cam:
        assert np.linalg.norm(positions - pose[:3, 3], axis=1).min() < 1e-5
    assert any(node.startswith("cameras") for node in parts)


# --- data sets -----------------------------------------------------------------------------------------------


def read_colmap_binary(folder: Path) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    """Read a binary COLMAP model by its documented layout."""

    class Reader:
        def __init__(self, name: str) -> None:
            self.data, self.at = (folder / name).read_bytes(), 0

        def take(self, layout: str) -> tuple[Any, ...]:
            values = struct.unpack_from("<" + layout, self.data, self.at)
            self.at += struct.calcsize("<" + layout)
            return values

        def text(self) -> str:
            end = self.data.index(b"\0", self.at)
            text, self.at = self.data[self.at : end].decode(), end + 1
            return text

    cameras, images, points = {}, {}, {}
    reader = Reader("cameras.bin")
    for _ in range(reader.take("Q")[0]):
        camera_id, model, W, H = reader.take("IiQQ")
        cameras[camera_id] = (model, W, H, reader.take("4d"))
    assert reader.at == len(reader.data)
    reader = Reader("images.bin")
    for _ in range(reader.take("Q")[0]):
        image_id, *pose, camera_id = reader.take("I7dI")
        name = reader.text()
        observations = [reader.take("ddQ") for _ in range(reader.take("Q")[0])]
        images[image_id] = (pose, camera_id, name, observations)
    assert reader.at == len(reader.data)
    reader = Reader("points3D.bin")
    for _ in range(reader.take("Q")[0]):
        point_id, x, y, z, r, g, b, error, n = reader.take("Q3d3BdQ")
        points[point_id] = ((x, y, z), (r, g, b), error, [reader.take("II") for _ in range(n)])
    assert reader.at == len(reader.data)
    return cameras, images, points


def test_colmap_model_projects_onto_its_observations(tmp_path: Path, source: Frames) -> None:
    write_colmap(source, tmp_path / "set", selection=Selection(stride=2, max_points=3000))
    cameras, images, points = read_colmap_binary(tmp_path / "set" / "sparse" / "0")
    assert list(cameras) == [1]
    model, W, H, (fx, fy, cx, cy) = cameras[1]
    assert (model, W, H) == (1, 96, 72)
    K = SCENE.K
    assert (fx, fy) == (K[0, 0], K[1, 1])
    assert (cx, cy) == (48.0, 36.0)  # the middle of the picture, where pixel centres lie at .5
    assert [image[2] for image in images.values()] == [f"{i:06d}.jpg" for i in range(0, 10, 2)]
    count = 0
    for image_id, (pose, _, name, observations) in images.items():
        cam_from_world = trimesh.transformations.quaternion_matrix(pose[:4])
        cam_from_world[:3, 3] = pose[4:]
        truth = source[int(name[:6])].world_from_cam
        assert np.allclose(np.linalg.inv(cam_from_world), truth, atol=1e-9)
        for n, (u, v, point_id) in enumerate(observations):
            xyz, _, _, track = points[point_id]
            x, y, z = (cam_from_world @ [*xyz, 1.0])[:3]
            assert (fx * x / z + cx, fy * y / z + cy) == pytest.approx((u, v), abs=1e-6)
            assert (image_id, n) in track
            count += 1
    assert count == sum(len(point[3]) for point in points.values()) > 1000
    picture = cv2.imread(str(tmp_path / "set" / "images" / "000004.jpg"))[..., ::-1]
    assert np.abs(picture.astype(int) - source[4].rgb).mean() < 3  # JPEG at quality 97
    mask = cv2.imread(str(tmp_path / "set" / "masks" / "000004.jpg.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(mask == 0, source[4].motion_prob >= 0.5)


def test_colmap_text_equals_binary(tmp_path: Path, source: Frames) -> None:
    selection = Selection(stride=4, max_points=500)
    write_colmap(source, tmp_path / "bin", selection=selection)
    write_colmap(source, tmp_path / "txt", selection=selection, text=True)
    _, images, points = read_colmap_binary(tmp_path / "bin" / "sparse" / "0")
    folder = tmp_path / "txt" / "sparse" / "0"

    def data_lines(name: str) -> list[list[str]]:
        lines = (folder / name).read_text().splitlines()
        return [line.split() for line in lines if not line.startswith("#")]

    (camera,) = data_lines("cameras.txt")
    assert camera == ["1", "PINHOLE", "96", "72", "82", "82", "48", "36"]
    lines = data_lines("images.txt")
    for (pose, camera_id, name, observations), head, row in zip(
        images.values(), lines[::2], lines[1::2], strict=True
    ):
        assert [float(v) for v in head[1:8]] == pose
        assert (int(head[8]), head[9]) == (camera_id, name)
        assert np.allclose(np.array(row, float).reshape(-1, 3), observations, atol=1e-4)
    for (point_id, (xyz, rgb, error, track)), row in zip(
        points.items(), data_lines("points3D.txt"), strict=True
    ):
        assert int(row[0]) == point_id
        assert [float(v) for v in row[1:4]] == list(xyz)
        assert [int(v) for v in row[4:7]] == list(rgb)
        assert float(row[7]) == error == -1
        assert np.array(row[8:], int).reshape(-1, 2).tolist() == [list(pair) for pair in track]


def test_pycolmap_reads_the_model(tmp_path: Path, source: Frames) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    for text in (False, True):
        folder = tmp_path / str(text)
        write_colmap(source, folder, selection=Selection(max_points=2000), text=text)
        model = pycolmap.Reconstruction(folder / "sparse" / "0")
        assert model.num_images() == 10
        assert model.compute_mean_reprojection_error() < 1e-3


def test_a_zoom_makes_cameras(tmp_path: Path, source: Frames) -> None:
    zoomed = [
        dataclasses.replace(f, K=f.K * [[1 + (f.index >= 5)], [1], [1]]) for f in source.frames
    ]
    write_colmap(Frames(zoomed), tmp_path / "set", selection=Selection(max_points=500))
    cameras, images, _ = read_colmap_binary(tmp_path / "set" / "sparse" / "0")
    assert len(cameras) == 2
    assert [image[1] for image in images.values()] == [1] * 5 + [2] * 5


def test_nerfstudio_rays_hit_the_truth(tmp_path: Path, source: Frames) -> None:
    write_nerfstudio(source, tmp_path / "set", selection=Selection(stride=3))
    content = json.loads((tmp_path / "set" / "transforms.json").read_text())
    assert len(content["frames"]) == 4
    for entry in content["frames"]:
        frame = source[int(Path(entry["file_path"]).stem)]
        picture = cv2.imread(str(tmp_path / "set" / entry["file_path"]))
        assert picture.shape == frame.rgb.shape == (entry["h"], entry["w"], 3)
        steps = cv2.imread(str(tmp_path / "set" / entry["depth_file_path"]), cv2.IMREAD_UNCHANGED)
        depth = steps * content["depth_unit_scale_factor"]
        assert np.abs(depth - frame.depth).max() <= 0.0005 + 1e-6
        mask = cv2.imread(str(tmp_path / "set" / entry["mask_path"]), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(mask == 255, frame.motion_prob < 0.5)
        # As nerfstudio casts a ray: pixel centres at .5, y up, looking along -z.
        rows, cols = np.mgrid[0:72:9, 0:96:9]
        x = (cols + 0.5 - entry["cx"]) / entry["fl_x"]
        y = -(rows + 0.5 - entry["cy"]) / entry["fl_y"]
        rays = np.stack([x, y, -np.ones_like(x)], axis=-1) * frame.depth[rows, cols, None]
        pose = np.array(entry["transform_matrix"])
        points = rays @ pose[:3, :3].T + pose[:3, 3]
        truth = transform_points(frame.world_from_cam, unproject(frame.depth, frame.K))
        assert np.allclose(points, truth[rows, cols], atol=1e-5)  # float32
    points, _ = read_ply(tmp_path / "set" / content["ply_file_path"])
    assert share_on_walls(points) > 0.9


def test_nerfstudio_depth_of_an_unknown_scale_keeps_its_digits(
    tmp_path: Path, source: Frames, caplog: pytest.LogCaptureFixture
) -> None:
    small = []
    for frame in source.frames[:3]:
        pose = frame.world_from_cam.copy()
        pose[:3, 3] *= 1e-3
        small.append(
            dataclasses.replace(
                frame, world_from_cam=pose, depth=frame.depth * 1e-3, is_metric=False
            )
        )
    with caplog.at_level(logging.WARNING):
        write_nerfstudio(Frames(small), tmp_path / "set")
    content = json.loads((tmp_path / "set" / "transforms.json").read_text())
    unit = content["depth_unit_scale_factor"]
    steps = cv2.imread(str(tmp_path / "set" / "depths" / "000000.png"), cv2.IMREAD_UNCHANGED)
    assert np.median(steps) >= 1000
    assert np.allclose(steps * unit, small[0].depth, rtol=1e-3)
    assert "--depth-unit-scale-factor" in caplog.text


def test_depth_that_is_unknown_or_out_of_range_is_zero(tmp_path: Path, source: Frames) -> None:
    depth = source[0].depth.copy()
    depth[0, :4] = np.nan, np.inf, 1000.0, -1.0
    save_depth(tmp_path / "d.png", dataclasses.replace(source[0], depth=depth), 1e-3)
    steps = cv2.imread(str(tmp_path / "d.png"), cv2.IMREAD_UNCHANGED)
    assert steps[0, :4].tolist() == [0, 0, 0, 0]
    assert steps[0, 4] > 0


# --- selection and targets -----------------------------------------------------------------------------------


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


# --- followed points -----------------------------------------------------------------------------------------


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


# --- command -------------------------------------------------------------------------------------------------


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

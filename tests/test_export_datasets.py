"""Exported COLMAP models and nerfstudio data sets, held against the truth."""

from __future__ import annotations

import dataclasses
import json
import logging
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trimesh

from stream4d.export.colmap import write_colmap
from stream4d.export.images import save_depth
from stream4d.export.nerfstudio import write_nerfstudio
from stream4d.export.source import Selection
from stream4d.geometry.camera import unproject
from stream4d.geometry.transforms import transform_points
from tests.clouds import read_ply, share_on_walls
from tests.posed import Frames, posed_frames
from tests.synthetic import Scene

SCENE = Scene(width=96, height=72, focal=82.0)


@pytest.fixture(scope="module")
def source() -> Frames:
    return Frames(posed_frames(10, SCENE))


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

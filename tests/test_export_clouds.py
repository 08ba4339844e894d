"""Exported clouds, splats and scenes, read back with other libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import plyfile
import pytest
import trimesh

from stream4d.errors import ExportError
from stream4d.export.colmap import write_colmap
from stream4d.export.glb import write_glb
from stream4d.export.nerfstudio import write_nerfstudio
from stream4d.export.ply import write_moving_ply, write_ply
from stream4d.export.source import Selection, static_cloud
from stream4d.export.splat import SH_C0, write_splat
from stream4d.viz.cloud import PointFilter
from tests.clouds import CENTIMETRES, read_ply, share_on_walls
from tests.disks import little_room
from tests.posed import Frames, posed_frames
from tests.synthetic import Scene

SCENE = Scene(width=96, height=72, focal=82.0)


@pytest.fixture(scope="module")
def source() -> Frames:
    return Frames(posed_frames(10, SCENE))


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

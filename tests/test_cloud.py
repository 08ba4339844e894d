"""The static cloud of the viewer, and which points of a frame it takes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stream4d.geometry import camera, transforms
from stream4d.packets import PosedFrame, PoseRevision
from stream4d.viz.cloud import PointFilter, StaticCloud, frame_points, voxel_for
from stream4d.viz.voxel_table import VoxelTable
from tests.posed import posed_frames
from tests.synthetic import HALF, Scene

SCENE = Scene(width=96, height=72, focal=82.0)


@pytest.fixture(scope="module")
def frames() -> list[PosedFrame]:
    return posed_frames(12, SCENE)


def test_voxel_table_equals_a_dict() -> None:
    rng = np.random.default_rng(1)
    table, truth = VoxelTable(5000), {}
    for batch in range(10):
        # Neighbouring keys on purpose: voxel keys of a surface are runs.
        keys = np.unique(rng.integers(0, 600, 400) + batch * 300 + (rng.integers(0, 3, 400) << 42))
        new = np.array([k for k in keys.tolist() if k not in truth], np.int64)
        slots = len(truth) + np.arange(len(new))
        table.insert(new, slots)
        truth |= dict(zip(new.tolist(), slots.tolist(), strict=True))
        asked = np.concatenate([keys, rng.integers(1 << 50, 1 << 60, 50)])
        assert table.find(asked).tolist() == [truth.get(k, -1) for k in asked.tolist()]


def test_lifted_points_lie_on_the_room_and_movers_are_apart(frames: list[PosedFrame]) -> None:
    for frame in frames[:4]:
        points = frame_points(frame)
        to_wall = np.abs(HALF - np.abs(points.static_in_world)).min(axis=1)
        on_wall = to_wall < 1e-3  # float32 at 4 m
        assert on_wall.mean() > 0.8  # the rest lies on balls that are at rest
        assert len(points.moving_in_world) > 0
        inside = (np.abs(points.moving_in_world) < HALF).all(axis=1)
        assert inside.all()


def test_edges_and_doubt_make_no_points() -> None:
    frame = posed_frames(2, Scene(path="static", width=96, height=72, focal=82.0, balls=()))[0]
    depth = frame.depth.copy()
    depth[:, 48:] *= 0.5
    confidence = frame.confidence.copy()
    confidence[:10] = 0.1
    edited = dataclasses.replace(frame, depth=depth, confidence=confidence)
    keep = PointFilter(samples=96 * 72)
    points = frame_points(edited, keep).static_in_world
    in_cam = (points - frame.world_from_cam[:3, 3]) @ frame.world_from_cam[:3, :3]
    pixels = in_cam @ frame.K.T
    u, v = (pixels[:, :2] / pixels[:, 2:]).round().astype(int).T
    assert v.min() >= 10
    # The farther side of the step (left, column 47) bleeds; the nearer side stays.
    assert 47 not in u
    assert 48 in u


def test_what_moves_is_shown_however_unsure(frames: list[PosedFrame]) -> None:
    unsure = dataclasses.replace(frames[3], confidence=np.zeros_like(frames[3].confidence))
    points = frame_points(unsure)
    assert len(points.static_in_world) == 0
    sure = frame_points(frames[3])
    assert np.array_equal(points.moving_in_world, sure.moving_in_world)
    assert len(frame_points(unsure, PointFilter(min_moving_confidence=0.5)).moving_in_world) == 0


def test_a_road_keeps_its_points_into_the_distance(frames: list[PosedFrame]) -> None:
    """On a plane seen at a grazing angle depth steps are large, and yet no edges."""
    below = np.arange(72, dtype=np.float32)[:, None] - 30
    depth = np.where(below > 0, 100.0 / np.maximum(below, 1), np.nan) + np.zeros(
        (72, 96), np.float32
    )
    road = dataclasses.replace(frames[0], depth=depth, confidence=np.ones_like(depth))
    points = frame_points(road, PointFilter(samples=96 * 72))
    lifted = len(points.static_in_world) + len(points.moving_in_world)
    assert lifted >= 96 * (
        72 - 30 - 7
    )  # the last rows before the horizon step by more than a fifth


def test_cloud_shows_what_two_frames_saw_and_averages_it() -> None:
    cloud = StaticCloud(max_points=100, voxel=1.0)
    red, blue = np.array([[200, 0, 0]], np.uint8), np.array([[0, 0, 200]], np.uint8)
    cloud.add(np.array([[0.2, 0.2, 0.2]], np.float32), red, 0)
    assert len(cloud) == 0
    cloud.add(np.array([[0.4, 0.4, 0.4]], np.float32), blue, 1)
    assert np.allclose(cloud.points, 0.3)
    assert cloud.rgb.tolist() == [[100, 0, 100]]
    cloud.add(np.array([[0.9, 0.9, 0.9]], np.float32), red, 2)
    assert np.allclose(cloud.points, 0.3)  # stays where a viewer has it


def test_cloud_never_outgrows_its_bound_and_keeps_the_extent() -> None:
    rng = np.random.default_rng(0)
    cloud = StaticCloud(max_points=1000, voxel=0.01, min_hits=1)
    rebuilt = []
    for i in range(40):
        points = rng.uniform(-1, 1, (400, 3)).astype(np.float32) * (1 + i / 10)
        rebuilt.append(cloud.add(points, np.zeros((400, 3), np.uint8), i))
        assert len(cloud) <= 1000
    assert any(rebuilt)
    assert cloud.voxel is not None
    assert cloud.voxel > 0.01
    assert len(cloud) > 200
    assert np.abs(cloud.points).max() > 4


def test_cloud_forgets_passers_by_before_it_coarsens() -> None:
    cloud = StaticCloud(max_points=1000, voxel=1.0)
    grid = np.stack(np.meshgrid(*[np.arange(8)] * 3), -1).reshape(-1, 3).astype(np.float32) + 0.5
    grey = np.zeros((512, 3), np.uint8)
    for i in range(2):
        cloud.add(grid, grey, i)
    for i in range(2, 200):  # a new far away place, each seen once
        assert not cloud.add(grid[:10] + 100.0 * i, grey[:10], i)
    assert cloud.voxel == 1.0
    assert len(cloud) == 512


def test_revised_cloud_moves_with_its_frames() -> None:
    rng = np.random.default_rng(0)
    cloud = StaticCloud(max_points=1000, voxel=0.01, min_hits=1)
    first, second = rng.normal(size=(2, 50, 3)).astype(np.float32)
    grey = np.zeros((50, 3), np.uint8)
    cloud.add(first, grey, 3)
    cloud.add(second + 50, grey, 4)
    old = SCENE.world_from_cam(3)
    new = SCENE.world_from_cam(30)
    revision = PoseRevision(
        indices=np.array([3, 9]), world_from_cam=np.stack([new, new]), scale=np.array([2.0, 1.0])
    )
    before = cloud.points.copy()
    moved = cloud.revise(revision, np.stack([old, old]))
    mine = np.abs(before).max(axis=1) < 20
    in_cam = (before[mine] - old[:3, 3]) @ old[:3, :3]
    expected = (2.0 * in_cam) @ new[:3, :3].T + new[:3, 3]
    assert np.allclose(cloud.points[mine], expected, atol=1e-5)  # float32
    assert np.array_equal(cloud.points[~mine], before[~mine])
    assert set(moved.tolist()) == set(np.flatnonzero(mine).tolist())


def test_revised_cloud_keeps_its_pixels_under_another_focal_length() -> None:
    cloud = StaticCloud(max_points=1000, voxel=0.01, min_hits=1)
    in_cam = np.random.default_rng(0).uniform((-1, -1, 2), (1, 1, 5), (50, 3))
    old_K, K = camera.centred_K(100.0, 64, 48), camera.centred_K(130.0, 64, 48)
    pose = SCENE.world_from_cam(3)
    points = transforms.transform_points(pose, in_cam)
    cloud.add(points.astype(np.float32), np.zeros((50, 3), np.uint8), 3)
    revision = PoseRevision(
        indices=np.array([3]), world_from_cam=pose[None], scale=np.array([1.3]), K=K[None]
    )
    before = cloud.points.copy()
    cloud.revise(revision, pose[None], old_K[None])
    world = transforms.invert(pose)
    was, now = (
        transforms.transform_points(world, p.astype(np.float64)) for p in (before, cloud.points)
    )
    np.testing.assert_allclose(camera.project(now, K), camera.project(was, old_K), atol=1e-3)
    np.testing.assert_allclose(now[:, 2], 1.3 * was[:, 2], rtol=1e-5)


def test_cloud_widens_its_voxels_and_keeps_one_point_each() -> None:
    cloud = StaticCloud(max_points=1000, voxel=0.1, min_hits=1)
    points = np.random.default_rng(0).uniform(0, 1, (500, 3)).astype(np.float32)
    cloud.add(points, np.zeros((500, 3), np.uint8), 0)
    assert len(cloud) > 300
    assert not cloud.widen(0.05)
    assert cloud.widen(0.5)
    assert len(cloud) == 8
    assert not StaticCloud(max_points=10).widen(1.0)  # nothing was sent yet


def test_a_frame_without_depth_has_no_voxel_and_no_points(frames: list[PosedFrame]) -> None:
    blind = dataclasses.replace(frames[0], depth=np.full_like(frames[0].depth, np.nan))
    assert voxel_for(blind) is None
    assert len(frame_points(blind).static_in_world) == 0

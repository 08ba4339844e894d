"""The viewer: colours, cloud, recordings read back, live views that drop, replays and pictures."""

from __future__ import annotations

import dataclasses
import logging
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from rerun.chunk import RrdReader

from stream4d.config import ViewConfig
from stream4d.errors import ConfigError, ExportError, Stream4DError
from stream4d.geometry import camera, transforms
from stream4d.packets import Array, PosedFrame, PoseRevision
from stream4d.viz import blueprint, colors, replay, rerun_sink, scene_log, viewer_process
from stream4d.viz.cloud import PointFilter, StaticCloud, frame_points, voxel_for
from stream4d.viz.contact_sheet import contact_sheet, write_contact_sheet
from stream4d.viz.mailbox import Mailbox, WaitingQueue, Worker
from stream4d.viz.rerun_sink import RerunSink
from stream4d.viz.voxel_table import VoxelTable
from tests.disks import little_room
from tests.posed import Frames, posed_frames
from tests.synthetic import HALF, Scene

SCENE = Scene(width=96, height=72, focal=82.0)
INFO = SCENE.info(12)


@pytest.fixture(scope="module")
def frames() -> list[PosedFrame]:
    return posed_frames(12, SCENE)


# --- colours -------------------------------------------------------------------------------------------------


def test_near_depth_is_red_far_is_blue_and_unknown_is_grey() -> None:
    depth = np.array([[1.0, 10.0, np.nan, 0.0]], np.float32)
    near, far, unknown, zero = colors.color_depth(depth, (1.0, 10.0))[0].astype(int)
    assert near[0] > 2 * near[2]
    assert far[2] > far[0]
    assert tuple(unknown) == tuple(zero) == colors.UNKNOWN


def test_depth_colours_do_not_depend_on_the_unit() -> None:
    depth = np.random.default_rng(0).uniform(1, 9, (20, 30)).astype(np.float32)
    a, b = colors.color_depth(depth).astype(int), colors.color_depth(depth * 1000).astype(int)
    assert np.abs(a - b).max() <= 4  # one step of the table


def test_depth_without_a_value_has_a_picture() -> None:
    assert (colors.color_depth(np.full((4, 5), np.nan)) == colors.UNKNOWN).all()


def test_flow_wheel_shows_direction_as_hue_and_rest_as_white() -> None:
    flow = np.array([[[4, 0], [-4, 0], [0, 4], [0, 0], [np.nan, 1]]], np.float32)
    right, left, down, rest, unknown = colors.color_flow(flow, 4.0)[0].astype(int)
    assert np.allclose(right, (255, 0, 0), atol=2)
    assert np.allclose(left, (0, 255, 255), atol=2)  # arctangent in degrees is a little off 180
    assert down[1] > 200 > down[2]
    assert tuple(rest) == (255, 255, 255)
    assert tuple(unknown) == colors.UNKNOWN


def test_motion_tints_only_what_moves() -> None:
    rgb = np.full((2, 2, 3), 100, np.uint8)
    tinted = colors.overlay_motion(rgb, np.array([[0.0, 1.0], [0.0, 0.0]]))
    assert (tinted[0, 0] == 75).all()
    assert (
        np.abs(tinted[0, 1].astype(int) - colors.MOVING).sum()
        < np.abs(75 - np.array(colors.MOVING)).sum()
    )
    layer = colors.motion_layer(np.array([[0.0, 1.0]], np.float32))
    assert layer[0, 0, 3] == 0
    assert layer[0, 1, 3] > 128


def test_labels_have_colours_of_their_own_and_none_is_transparent() -> None:
    layer = colors.label_layer(np.array([[-1, 0, 1, 2, 1001, 1]]))
    assert layer[0, :, 3].tolist()[0] == 0
    assert (layer[0, 1:, 3] > 0).all()
    shades = {tuple(rgb) for rgb in layer[0, 1:, :3].tolist()}
    assert len(shades) == 4
    assert (layer[0, 2] == layer[0, 5]).all()


# --- cloud ---------------------------------------------------------------------------------------------------


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


def test_voxels_follow_a_view_that_widens(tmp_path: Path) -> None:
    """A run whose first depth is far too small still gets a cloud that can be seen."""
    frames = posed_frames(30, SCENE)
    shrunk = [
        dataclasses.replace(f, depth=f.depth * (0.01 if f.index < 2 else 1.0)) for f in frames
    ]
    record(tmp_path / "run.rrd", shrunk)
    _, points = list(rows(tmp_path / "run.rrd", "/world/static/0000", "positions"))[-1]
    voxel = voxel_for(frames[-1]) or 0.0
    cells = np.unique(np.floor(points / voxel), axis=0)
    assert len(cells) > 0.5 * len(points) > 500


def test_depth_without_confidence_is_drawn_as_unknown() -> None:
    depth, confidence = np.array([[2.0, 3.0, -1.0]]), np.array([[0.9, 0.01, 0.9]])
    assert np.isnan(colors.known_depth(depth, confidence)).tolist() == [[False, True, True]]


def test_a_frame_without_depth_has_no_voxel_and_no_points(frames: list[PosedFrame]) -> None:
    blind = dataclasses.replace(frames[0], depth=np.full_like(frames[0].depth, np.nan))
    assert voxel_for(blind) is None
    assert len(frame_points(blind).static_in_world) == 0


# --- threads -------------------------------------------------------------------------------------------------


def test_mailbox_keeps_the_newest_and_counts_the_rest() -> None:
    box: Mailbox[int] = Mailbox()
    for i in range(1, 6):
        box.put(i)
    box.close()
    assert box.get() == 5
    assert box.get() is None
    assert box.dropped == 4


def test_queue_loses_nothing_and_a_dead_reader_blocks_nobody() -> None:
    taken: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.002)
        taken.append(item)
        if item == 30:
            raise ValueError("broken")

    queue: WaitingQueue[int] = WaitingQueue(2)
    worker = Worker("test", queue, slow)
    for i in range(1, 60):
        queue.put(i)
    assert worker.join(5)
    assert taken == list(range(1, 31))
    assert isinstance(worker.error, ValueError)


# --- recordings ----------------------------------------------------------------------------------------------


def rows(path: Path, entity: str, component: str) -> Iterator[tuple[int, Array]]:
    """Yield frame index and values of one component, in order."""
    found = []
    for chunk in RrdReader(path).stream():
        if chunk.entity_path != entity:
            continue
        table = chunk.to_record_batch()
        names = [name for name in table.schema.names if name.endswith(component)]
        if not names or "frame" not in table.schema.names:
            continue
        values = table.column(names[0]).to_pylist()
        found += list(zip(table.column("frame").to_pylist(), values, strict=True))
    return ((i, np.array(v)) for i, v in sorted(found, key=lambda r: r[0]) if v is not None)


def record(path: Path, frames: list[PosedFrame], *revisions: PoseRevision) -> None:
    with RerunSink(ViewConfig(save_rrd=str(path)), INFO, "test") as sink:
        for frame in frames:
            sink.write(frame)
        for revision in revisions:
            sink.revise(revision)


def test_recording_holds_every_frame(tmp_path: Path, frames: list[PosedFrame]) -> None:
    path = tmp_path / "run.rrd"
    record(path, frames)
    positions = dict(rows(path, "/world/camera", "translation"))
    assert sorted(positions) == list(range(12))
    for frame in frames:
        assert np.allclose(positions[frame.index], frame.world_from_cam[:3, 3], atol=1e-5)
    images = dict(rows(path, "/world/camera/image", "blob"))
    assert sorted(images) == list(range(12))
    decoded = cv2.imdecode(np.array(images[5], np.uint8).reshape(-1), cv2.IMREAD_COLOR)[..., ::-1]
    grey, truth = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (decoded, frames[5].rgb))
    # JPEG halves the colour of this colourful noise, not its brightness.
    assert np.corrcoef(grey.ravel(), truth.ravel())[0, 1] > 0.97
    assert len(list(rows(path, "/maps/depth", "blob"))) == 12
    assert len(list(rows(path, "/maps/flow", "blob"))) == 11  # the last frame has none
    shares = dict(rows(path, "/plots/static_share", "scalars"))
    assert shares[3] == pytest.approx(np.mean(frames[3].motion_prob < 0.5))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.rrd"]


def test_followed_points_and_their_trails_are_recorded(
    tmp_path: Path, frames: list[PosedFrame]
) -> None:
    path = tmp_path / "run.rrd"
    record(path, frames)
    dots = dict(rows(path, "/world/camera/image/tracks", "positions"))
    assert [len(dots[t]) for t in range(6)] == [2, 3, 3, 2, 3, 3]
    points = dict(rows(path, "/world/tracks", "positions"))
    frame = frames[4]
    truth = camera.unproject(frame.depth, frame.K)[12, 30]
    np.testing.assert_allclose(
        points[4][2], transforms.transform_points(frame.world_from_cam, truth), rtol=1e-4
    )
    in_image = dict(rows(path, "/world/camera/image/tracks/trails", "colors"))
    assert len(in_image[4]) == 3


def test_in_the_scene_only_what_moves_has_a_trail(tmp_path: Path, frames: list[PosedFrame]) -> None:
    for name, motion in (("still", 0.0), ("moving", 1.0)):
        path = tmp_path / f"{name}.rrd"
        prob = np.full_like(frames[0].motion_prob, motion)
        record(path, [dataclasses.replace(frame, motion_prob=prob) for frame in frames])
        trails = dict(rows(path, "/world/tracks/trails", "colors"))
        assert len(trails.get(4, ())) == (3 if motion else 0)


def test_labels_are_recorded_where_a_model_gives_them(
    tmp_path: Path, frames: list[PosedFrame]
) -> None:
    labels = np.full(frames[0].depth.shape, 3, np.int32)
    record(tmp_path / "run.rrd", [dataclasses.replace(frames[0], semantics=labels)])
    assert len(list(rows(tmp_path / "run.rrd", "/world/camera/image/labels", "blob"))) == 1


def test_recorded_cloud_is_the_room(tmp_path: Path, frames: list[PosedFrame]) -> None:
    path = tmp_path / "run.rrd"
    record(path, frames)
    _, points = list(rows(path, "/world/static/0000", "positions"))[-1]
    assert len(points) > 500
    to_wall = np.abs(HALF - np.abs(points)).min(axis=1)
    assert np.mean(to_wall < 0.1) > 0.8


def test_recorded_points_of_the_moment(tmp_path: Path, frames: list[PosedFrame]) -> None:
    record(tmp_path / "run.rrd", frames)
    now = dict(rows(tmp_path / "run.rrd", "/world/now", "positions"))
    moving = dict(rows(tmp_path / "run.rrd", "/world/moving", "positions"))
    for frame in frames:
        points = frame_points(frame)
        assert 700 < len(now[frame.index]) <= scene_log.NOW_POINTS
        assert set(map(tuple, now[frame.index].tolist())) <= set(
            map(tuple, points.static_in_world.astype(float).tolist())
        )
        assert np.array_equal(moving[frame.index], points.moving_in_world)


def test_recording_has_layout_and_right_axes(tmp_path: Path, frames: list[PosedFrame]) -> None:
    path = tmp_path / "run.rrd"
    record(path, frames)
    # One for a recording that is cut short, one that sees the whole scene.
    assert len(RrdReader(path).blueprints()) == 2
    axes = [c for c in RrdReader(path).stream() if c.entity_path == "/world" and c.is_static]
    values = axes[0].to_record_batch().to_pydict()
    (xyz,) = [v for k, v in values.items() if k.endswith("xyz")]
    assert xyz[0][0] == [3, 2, 5]  # right, down, forward


def test_recording_is_complete_where_writing_is_slow(
    tmp_path: Path, frames: list[PosedFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scene_log.SceneLog.log

    def slow(self: scene_log.SceneLog, frame: PosedFrame, timing: object = None) -> None:
        time.sleep(0.01)
        real(self, frame)

    monkeypatch.setattr(scene_log.SceneLog, "log", slow)
    record(tmp_path / "run.rrd", frames)
    assert len(list(rows(tmp_path / "run.rrd", "/world/camera", "translation"))) == 12


def test_recording_stays_small(tmp_path: Path) -> None:
    scene = Scene(width=384, height=288, focal=330.0)
    frames = [dataclasses.replace(f, flow=None) for f in posed_frames(4, scene)]
    many = [dataclasses.replace(frames[i % 4], index=i, timestamp_ns=i) for i in range(24)]
    record(tmp_path / "run.rrd", many)
    # Raw, the maps of one such frame are 1.7 MB.
    assert (tmp_path / "run.rrd").stat().st_size / 24 < 120_000


def test_revision_moves_the_path(tmp_path: Path, frames: list[PosedFrame]) -> None:
    path = tmp_path / "run.rrd"
    new = np.stack([np.eye(4), np.eye(4)])
    new[:, :3, 3] = [[9, 8, 7], [6, 5, 4]]
    record(
        path, frames, PoseRevision(indices=np.array([2, 50]), world_from_cam=new, scale=np.ones(2))
    )
    strips = [strip for _, strip in rows(path, "/world/path/0000", "strips")]
    assert len(strips[-1][0]) == 12
    assert strips[-1][0][2].tolist() == [9, 8, 7]
    assert np.allclose(strips[-1][0][3], frames[3].world_from_cam[:3, 3], atol=1e-6)


def test_a_cut_starts_the_scene_anew(tmp_path: Path, frames: list[PosedFrame]) -> None:
    path = tmp_path / "run.rrd"
    cut = [dataclasses.replace(f, segment=int(f.index >= 6)) for f in frames]
    record(path, cut)
    strips = dict(rows(path, "/world/path/0000", "strips"))
    assert len(strips[5][0]) == 6
    assert len(strips[11][0]) == 6
    cleared = [i for i, _ in rows(path, "/world/path", "is_recursive")]
    assert cleared == [6]


def test_long_path_is_sent_in_blocks(tmp_path: Path, frames: list[PosedFrame]) -> None:
    tiny = dataclasses.replace(
        frames[0],
        **{
            name: getattr(frames[0], name)[:8, :8]
            for name in ("rgb", "depth", "confidence", "motion_prob")
        },
        flow=None,
        flow_uncertainty=None,
    )
    many = []
    for i in range(scene_log.PATH_BLOCK + 10):
        pose = np.eye(4)
        pose[0, 3] = i
        many.append(dataclasses.replace(tiny, index=i, timestamp_ns=i, world_from_cam=pose))
    record(tmp_path / "run.rrd", many)
    _, last = list(rows(tmp_path / "run.rrd", "/world/path/0001", "strips"))[-1]
    assert last[0][:, 0].tolist() == list(
        range(scene_log.PATH_BLOCK - 1, scene_log.PATH_BLOCK + 10)
    )


def test_frames_without_any_depth_are_recorded(tmp_path: Path, frames: list[PosedFrame]) -> None:
    blind = [dataclasses.replace(f, depth=np.full_like(f.depth, np.nan)) for f in frames[:3]]
    record(tmp_path / "run.rrd", blind)
    assert len(list(rows(tmp_path / "run.rrd", "/world/camera", "translation"))) == 3


def test_no_frames_make_a_readable_recording(tmp_path: Path) -> None:
    record(tmp_path / "run.rrd", [])
    assert len(RrdReader(tmp_path / "run.rrd").recordings()) == 1


def test_recording_target_is_checked_before_the_run(tmp_path: Path) -> None:
    old = tmp_path / "old.rrd"
    old.write_bytes(b"precious")
    for target, message in (
        (old, "exists"),
        (tmp_path / "no" / "run.rrd", "not a folder"),
        (tmp_path / "run.mp4", r"must end in \.rrd"),
    ):
        with pytest.raises(Stream4DError, match=message):
            RerunSink(ViewConfig(save_rrd=str(target)), INFO, "test").__enter__()
    assert old.read_bytes() == b"precious"
    with RerunSink(ViewConfig(save_rrd=str(old)), INFO, "test", overwrite=True):
        assert old.read_bytes() == b"precious"  # until the new one is complete
    assert old.read_bytes() != b"precious"


def test_run_that_fails_before_its_first_frame_leaves_no_recording(tmp_path: Path) -> None:
    target = tmp_path / "run.rrd"
    with (
        pytest.raises(KeyError),
        RerunSink(ViewConfig(save_rrd=str(target)), INFO, "test"),
    ):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_fault_while_recording_reaches_the_pipeline(
    tmp_path: Path, frames: list[PosedFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(scene_log.SceneLog, "log", broken)
    with pytest.raises(Stream4DError, match="No space left"):
        record(tmp_path / "run.rrd", frames * 4)


@pytest.mark.parametrize("count", [12, rerun_sink.CHECK_EVERY + 12])
def test_disk_full_while_recording_leaves_no_whole_looking_file(
    tmp_path: Path, frames: list[PosedFrame], count: int
) -> None:
    """Rerun's writer dies silently; the partial name stays, and the run hears of it before its end."""
    many = [dataclasses.replace(frames[i % 12], index=i) for i in range(count)]
    with (
        little_room(50_000),
        pytest.raises(Stream4DError, match=r"cannot write the recording .*run\.partial\.rrd"),
    ):
        record(tmp_path / "run.rrd", many)
    assert [p.name for p in tmp_path.iterdir()] == ["run.partial.rrd"]


def test_disk_full_before_recording(tmp_path: Path) -> None:
    with little_room(0), pytest.raises(Stream4DError, match="cannot write the recording"):
        record(tmp_path / "run.rrd", [])


# --- live views ----------------------------------------------------------------------------------------------


class FakeViewer:
    """A viewer that accepts connections and says nothing."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"rerun+http://127.0.0.1:{self._socket.getsockname()[1]}/proxy"
        self.page: str | None = "http://127.0.0.1/"
        self.is_running = True

    def close(self) -> None:
        self.is_running = False
        self._socket.close()

    def detach(self) -> None:
        pass


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Replace the viewer by a fake that notes the frames; each takes 50 ms."""
    viewer, indices = FakeViewer(), []

    def note(self: scene_log.SceneLog, frame: PosedFrame, timing: object = None) -> None:
        time.sleep(0.05)
        indices.append(frame.index)

    monkeypatch.setattr(scene_log.SceneLog, "log", note)
    monkeypatch.setattr(scene_log.SceneLog, "finish", lambda self: None)
    monkeypatch.setattr(rerun_sink, "_start_viewer", lambda config: viewer)
    monkeypatch.setattr("rerun.RecordingStream.connect_grpc", lambda self, url: None)
    yield indices
    viewer.close()


def test_slow_view_drops_and_never_delays(shown: list[int], frames: list[PosedFrame]) -> None:
    waits = []
    with RerunSink(ViewConfig(mode="web"), INFO, "test") as sink:
        for frame in frames:
            start = time.perf_counter()
            sink.write(frame)
            waits.append(time.perf_counter() - start)
            time.sleep(0.01)
    assert np.median(waits) < 0.005  # of the 0.05 that the view takes
    assert shown[-1] == 11
    assert len(shown) < 12
    assert sink.dropped == 12 - len(shown)


def test_replay_shows_every_frame(shown: list[int], frames: list[PosedFrame]) -> None:
    replay.replay(frames, INFO, ViewConfig(mode="web"), speed=0, hold=False)
    assert shown == list(range(12))


def test_closed_window_ends_the_view_not_the_run(
    shown: list[int], frames: list[PosedFrame], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), RerunSink(ViewConfig(mode="web"), INFO, "test") as sink:
        sink.write(frames[0])
        time.sleep(0.1)
        assert sink._live is not None
        sink._live.viewer.close()
        for frame in frames[1:]:
            sink.write(frame)
            time.sleep(0.01)
    assert shown == [0]
    assert [r.message for r in caplog.records] == [
        "the live view has ended: its window or server was closed. The run goes on"
    ]


def test_latency_counts_from_capture(
    shown: list[int], frames: list[PosedFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[scene_log.Timing] = []
    monkeypatch.setattr(scene_log.SceneLog, "log", lambda self, frame, timing: seen.append(timing))
    start = time.monotonic_ns() - 500_000_000
    with RerunSink(ViewConfig(mode="web"), INFO, "test", clock=lambda t: start + t) as sink:
        sink.write(frames[0])
    assert 500 <= seen[0].latency_ms < 1000


def test_without_display_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_process.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(Stream4DError, match=r"no display.*--view web"):
        RerunSink(ViewConfig(mode="native"), INFO, "test").__enter__()


def test_taken_port_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Stream4DError, match=f"cannot listen on 127.0.0.1:{port}.*in use"):
            RerunSink(ViewConfig(mode="web", port=port), INFO, "test").__enter__()


def test_viewer_that_ends_at_once_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "rerun"
    fake.write_text("#!/bin/sh\necho 'Error: no graphics adapter' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(viewer_process, "rerun_executable", lambda: fake)
    with pytest.raises(Stream4DError, match="no graphics adapter"):
        viewer_process.start_web("127.0.0.1", 0)


def test_web_view_listens_on_loopback_only_and_ends(frames: list[PosedFrame]) -> None:
    with RerunSink(ViewConfig(mode="web", port=0), INFO, "test") as sink:
        assert sink.page is not None
        for frame in frames[:3]:
            sink.write(frame)
        with urllib.request.urlopen(sink.page, timeout=10) as page:
            assert b"rerun" in page.read().lower()
        port = int(sink.page.split(":")[2].split("/")[0])
        assert port in listening("127.0.0.1")
        assert port not in listening("0.0.0.0")
    # The page outlives the run until it is closed.
    assert port in listening("127.0.0.1")
    sink.close()
    assert port not in listening("127.0.0.1")


def test_web_view_dies_with_its_run() -> None:
    code = (
        "import os, signal\n"
        "from stream4d.viz.viewer_process import start_web\n"
        "print(start_web('127.0.0.1', 0).page, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    page = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60).stdout
    port = int(page.split(b":")[2].split(b"/")[0])
    deadline = time.monotonic() + 10
    while port in listening("127.0.0.1"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listening(address: str) -> set[int]:
    """Return the TCP ports that this machine listens on at an IPv4 address."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("needs /proc/net/tcp")
    wanted = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    local = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {int(port, 16) for host, port in local if host == wanted}


# --- replay --------------------------------------------------------------------------------------------------


def test_pace_follows_the_video(frames: list[PosedFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(replay.time, "monotonic_ns", lambda: int(now[0] * 1e9))
    monkeypatch.setattr(replay.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    times = []
    for frame in replay.paced(frames[:6], speed=2.0):
        times.append(now[0])
        if frame.index == 2:
            now[0] += 1.0  # a stall
    steps = np.diff(times)
    assert steps == pytest.approx([0.02, 0.02, 1.0, 0.02, 0.02], abs=1e-6)


def test_replay_into_a_recording(tmp_path: Path, frames: list[PosedFrame]) -> None:
    path = tmp_path / "again.rrd"
    replay.replay(iter(frames), INFO, ViewConfig(save_rrd=str(path)))
    assert len(list(rows(path, "/world/camera", "translation"))) == 12
    assert not list(rows(path, "/plots/fps", "scalars"))  # of a replay it would say nothing


@pytest.mark.parametrize(("config", "speed"), [(ViewConfig(), 1.0), (ViewConfig(mode="web"), -1.0)])
def test_replay_without_sense_is_refused(config: ViewConfig, speed: float) -> None:
    with pytest.raises(ConfigError):
        replay.replay([], INFO, config, speed=speed)


def test_what_is_no_recording_is_not_opened(tmp_path: Path) -> None:
    text = tmp_path / "notes.rrd"
    text.write_text("hello")
    with pytest.raises(Stream4DError, match="not a Rerun recording"):
        replay.open_recording(text)
    with pytest.raises(Stream4DError, match="No such file"):
        replay.open_recording(tmp_path / "none.rrd")


def test_recording_is_served(tmp_path: Path, frames: list[PosedFrame]) -> None:
    path = tmp_path / "run.rrd"
    record(path, frames[:3])
    viewer = viewer_process.start_web("127.0.0.1", 0, [path])
    try:
        assert viewer.page is not None
        with urllib.request.urlopen(viewer.page, timeout=10) as page:
            assert page.status == 200
    finally:
        viewer.close()
    assert not viewer.is_running


# --- pictures ------------------------------------------------------------------------------------------------


def test_contact_sheet_shows_frames_and_path(tmp_path: Path, frames: list[PosedFrame]) -> None:
    path = tmp_path / "sheet.png"
    write_contact_sheet(Frames(frames), path, title="room")
    picture = cv2.imread(str(path))[..., ::-1]
    assert picture.shape[1] > picture.shape[0] > 400
    wanted = cv2.resize(frames[0].rgb, (240, 180))
    tile = picture[52 : 52 + 180, 6 : 6 + 240]
    assert np.abs(tile[30:].astype(int) - wanted[30:]).mean() < 12
    is_path = (np.abs(picture.astype(int) - colors.PATH).sum(axis=2) < 10).sum()
    assert is_path > 20


def test_contact_sheet_draws_the_longest_segment(frames: list[PosedFrame]) -> None:
    cut = [dataclasses.replace(f, segment=int(f.index >= 2)) for f in frames]
    lost = cut[0].world_from_cam.copy()
    lost[:3, 3] = 1e6  # would shrink the rest to a dot
    cut[0] = dataclasses.replace(cut[0], world_from_cam=lost)
    picture = contact_sheet(cut)
    assert (np.abs(picture.astype(int) - colors.PATH).sum(axis=2) < 10).sum() > 20


@pytest.mark.parametrize("n", [1, 2])
def test_contact_sheet_of_few_frames(n: int) -> None:
    assert contact_sheet(posed_frames(n, SCENE)).ndim == 3


def test_contact_sheet_refuses_what_it_cannot_write(
    tmp_path: Path, frames: list[PosedFrame]
) -> None:
    with pytest.raises(ExportError, match="no frames"):
        contact_sheet([])
    with pytest.raises(ExportError, match=r"\.txt"):
        write_contact_sheet(frames, tmp_path / "sheet.txt")
    with pytest.raises(ExportError, match="No such file"):
        write_contact_sheet(frames, tmp_path / "no" / "sheet.png")
    (tmp_path / "old.png").write_bytes(b"precious")
    with little_room(1000), pytest.raises(ExportError, match="File too large"):
        write_contact_sheet(frames, tmp_path / "old.png")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("old.png", b"precious")]


def test_fitted_eye_looks_at_the_scene() -> None:
    path = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 1.0]])
    points = np.random.default_rng(0).uniform(-3, 3, (500, 3)) + np.array([0, 0, 5])
    eye = blueprint.fitted_eye(path, points)
    position = np.array(eye.position.as_arrow_array().to_pylist()[0])
    target = np.array(eye.look_target.as_arrow_array().to_pylist()[0])
    assert position[1] < points[:, 1].min()  # above: y points down
    assert position[2] < path[:, 2].min()  # behind
    assert np.abs(target - np.concatenate([path, points]).mean(axis=0)).max() < 1.5

"""Rerun recordings, read back."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from rerun.chunk import RrdReader

from stream4d.config import ViewConfig
from stream4d.errors import Stream4DError
from stream4d.geometry import camera, transforms
from stream4d.packets import PosedFrame, PoseRevision
from stream4d.viz import (
    recording_file,
    scene_log,
)
from stream4d.viz.cloud import frame_points, voxel_for
from stream4d.viz.rerun_sink import RerunSink
from tests.disks import little_room
from tests.posed import posed_frames
from tests.recordings import record, rows
from tests.synthetic import HALF, Scene

SCENE = Scene(width=96, height=72, focal=82.0)


@pytest.fixture(scope="module")
def frames() -> list[PosedFrame]:
    return posed_frames(12, SCENE)


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
            RerunSink(ViewConfig(save_rrd=str(target)), "test").__enter__()
    assert old.read_bytes() == b"precious"
    with RerunSink(ViewConfig(save_rrd=str(old)), "test", overwrite=True):
        assert old.read_bytes() == b"precious"  # until the new one is complete
    assert old.read_bytes() != b"precious"


def test_run_that_fails_before_its_first_frame_leaves_no_recording(tmp_path: Path) -> None:
    target = tmp_path / "run.rrd"
    with (
        pytest.raises(KeyError),
        RerunSink(ViewConfig(save_rrd=str(target)), "test"),
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


@pytest.mark.parametrize("count", [12, recording_file.CHECK_EVERY + 12])
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

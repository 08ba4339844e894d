"""Rendered rooms, without Blender: labels and files, the catalogue, plans of rooms, camera paths."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from stream4d.errors import TrainingError
from stream4d.train.batches import Batches
from stream4d.train.datasets import open_dataset, read_clip
from stream4d.train.pathtraced import __main__ as command
from stream4d.train.pathtraced import surfaces
from stream4d.train.pathtraced.furniture import read_catalogue
from stream4d.train.pathtraced.room_plan import Planner, bounds, overlap
from stream4d.train.pathtraced.room_views import sample_view
from stream4d.train.pathtraced.truth import RenderedClip, has_clip, write_clip
from stream4d.train.recipe import Recipe, Stage
from tests.pieces import piece

H, W, F = 24, 32, 20.0
STEP, MOVED = 0.2, 0.3
"""Metres a frame of the camera and of the mover, both along x."""


def square_before_wall(frames: int = 3) -> RenderedClip:
    """Look at a wall 4 m away and a square 2 m away; camera and square slide to the right."""
    K = np.array([[F, 0, (W - 1) / 2], [0, F, (H - 1) / 2], [0, 0, 1]])
    camera = np.tile(np.eye(4), (frames, 1, 1))
    square = np.tile(np.eye(4), (1, frames, 1, 1))
    camera[:, 0, 3] = STEP * np.arange(frames)
    square[0, :, 0, 3] = -0.4 + MOVED * np.arange(frames)
    v, u = np.mgrid[:H, :W]
    x = (u - K[0, 2]) / F * 2.0 + (camera[:, 0, 3] - square[0, :, 0, 3])[:, None, None]
    y = np.broadcast_to((v - K[1, 2]) / F * 2.0, x.shape)
    on_square = (np.abs(x) < 0.5) & (np.abs(y) < 0.5)
    rng = np.random.default_rng(0)
    return RenderedClip(
        rgb=rng.integers(0, 255, (frames, H, W, 3), np.uint8),
        depth=np.where(on_square, 2.0, 4.0).astype(np.float32),
        mover=on_square.astype(np.uint8),
        K=K,
        world_from_cam=camera,
        world_from_mover=square,
    )


def test_clip_reads_back_through_the_loader(tmp_path: Path) -> None:
    want = square_before_wall()
    assert not has_clip(tmp_path, "room0_0")
    write_clip(tmp_path, "room0_0", want)
    assert has_clip(tmp_path, "room0_0")
    dataset = open_dataset("sintel", tmp_path)
    assert [r.length for r in dataset.recordings] == [3]
    got = read_clip(dataset.recordings[0], [0, 1, 2])
    moving = want.mover > 0
    np.testing.assert_array_equal((got.rgb[0] * 255).permute(0, 2, 3, 1).round(), want.rgb)
    np.testing.assert_allclose(got.depth[0], want.depth)
    np.testing.assert_allclose(got.K[0, 1], want.K, rtol=1e-6)
    np.testing.assert_allclose(got.world_from_cam[0], want.world_from_cam, atol=1e-6)
    # Similar triangles: the wall moves against the camera, the square by what it gains on it.
    flow = np.where(moving, F * (MOVED - STEP) / 2, -F * STEP / 4)
    for name, frames, sign in (("flow", slice(0, 2), 1), ("flow_backward", slice(1, 3), -1)):
        assert getattr(got, f"valid_{name}").all()
        np.testing.assert_allclose(getattr(got, name)[0, ..., 0], sign * flow[frames], atol=1e-5)
        np.testing.assert_allclose(getattr(got, name)[0, ..., 1], 0, atol=1e-5)
    np.testing.assert_array_equal(got.motion_mask[0], moving)
    # Two pixels of wall on the right of the square go behind it; the image loses its left edge, one pixel wide.
    hidden = np.zeros((H, W), bool)
    rows = moving[0].any(1)
    right = np.flatnonzero(moving[0][H // 2]).max()
    hidden[rows, right + 1 : right + 3] = True
    hidden[:, 0] = True
    np.testing.assert_array_equal(got.occluded[0, 0], hidden)


def test_unfinished_clip_is_not_seen(tmp_path: Path) -> None:
    write_clip(tmp_path, "room0_0", square_before_wall())
    (tmp_path / "training/.partial/room0_1").mkdir(parents=True)
    assert len(open_dataset("sintel", tmp_path).recordings) == 1
    write_clip(tmp_path, "room0_1", square_before_wall())
    assert len(open_dataset("sintel", tmp_path).recordings) == 2


def test_training_varies_the_clips_it_reads(tmp_path: Path) -> None:
    write_clip(tmp_path, "room0_0", square_before_wall())
    stage = Stage(height=64, width=96, batch=1, frames=3)
    recipe = Recipe(layered=0.0, stages=(stage,), real=(f"sintel:{tmp_path}",) * 9)
    batches = Batches(recipe)
    clips = [batches.batch(step)[0] for step in range(4)]
    read = [clip for clip in clips if abs(clip.depth[0, 0, 0, 0] - 4) < 1e-5]  # a tenth is rendered
    assert len(read) >= 2
    assert len({float(clip.K[0, 0, 0, 0]) for clip in read}) == len(read)
    assert all(set(clip.depth.round(decimals=4).unique().tolist()) == {2.0, 4.0} for clip in read)
    again = Batches(recipe)
    assert all(torch.equal(again.batch(i)[0].rgb, clips[i].rgb) for i in range(2))


# --- the command ----------------------------------------------------------------------------------------


def run(*words: str) -> int:
    return command.run(command._parser().parse_args(words))


def test_missing_blender_and_furniture_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match="like 256x192; got '256'"):
        run(str(tmp_path), "--size", "256")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TrainingError, match=r"pip install bpy==4.2.0"):
        run(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    with pytest.raises(TrainingError, match=r"python -m stream4d.train.pathtraced.furniture"):
        run(str(tmp_path), "--furniture", str(tmp_path))


# --- catalogue and plan ---------------------------------------------------------------------------------


def test_catalogue(tmp_path: Path) -> None:
    entries = {
        1: ("Desk", "Office", 140, 70, 75, 0),
        2: ("Mug", "Kitchen", 8, 12, 10, 0),
        3: ("Bus", "Vehicles", 280, 1400, 360, 0),
        4: ("Clock", "Living room", 30, 5, 30, 150),
        5: ("Nowhere", "Office", 1, 1, 1, 0),
    }
    keys = ("name", "category", "width", "depth", "height", "elevation")
    folder = tmp_path / "Maker"
    folder.mkdir()
    lines = [
        f"{k}#{n}={v}" for n, entry in entries.items() for k, v in zip(keys, entry, strict=True)
    ]
    lines += [f"model#{n}=/models/{n}.obj" for n in entries]
    lines.append("modelRotation#2=1 0 0 0 0 -1 0 1 0")
    (folder / "PluginFurnitureCatalog.properties").write_text("\n".join(lines))
    (folder / "models").mkdir()
    for n in range(1, 5):  # the fifth has no file
        (folder / f"models/{n}.obj").write_text("v 0 0 0\n")
    desk, mug, bus, clock = read_catalogue(tmp_path)
    assert desk.size == (1.4, 0.7, 0.75)
    assert [p.role for p in (desk, mug, bus, clock)] == ["table", "small", "none", "hanging"]
    assert clock.elevation == 1.5
    assert mug.turn == (1, 0, 0, 0, 0, -1, 0, 1, 0)


CATALOGUE = [
    piece("Desk", "Office", 1.4, 0.7, 0.75),
    piece("Chair", "Office", 0.5, 0.5, 0.9),
    piece("Wardrobe", "Bedroom", 1.2, 0.6, 2.0),
    piece("Shelf", "Bedroom", 0.8, 0.3, 1.8),
    piece("Box", "Miscellaneous", 0.3, 0.3, 0.3),
    piece("Door", "Doors and windows", 0.9, 0.15, 2.1),
    piece("Clock", "Living room", 0.3, 0.05, 0.3, elevation=1.5),
]


def test_plans_are_repeatable_and_nothing_overlaps() -> None:
    pieces = 0
    for seed in range(20):
        room = Planner(np.random.default_rng(seed), CATALOGUE).fill()
        again = Planner(np.random.default_rng(seed), CATALOGUE).fill()
        assert [s.position for s in room.furniture] == [s.position for s in again.furniture]
        pieces += len(room.furniture)
        for i, a in enumerate(room.furniture):
            low, high = bounds(a)
            assert (low > -1e-6).all()
            assert (high < np.array(room.size) + 1e-6).all()
            for b in room.furniture[:i]:
                pair = {a.piece.role, b.piece.role}
                assert pair == {"table", "seat"} or not overlap(a, b)
            if a.piece.role == "door":  # its back, +y when unturned, touches a wall
                back = np.array(a.position[:2]) + a.size[1] / 2 * np.array(
                    [-np.sin(a.yaw), np.cos(a.yaw)]
                )
                walls = [*back, *(np.array(room.size[:2]) - back)]
                assert min(np.abs(walls)) < 0.02
    assert pieces > 20 * 8


# --- cameras and surfaces -------------------------------------------------------------------------------

ROOM = np.array([4.0, 5.0, 2.5])


def inside_a_box(eye: np.ndarray, way: np.ndarray) -> tuple[float, str]:
    """Cast a ray against the walls of an empty room."""
    with np.errstate(divide="ignore"):
        reach = np.where(way > 0, (ROOM - eye) / way, np.where(way < 0, -eye / way, np.inf))
    return float(reach.min()), f"wall {int(reach.argmin())} {way[reach.argmin()] > 0}"


def test_camera_paths_stay_clear_and_differ_in_speed() -> None:
    rng = np.random.default_rng(3)
    speeds = []
    for _ in range(30):
        view = sample_view(rng, ROOM, [np.array([2.0, 2.0, 0.7])], inside_a_box, 4, 4 / 3)
        assert view is not None
        R, t = view.world_from_cam[:, :3, :3], view.world_from_cam[:, :3, 3]
        np.testing.assert_allclose(
            R @ R.transpose(0, 2, 1), np.tile(np.eye(3), (4, 1, 1)), atol=1e-9
        )
        assert np.linalg.det(R[0]) == pytest.approx(1)
        assert ((t > 0.1) & (t < ROOM - 0.1)).all()
        assert np.radians(35) <= view.fov_rad <= np.radians(100)
        assert R[0, 2, 1] < 0.99  # y of the camera points down, or sideways when it rolls
        speeds.append(np.linalg.norm(np.diff(t, axis=0), axis=1).mean())
    assert np.quantile(speeds, 0.2) < 0.02 < 0.05 < np.quantile(speeds, 0.8)


def test_no_view_where_everything_touches_the_lens() -> None:
    rng = np.random.default_rng(0)
    assert sample_view(rng, ROOM, [], lambda _eye, _way: (0.01, "fog"), 4, 4 / 3) is None


@pytest.mark.parametrize("kind", {*surfaces.FLOORS, *surfaces.WALLS, surfaces.page})
def test_surfaces(kind: surfaces.Kind) -> None:
    first, again, other = (kind(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (surfaces.SIDE, surfaces.SIDE, 3)
    assert np.isfinite(first).all()
    assert 0.1 < first.mean() < 1.1
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.01


@pytest.mark.parametrize("flag", ["--clips", "--frames", "--per-set", "--samples"])
def test_counts_below_one_are_told(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pathtraced", str(tmp_path), flag, "0"])
    assert command.main() == 1
    assert f"{flag} must be at least 1, got 0" in capsys.readouterr().err

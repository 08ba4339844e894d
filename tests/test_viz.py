"""Pictures: colours of maps, contact sheets, where the eye of the viewer begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from stream4d.errors import ExportError
from stream4d.packets import PosedFrame
from stream4d.viz import (
    blueprint,
    colors,
)
from stream4d.viz.contact_sheet import contact_sheet, write_contact_sheet
from tests.disks import little_room
from tests.posed import Frames, posed_frames
from tests.synthetic import Scene

SCENE = Scene(width=96, height=72, focal=82.0)


@pytest.fixture(scope="module")
def frames() -> list[PosedFrame]:
    return posed_frames(12, SCENE)


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


def test_depth_without_confidence_is_drawn_as_unknown() -> None:
    depth, confidence = np.array([[2.0, 3.0, -1.0]]), np.array([[0.9, 0.01, 0.9]])
    assert np.isnan(colors.known_depth(depth, confidence)).tolist() == [[False, True, True]]


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

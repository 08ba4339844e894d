"""The source of truth is true: flow, depth, poses and images of the synthetic scene agree with one another."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.geometry import camera, flow, transforms
from tests.oracle import OracleModel
from tests.synthetic import BIG_MOVERS, Scene


def test_static_surfaces_have_ego_flow_and_movers_do_not() -> None:
    scene = Scene()
    b_from_a = transforms.invert(scene.world_from_cam(6)) @ scene.world_from_cam(5)
    ego = flow.ego_flow(scene.depth(5), scene.K, scene.K, b_from_a)
    optical, visible = scene.flow(5, 6)
    moving = scene.moving(5)
    assert visible.mean() > 0.95
    np.testing.assert_allclose(optical[~moving], ego[~moving], atol=1e-9)
    assert np.linalg.norm((optical - ego)[moving], axis=-1).mean() > 0.5


def test_flow_maps_the_image_onto_the_next() -> None:
    scene = Scene("walk")
    optical, visible = scene.flow(3, 5)
    warped = flow.sample(scene.rgb(5).astype(float), flow.targets(optical))
    error = np.abs(warped - scene.rgb(3))[visible]
    # bilinear reading of smooth texture and rounding to 8 bits: a few grey levels
    assert np.nanmedian(error) < 2.5
    assert error[np.isfinite(error)].mean() < 5


def test_backward_flow_undoes_forward_flow() -> None:
    scene = Scene("walk")
    error = flow.consistency_error(scene.flow(8, 9)[0], scene.flow(9, 8)[0])
    assert np.nanmedian(error) < 0.01


@pytest.mark.parametrize("path", ["orbit", "walk", "loop", "static", "rotation", "forward"])
def test_paths_stay_in_the_room_and_do_what_they_say(path: str) -> None:
    scene = Scene(path)  # type: ignore[arg-type]
    poses = np.stack([scene.world_from_cam(t) for t in range(0, 400, 7)])
    assert (np.abs(poses[:, :3, 3]) < [3.9, 2.4, 3.9]).all()
    np.testing.assert_allclose(transforms.project_to_so3(poses[:, :3, :3]), poses[:, :3, :3])
    travelled = np.ptp(poses[:, :3, 3], axis=0).max()
    assert (travelled == 0) == (path in ("static", "rotation"))


def test_big_movers_cover_forty_percent() -> None:
    scene = Scene("static", balls=BIG_MOVERS)
    share = np.mean([scene.moving(t).mean() for t in range(0, 160, 8)])
    assert 0.35 < share < 0.5


def test_windows_overlap_and_cover_every_frame_once() -> None:
    windows = list(Scene(width=32, height=24).windows(11, size=4, overlap=2))
    assert [f.index for w in windows for f in w.new_frames] == list(range(11))
    assert [f.index for f in windows[1].frames] == [2, 3, 4, 5]


def test_oracle_pointmaps_are_the_scene_in_the_first_camera() -> None:
    scene = Scene(width=64, height=48, focal=55)
    window = next(iter(scene.windows(3, size=3)))
    model = OracleModel(scene, gives="all", window_scale=2.0)
    with model.session(scene.info(3)) as session:
        prediction = session.step(window)
    assert prediction.pointmap_in_window is not None
    assert prediction.depth is not None
    first = camera.unproject(scene.depth(0), scene.K)
    ratio = prediction.pointmap_in_window[0] / first
    assert np.nanstd(ratio[np.abs(first) > 0.1]) < 1e-4
    np.testing.assert_allclose(
        prediction.pointmap_in_window[0][..., 2], prediction.depth[0], rtol=1e-5
    )

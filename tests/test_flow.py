"""Ego, residual and scene flow on scenes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.geometry import camera, flow
from stream4d.geometry.transforms import invert, se3_exp

K = camera.make_K(60.0, 62.0, 31.0, 23.0)
H, W = 48, 64


def test_ego_flow_of_a_sideways_camera_is_focal_times_motion_over_depth() -> None:
    depth = np.full((H, W), 2.0)
    b_from_a = se3_exp(np.array([-0.1, 0, 0, 0, 0, 0]))  # camera moves right, points move left
    expected = np.broadcast_to([-60 * 0.1 / 2, 0], (H, W, 2))
    np.testing.assert_allclose(flow.ego_flow(depth, K, K, b_from_a), expected, atol=1e-12)


def test_pure_rotation_flow_does_not_depend_on_depth() -> None:
    b_from_a = se3_exp(np.array([0, 0, 0, 0.02, -0.03, 0.1]))
    near = flow.ego_flow(np.full((H, W), 0.5), K, K, b_from_a)
    far = flow.ego_flow(np.full((H, W), 50.0), K, K, b_from_a)
    np.testing.assert_allclose(near, far, atol=1e-10)


def test_scene_flow_is_zero_on_a_static_plane() -> None:
    b_from_a = se3_exp(np.array([0.05, 0.0, 0.1, 0.0, 0.0, 0.2]))  # keeps the plane parallel
    depth_a, depth_b = np.full((H, W), 2.0), np.full((H, W), 2.1)
    optical = flow.ego_flow(depth_a, K, K, b_from_a)
    moved = flow.scene_flow(optical, depth_a, depth_b, K, K, np.eye(4), invert(b_from_a))
    seen = np.isfinite(moved[..., 0])
    assert seen.mean() > 0.7
    np.testing.assert_allclose(moved[seen], 0, atol=1e-12)


def test_scene_flow_measures_a_mover_in_world_units() -> None:
    depth = np.full((H, W), 2.0)
    optical = np.zeros((H, W, 2))
    optical[..., 0] = 3.0  # static camera, everything slides by 3 px = 3 * 2 / 60 m
    moved = flow.scene_flow(optical, depth, depth, K, K, np.eye(4), np.eye(4))
    np.testing.assert_allclose(np.nanmedian(moved.reshape(-1, 3), axis=0), [0.1, 0, 0], atol=1e-12)


def test_sample_is_exact_at_pixels_and_linear_between() -> None:
    image = np.random.default_rng(0).normal(size=(H, W))
    np.testing.assert_allclose(flow.sample(image, camera.pixel_grid(H, W)), image)
    middle = flow.sample(image, np.array([10.5, 7.0]))
    assert middle == pytest.approx((image[7, 10] + image[7, 11]) / 2)
    outside = np.array([[-0.1, 3], [3, H - 0.9], [np.nan, 1]])
    assert np.isnan(flow.sample(image, outside)).all()


def test_consistency_error_is_zero_for_inverse_flows_and_grows_with_disagreement() -> None:
    there = np.broadcast_to([2.0, 1.0], (H, W, 2))
    error = flow.consistency_error(there, -there)
    assert np.nanmax(error) < 1e-12
    assert np.isnan(error[-1, -1])
    wrong = flow.consistency_error(there, -there + [0.3, 0.4])
    assert np.nanmedian(wrong) == pytest.approx(0.5)

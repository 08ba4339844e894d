"""Pinhole camera: projection and its inverse, and K under resizing and cropping."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.geometry import camera

K = camera.make_K(310.0, 305.0, 160.3, 118.9)


def test_project_inverts_unproject() -> None:
    depth = np.random.default_rng(0).uniform(0.5, 5, (240, 320))
    uv = camera.project(camera.unproject(depth, K), K)
    np.testing.assert_allclose(uv, camera.pixel_grid(240, 320), atol=1e-10)


def test_leading_dimensions_broadcast() -> None:
    depth = np.random.default_rng(0).uniform(0.5, 5, (3, 24, 32))
    Ks = np.stack([K, camera.scale_K(K, 0.5, 0.5), camera.scale_K(K, 2, 2)])
    uv = camera.project(camera.unproject(depth, Ks), Ks)
    np.testing.assert_allclose(uv, np.broadcast_to(camera.pixel_grid(24, 32), uv.shape), atol=1e-9)


def test_float32_stays_float32() -> None:
    depth = np.ones((4, 5), np.float32)
    assert camera.unproject(depth, K).dtype == np.float32
    assert camera.project(camera.unproject(depth, K), K).dtype == np.float32


def test_points_behind_the_camera_are_nan() -> None:
    assert np.isnan(camera.project(np.array([[0.1, 0.1, -1.0], [0.0, 0.0, 0.0]]), K)).all()


def test_scale_K_is_what_a_resize_does() -> None:
    # the corner of the image area (-0.5, -0.5) stays the corner, and the far corner goes to the far corner
    scaled = camera.scale_K(K, 0.25, 0.5)
    for corner in ([-0.5, -0.5], [319.5, 239.5]):
        ray = camera.rays(np.array(corner), K)
        uv = camera.project(ray, scaled)
        np.testing.assert_allclose(
            uv, [(corner[0] + 0.5) * 0.25 - 0.5, (corner[1] + 0.5) * 0.5 - 0.5]
        )
    np.testing.assert_allclose(camera.scale_K(scaled, 4, 2), K)


def test_crop_K_shifts_pixels() -> None:
    point = np.array([0.3, -0.2, 2.0])
    np.testing.assert_allclose(
        camera.project(point, camera.crop_K(K, 10, 20)), camera.project(point, K) - [10, 20]
    )


def test_focal_and_fov_are_inverse() -> None:
    assert camera.fov_from_focal(camera.focal_from_fov(63.0, 384), 384) == pytest.approx(63)
    assert camera.centred_K(100, 8, 6)[:2, 2].tolist() == [3.5, 2.5]


def test_inside_excludes_borders_and_nan() -> None:
    uv = np.array([[0, 0], [7, 5], [7.1, 5], [np.nan, 2], [3, 3]])
    assert camera.inside(uv, 6, 8).tolist() == [True, True, False, False, True]
    assert camera.inside(uv, 6, 8, margin=1).tolist() == [False, False, False, False, True]

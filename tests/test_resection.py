"""Poses from nothing but points and pixels, and the descriptors that pair them."""

from __future__ import annotations

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose import descriptors, resection

K = np.array([[200.0, 0, 95.5], [0, 200, 71.5], [0, 0, 1]])


def view(rng: np.random.Generator, n: int) -> tuple[Array, Array, Array]:
    """Points (n, 3), their pixels (n, 2) and the pose (3, 4) that sees them there."""
    points = rng.uniform([-2, -1.5, 3], [2, 1.5, 8], (n, 3))
    pose = transforms.se3_exp(np.array([0.3, -0.1, 0.2, 0.1, -0.2, 0.05]))[:3]
    q = (points @ pose[:, :3].T + pose[:, 3]) @ K.T
    return points, q[:, :2] / q[:, 2:], pose


def test_a_pose_is_found_among_outliers_and_they_are_named() -> None:
    rng = np.random.default_rng(0)
    points, uv, pose = view(rng, 80)
    wrong = np.arange(80) < 35
    uv[wrong] = rng.uniform(0, 140, (35, 2))
    found = resection.resect(points, uv, K, error_px=2.0)
    assert found is not None
    np.testing.assert_allclose(found.pose, pose, atol=1e-3)
    assert found.inliers[~wrong].all()
    assert (
        found.inliers[wrong].sum() <= 2
    )  # a pixel thrown at random lands near its point now and then


def test_what_is_not_finite_takes_no_part() -> None:
    points, uv, pose = view(np.random.default_rng(1), 20)
    points[3], uv[7] = np.inf, np.nan
    found = resection.resect(points, uv, K, error_px=2.0)
    assert found is not None
    np.testing.assert_allclose(found.pose, pose, atol=1e-3)
    assert np.flatnonzero(~found.inliers).tolist() == [3, 7]


def test_too_few_points_or_points_in_one_place_give_no_pose() -> None:
    points, uv, _ = view(np.random.default_rng(2), 3)
    assert resection.resect(points, uv, K, error_px=2.0) is None
    assert resection.resect(np.ones((12, 3)), np.ones((12, 2)), K, error_px=2.0) is None


def test_descriptors_match_a_shifted_image_and_refuse_what_repeats() -> None:
    rng = np.random.default_rng(3)
    wide = rng.integers(0, 255, (40, 60), np.uint8).repeat(4, 0).repeat(4, 1)
    uv = np.stack(np.meshgrid(np.arange(50.0, 180, 26), np.arange(45.0, 120, 24)), -1).reshape(
        -1, 2
    )
    rows, here = descriptors.describe_at(wide, uv)
    shifted, there = descriptors.describe(wide[:, 8:], uv[rows] - [8, 0], 50)
    pairs = descriptors.match(here, there, 0.8)
    assert len(pairs) > 0.8 * len(rows)
    apart = shifted[pairs[:, 1]] - (uv[rows[pairs[:, 0]]] - [8, 0])
    assert np.median(np.hypot(*apart.T)) < 1.0
    twice = np.concatenate([there, there])
    assert len(descriptors.match(here, twice, 0.8)) == 0


def test_images_without_room_are_not_described() -> None:
    small = np.zeros((20, 30), np.uint8)
    assert len(descriptors.describe(small, np.ones((4, 2)), 100)[0]) == 0
    assert len(descriptors.describe_at(small, np.ones((4, 2)))[0]) == 0
    blank = np.zeros((100, 100), np.uint8)
    assert len(descriptors.describe(blank, np.zeros((0, 2)), 100)[1]) == 0

"""Group laws of SE(3) and Sim(3), far from and near identity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream4d.geometry import transforms as tf

MAGNITUDES = [0.0, 1e-12, 1e-8, 1e-5, 1e-4, 1e-3, 0.1, 1.0, 3.0]


def twists(size: int, n: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, size)) / np.sqrt(3)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("group", ["se3", "sim3"])
def test_log_inverts_exp(group: str, magnitude: float) -> None:
    exp, log = getattr(tf, f"{group}_exp"), getattr(tf, f"{group}_log")
    xi = magnitude * twists(6 if group == "se3" else 7)
    # float64 rounding of a matrix near identity is 1e-16 absolute
    np.testing.assert_allclose(log(exp(xi)), xi, rtol=1e-9, atol=2e-15)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_exp_matches_matrix_exponential(magnitude: float) -> None:
    scipy_linalg = pytest.importorskip("scipy.linalg")
    for xi in magnitude * twists(7, n=5):
        generator = np.zeros((4, 4))
        generator[:3, :3] = tf.hat(xi[3:6]) + xi[6] * np.eye(3)
        generator[:3, 3] = xi[:3]
        np.testing.assert_allclose(tf.sim3_exp(xi), scipy_linalg.expm(generator), atol=1e-12)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_group_laws(seed: int) -> None:
    a, b, c = tf.sim3_exp(2 * twists(7, 3, seed))
    np.testing.assert_allclose((a @ b) @ c, a @ (b @ c), atol=1e-9)
    np.testing.assert_allclose(a @ tf.invert(a), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(tf.invert(a @ b), tf.invert(b) @ tf.invert(a), atol=1e-9)
    point = twists(3, 1, seed)[0]
    there = tf.transform_points(a, tf.transform_points(b, point))
    np.testing.assert_allclose(there, tf.transform_points(a @ b, point), atol=1e-10)


def test_adjoint_moves_a_twist_through_a_pose() -> None:
    T, xi = tf.se3_exp(twists(6)), 0.1 * twists(6, seed=1)
    right = T @ tf.se3_exp(xi)
    left = tf.se3_exp((tf.adjoint(T) @ xi[..., None])[..., 0]) @ T
    np.testing.assert_allclose(left, right, atol=1e-13)


def test_decompose_and_similarity_are_inverse() -> None:
    T = tf.sim3_exp(twists(7))
    np.testing.assert_allclose(tf.similarity(*tf.decompose(T)), T, atol=1e-14)
    rigid = tf.without_scale(T)
    np.testing.assert_allclose(tf.scale_of(rigid), 1, atol=1e-14)


def test_rotation_by_pi_is_found() -> None:
    for axis in np.vstack([np.eye(3), twists(3, 5)]):
        phi = np.pi * axis / np.linalg.norm(axis)
        R = tf.so3_exp(phi)
        np.testing.assert_allclose(tf.so3_exp(tf.so3_log(R)), R, atol=1e-12)


def test_quaternion_round_trip_over_all_branches() -> None:
    R = tf.so3_exp(np.vstack([3.1 * np.eye(3), -3.1 * np.eye(3), 3 * twists(3), np.zeros((1, 3))]))
    q = tf.quat_wxyz_from_rotation(R)
    np.testing.assert_allclose(tf.rotation_from_quat_wxyz(q), R, atol=1e-13)
    np.testing.assert_allclose(tf.quat_wxyz_from_rotation(np.eye(3)), [1, 0, 0, 0])


def test_project_to_so3_keeps_rotations_and_mends_reflections() -> None:
    R = tf.so3_exp(twists(3))
    np.testing.assert_allclose(tf.project_to_so3(1.7 * R), R, atol=1e-13)
    assert np.linalg.det(tf.project_to_so3(np.diag([1.0, 1.0, -0.1]))) == pytest.approx(1)


def test_transform_points_takes_maps_per_frame() -> None:
    T, maps = tf.se3_exp(twists(6, 3)), np.random.default_rng(0).normal(size=(3, 4, 5, 3))
    moved = tf.transform_points(T, maps)
    np.testing.assert_allclose(moved[1, 2, 3], T[1, :3, :3] @ maps[1, 2, 3] + T[1, :3, 3])


def test_interpolate_meets_both_ends_and_halves_the_way() -> None:
    a, b = tf.se3_exp(twists(6, 2))
    np.testing.assert_allclose(tf.interpolate(a, b, 0.0), a, atol=1e-14)
    np.testing.assert_allclose(tf.interpolate(a, b, 1.0), b, atol=1e-12)
    half = tf.interpolate(a, b, 0.5)
    np.testing.assert_allclose(tf.interpolate(half, b, 1.0), b, atol=1e-12)
    np.testing.assert_allclose(tf.se3_log(b @ tf.invert(a)) / 2, tf.se3_log(half @ tf.invert(a)))

"""Robust alignment: the closed form, outliers, degenerate data, and the kernels against their slow twins."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.geometry import _kernels, align, transforms
from stream4d.packets import Array
from tests import naive
from tests.interpreted import run_without_compilation

T_TRUE = transforms.sim3_exp(np.array([0.4, -1.0, 2.0, 0.5, -0.7, 0.3, 0.6]))


def cloud(n: int = 3000, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(n, 3)) * [1.0, 2.0, 0.7] + [0.3, 0.1, 4.0]


def test_exact_pairs_give_the_exact_transform() -> None:
    s = cloud()
    result = align.align_points(s, transforms.transform_points(T_TRUE, s))
    assert result.ok
    np.testing.assert_allclose(result.transform, T_TRUE, atol=1e-9)
    assert result.scale == pytest.approx(np.exp(0.6))
    assert result.inliers == pytest.approx(1)


def test_rigid_alignment_keeps_scale_one() -> None:
    T = transforms.without_scale(T_TRUE)
    s = cloud()
    result = align.align_points(s, transforms.transform_points(T, s), with_scale=False)
    np.testing.assert_allclose(result.transform, T, atol=1e-9)
    assert result.scale == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6])
def test_outliers_do_not_pull(share: float) -> None:
    rng = np.random.default_rng(1)
    s = cloud(5000)
    t = transforms.transform_points(T_TRUE, s) + 0.01 * rng.normal(size=s.shape)
    bad = rng.random(len(s)) < share
    t[bad] = rng.normal(size=(bad.sum(), 3)) * 3 + [5, -3, 2]  # a lump, not a fog: it pulls one way
    result = align.align_points(s, t)
    assert result.ok
    assert result.scale == pytest.approx(np.exp(0.6), rel=2e-3)
    error = transforms.transform_points(result.transform, s) - transforms.transform_points(
        T_TRUE, s
    )
    # 5000 (1 - share) pairs of 1 cm: the mean is known to better than 1 mm
    assert np.abs(error).max() < 0.01
    assert abs(result.inliers - (1 - share)) < 0.1


def test_weights_and_masks_decide() -> None:
    s = cloud()
    t = transforms.transform_points(T_TRUE, s)
    t[::2] += 1.0
    w = np.ones(len(s))
    w[::2] = 0
    t[1::20] = np.nan
    np.testing.assert_allclose(align.align_points(s, t, w).transform, T_TRUE, atol=1e-9)


@pytest.mark.parametrize("magnitude", [1e-6, 1e6])
def test_huge_and_tiny_scales(magnitude: float) -> None:
    s = cloud()
    t = transforms.transform_points(T_TRUE, s) * magnitude
    result = align.align_points(s, t)
    assert result.scale == pytest.approx(np.exp(0.6) * magnitude, rel=1e-9)
    far = align.align_points(s + 1e6, transforms.transform_points(T_TRUE, s) - 1e6)
    assert far.scale == pytest.approx(np.exp(0.6), rel=1e-6)


def degenerate() -> dict[str, tuple[Array, str]]:
    line = np.linspace(0, 1, 100)[:, None] * [1.0, 2.0, 3.0]
    return {
        "collinear": (line, "rank 1"),
        "one point": (np.ones((100, 3)), "rank 0"),
        "two points": (cloud(2), "fewer than 3 points"),
        "all NaN": (np.full((100, 3), np.nan), "fewer than 3 points"),
        "empty": (np.zeros((0, 3)), "fewer than 3 points"),
    }


@pytest.mark.parametrize("name", list(degenerate()))
def test_degenerate_data_is_a_result(name: str) -> None:
    points, reason = degenerate()[name]
    result = align.align_points(points, 2 * points)
    assert not result.ok
    assert result.reason == reason
    np.testing.assert_array_equal(result.transform, np.eye(4))


@pytest.mark.parametrize("case", ["random", "collinear", "masked", "single", "huge"])
def test_kernels_equal_their_slow_twins(case: str) -> None:
    rng = np.random.default_rng(3)
    n = 1 if case == "single" else 200
    s, t = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    if case == "collinear":
        s = np.linspace(0, 1, n)[:, None] * [1.0, 2.0, 3.0]
    if case == "huge":
        s, t = 1e8 * s, 1e8 * t
    w, T = rng.random(n), T_TRUE.copy()
    w[rng.random(n) < (1.0 if case == "masked" else 0.2)] = 0
    if n > 10:
        s[3], t[5, 1], w[7] = np.nan, np.inf, np.nan
    frame = np.array([0.1, -0.2, 0.3, 0.5, 0.0, 1.0, 0.7, 1.9])
    for robust in (0.0, 2.0 * np.nanmax(np.abs(s))):
        sums = np.zeros(19)
        _kernels.weighted_sums(s, t, w, T, robust, frame, sums)
        expected = naive.weighted_sums(s, t, w, T, robust, frame)
        atol = 1e-12 * np.abs(expected).max()
        np.testing.assert_allclose(sums, expected, rtol=1e-10, atol=atol)
    out = np.zeros(n)
    _kernels.residual_lengths(s, t, T, out)
    np.testing.assert_allclose(out, naive.residual_lengths(s, t, T), rtol=1e-10)


def test_without_reweighting_it_is_umeyama() -> None:
    rng = np.random.default_rng(2)
    s, w = cloud(400), rng.random(400)
    t = transforms.transform_points(T_TRUE, s) + 0.1 * rng.normal(size=s.shape)
    problem = align._Problem(s, t, w, np.arange(400), True)
    T = problem.closed_form(np.eye(4), 0.0)
    assert not isinstance(T, str)
    result = problem._in_original_units(T, 1.0)
    np.testing.assert_allclose(result.transform, naive.umeyama(s, t, w), atol=1e-9)


def test_kernels_run_without_compilation() -> None:
    run_without_compilation(__file__, "twins")

"""Completion of dense maps: the kernel against a solved system, and what a drawn depth map owes to it."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.packets import Array
from stream4d.pose import _kernels_completion, dense, motion
from stream4d.pose.completion import complete
from stream4d.pose.guess import Guess
from tests import naive
from tests.interpreted import run_without_compilation

H, W = 36, 48


def solved(value: Array, weight: Array, across: Array, down: Array) -> Array:
    """Return the membrane's minimum, from the whole system of equations."""
    h, w = value.shape
    A = np.diag(weight.ravel())
    for i in range(h):
        for j in range(w):
            for k, c in (((i, j - 1), across[i, j]), ((i - 1, j), down[i, j])):
                if min(k) >= 0:
                    a, b = w * i + j, w * k[0] + k[1]
                    A[[a, b], [a, b]] += c
                    A[[a, b], [b, a]] -= c
    return np.asarray(np.linalg.solve(A, (weight * value).ravel()).reshape(h, w))


def random_system(seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """Return values, weights (most of them none) and conductances (8, 10)."""
    rng = np.random.default_rng(seed)
    weight = np.where(rng.random((8, 10)) < 0.3, rng.uniform(0.1, 5, (8, 10)), 0.0)
    return rng.normal(size=(8, 10)), weight, *rng.uniform(0.1, 3, (2, 8, 10))


def test_sweeps_come_to_the_solved_system() -> None:
    value, weight, across, down = random_system()
    out = np.zeros_like(value)
    _kernels_completion.relax(value * weight, weight, across, down, 1.5, 300, out)
    np.testing.assert_allclose(out, solved(value, weight, across, down), atol=1e-9)


@pytest.mark.parametrize("shape", [(8, 10), (7, 9)])
def test_a_coarser_grid_conducts_as_conductors_in_rows_do(shape: tuple[int, int]) -> None:
    level = np.random.default_rng(2).uniform(0.1, 3, (4, *shape))
    fast = np.empty((4, 4, 5))
    _kernels_completion.halve(*level, *fast)
    for ours, twin in zip(fast, naive.halve(*level), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-12)


def test_few_sweeps_are_enough() -> None:
    """A wide hole in a slope, measured badly around it: within 3 % of the slope's range of the minimum."""
    rng = np.random.default_rng(1)
    slope = np.linspace(0, 1, W) + np.zeros((H, 1))
    weight = np.full((H, W), 40.0)
    weight[6:30, 8:40] = 0.0
    even = np.full((H, W), 300.0)
    value = slope + rng.normal(0, 0.05, (H, W))
    filled = complete(value, weight, even, even)
    assert np.abs(filled - solved(value, weight, even, even)).max() < 0.03
    assert np.abs(filled - slope).max() < 0.1


def test_nothing_leaks_over_an_edge() -> None:
    value, weight = np.zeros((H, W)), np.zeros((H, W))
    value[:, W // 2 :] = 1.0
    weight[:, 2], weight[:, -3] = 50.0, 50.0
    even, edge = np.full((H, W), 300.0), np.full((H, W), 300.0)
    edge[:, W // 2] = 0.0
    filled = complete(value, weight, edge, even)
    assert np.abs(filled - value).max() < 0.1
    assert np.abs(complete(value, weight, even, even) - value).max() > 0.3


def test_without_any_measurement_the_map_is_finite() -> None:
    nothing = np.zeros((H, W))
    assert (complete(nothing, nothing, nothing, nothing) == 0).all()


def drawn(relief: Array | None) -> tuple[Array, Array]:
    """Draw a wall at 2 before which a wide mover was triangulated at a tenth of its depth; return depth and mover."""
    inside = np.zeros((H, W), bool)
    inside[6:30, 12:36] = True
    rho = np.where(inside, 5.0, 0.5)
    state = dense.DenseState(rho, 1e4 / rho**2, np.where(inside, 6.0, -6.0))
    guess = Guess(np.full((H, W), 0.5), 0.4, (0.1, 10.0), relief)
    flow = np.where(inside, 3.0, 0.0)[..., None] * np.ones(2)
    grey = np.where(inside, 0.7, 0.25).astype(np.float32)
    return dense.draw(state, guess, grey, motion.passing(flow, grey), 1)[0], inside


def test_a_mover_has_the_depth_of_its_surroundings() -> None:
    """What was triangulated on it has no say, even far from its edge."""
    depth, _ = drawn(None)
    np.testing.assert_allclose(depth, 2.0, rtol=0.1)


def test_a_mover_has_the_relief_that_the_model_gives_it() -> None:
    """The model sees it at half the depth of what surrounds it, in units of its own."""
    inside = drawn(None)[1]
    depth, _ = drawn(np.where(inside, np.log(2.0), 0.0) + 3.0)
    core = np.zeros_like(inside)
    core[10:26, 16:32] = True
    np.testing.assert_allclose(depth[core], 1.0, rtol=0.1)
    np.testing.assert_allclose(depth[:, :6], 2.0, rtol=0.1)


def test_the_kernels_run_without_compilation() -> None:
    run_without_compilation(__file__, "solved_system or coarser_grid")

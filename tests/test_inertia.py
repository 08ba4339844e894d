"""What patches leave open of a pose, the camera's inertia decides."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose.inertia import steadied

STEP = transforms.se3_exp(np.array([0.1, 0.0, 0.02, 0.0, 0.01, 0.0]))[:3]
FITTED = transforms.se3_exp(np.array([0.3, -0.2, 0.5, 0.1, 0.2, -0.1]))[:3]


@pytest.fixture
def predicted() -> Array:
    """A pose two steps' length and some degrees from the fitted one."""
    away = transforms.se3_exp(np.array([0.15, -0.1, 0.1, 0.03, -0.02, 0.04]))
    return np.asarray((away @ transforms.square(FITTED))[:3])


def test_a_fit_that_says_nothing_leaves_the_prediction(predicted: Array) -> None:
    steady = steadied(FITTED, np.zeros((6, 6)), 0, predicted, STEP)
    np.testing.assert_allclose(steady, predicted, atol=1e-9)


def test_a_fit_that_is_sure_stays(predicted: Array) -> None:
    steady = steadied(FITTED, np.eye(6) * 1e8, 100, predicted, STEP)
    np.testing.assert_allclose(steady, FITTED, atol=1e-3)


def test_only_what_is_open_follows_the_prediction(predicted: Array) -> None:
    """All but the way along the camera's axis is sure."""
    information = np.diag([1e8, 1e8, 0.0, 1e8, 1e8, 1e8])
    steady = steadied(FITTED, information, 100, predicted, STEP)
    np.testing.assert_allclose(steady[:, :3], FITTED[:, :3], atol=1e-3)
    np.testing.assert_allclose(steady[:2, 3], FITTED[:2, 3], atol=1e-3)
    assert abs(steady[2, 3] - FITTED[2, 3]) > 0.05
    np.testing.assert_allclose(steady[:, :3] @ steady[:, :3].T, np.eye(3), atol=1e-12)


def test_a_camera_that_stood_still_is_held(predicted: Array) -> None:
    sure = 1e2 * np.eye(6)  # 10 cm
    still = steadied(FITTED, sure, 100, predicted, np.eye(3, 4))
    np.testing.assert_allclose(still[:, 3], predicted[:, 3], atol=0.02)

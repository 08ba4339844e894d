"""Whether the share of errors within 1σ tells honest covariances from others, on walks whose covariances are exact."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.eval.coverage import coverage, pooled, shares
from stream4d.eval.trajectory import Trajectory
from stream4d.eval.trajectory_score import score_trajectory
from stream4d.geometry import transforms
from stream4d.packets import Array

STEP = np.array([1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 1e-3])
"""1σ of a step: translation, rotation and log scale."""
FRAMES, RUNS = 120, 40


def true_path(kind: str) -> Array:
    t = np.linspace(0, 1, FRAMES)
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    if kind == "circle":
        poses[:, :3, 3] = np.stack([np.sin(5 * t), 0.2 * np.sin(7 * t), 1 - np.cos(5 * t)], -1)
        turn = np.stack([0 * t, -5 * t, 0 * t], -1)
    else:
        poses[:, :3, 3] = np.stack([0.05 * np.sin(5 * t), 0.02 * np.sin(9 * t), 20 * t], -1)
        turn = np.stack([0 * t, 0.1 * np.sin(3 * t), 0 * t], -1)
    poses[:, :3, :3] = transforms.so3_exp(turn)
    return np.asarray(transforms.invert(poses[0]) @ poses)


def walk(truth: Array, rng: np.random.Generator, *, closes: bool) -> tuple[Array, Array]:
    """Return poses that drift by steps of ``STEP``, with their exact covariances; ``closes``: back to no drift."""
    k = np.arange(FRAMES)
    steps = rng.standard_normal((FRAMES, 7)) * STEP * (k > 0)[:, None]
    drift, grown = np.cumsum(steps, axis=0), k.astype(float)
    if closes:
        drift = drift - np.outer(k / k[-1], drift[-1])
        grown = k * (k[-1] - k) / k[-1]
    A = np.zeros((FRAMES, 6, 7))
    A[:, :, :6], A[:, :3, 6] = np.eye(6), truth[:, :3, 3]
    covariance = A @ (grown[:, None, None] * np.diag(STEP**2)) @ A.transpose(0, 2, 1)
    return transforms.without_scale(
        transforms.sim3_exp(drift) @ truth
    ), covariance + 1e-14 * np.eye(6)


@pytest.mark.parametrize("kind", ["circle", "line"])
@pytest.mark.parametrize("closes", [False, True])
def test_exact_covariances_hold_for_two_thirds_of_errors(kind: str, closes: bool) -> None:
    truth, rng = true_path(kind), np.random.default_rng(0)
    elsewhere = transforms.similarity(
        3.0, transforms.so3_exp(np.array([1.0, 0.4, -0.7])), np.ones(3)
    )
    seen = []
    for _ in range(RUNS):
        poses, covariance = walk(truth, rng, closes=closes)
        times = np.arange(FRAMES, dtype=np.float64)
        score = score_trajectory(
            Trajectory(timestamps_s=times, world_from_cam=poses, covariance=covariance),
            Trajectory(
                timestamps_s=times, world_from_cam=transforms.without_scale(elsewhere @ truth)
            ),
        )
        assert score.coverage is not None
        seen.append([*shares(score.coverage.position)[:2], *shares(score.coverage.rotation)[:2]])
    one, two, turned, turned_two = np.mean(seen, axis=0)
    # 40 walks of 3 nearly independent axes each: 1σ of the mean is about 0.03; the anchor and the scale are fitted
    assert 0.62 < one < 0.80
    assert 0.62 < turned < 0.80
    assert two > 0.92
    assert turned_two > 0.92


def test_stated_too_small_or_too_large_shows() -> None:
    truth, rng = true_path("circle"), np.random.default_rng(1)
    runs = [walk(truth, rng, closes=False) for _ in range(RUNS)]
    for factor, low, high in ((1 / 9, 0.1, 0.4), (9.0, 0.95, 1.0)):
        ratios = [coverage(P, factor * C, truth, 1.0).all for P, C in runs]
        assert low < np.mean([shares(r)[0] for r in ratios]) < high


def test_a_camera_that_only_turns_has_no_position_to_compare() -> None:
    truth, rng = true_path("circle"), np.random.default_rng(2)
    truth[:, :3, 3] = 0
    poses, covariance = walk(truth, rng, closes=False)
    result = coverage(poses, covariance, truth, 1.0, rotation_only=True)
    assert shares(result.position) == [None, None, None]
    assert len(result.all) == result.rotation.size > 0
    assert pooled([[None, 0.5], [0.2, 0.7]]) == [0.2, 0.6]

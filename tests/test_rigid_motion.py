"""The camera's motion from a flow: exact where it can be, honest where it cannot, and kernels against slow twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream4d.geometry.transforms import hat, so3_exp, so3_log
from stream4d.models import _kernels_rigid as kernels
from stream4d.models.camera_motion import find_motion
from stream4d.models.rigid_motion import rigid_fields

H, W, FOCAL = 36, 48, 40.0
CENTRE = np.array([(W - 1) / 2, (H - 1) / 2])
TURN = np.array([0.01, -0.03, 0.02])


def scene_flow(turn: np.ndarray, baseline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return depth (H, W) of two sloping layers and the flow (2, H, W) that b_from_a = (turn, baseline) causes."""
    v, u = np.mgrid[:H, :W].astype(np.float64)
    depth = np.where((u // 6 + v // 6) % 2 == 0, 2.0, 5.0) + 0.02 * u
    rays = np.stack([(u - CENTRE[0]) / FOCAL, (v - CENTRE[1]) / FOCAL, np.ones_like(u)], -1)
    moved = (rays * depth[..., None]) @ so3_exp(turn).T + baseline
    end = FOCAL * moved[..., :2] / moved[..., 2:] + CENTRE
    return depth, np.moveaxis(end - np.stack([u, v], -1), -1, 0)


def corresponding(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    v, u = np.mgrid[:H, :W].reshape(2, -1)
    start = np.column_stack([u, v]) - CENTRE
    return start, start + flow.reshape(2, -1).T


@pytest.mark.parametrize(
    "baseline", [(0.3, 0, 0), (0, 0.05, -0.3), (0.1, 0.1, 0.2), (-0.2, 0, 0.05)]
)
def test_an_exact_flow_gives_the_exact_motion(baseline: tuple[float, float, float]) -> None:
    t = np.array(baseline)
    _, flow = scene_flow(TURN, t)
    found = find_motion(*corresponding(flow), np.full(H * W, 0.05), FOCAL, focal_known=True)
    assert np.linalg.norm(so3_log(found.b_from_a @ so3_exp(TURN).T)) < 1e-4
    assert found.direction @ t / np.linalg.norm(t) > 1 - 1e-5


def test_movers_are_outvoted() -> None:
    t = np.array([0.3, 0.0, 0.1])
    _, flow = scene_flow(TURN, t)
    flow[:, 10:30, 5:25] += np.array([1.5, 2.5])[:, None, None]  # a quarter of the view
    flow += np.random.default_rng(0).normal(0, 0.03, flow.shape)
    found = find_motion(*corresponding(flow), np.full(H * W, 0.05), FOCAL, focal_known=True)
    assert np.degrees(np.linalg.norm(so3_log(found.b_from_a @ so3_exp(TURN).T))) < 0.1
    assert found.direction @ t / np.linalg.norm(t) > np.cos(np.radians(3))


def test_a_turning_camera_knows_its_rotation_but_no_direction() -> None:
    _, flow = scene_flow(TURN, np.zeros(3))
    flow += np.random.default_rng(1).normal(0, 0.05, flow.shape)
    found = find_motion(*corresponding(flow), np.full(H * W, 0.05), FOCAL, focal_known=True)
    assert np.degrees(np.linalg.norm(so3_log(found.b_from_a @ so3_exp(TURN).T))) < 0.05
    assert found.sigma[0] < 0.01
    assert found.sigma[1] > 0.3


def test_a_guessed_focal_length_is_refined() -> None:
    _, flow = scene_flow(np.array([0.0, 0.08, 0.03]), np.array([0.3, 0.0, 0.2]))
    found = find_motion(*corresponding(flow), np.full(H * W, 0.05), 1.3 * FOCAL, focal_known=False)
    assert found.focal == pytest.approx(FOCAL, rel=0.05)


def test_few_points_say_nothing() -> None:
    few = np.zeros((5, 2))
    found = find_motion(few, few, np.ones(5), FOCAL, focal_known=True)
    assert np.array_equal(found.b_from_a, np.eye(3))
    assert not found.direction.any()
    assert (found.sigma == np.pi).all()


@pytest.mark.parametrize("value", [0.0, np.inf, 1e6])
def test_a_broken_flow_gives_finite_maps(value: float) -> None:
    flow = torch.full((2, 2, H, W), value)
    flow[0, :, ::3] = 0.5
    ones = torch.ones(2, 1, H, W)
    K = torch.tensor([[[FOCAL, 0, CENTRE[0]], [0, FOCAL, CENTRE[1]], [0, 0, 1]]]).float()
    out = rigid_fields(flow, ones, 0 * ones, 0 * ones, K, torch.tensor([True]))
    assert all(bool(torch.isfinite(x).all()) for x in out)


def test_what_remains_tells_depth_and_movers() -> None:
    """Along the epipolar lines lies depth, in front of the camera; across them lies motion."""
    t = np.array([0.3, 0.0, 0.1])
    depth, flow = scene_flow(TURN, t)
    flow[1, 12:20, 20:30] += 2.0
    out = np.empty((4, H, W))
    kernels.remains(flow, so3_exp(TURN), t / np.linalg.norm(t), FOCAL, CENTRE, out)
    moving = np.zeros((H, W), bool)
    moving[12:20, 20:30] = True
    assert out[0][~moving].max() < 1e-6
    assert out[0][moving].min() > 1.0
    inverse = np.linalg.norm(t) / depth
    assert np.allclose(out[3][~moving], inverse[~moving], rtol=1e-6)
    assert (out[2][~moving] > 0).all()


def _noisy() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(2)
    _, flow = scene_flow(TURN, np.array([0.3, 0.0, 0.1]))
    start, end = corresponding(flow + rng.normal(0, 0.1, flow.shape))
    return start, end, rng.uniform(10, 100, H * W)


def _sampson(start: np.ndarray, end: np.ndarray, E: np.ndarray, focal: float) -> np.ndarray:
    x, y = (np.column_stack([p / focal, np.ones(len(p))]) for p in (start, end))
    Ex, Ey = x @ E.T, y @ E
    return focal * (y * Ex).sum(1) / np.sqrt((Ex[:, :2] ** 2).sum(1) + (Ey[:, :2] ** 2).sum(1))


def test_the_epipolar_system_is_that_of_numerical_derivatives() -> None:
    start, end, info = _noisy()
    R, t, scale = so3_exp(0.8 * TURN), np.array([0.8, 0.1, 0.59]), 25.0
    t /= np.linalg.norm(t)
    tangent = np.linalg.svd(t[None])[2][1:]
    A, g = np.empty((6, 6)), np.empty(6)
    kernels.epipolar_system(start, end, info, R, t, tangent, FOCAL, scale, A, g, np.empty(H * W))

    def residual(step: np.ndarray) -> np.ndarray:
        moved = t + step[3:5] @ tangent
        return _sampson(start, end, hat(moved) @ so3_exp(step[:3]) @ R, FOCAL * np.exp(step[5]))

    # the kernel holds the lengths of the gradients, except for the focal length: compare where the residuals vanish
    J = np.stack([(residual(e) - residual(-e)) / 2e-6 for e in 1e-6 * np.eye(6)], 1)
    r = residual(np.zeros(6))
    w = info * (scale / (scale + info * r * r)) ** 2
    assert np.allclose(g, -J.T @ (w * r), rtol=0.05, atol=0.02 * np.abs(g).max())
    assert np.allclose(A, J.T @ (w[:, None] * J), rtol=0.05, atol=0.02 * np.abs(A).max())


def test_the_rotation_system_is_that_of_numerical_derivatives() -> None:
    start, end, info = _noisy()
    R, scale = so3_exp(0.8 * TURN), 25.0
    A, g = np.empty((3, 3)), np.empty(3)
    kernels.rotation_system(start, end, info, R, FOCAL, scale, A, g, np.empty(H * W))

    def residual(step: np.ndarray) -> np.ndarray:
        q = np.column_stack([start / FOCAL, np.ones(len(start))]) @ (so3_exp(step) @ R).T
        return end - FOCAL * q[:, :2] / q[:, 2:]

    J = -np.stack([(residual(e) - residual(-e)) / 2e-6 for e in 1e-6 * np.eye(3)], -1)
    r = residual(np.zeros(3))
    w = info * (scale / (scale + info * (r * r).sum(1))) ** 2
    assert np.allclose(A, np.einsum("nki,n,nkj->ij", J, w, J), rtol=1e-6)
    assert np.allclose(g, np.einsum("nki,n,nk->i", J, w, r), rtol=1e-6)


def test_baseline_moments() -> None:
    start, end, info = _noisy()
    R, M = so3_exp(TURN), np.empty((3, 3))
    kernels.baseline_moments(start, end, info, R, FOCAL, M)
    x, y = (np.column_stack([p / FOCAL, np.ones(len(p))]) for p in (start, end))
    n = np.cross(y, x @ R.T)
    assert np.allclose(M, np.einsum("ni,n,nj->ij", n, info, n))

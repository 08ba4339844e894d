"""The second look at hard frame pairs: better than what it mends, harmless elsewhere; kernels against slow twins."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from stream4d.geometry import transforms
from stream4d.models import _kernels_sweep as kernels
from stream4d.models import epipolar_sweep
from stream4d.models.dis import dis_flow, grey_image
from stream4d.models.epipolar_sweep import BothWays, mend_hard_pair, returns, sweep
from stream4d.packets import Array
from tests.interpreted import run_without_compilation
from tests.synthetic import Scene

STILL = Scene(balls=(), width=256, height=192, focal=220.0)


HARD = Scene("walk", balls=(), width=256, height=192, focal=220.0)


def hard_pair() -> tuple[Array, Array, BothWays]:
    """Return images 0 and 16 of ``HARD`` and the flow between them, most of which is wrong."""
    return pair(HARD, 0, 16)


def pair(scene: Scene, a: float, b: float) -> tuple[Array, Array, BothWays]:
    first, second = grey_image(scene.rgb(a)), grey_image(scene.rgb(b))
    flows = BothWays(dis_flow(first, second, "medium"), dis_flow(second, first, "medium"))
    return first, second, flows


def wrong_share(flow: Array, truth: Array, visible: Array) -> float:
    return float((np.linalg.norm(flow - truth, axis=-1) > 1.5)[visible].mean())


def motion(scene: Scene, a: float, b: float) -> tuple[Array, Array]:
    b_from_a = transforms.invert(scene.world_from_cam(b)) @ scene.world_from_cam(a)
    return b_from_a[:3, :3], b_from_a[:3, 3]


def test_the_sweep_finds_the_flow_of_a_still_scene_from_its_true_motion() -> None:
    first, second, flows = pair(STILL, 0, 14)
    truth, visible = STILL.flow(0, 14)
    found = sweep(first, second, STILL.K, *motion(STILL, 0, 14))
    assert wrong_share(found, truth, visible) < 0.05
    assert wrong_share(found, truth, visible) < wrong_share(flows.there, truth, visible) / 2


def test_images_beyond_the_budget_are_searched_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = pair(STILL, 0, 10)
    truth, visible = STILL.flow(0, 10)
    monkeypatch.setattr(epipolar_sweep, "MAX_PIXELS", first.size // 3)
    found = sweep(first, second, STILL.K, *motion(STILL, 0, 10))
    assert found.shape == truth.shape
    assert np.median(np.linalg.norm(found - truth, axis=-1)[visible]) < 0.5


@pytest.mark.parametrize("given", [True, False])
def test_a_hard_pair_is_mended_with_and_without_the_focal_length(given: bool) -> None:
    first, second, flows = hard_pair()
    assert (returns(*flows) <= 1).mean() < epipolar_sweep.HARD_SHARE
    with ThreadPoolExecutor(2) as pool:
        mended = mend_hard_pair(first, second, flows, HARD.K if given else None, pool)
    for found, before, (a, b) in zip(mended, flows, ((0, 16), (16, 0)), strict=True):
        truth, visible = HARD.flow(a, b)
        assert wrong_share(found, truth, visible) < 0.6 * wrong_share(before, truth, visible)


def test_what_moves_by_itself_keeps_its_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epipolar_sweep, "HARD_SHARE", 2.0)
    rng = np.random.default_rng(1)
    first = cv2.GaussianBlur(rng.integers(0, 256, (96, 128)).astype(np.uint8), (0, 0), 1)
    second = np.roll(first, 6, axis=1)
    second[40:80, 60:100] = first[32:72, 60:100]  # down, and not along the lines
    there = np.zeros((96, 128, 2), np.float32) + np.array([6, 0], np.float32)
    there[32:72, 60:100] = [0, 8]
    back = np.zeros_like(there) - np.array([6, 0], np.float32)
    back[40:80, 60:100] = [0, -8]
    mended = mend_hard_pair(first, second, BothWays(there, back))
    block = np.s_[34:70, 62:98]
    assert (np.abs(mended.there[block] - [0, 8]).max(-1) < 0.5).mean() > 0.98


def test_an_easy_pair_is_left_as_it_is() -> None:
    first, second, flows = pair(STILL, 0, 1)
    assert mend_hard_pair(first, second, flows, STILL.K) is flows


def test_images_without_any_likeness_and_tiny_ones_pass() -> None:
    rng = np.random.default_rng(0)
    for size in ((4, 5), (40, 50)):
        first, second = rng.integers(0, 256, (2, *size)).astype(np.uint8)
        noise = BothWays(*rng.normal(0, 5, (2, *size, 2)).astype(np.float32))
        mended = mend_hard_pair(first, second, noise)
        assert all(np.isfinite(flow).all() and flow.shape == (*size, 2) for flow in mended)


def test_a_turn_by_a_right_angle_passes() -> None:
    grey = np.random.default_rng(2).integers(0, 256, (20, 30)).astype(np.uint8)
    R = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    K = np.array([[30.0, 0, 14.5], [0, 30, 9.5], [0, 0, 1]])
    for t in np.eye(3):
        assert np.isfinite(sweep(grey, grey, K, R, t)).all()


def slow_census(grey: Array) -> Array:
    r = kernels.RADIUS
    padded = np.pad(grey, r, mode="edge")
    H, W = grey.shape
    shifts = [
        padded[r + dy : r + dy + H, r + dx : r + dx + W]
        for dy in range(-r, r + 1)
        for dx in range(-r, r + 1)
        if (dy, dx) != (0, 0)
    ]
    return np.stack([shifted > grey for shifted in shifts], -1)


def slow_costs(first: Array, second: Array, M: Array, t: Array, steps: Array) -> Array:
    one, two = slow_census(first), slow_census(second)
    H, W = first.shape
    out = np.full((H, W, len(steps)), kernels.OUTSIDE)
    for y, x, k in np.ndindex(out.shape):
        p = M @ [x, y, 1] + steps[k] * t
        u, v = np.floor(p[:2] / p[2] + 0.5).astype(int)
        if p[2] > 0 and 0 <= u < W and 0 <= v < H:
            out[y, x, k] = (one[y, x] != two[v, u]).sum()
    return out


def slow_paths(costs: Array, grey: Array, small: int, large: int) -> Array:
    H, W, L = costs.shape
    total = np.zeros(costs.shape, int)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        path = np.zeros(costs.shape, int)
        for y in range(H)[:: dy or 1]:
            for x in range(W)[:: dx or 1]:
                path[y, x] = costs[y, x]
                if 0 <= y - dy < H and 0 <= x - dx < W:
                    before = path[y - dy, x - dx]
                    contrast = abs(int(grey[y, x]) - int(grey[y - dy, x - dx]))
                    jump = max(small + 1, large * 8 // (8 + contrast))
                    change = np.abs(np.subtract.outer(np.arange(L), np.arange(L)))
                    price = np.where(change == 0, 0, np.where(change == 1, small, jump))
                    path[y, x] += (before + price).min(1) - before.min()
        total += path
    return total


@pytest.mark.filterwarnings(
    "ignore:overflow encountered"
)  # the ones are counted in the top byte of a product
def test_kernels_agree_with_slow_twins() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 256, (2, 9, 11)).astype(np.uint8)
    bits = np.empty((2, 9, 11), np.uint64)
    kernels.census(first, bits[0])
    kernels.census(second, bits[1])
    M = np.array([[1.01, 0.02, 0.3], [-0.01, 1.0, -0.2], [1e-4, 0, 1]], np.float32)
    t = np.array([3.0, 0.7, 0.1], np.float32)
    steps = np.linspace(-0.05, 2, 7, dtype=np.float32)
    costs = np.empty((9, 11, 7), np.int16)
    kernels.line_costs(bits[0], bits[1], M, t, steps, costs)
    np.testing.assert_array_equal(costs, slow_costs(first, second, M, t, steps))
    paths = np.zeros_like(costs)
    kernels.aggregate(costs, first, np.int16(4), np.int16(30), paths)
    np.testing.assert_array_equal(paths, slow_paths(costs, first, 4, 30))


def test_the_cheapest_step_lies_between_steps() -> None:
    steps = np.linspace(0, 4, 5, dtype=np.float32)
    costs = ((np.arange(5) - 1.75) ** 2 * 16).astype(np.int16)[None, None].repeat(3, 0).repeat(4, 1)
    out = np.empty((3, 4, 2), np.float32)
    kernels.cheapest(
        costs, np.eye(3, dtype=np.float32), np.array([2, -1, 0], np.float32), steps, out
    )
    np.testing.assert_allclose(out[1, 2], [3.5, -1.75], atol=0.02)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_costs_along_a_flow() -> None:
    rng = np.random.default_rng(5)
    grey = rng.integers(0, 256, (12, 14)).astype(np.uint8)
    bits, flow, cost = (
        np.empty((12, 14), np.uint64),
        np.zeros((12, 14, 2), np.float32),
        np.empty((12, 14), np.float32),
    )
    kernels.census(grey, bits)
    flow[:, 10:] = [100, 0]
    kernels.costs_of_flow(bits, bits, flow, cost)
    assert (cost[:, :10] == 0).all()
    assert (cost[:, 10:] == kernels.OUTSIDE).all()


def test_kernels_run_without_compilation() -> None:
    run_without_compilation(__file__, "slow_twins or between_steps or along_a_flow")

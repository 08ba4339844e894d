"""The pose graph and its kernels against dense algebra, differences and known answers; once without compilation."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.geometry import _kernels_algebra, transforms
from stream4d.packets import Array
from stream4d.pose import _kernels_graph, _kernels_similarity, graph
from tests import naive
from tests.interpreted import run_without_compilation


def random_similarities(n: int, spread: float = 0.5, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return transforms.sim3_exp(spread * rng.normal(size=(n, 7)) * [1, 1, 1, 1, 1, 1, 0.3])


def log_of(S: Array) -> Array:
    out = np.empty(7)
    _kernels_similarity.similarity_log(np.ascontiguousarray(S[:3]), out)
    return out


@pytest.mark.parametrize("spread", [1e-9, 1e-3, 0.3, 1.0])
def test_group_kernels_agree_with_the_matrices(spread: float) -> None:
    for S, T in zip(random_similarities(20, spread), random_similarities(20, 0.5, 1), strict=True):
        np.testing.assert_allclose(log_of(S), naive.similarity_log(S), atol=1e-12)
        relative = np.empty((3, 4))
        _kernels_similarity.between(T[:3].copy(), S[:3].copy(), relative)
        np.testing.assert_allclose(relative, (np.linalg.inv(T) @ S)[:3], atol=1e-12)
        A = graph.similarity_adjoint(T)
        np.testing.assert_allclose(A, naive.similarity_adjoint(T), atol=2e-9)


def test_the_logarithm_of_half_a_turn() -> None:
    for axis in ([1.0, 0, 0], [0, 0.6, 0.8], [-0.48, 0.6, 0.64]):
        S = transforms.sim3_exp(np.array([0.3, -0.2, 0.1, *(np.pi * np.array(axis)), 0.2]))
        np.testing.assert_allclose(transforms.sim3_exp(log_of(S)), S, atol=1e-9)


def test_the_inverse_jacobian_is_right_to_third_order() -> None:
    r = np.array([0.1, -0.05, 0.08, 0.06, 0.1, -0.07, 0.05])
    J = np.empty((7, 7))
    _kernels_similarity.inverse_right_jacobian(r, J)
    S = transforms.sim3_exp(r)
    expected = naive.differences(lambda e: naive.similarity_log(S @ transforms.sim3_exp(e)), 7)
    np.testing.assert_allclose(J, expected, atol=2e-5)  # the next term is ad⁴/720


@pytest.mark.parametrize("columns", [1, 15])
def test_the_small_solver(columns: int) -> None:
    rng = np.random.default_rng(0)
    M = rng.normal(size=(7, 7))
    A, B = M @ M.T + np.eye(7), rng.normal(size=(7, columns))
    X = B.copy()
    assert _kernels_algebra.solve_columns(A.copy(), X)
    np.testing.assert_allclose(X, np.linalg.solve(A, B), atol=1e-10)
    assert not _kernels_algebra.solve_columns(A - 100 * np.eye(7), B.copy())


@pytest.mark.parametrize("n", [1, 2, 30])
def test_the_dense_solver(n: int) -> None:
    rng = np.random.default_rng(n)
    M = rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.3)
    A, b = M @ M.T + np.eye(n), rng.normal(size=n)
    x = b.copy()
    assert _kernels_algebra.solve_positive(A.copy(), x)
    np.testing.assert_allclose(x, np.linalg.solve(A, b), atol=1e-10)
    assert not _kernels_algebra.solve_positive(A - 1e3 * np.eye(n), b.copy())


class Ring:
    """Nodes on a circle, looking inward, with drifting odometry and loops between laps."""

    def __init__(
        self, n: int = 60, per_lap: int = 25, drift: float = 0.01, loops: int = 3, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        angle = 2 * np.pi * np.arange(n) / per_lap
        R = transforms.so3_exp(np.stack([0 * angle, angle, 0 * angle], axis=-1))
        self.truth = transforms.rigid(R, R @ np.array([0.0, 0.0, -2.0]) + [0.0, 0.0, 2.0])
        covariance = np.diag([1e-4] * 3 + [2e-5] * 3 + [1e-4])
        steps = transforms.invert(self.truth[:-1]) @ self.truth[1:]
        noise = rng.normal(size=(n - 1, 7)) * np.sqrt(np.diag(covariance)) * drift / 0.01
        measured = steps @ transforms.sim3_exp(noise)
        self.poses = [np.eye(4)]
        for step in measured:
            self.poses.append(self.poses[-1] @ step)
        self.poses = np.stack(self.poses)
        chain = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
        ends = np.linspace(n - 1, per_lap, loops).astype(int)
        closing = np.stack([ends % per_lap, ends], axis=1).reshape(-1, 2)[: max(loops, 0)]
        seen = transforms.invert(self.truth[closing[:, 0]]) @ self.truth[closing[:, 1]]
        self.edges = graph.Edges(
            nodes=np.concatenate([chain, closing]),
            measured=np.concatenate([measured, seen]),
            covariance=np.repeat([covariance, covariance / 100], [n - 1, loops], axis=0),
            is_loop=np.arange(n - 1 + loops) >= n - 1,
        )  # fmt: skip
        self.free = np.arange(n) > 0

    def error(self, poses: Array) -> float:
        apart = poses[:, :3, 3] - self.truth[:, :3, 3]
        return float(np.sqrt((apart**2).sum(-1).mean()))


def test_one_step_solves_the_dense_system() -> None:
    ring = Ring(n=12, per_lap=5)
    problem = graph._Problem(ring.poses, ring.edges, ring.free)
    weight = np.linspace(0.5, 1, len(ring.edges.nodes))
    step = problem.step(problem.start, weight, 0.0)
    assert step is not None
    H, b = naive.graph_system(ring.poses, ring.edges, weight, ring.free)
    expected = np.linalg.solve(H, -b).reshape(-1, 7)
    # the kernel's Jacobian leaves out the fourth order of the error
    np.testing.assert_allclose(step[ring.free], expected, atol=1e-4 * np.abs(expected).max())
    assert not step[~ring.free].any()


@pytest.mark.parametrize("loops", [0, 1, 4])
def test_elimination_along_the_chain_equals_the_dense_solution(loops: int) -> None:
    ring = Ring(n=20, per_lap=8, loops=loops)
    problem = graph._Problem(ring.poses, ring.edges, ring.free)
    step = problem.step(problem.start, np.ones(len(ring.edges.nodes)), 0.0)
    n, E = 20, len(ring.edges.nodes)
    D, off, g = np.zeros((n, 7, 7)), np.zeros((E, 7, 7)), np.zeros((n, 7))
    _kernels_graph.edge_system(
        problem.start, problem.nodes, problem.measured, problem.information, np.ones(E), problem.free, D, off, g
    )  # fmt: skip
    H = naive.assembled(D, off, problem.nodes)
    H[:7, :7] = np.eye(7)
    expected = np.linalg.solve(H, -g.ravel()).reshape(n, 7)
    np.testing.assert_allclose(step, expected, atol=1e-9)


def test_loops_take_the_drift_away() -> None:
    ring = Ring()
    before = ring.error(ring.poses)
    solution = graph.optimise(ring.poses, ring.edges, ring.free)
    assert solution.ok
    # between the loops the odometry's own noise stays
    assert ring.error(solution.poses) < 0.6 * before
    assert solution.errors.max() < 16.0  # seven numbers of noise each, 98 %
    np.testing.assert_array_equal(solution.poses[0], ring.poses[0])


def test_without_loops_nothing_moves() -> None:
    ring = Ring(loops=0)
    solution = graph.optimise(ring.poses, ring.edges, ring.free)
    np.testing.assert_allclose(solution.poses, ring.poses, atol=1e-9)


def test_a_false_loop_costs_more_than_chance_allows() -> None:
    ring = Ring(loops=4)
    wrong = ring.edges.measured.copy()
    wrong[-1] = wrong[-1] @ transforms.sim3_exp(np.array([0.8, 0.5, -0.5, 0.3, 0.5, 0.2, 0.3]))
    edges = graph.Edges(ring.edges.nodes, wrong, ring.edges.covariance, ring.edges.is_loop)
    clean = graph.optimise(ring.poses, ring.edges, ring.free)
    solution = graph.optimise(ring.poses, edges, ring.free)
    expected = 7 * 4  # of seven numbers each
    assert clean.cost < 2 * expected
    assert solution.cost > 10 * expected


def test_parts_that_share_no_edge_stay_apart() -> None:
    ring = Ring()
    two = np.concatenate([ring.poses, random_similarities(5)])
    solution = graph.optimise(two, ring.edges, np.append(ring.free, np.ones(5, bool)))
    np.testing.assert_allclose(solution.poses[-5:], two[-5:], atol=1e-12)


def test_nothing_to_do_and_nothing_possible_are_results() -> None:
    none = graph.Edges(
        np.zeros((0, 2), np.int64), np.zeros((0, 4, 4)), np.zeros((0, 7, 7)), np.zeros(0, bool)
    )
    assert not graph.optimise(np.eye(4)[None], none, np.array([True])).ok
    ring = Ring()
    assert not graph.optimise(ring.poses, ring.edges, np.zeros(60, bool)).ok


def test_composed_edges_carry_their_covariance() -> None:
    rng = np.random.default_rng(0)
    first, second = random_similarities(2)
    P, Q = np.diag(rng.uniform(1, 4, 7) * 1e-8), np.diag(rng.uniform(1, 4, 7) * 1e-8)
    Z, covariance = graph.chained(first, P, second, Q)
    a = rng.normal(size=(20000, 7)) * np.sqrt(np.diag(P))
    b = rng.normal(size=(20000, 7)) * np.sqrt(np.diag(Q))
    samples = first @ transforms.sim3_exp(a) @ second @ transforms.sim3_exp(b)
    seen = np.cov(transforms.sim3_log(np.linalg.inv(Z) @ samples).T)
    np.testing.assert_allclose(seen, covariance, atol=0.05 * np.abs(covariance).max())


def test_kernels_run_without_compilation() -> None:
    run_without_compilation(
        __file__, "(group_kernels and 0.3) or solver or (elimination and 1) or half"
    )

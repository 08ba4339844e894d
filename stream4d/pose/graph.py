"""The Sim(3) pose graph: keyframes in order of time, odometry between neighbours, loops that close over them.

Gauss–Newton with Levenberg damping. All nodes but those that loops touch are eliminated along the chain, exactly and in
linear time, so that thousands of keyframes with tens of loops cost milliseconds. Loops are robust: Cauchy weights
whose scale anneals from the largest error down (graduated non-convexity), so that a true loop over much drift is not
mistaken for a false one. The cost that remains tells a false one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.geometry import _kernels_algebra, transforms
from stream4d.packets import Array
from stream4d.pose import _kernels_graph, _kernels_similarity

LOOP_SCALE_SQ = 25.0
"""Cauchy scale at the end, squared Mahalanobis length of the seven numbers of a loop: about twice its 95 % bound."""
ITERATIONS = 10
DAMPING = 1e-9
"""Relative, on the diagonal: only keeps the blocks positive."""
SETTLED = 1e-5
"""Tangent steps below this change nothing: depths and radians are of order 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Relative similarities between nodes."""

    nodes: Array
    """(E, 2) int64: an edge (a, b) measures a-from-b."""
    measured: Array
    """(E, 4, 4) similarities."""
    covariance: Array
    """(E, 7, 7) of the right tangent at b: ``measured @ exp(xi)``."""
    is_loop: Array
    """(E,) bool; the others join neighbours."""


@dataclass(frozen=True, slots=True, eq=False)
class GraphSolution:
    """Better poses, and which edges agree with them."""

    ok: bool
    """False where nothing better was found; the poses are those given."""
    poses: Array
    """(n, 4, 4) similarities, world-from-node."""
    errors: Array
    """(E,) squared Mahalanobis lengths."""
    cost: float
    """Their robust sum. A true loop adds about seven to it, a false one bends the odometry and adds far more."""


def optimise(poses: Array, edges: Edges, free: Array) -> GraphSolution:
    """Move the free nodes so that the edges agree.

    Args:
        poses: (n, 4, 4) similarities, world-from-node, in order of time.
        edges: at most one between neighbours that is not a loop. A part that no edge ties to a node that is not free
            stays where it is.
        free: (n,) bool. A loop's node that is not free pulls the other one.
    """
    problem = _Problem(poses, edges, free)
    chi = problem.errors(problem.start)
    if not len(edges.nodes) or not free.any():
        return GraphSolution(False, poses, chi, _cost(chi, edges.is_loop, LOOP_SCALE_SQ))
    current = problem.start
    damping, started_at, moved = DAMPING, _largest(chi, edges.is_loop), False
    for k in range(ITERATIONS):
        # from the largest error down to the final scale within half the iterations
        scale_sq = max(LOOP_SCALE_SQ, started_at * 0.1 ** (2 * k))
        step = problem.step(current, _weights(chi, edges.is_loop, scale_sq), damping)
        if step is None:
            damping = max(10 * damping, 1e-6)
            continue
        trial = problem.moved(current, step)
        trial_chi = problem.errors(trial)
        if not np.isfinite(trial).all() or _cost(trial_chi, edges.is_loop, scale_sq) > _cost(
            chi, edges.is_loop, scale_sq
        ) * (1 + 1e-9):
            damping = max(100 * damping, 1e-4)
            continue
        current, chi, moved = trial, trial_chi, True
        damping = max(damping / 10, DAMPING)
        if scale_sq == LOOP_SCALE_SQ and np.abs(step).max() < SETTLED:
            break
    cost = _cost(chi, edges.is_loop, LOOP_SCALE_SQ)
    return GraphSolution(moved, transforms.square(current), chi, cost)


def _largest(chi: Array, is_loop: Array) -> float:
    return float(chi[is_loop].max()) if is_loop.any() else 0.0


def _weights(chi: Array, is_loop: Array, scale_sq: float) -> Array:
    return np.where(is_loop, 1 / (1 + chi / scale_sq), 1.0)


def _cost(chi: Array, is_loop: Array, scale_sq: float) -> float:
    robust = scale_sq * np.log1p(chi / scale_sq)
    return float(np.where(is_loop, robust, chi).sum())


class _Problem:
    """The arrays that the kernels share from step to step."""

    def __init__(self, poses: Array, edges: Edges, free: Array) -> None:
        n = len(poses)
        self.start = np.ascontiguousarray(poses[:, :3], np.float64)
        self.nodes = np.ascontiguousarray(edges.nodes, np.int64).reshape(-1, 2)
        self.measured = np.ascontiguousarray(edges.measured[:, :3], np.float64)
        information = np.linalg.inv(edges.covariance)
        self.information = np.ascontiguousarray((information + information.swapaxes(1, 2)) / 2)
        self.free = np.ascontiguousarray(free, np.bool_)
        self.next_to = np.abs(self.nodes[:, 1] - self.nodes[:, 0]) == 1
        stays = np.zeros(n, bool)
        stays[[0, -1]] = True
        stays[self.nodes[~self.next_to].ravel()] = True
        self.junction = np.where(stays, np.cumsum(stays) - 1, -1)
        self.junctions = int(stays.sum())

    def errors(self, poses: Array) -> Array:
        """Return (E,) squared Mahalanobis lengths."""
        chi = np.zeros(len(self.nodes))
        _kernels_graph.edge_costs(poses, self.nodes, self.measured, self.information, chi)
        return chi

    def step(self, poses: Array, weight: Array, damping: float) -> Array | None:
        """Return (n, 7) right tangents of one Gauss–Newton step, None where the system is not positive."""
        n, J = len(poses), 7 * self.junctions
        D, off, g = np.zeros((n, 7, 7)), np.zeros((len(self.nodes), 7, 7)), np.zeros((n, 7))
        _kernels_graph.edge_system(
            poses, self.nodes, self.measured, self.information, weight, self.free, D, off, g
        )
        diagonal = np.einsum("nii->ni", D)  # a view
        diagonal += damping * diagonal
        diagonal[~diagonal.any(axis=1)] = 1.0  # held, or tied to nothing: stays
        chain, dense, rhs = np.zeros((n, 7, 7)), np.zeros((J, J)), np.zeros(J)
        for (a, b), block in zip(self.nodes[self.next_to], off[self.next_to], strict=True):
            chain[min(a, b)] += block if a < b else block.T
        for (a, b), block in zip(self.nodes[~self.next_to], off[~self.next_to], strict=True):
            r, c = 7 * self.junction[a], 7 * self.junction[b]
            dense[r : r + 7, c : c + 7] += block
            dense[c : c + 7, r : r + 7] += block.T
        solved, x = np.zeros((n, 7, 15)), np.zeros((n, 7))
        np.negative(g, out=g)
        if not _kernels_graph.reduce_chain(D, chain, g, self.junction, dense, rhs, solved):
            return None
        if not _kernels_algebra.solve_positive(dense, rhs):
            return None
        _kernels_graph.expand_chain(solved, self.junction, rhs, x)
        return x

    def moved(self, poses: Array, step: Array) -> Array:
        """Return the poses after a step."""
        out = poses.copy()
        for pose, xi in zip(out, step, strict=True):
            _kernels_similarity.move_similarity(pose, xi)
        return out


def chained(
    first: Array, first_covariance: Array, second: Array, second_covariance: Array
) -> tuple[Array, Array]:
    """Compose two edges a-from-b, b-from-c into a-from-c with its covariance."""
    A = similarity_adjoint(transforms.invert(second))
    return first @ second, A @ first_covariance @ A.T + second_covariance


def similarity_adjoint(S: Array) -> Array:
    """Return the 7×7 with ``S @ exp(xi) == exp(out @ xi) @ S``."""
    out = np.empty((7, 7))
    _kernels_similarity.adjoint_of(np.ascontiguousarray(S[:3], np.float64), out)
    return out

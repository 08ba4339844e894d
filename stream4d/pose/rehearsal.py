"""Closes a loop of three nodes: what the pipeline rehearses, so that the first real loop finds its kernels compiled."""

from __future__ import annotations

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose import _kernels_loops, graph, recognise


def _recognise() -> None:
    """Fit a similarity to one patch in one camera, as ``recognise`` does to many."""
    first = np.zeros(1, np.int64)
    _kernels_loops.fit_similarity(
        np.ones(4), np.ones((1, 3)), np.ones(1), np.ones(1), np.eye(3, 4)[None].copy(), first, first,
        np.zeros((1, 2)), np.ones((1, 3)), np.eye(3, 4), recognise.SCHEDULE, np.zeros(1), np.zeros((7, 7)),
    )  # fmt: skip


def _measure() -> None:
    graph.optimise(*_triangle(), np.zeros(3, bool))


def _optimise() -> None:
    graph.optimise(*_triangle(), np.arange(3) > 0)


def _triangle() -> tuple[Array, graph.Edges]:
    """Return three nodes on a line and a loop that does not quite agree with their steps."""
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = 0, 1, 2
    nodes = np.array([[0, 1], [1, 2], [0, 2]])
    measured = transforms.invert(poses[nodes[:, 0]]) @ poses[nodes[:, 1]]
    measured[2, 0, 3] += 0.1
    is_loop = np.array([False, False, True])
    return poses, graph.Edges(nodes, measured, np.tile(np.eye(7), (3, 1, 1)), is_loop)


LOOP_STEPS = (_recognise, _measure, _optimise)
"""In the order in which a loop takes them."""

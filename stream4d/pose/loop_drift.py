"""What closed loops leave of the drift: Bayes on the walk of steps, linear and exact.

The error of a node is the sum of the steps before it, each with its covariance, and of what a wrong focal length did.
A loop between the nodes a and b measures ξ_b − ξ_a (tangents in the world add up). With C the covariance of the nodes
with all loops' differences and S that of the differences with their noise, what remains of the nodes' covariance is
P − C S⁻¹ Cᵀ: nothing changes before a, most is gone at b, and a bridge hangs between the two.
"""

from __future__ import annotations

import numpy as np

from stream4d.packets import Array
from stream4d.pose.drift import similarity_adjoint


def in_node(pose: Array, drift: Array, focal_bias: Array) -> dict[str, Array]:
    """Return drift of the world as right tangents of a node (4, 4), by the names that the skeleton gives them."""
    Ad = similarity_adjoint(np.linalg.inv(pose))
    return {"drift": Ad @ drift @ Ad.T, "focal_bias": Ad @ focal_bias}


def chained(poses: Array, drift: Array, focal_bias: Array) -> tuple[Array, Array]:
    """Return the drift of two neighbours' steps together, right tangent at the second."""
    Ad = similarity_adjoint(np.linalg.inv(poses[1]) @ poses[0])
    return Ad @ drift[0] @ Ad.T + drift[1], Ad @ focal_bias[0] + focal_bias[1]


def remaining(
    poses: Array,  # (n, 4, 4) similarities
    drift: Array,  # (n, 7, 7)
    focal_bias: Array,  # (n, 7)
    ends: Array,  # (m, 2) nodes of each loop, the earlier one first
    loop_covariance: Array,  # (m, 7, 7) right tangent at the later one
) -> Array:  # (n, 7, 7)
    """Return the covariance of each node's drift in the world since the first frame."""
    to_world = np.stack([similarity_adjoint(pose) for pose in poses])
    walk = np.cumsum(to_world @ drift @ np.swapaxes(to_world, 1, 2), axis=0)
    bias = np.cumsum((to_world @ focal_bias[..., None])[..., 0], axis=0)
    prior = walk + bias[:, :, None] * bias[:, None, :]
    if not len(ends):
        return prior
    n, m = len(poses), len(ends)
    nodes = np.arange(n)
    differ = bias[ends[:, 1]] - bias[ends[:, 0]]
    C = np.empty((n, 7, m, 7))
    for k, (a, b) in enumerate(ends):
        shared = walk[np.minimum(nodes, b)] - walk[np.minimum(nodes, a)]
        C[:, :, k] = shared + bias[:, :, None] * differ[k]
    S = (C[ends[:, 1]] - C[ends[:, 0]]).reshape(7 * m, 7 * m)
    for k, (_, b) in enumerate(ends):
        block = slice(7 * k, 7 * k + 7)
        S[block, block] += to_world[b] @ loop_covariance[k] @ to_world[b].T
    rows = C.reshape(n * 7, 7 * m)
    gain = np.linalg.solve((S + S.T) / 2, rows.T).T.reshape(n, 7, 7 * m)
    left = prior - gain @ np.swapaxes(rows.reshape(n, 7, 7 * m), 1, 2)
    return np.asarray((left + np.swapaxes(left, 1, 2)) / 2)

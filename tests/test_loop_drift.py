"""What loops leave of the drift, against Gaussian conditioning written out in full and against many noisy walks."""

from __future__ import annotations

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose import loop_drift
from stream4d.pose.drift import similarity_adjoint

STEP = np.array([2e-3, 1e-3, 3e-3, 1e-3, 2e-3, 1e-3, 2e-3])


def path(n: int) -> Array:
    a = np.linspace(0, 2 * np.pi, n)
    centres = np.stack([np.sin(a), 0.1 * a, 1 - np.cos(a)], -1)
    return np.asarray(transforms.rigid(transforms.so3_exp(np.outer(-a, [0, 1, 0])), centres))


def test_loops_condition_the_walk_exactly() -> None:
    """Against the joint covariance of all nodes, conditioned on the differences that the loops measure."""
    n, rng = 9, np.random.default_rng(0)
    poses, ends = path(n), np.array([[1, 6], [2, 8], [0, 4]])
    drift = np.einsum("nij,nkj->nik", noise := rng.normal(size=(n, 7, 7)), noise) * 1e-5
    drift[0], bias = 0, 1e-3 * rng.normal(size=(n, 7))
    loop_covariance = np.repeat(np.eye(7)[None] * 1e-6, 3, axis=0)
    ours = loop_drift.remaining(poses, drift, bias, ends, loop_covariance)
    world = [similarity_adjoint(pose) for pose in poses]
    joint = np.zeros((n, 7, n, 7))
    total = np.cumsum([Ad @ b for Ad, b in zip(world, bias, strict=True)], axis=0)
    for i in range(n):
        for j in range(n):
            for k in range(min(i, j) + 1):
                joint[i, :, j] += world[k] @ drift[k] @ world[k].T
            joint[i, :, j] += np.outer(total[i], total[j])
    J = joint.reshape(7 * n, 7 * n)
    H = np.zeros((21, 7 * n))
    R = np.zeros((21, 21))
    for k, (a, b) in enumerate(ends):
        rows = slice(7 * k, 7 * k + 7)
        H[rows, 7 * b : 7 * b + 7], H[rows, 7 * a : 7 * a + 7] = np.eye(7), -np.eye(7)
        R[rows, rows] = world[b] @ loop_covariance[k] @ world[b].T
    left = J - J @ H.T @ np.linalg.solve(H @ J @ H.T + R, H @ J)
    for i in range(n):
        block = slice(7 * i, 7 * i + 7)
        np.testing.assert_allclose(ours[i], left[block, block], atol=1e-10)


def test_a_loop_leaves_a_bridge() -> None:
    n = 41
    poses, drift = path(n), np.repeat(np.diag(STEP**2)[None], n, axis=0)
    drift[0] = 0
    none = np.zeros((n, 7))
    open_ended = loop_drift.remaining(
        poses, drift, none, np.zeros((0, 2), np.int64), np.zeros((0, 7, 7))
    )
    closed = loop_drift.remaining(poses, drift, none, np.array([[10, 40]]), np.eye(7)[None] * 1e-10)
    size = [np.trace(x[:, 3:6, 3:6], axis1=1, axis2=2) for x in (open_ended, closed)]
    np.testing.assert_allclose(size[1][:11], size[0][:11], rtol=1e-6)  # before the place: as it was
    assert size[1][40] < 1.01 * size[0][10]  # at the loop's end: as well known as the place
    assert size[1][25] > 1.5 * size[1][40]  # between the two a bridge
    assert (size[1][11:] < size[0][11:]).all()
    assert np.linalg.eigvalsh(closed).min() > -1e-12


def test_the_drift_of_merged_nodes_is_that_of_both() -> None:
    poses, drift = path(3), np.repeat(np.diag(STEP**2)[None], 3, axis=0)
    bias = np.repeat(STEP[None], 3, axis=0)
    drift[0] = 0
    none = np.zeros((0, 2), np.int64), np.zeros((0, 7, 7))
    whole = loop_drift.remaining(poses, drift, bias, *none)
    both, both_bias = loop_drift.chained(poses[1:], drift[1:], bias[1:])
    merged = loop_drift.remaining(
        poses[[0, 2]], np.stack([drift[0], both]), np.stack([bias[0], both_bias]), *none
    )
    np.testing.assert_allclose(merged[1], whole[2], atol=1e-12)
    np.testing.assert_allclose(merged[0], whole[0], atol=1e-12)

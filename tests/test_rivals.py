"""Other explanations of a map: planes taken apart, and a map that is the wrong reading of one."""

from __future__ import annotations

import numpy as np

from stream4d.geometry import camera, transforms
from stream4d.packets import Array
from stream4d.pose import planes, rivals
from stream4d.pose.map import LocalMap

NORMAL = np.array([0.03, -0.02, 1.0]) / 6.0
"""A wall about 6 m away, nearly square to the first view."""
FOCAL = 420.0


def views(n: int = 8) -> Array:  # (n, 3, 4)
    """Return cameras that go along a curve and turn to and fro, the first at the origin."""
    s = np.linspace(0, 1, n)[:, None]
    R = transforms.so3_exp(np.hstack([0.06 * np.sin(4 * s), -0.2 * s, 0.02 * s**2]))
    centre = np.hstack([1.5 * s, 0.5 * s**2, 0.8 * np.sin(2 * s)])
    return np.dstack([R, -(R @ centre[..., None])])


def a_map(normal: Array, poses: Array, focal: float) -> LocalMap:
    """Return a map whose patches, all of the first keyframe, lie on the wall and are seen where they truly are.

    ``normal``, ``poses`` and ``focal`` are what the map believes.
    """
    K = camera.centred_K(focal, 256, 192)
    truth, true_K = views(len(poses)), camera.centred_K(FOCAL, 256, 192)
    local_map = LocalMap(192, 256, len(poses), 96, K)
    rng = np.random.default_rng(0)
    uv = rng.uniform((8, 8), (248, 184), (96, 2))
    rays = camera.rays(uv, true_K)
    seen = np.ones(96), np.zeros(96), np.ones(96)
    for slot, (pose, true_pose) in enumerate(zip(poses, truth, strict=True)):
        q = rays @ true_pose[:, :3].T + (rays @ NORMAL)[:, None] * true_pose[:, 3]
        local_map.frame_index[slot], local_map.poses[slot] = slot, pose
        local_map.uv[slot, :96] = camera.project(q, true_K) + 0.05 * rng.normal(size=(96, 2))
        local_map.info[slot, :96] = 400.0 * np.stack(seen, -1)
    rows = local_map.add_patches(0, uv, np.ones(96), np.ones(96))
    local_map.rho[rows] = local_map.prior[rows] = local_map.rays[rows] @ normal
    local_map.var[:, rows] = 0.0025
    return local_map


def test_a_homography_is_put_together_from_its_two_readings() -> None:
    H = planes.homography(views()[-1], NORMAL)
    found = planes.normals(H)
    assert len(found) == 2
    apart = [np.abs(normal - NORMAL / np.linalg.norm(NORMAL)).max() for normal in found]
    assert min(apart) < 1e-9 < 0.1 < max(apart)
    for normal in found:
        np.testing.assert_allclose(
            planes.homography(planes.camera_before(H, normal), normal), H, atol=1e-9
        )


def test_standing_still_has_no_reading() -> None:
    assert planes.normals(np.eye(3)) == []


def test_a_plane_is_found_among_other_points() -> None:
    rng = np.random.default_rng(1)
    rays = np.column_stack([rng.uniform(-0.5, 0.5, (100, 2)), np.ones(100)])
    points = rays / (rays @ NORMAL)[:, None]
    points[:20] *= rng.uniform(0.4, 0.8, (20, 1))
    normal, off = planes.plane_of(points)
    np.testing.assert_allclose(normal, NORMAL, atol=0.01 / 6)
    assert off < 0.01
    np.testing.assert_allclose(
        planes.inverse_depths(rays, np.eye(3, 4), NORMAL), rays @ NORMAL, atol=1e-12
    )


def test_the_wrong_reading_under_the_wrong_focal_length_is_left() -> None:
    truth, focal = views(), 1.3 * FOCAL
    seen = [planes.rescaled(planes.homography(pose, NORMAL), focal / FOCAL) for pose in truth]
    scaled = NORMAL * [focal / FOCAL, focal / FOCAL, 1.0]
    other = max(
        planes.normals(seen[-1]), key=lambda n: np.abs(n - scaled / np.linalg.norm(scaled)).max()
    )
    poses = np.stack([planes.camera_before(H, other) for H in seen])
    local_map = a_map(other, poses, focal)
    evidence = rivals.Evidence.of(local_map, inherited=1e-3, mean=np.log(320.0), info=8.0)
    present, *others = rivals.explain(evidence)
    best = min(others, key=lambda rival: rival.cost)
    assert abs(present.log_focal - np.log(FOCAL)) > 0.2  # by itself it stays wrong
    assert abs(best.log_focal - np.log(FOCAL)) < 0.03
    assert best.cost < present.cost - 16
    centres = -(np.swapaxes(best.poses[:, :, :3], 1, 2) @ best.poses[:, :, 3:])[..., 0]
    true_centres = -(np.swapaxes(truth[:, :, :3], 1, 2) @ truth[:, :, 3:])[..., 0]
    scale = np.linalg.norm(centres[-1]) / np.linalg.norm(true_centres[-1])
    np.testing.assert_allclose(centres, scale * true_centres, atol=0.1 * scale)


def test_a_map_that_is_right_stays_as_it_is() -> None:
    local_map = a_map(NORMAL, views(), FOCAL)
    evidence = rivals.Evidence.of(local_map, inherited=1e-3, mean=np.log(320.0), info=8.0)
    present, *others = rivals.explain(evidence)
    assert abs(present.log_focal - np.log(FOCAL)) < 0.02
    assert present.cost < min(rival.cost for rival in others) + 1

"""Patches that host cameras hold by ray and inverse depth: where another view has them, and what its image says."""

from __future__ import annotations

import numpy as np

from stream4d.geometry import camera
from stream4d.packets import Array
from stream4d.pose import _kernels_align, patches

BORDER_PX = 8.0
"""Nearer to the border of an image nothing is looked for."""


def project(
    rays: Array, rho: Array, hosts: Array, pose: Array, cam: Array
) -> tuple[Array, Array]:  # (n, 2), (n,)
    """Return where a camera (3, 4) sees patches of inverse depth (n,) in their hosts (n, 3, 4), and z·rho there.

    NaN behind the camera.
    """
    R = pose[:, :3] @ np.swapaxes(hosts[:, :, :3], 1, 2)
    t = pose[:, 3] - (R @ hosts[:, :, 3:])[..., 0]
    q = (R @ rays[..., None])[..., 0] + rho[:, None] * t
    z = np.where(q[:, 2] > 1e-6, q[:, 2], np.nan)
    return cam[:2] * q[:, :2] / z[:, None] + cam[2:], q[:, 2]


def find(
    images: tuple[Array, ...],  # (K, H, W), (K, H/2, W/2), …
    host: Array,  # (n,) number of the image
    uv: Array,  # (n, 2) in the host
    rho: Array,  # (n,)
    poses: Array,  # (K, 3, 4) of the hosts
    cam: Array,  # (4,)
    target: tuple[Array, ...],
    pose: Array,  # (3, 4)
    *,
    room_px: float,
    min_correlation: float,
) -> tuple[Array, Array, Array]:  # (m,), (m, 2), (m, 3)
    """Find patches in an image whose pose is nearly known: which, their pixels, their inverse covariances.

    The place that pose and depth predict is sharpened by alignment; what ends farther than ``room_px`` from it, or
    looks too different, is not believed.
    """
    rays = camera.rays(uv, camera.make_K(*cam.tolist()))
    predicted, z = project(rays, rho, poses[host], pose, cam)
    H, W = target[0].shape
    rows = np.flatnonzero(camera.inside(predicted, H, W, BORDER_PX) & (z > 0))
    predicted = predicted[rows]
    found, quality = predicted.copy(), np.full((len(rows), 5), -1.0)
    _kernels_align.align_patches(
        images, patches.searched(target), np.arange(len(rows)), cam, uv[rows], rays[rows], rho[rows], host[rows], poses,
        np.ascontiguousarray(pose), found, quality,
    )  # fmt: skip
    moved = np.hypot(*(found - predicted).T)
    good = (quality[:, 0] > min_correlation) & (moved < room_px)
    info = patches.alignment_info(quality[good, 1], quality[good, 2:])
    return rows[good], found[good], info

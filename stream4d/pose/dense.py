"""Dense maps of a frame: depth tied to the patches, its confidence."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.pose.map import LocalMap


@dataclass(frozen=True, slots=True)
class Maps:
    """What the model says of one frame; flow is that from the frame before to this one."""

    flow: Array | None = None
    flow_backward: Array | None = None
    sigma: Array | None = None
    motion: Array | None = None
    depth: Array | None = None


def sparse_depth(
    local_map: LocalMap, record: object, pose: Array, started: bool
) -> tuple[Array, Array]:
    """Spread the inverse depths of the patches over the image; returns depth and confidence."""
    from stream4d.pose import track

    H, W = local_map.height, local_map.width
    rows = np.flatnonzero((local_map.host >= 0) & (local_map.rho_info * local_map.rho**2 > 25.0))
    if not started or len(rows) < 3:
        return np.ones((H, W), np.float32), np.full((H, W), 0.05, np.float32)
    uv, z = track.project_rows(local_map, rows, pose)
    ok = (z > 1e-6) & (uv >= 0).all(-1) & (uv[:, 0] < W) & (uv[:, 1] < H)
    weight, value = (
        np.zeros((H // 8 + 1, W // 8 + 1), np.float32),
        np.zeros((H // 8 + 1, W // 8 + 1), np.float32),
    )
    cell = (uv[ok] / 8).astype(int)
    np.add.at(weight, (cell[:, 1], cell[:, 0]), 1)
    np.add.at(value, (cell[:, 1], cell[:, 0]), local_map.rho[rows[ok]] / z[ok])
    total_w, total_v = np.full_like(weight, 1e-12), np.full_like(weight, 1e-12)
    for sigma in (1.0, 3.0, 9.0, 27.0):
        share = 1e-3 ** np.log2(sigma)
        total_w += share * cv2.GaussianBlur(weight, (0, 0), sigma)
        total_v += share * cv2.GaussianBlur(value, (0, 0), sigma)
    rho = cv2.resize(total_v / total_w, (W, H), interpolation=cv2.INTER_LINEAR)
    return (1 / np.maximum(rho, 1e-6)).astype(np.float32), np.full((H, W), 0.3, np.float32)

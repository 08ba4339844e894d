"""Finding a lost camera again: descriptors of the map's own patches against the frame, then P3P."""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.pose import descriptors, resection
from stream4d.pose.map import LocalMap

CORNERS = 800
MIN_MATCHES = 12
MIN_INLIERS = 10
RATIO = 0.8
"""Lowe's test: the best match must be this much nearer than the second best."""
RANSAC_PX = 4.0
"""Error of an inlier: corners are found to the pixel, at several scales."""
TEXTURED_CORNERS = 60
"""A frame with fewer corners is blank, blurred or dark: it can be lost, but not another scene."""


def find_pose(local_map: LocalMap, image: Array) -> Array | None:
    """Return (3, 4) camera-from-world of a grey image that shows the map, or None."""
    uv, seen = descriptors.describe(image, np.zeros((0, 2)), CORNERS)
    rows, known = _describe_map(local_map)
    pairs = descriptors.match(known, seen, RATIO)
    if len(pairs) < MIN_MATCHES:
        return None
    chosen = rows[pairs[:, 0]]
    found = resection.resect(
        local_map.world_points(chosen),
        uv[pairs[:, 1]].astype(np.float64),
        local_map.K,
        error_px=RANSAC_PX,
    )
    return found.pose if found is not None and found.inliers.sum() >= MIN_INLIERS else None


def _describe_map(local_map: LocalMap) -> tuple[Array, Array]:
    """Return rows (n,) and descriptors (n, 32) of patches of known depth, each described in its host."""
    all_rows, all_descriptors = [], []
    for slot in local_map.order:
        block = np.arange(local_map.per_frame) + slot * local_map.per_frame
        rows = block[local_map.host[block] == slot]
        rows = rows[local_map.rho_info[rows] * local_map.rho[rows] ** 2 > 25.0]
        described, found = descriptors.describe_at(local_map.images[0][slot], local_map.uv0[rows])
        all_rows.append(rows[described])
        all_descriptors.append(found)
    return np.concatenate(all_rows), np.concatenate(all_descriptors)


def is_textured(image: Array) -> bool:
    """Tell whether a grey image has corners enough to be recognised."""
    corners = cv2.goodFeaturesToTrack(image, TEXTURED_CORNERS, 0.02, 5)
    return corners is not None and len(corners) >= TEXTURED_CORNERS and float(np.std(image)) > 8.0

"""Finding a lost camera again: ORB descriptors of the map's own patches against the frame, then P3P.

Rublee et al., "ORB: an efficient alternative to SIFT or SURF", 2011.
"""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.packets import Array
from stream4d.pose.map import LocalMap

FEATURES = 800
MIN_MATCHES = 12
MIN_INLIERS = 10
RATIO = 0.8
"""Lowe's test: the best match must be this much nearer than the second best."""
PATCH_PX = 31.0
"""Diameter of the area that an ORB descriptor looks at."""
TEXTURED_CORNERS = 60
"""A frame with fewer corners is blank, blurred or dark: it can be lost, but not another scene."""


def find_pose(local_map: LocalMap, image: Array) -> Array | None:
    """Return (3, 4) camera-from-world of a grey image that shows the map, or None."""
    orb = cv2.ORB.create(FEATURES)
    points = list(orb.detect(image, None))
    for point in points:
        point.angle = 0.0  # upright, as the map's are: video seldom turns upside down
    kept, descriptors = orb.compute(image, points)
    points = list(kept)
    if descriptors is None or len(points) < MIN_MATCHES:
        return None
    rows, known = _describe_map(local_map, orb)
    if len(rows) < MIN_MATCHES:
        return None
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(known, descriptors, k=2)
    good = [m[0] for m in pairs if len(m) == 2 and m[0].distance < RATIO * m[1].distance]
    if len(good) < MIN_MATCHES:
        return None
    chosen = rows[[m.queryIdx for m in good]]
    uv = np.array([points[m.trainIdx].pt for m in good])
    directions, centres = local_map.world_rays(chosen)
    world = centres + directions / local_map.rho[chosen, None]
    ok, rotation, translation, inliers = cv2.solvePnPRansac(
        world, uv, local_map.K, None, iterationsCount=300, reprojectionError=4.0,
        confidence=0.999, flags=cv2.SOLVEPNP_AP3P,
    )  # fmt: skip
    if not ok or inliers is None or len(inliers) < MIN_INLIERS:
        return None
    return np.hstack([cv2.Rodrigues(rotation)[0], np.asarray(translation).reshape(3, 1)])


def _describe_map(local_map: LocalMap, orb: cv2.ORB) -> tuple[Array, Array]:
    """Return rows (n,) and descriptors (n, 32) of patches of known depth, each described in its host."""
    all_rows, all_descriptors = [], []
    for slot in local_map.order:
        block = np.arange(local_map.per_frame) + slot * local_map.per_frame
        rows = block[local_map.host[block] == slot]
        rows = rows[local_map.rho_info[rows] * local_map.rho[rows] ** 2 > 25.0]
        keypoints = [
            cv2.KeyPoint(float(u), float(v), PATCH_PX, 0.0, 0.0, 0, int(row))
            for row, (u, v) in zip(rows, local_map.uv0[rows], strict=True)
        ]
        keypoints, descriptors = orb.compute(local_map.images[0][slot], keypoints)
        if descriptors is not None:
            all_rows += [k.class_id for k in keypoints]
            all_descriptors.append(descriptors)
    if not all_rows:
        return np.zeros(0, np.int64), np.zeros((0, 32), np.uint8)
    return np.array(all_rows), np.concatenate(all_descriptors)


def is_textured(image: Array) -> bool:
    """Tell whether a grey image has corners enough to be recognised."""
    corners = cv2.goodFeaturesToTrack(image, TEXTURED_CORNERS, 0.02, 5)
    return corners is not None and len(corners) >= TEXTURED_CORNERS and float(np.std(image)) > 8.0

"""A camera's inertia: what patches leave open of a pose, it decides.

Where few patches are seen, or all of them far away, some directions of a pose are not known at all; there the camera
is taken to go on as it did. Where patches do tell, they have a hundred times as much to say.
"""

from __future__ import annotations

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose._kernels_parts import move_pose
from stream4d.pose.uncertainty import OWN_SIGMA, sigma_factor

CHANGE = 1.0
"""1σ of the change of a camera's step from one frame to the next, over the step."""
LEAST_TURN = 0.002
"""1σ, radians, of the change of its turn, where it did not turn."""


def steadied(pose: Array, information: Array, patches: int, predicted: Array, step: Array) -> Array:
    """Return the pose (3, 4) between a fit to ``patches`` and the one predicted from the last ``step`` (3, 4).

    All take points to cameras; ``information`` (6, 6) is that of the fit's left twist, translation first.
    """
    turn = float(np.linalg.norm(transforms.so3_log(step[:, :3])))
    way = max(float(np.linalg.norm(step[:, 3])), 1e-9)
    own = information / (OWN_SIGMA * sigma_factor(patches)) ** 2
    inert = np.repeat([1 / (CHANGE * way) ** 2, 1 / (CHANGE * turn + LEAST_TURN) ** 2], 3)
    turned = predicted[:, :3] @ pose[:, :3].T
    away = np.concatenate([predicted[:, 3] - turned @ pose[:, 3], transforms.so3_log(turned)])
    twist = np.linalg.solve(own + np.diag(inert), inert * away)
    out = np.array(pose)
    move_pose(out, twist)
    return out

"""What the temporal model says of each frame, and the prediction of a window that is made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.models import fused
from stream4d.packets import Array, Prediction


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameMaps:
    """What is kept of a frame for windows that see it again."""

    depth: Array
    depth_sigma: Array
    motion: Array
    K: Array
    flow: Array | None = None  # to the next frame
    flow_backward: Array | None = None  # from the next frame
    sigma: Array | None = None
    prev_from_cam: Array | None = None
    camera_sigma: Array | None = None  # (2,) rotation, direction of translation


def prediction(maps: list[FrameMaps]) -> Prediction:
    """Stack the frames of a window; poses are chained from the window's first frame."""
    poses = [np.eye(4)]
    for m in maps[1:]:
        poses.append(poses[-1] @ (np.eye(4) if m.prev_from_cam is None else m.prev_from_cam))
    depth, K = np.stack([m.depth for m in maps]), np.stack([m.K for m in maps])
    window_from_cam = np.stack(poses)
    unknown = np.array([np.pi, np.pi])
    sigmas = np.stack([unknown if m.camera_sigma is None else m.camera_sigma for m in maps])[1:]
    paired = [m for m in maps[:-1] if m.flow is not None]
    has_flow = bool(paired) and len(paired) == len(maps) - 1

    def stack(name: str) -> Array | None:
        return np.stack([getattr(m, name) for m in maps[:-1]]) if has_flow else None

    depth_sigma = np.stack([m.depth_sigma for m in maps])
    return Prediction(
        flow=stack("flow"),
        flow_backward=stack("flow_backward"),
        flow_uncertainty=stack("sigma"),
        depth=depth,
        depth_uncertainty=depth_sigma,
        pointmap_in_window=fused.points(depth, K, window_from_cam),
        confidence=1 / depth_sigma,
        motion_prob=np.stack([m.motion for m in maps]),
        K=K,
        window_from_cam=window_from_cam,
        rotation_uncertainty_rad=sigmas[:, 0] if len(maps) > 1 else None,
        translation_uncertainty=sigmas[:, 1] if len(maps) > 1 else None,
    )

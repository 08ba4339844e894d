"""From aligned pairs to one answer per frame: what moves, and the depth that all pairs say together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stream4d.geometry.transforms import invert
from stream4d.models.alignment import PairSet, Scene, ego_flow, moved_pairs
from stream4d.packets import Array


def thinned(pairs: PairSet, step: int) -> PairSet:
    """Keep every ``step``-th pixel, from the middle of its cell; flow counts in the new pixels."""
    start = step // 2

    def cut(x: Tensor, axis: int) -> Tensor:
        rows = [slice(None)] * x.ndim
        rows[axis] = rows[axis + 1] = slice(start, None, step)
        return x[tuple(rows)].contiguous()

    assert pairs.flow_ij is not None
    assert pairs.flow_ji is not None
    assert pairs.is_moving is not None
    return replace(
        pairs,
        points_i=cut(pairs.points_i, 1),
        points_j=cut(pairs.points_j, 1),
        confidence_i=cut(pairs.confidence_i, 1),
        confidence_j=cut(pairs.confidence_j, 1),
        flow_ij=cut(pairs.flow_ij, 2) / step,
        flow_ji=cut(pairs.flow_ji, 2) / step,
        is_moving=cut(pairs.is_moving, 1),
    )


def residual_motion(scene: Scene, pairs: PairSet, noise_px: float) -> Array:  # (n, h, w)
    """Probability that a pixel moves: r² / (r² + σ²), r the residual of optical against ego flow.

    σ grows with the flow itself (a tenth of it), because ego flow inherits errors of depth. Only neighbouring frames
    count, where there are any; a pixel needs to disagree in all of them, since an occlusion disagrees in one only.
    """
    assert pairs.flow_ij is not None
    size = (pairs.points_i.shape[1], pairs.points_i.shape[2])
    i, j = pairs.edges.unbind(1)
    near = (i - j).abs() == (i - j).abs().min()
    i, j, flow = i[near], j[near], pairs.flow_ij[near]
    residual = (ego_flow(scene, size, i, j) - flow).norm(dim=1)
    sigma = noise_px + 0.1 * flow.norm(dim=1)
    probability = residual**2 / (residual**2 + sigma**2)
    out = torch.ones(pairs.frames, *size)
    for frame in range(pairs.frames):
        own = probability[i == frame]
        out[frame] = own.amin(dim=0) if len(own) else 0.0
    return np.nan_to_num(out.numpy(), nan=1.0)


def fused_depth(
    scene: Scene, full: PairSet, coarse: PairSet, world_from_cam: Array
) -> tuple[Array, Array]:  # (n, H, W) twice
    """Average what all pairs say of each frame's depth, at full resolution, weighted by log confidence."""
    full = replace(full, world_has_size=coarse.world_has_size)
    points_i, points_j = moved_pairs(scene, full)
    n, (H, W) = len(world_from_cam), full.confidence_i.shape[1:]
    total, weight, confidence = (torch.zeros(n, H * W) for _ in range(3))
    cam_from_world = torch.from_numpy(invert(world_from_cam)).float()
    for side, (points, conf) in enumerate(
        ((points_i, full.confidence_i), (points_j, full.confidence_j))
    ):
        for edge, frame in enumerate(full.edges[:, side].tolist()):
            row = cam_from_world[frame, 2]
            z = points[edge] @ row[:3] + row[3]
            w = conf[edge].flatten().log() + 1e-6
            total[frame] += w * z
            weight[frame] += w
            confidence[frame] = torch.maximum(confidence[frame], conf[edge].flatten())
    depth = (total / weight).view(n, H, W).numpy()
    return depth, confidence.view(n, H, W).numpy()

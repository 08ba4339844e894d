"""Real (or foreign rendered) recordings: what their files say, and how that becomes the common sample type.

A family of data sets only has to read files into ``RawClip``; everything that follows from depth, pose and flow
(rigid flow, occlusion, motion masks) is derived here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stream4d.geometry.flow import consistency_error, ego_flow, sample, targets
from stream4d.geometry.transforms import invert
from stream4d.train.clip import ClipBatch
from stream4d.train.crop import crop_and_zoom

Array = npt.NDArray[Any]

UNKNOWN = 255
"""In ``RawClip.motion``: nobody knows."""
_SAME_DEPTH = 0.03
"""Relative difference up to which two depths belong to the same surface (sensor and resampling noise)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawClip:
    """T frames as their files tell them, at the files' resolution; OpenCV axes. None: not in the data set."""

    rgb: Array
    """(T, H, W, 3) uint8."""
    K: Array | None = None
    """(T, 3, 3) pixels, integer coordinates at pixel centres."""
    world_from_cam: Array | None = None
    """(T, 4, 4)."""
    depth: Array | None = None
    """(T, H, W) z-depth, NaN or 0 where unknown."""
    flow: Array | None = None
    """(T-1, H, W, 2) t → t+1, NaN where unknown."""
    flow_backward: Array | None = None
    """(T-1, H, W, 2) t+1 → t, NaN where unknown."""
    occluded: Array | None = None
    """(T-1, H, W) bool."""
    motion: Array | None = None
    """(T, H, W) uint8: 0 still, 1 moving, ``UNKNOWN``."""
    is_static: bool = False
    """Nothing but the camera moves: flow follows from depth and pose."""
    is_metric: bool = False
    """Lengths are metres."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One sequence of a data set."""

    name: str
    """Says where it comes from, for messages."""
    length: int
    """Number of frames."""
    read: Callable[[Sequence[int]], RawClip]
    """Reads frames by index, in the given order."""
    max_stride: int = 1
    """Largest useful step between frames of a clip (1 where flow files tie neighbours together)."""


def _unknown_depth_as_nan(depth: Array) -> Array:
    depth = np.asarray(depth, np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)


def _rigid_flows(raw: RawClip, depth: Array, step: int) -> Array:  # (T-1, H, W, 2)
    """Return the flow of static surfaces forward (1: of frames 0 …) or backward (-1: of frames 1 …)."""
    assert raw.K is not None
    assert raw.world_from_cam is not None
    flows = []
    for t in range(len(raw.rgb) - 1):
        a, b = (t, t + 1) if step == 1 else (t + 1, t)
        b_from_a = invert(raw.world_from_cam[b]) @ raw.world_from_cam[a]
        flows.append(ego_flow(depth[a].astype(np.float64), raw.K[a], raw.K[b], b_from_a))
    return np.asarray(flows, np.float32)


def _hidden_by_depth(raw: RawClip, depth: Array, flow: Array, step: int) -> Array:
    """Return where a static surface lies behind what the other frame sees there, or outside of it."""
    assert raw.K is not None
    assert raw.world_from_cam is not None
    hidden = []
    H, W = depth.shape[1:]
    for t in range(len(flow)):
        a, b = (t, t + 1) if step == 1 else (t + 1, t)
        b_from_a = invert(raw.world_from_cam[b]) @ raw.world_from_cam[a]
        v, u = np.mgrid[:H, :W]
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(raw.K[a]).T
        z = (rays * depth[a][..., None]) @ b_from_a[2, :3] + b_from_a[2, 3]
        there = 1 / sample(1 / depth[b], targets(flow[t]))
        hidden.append(there < z * (1 - _SAME_DEPTH))
    return np.asarray(hidden)


def _hidden_by_inconsistency(flow: Array, other: Array) -> Array:
    """Return where going there and back misses by more than a pixel and 5 % (Sundaram et al. 2010)."""
    errors = np.stack([consistency_error(a, b) for a, b in zip(flow, other, strict=True)])
    limit = 1 + 0.05 * np.hypot(flow[..., 0], flow[..., 1])
    return np.asarray(errors > limit)


def _motion_from_flow(raw: RawClip, depth: Array, flow: Array, backward: Array | None) -> Array:
    """Call moving what deviates from the rigid flow by more than half a pixel and 3 %; unknown elsewhere."""
    motion = np.full(depth.shape, UNKNOWN, np.uint8)
    rigid = _rigid_flows(raw, depth, 1)
    pieces = [(slice(0, -1), flow, rigid)]
    if backward is not None:
        pieces.append(
            (slice(len(depth) - 1, None), backward[-1:], _rigid_flows(raw, depth, -1)[-1:])
        )
    for frames, seen, expected in pieces:
        residual = np.linalg.norm(seen - expected, axis=-1)
        limit = 0.5 + 0.03 * np.linalg.norm(seen, axis=-1)
        known = np.isfinite(residual)
        motion[frames] = np.where(known, residual > limit, UNKNOWN)
    return motion


def complete(raw: RawClip) -> RawClip:
    """Derive what follows: rigid flow of static scenes, occlusion, and motion from flow against rigid flow."""
    posed = raw.K is not None and raw.world_from_cam is not None and raw.depth is not None
    depth = _unknown_depth_as_nan(raw.depth) if raw.depth is not None else None
    flow, backward, occluded, motion = raw.flow, raw.flow_backward, raw.occluded, raw.motion
    if raw.is_static:
        motion = np.zeros(raw.rgb.shape[:3], np.uint8)
        if posed and depth is not None:
            if flow is None:
                flow = _rigid_flows(raw, depth, 1)
                occluded = _hidden_by_depth(raw, depth, flow, 1)
            if backward is None:
                backward = _rigid_flows(raw, depth, -1)
    elif motion is None and posed and depth is not None and flow is not None:
        motion = _motion_from_flow(raw, depth, flow, backward)
    if occluded is None and flow is not None and backward is not None:
        occluded = _hidden_by_inconsistency(flow, backward)
    return replace(
        raw, depth=depth, flow=flow, flow_backward=backward, occluded=occluded, motion=motion
    )


def _outside(flow: Array) -> Array:
    H, W = flow.shape[1:3]
    u, v = flow[..., 0] + np.arange(W), flow[..., 1] + np.arange(H)[:, None]
    return np.asarray((u < -0.5) | (u > W - 0.5) | (v < -0.5) | (v > H - 0.5))


def _known(values: Array | None, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return values with zeros where unknown, and where they are known (without the last axis of flows)."""
    if values is None:
        return torch.zeros(shape), torch.zeros(shape[:4], dtype=torch.bool)
    tensor = torch.from_numpy(np.array(values, np.float32))[None]
    finite = torch.isfinite(tensor)
    valid = finite.all(-1) if len(shape) == 5 else finite
    return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0), valid


def to_batch(raw: RawClip) -> ClipBatch:
    """Give a completed clip the common type, as a batch of one at the files' resolution."""
    T, H, W = raw.rgb.shape[:3]
    flow, valid_flow = _known(raw.flow, (1, T - 1, H, W, 2))
    back, valid_back = _known(raw.flow_backward, (1, T - 1, H, W, 2))
    depth, valid_depth = _known(raw.depth, (1, T, H, W))
    K = raw.K if raw.K is not None else _guess_K(T, H, W)
    poses = raw.world_from_cam if raw.world_from_cam is not None else np.tile(np.eye(4), (T, 1, 1))
    poses = invert(np.asarray(poses[0], np.float64)) @ poses
    motion = raw.motion if raw.motion is not None else np.full((T, H, W), UNKNOWN, np.uint8)
    hidden = raw.occluded if raw.occluded is not None else np.zeros((T - 1, H, W), bool)
    hidden_back = np.zeros((T - 1, H, W), bool)
    if raw.flow is not None and raw.flow_backward is not None:
        hidden_back = _hidden_by_inconsistency(raw.flow_backward, raw.flow)

    def flag(value: bool) -> Tensor:
        return torch.tensor([value])

    return ClipBatch(
        rgb=torch.from_numpy(np.array(raw.rgb)).permute(0, 3, 1, 2)[None].float() / 255,
        depth=depth,
        K=torch.from_numpy(np.array(K, np.float32))[None],
        world_from_cam=torch.from_numpy(np.array(poses, np.float32))[None],
        flow=flow,
        flow_backward=back,
        occluded=torch.from_numpy(hidden | _outside(flow[0].numpy()))[None],
        occluded_backward=torch.from_numpy(hidden_back | _outside(back[0].numpy()))[None],
        scene_flow=torch.zeros(1, T - 1, H, W, 3),
        motion_mask=torch.from_numpy(motion == 1)[None],
        valid_depth=valid_depth,
        valid_flow=valid_flow,
        valid_flow_backward=valid_back,
        valid_motion=torch.from_numpy(motion != UNKNOWN)[None],
        has_pose=flag(raw.world_from_cam is not None),
        has_intrinsics=flag(raw.K is not None),
        is_metric=flag(raw.is_metric),
    )


def _guess_K(T: int, H: int, W: int) -> Array:
    focal = 0.9 * max(H, W)
    return np.tile(
        np.array([[focal, 0, (W - 1) / 2], [0, focal, (H - 1) / 2], [0, 0, 1]]), (T, 1, 1)
    )


def fit(batch: ClipBatch, size: tuple[int, int], at: tuple[float, float] = (0.5, 0.5)) -> ClipBatch:
    """Shrink or enlarge until ``size`` = (H, W) just fits, then cut it out.

    Args:
        batch: any clips.
        size: (H, W) wanted.
        at: where the crop lies in what is left over, (horizontal, vertical) in [0, 1].
    """
    H, W = batch.size
    zoom = max(size[0] / H, size[1] / W)
    spare = (max(zoom * W - size[1], 0.0), max(zoom * H - size[0], 0.0))
    return crop_and_zoom(batch, zoom, (spare[0] * at[0], spare[1] * at[1]), size)

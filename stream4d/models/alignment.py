"""Global alignment of pair pointmaps: depth, pose and focal length of every frame that explain all pairs at once.

DUSt3R, section 3.4, with MonST3R's smoothness and flow terms (Zhang et al., "MonST3R", ICLR 2025, section 3.3). The
parameters are those of the official code, so that its numbers can be reproduced: quaternions xyzw, translations as
sign(a)·expm1(|a|), focal length as 20 · log f, the principal point as offset / 10 from the middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from stream4d.models.heads import signed_expm1
from stream4d.models.pose_encoding import matrix_from_quat_xyzw, quat_xyzw_from_matrix

FOCAL_GAIN = 20.0
PP_GAIN = 10.0
ADAPTOR_GAIN = 20.0
MEAN_SCALE = 0.5
"""The pairs' scales are kept at this geometric mean: it fixes the gauge."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairSet:
    """Pair predictions over n frames of one size; E directed pairs."""

    edges: Tensor
    """(E, 2) int64 frame numbers (i, j)."""
    points_i: Tensor
    """(E, H, W, 3) of frame i, in the camera of frame i."""
    points_j: Tensor
    """(E, H, W, 3) of frame j, in the camera of frame i."""
    confidence_i: Tensor
    """(E, H, W) > 1."""
    confidence_j: Tensor
    """(E, H, W) > 1."""
    flow_ij: Tensor | None = None
    """(E, 2, H, W) optical flow in pixels, where the flow term is wanted."""
    flow_ji: Tensor | None = None
    """(E, 2, H, W)."""
    is_moving: Tensor | None = None
    """(n, H, W) bool: pixels that the flow term leaves out."""
    world_has_size: bool = False
    """True where known poses fix the size of the world; otherwise the pairs' mean scale fixes it."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.edges.max()) + 1


class Scene(NamedTuple):
    """The unknowns, as optimised."""

    pairs: Tensor
    """(E, 8) quaternion, translation, log scale of each pair."""
    log_depth: Tensor
    """(n, H·W)."""
    poses: Tensor
    """(n, 7) quaternion and translation, camera to world."""
    focal: Tensor
    """(n or 1, 1) as 20 · log f."""
    principal: Tensor
    """(n or 1, 2) as offset / 10."""
    adaptors: Tensor
    """(E, 2) per-pair stretch of xy and z; zeros unless wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentWeights:
    """What the objective weighs; the defaults are MonST3R's (smooth and flow 0 make it DUSt3R's)."""

    smooth: float = 0.01
    translation: float = 1.0
    flow: float = 0.01
    flow_start: float = 0.1
    """Share of the iterations before the flow term begins."""
    flow_limit: float = 25.0
    """A flow term above this (pixels) is left out: the geometry is not ready for it."""
    pixel_limit: float = 50.0
    """Pixels with a larger flow error are left out."""
    depth: float = 0.0
    """How much depth is held at its start, see `depth_loss`."""


def pose_matrices(poses: Tensor) -> tuple[Tensor, Tensor]:  # (..., 7+) -> (..., 3, 3), (..., 3)
    """Return R and t of quaternion-and-translation parameters."""
    return matrix_from_quat_xyzw(poses[..., :4]), signed_expm1(poses[..., 4:7])


def pose_parameters(R: Tensor, t: Tensor) -> Tensor:  # -> (..., 7)
    """Invert `pose_matrices`."""
    return torch.cat([quat_xyzw_from_matrix(R), t.sign() * torch.log1p(t.abs())], dim=-1)


def pair_scales(pairs: Tensor, *, normed: bool = True) -> Tensor:  # (E, 8) -> (E,)
    """Return the scale of each pair; ``normed``: with `MEAN_SCALE` as their geometric mean."""
    if not normed:
        return pairs[:, 7].exp()
    return (pairs[:, 7] + math.log(MEAN_SCALE) - pairs[:, 7].mean()).exp()


def adaptor_factors(adaptors: Tensor) -> Tensor:  # (E, 2) -> (E, 3)
    """Return the stretch of x, y and z of each pair; their product is 1."""
    full = torch.cat([adaptors[:, :1], adaptors], dim=-1)
    return ((full - full.mean(dim=1, keepdim=True)) / ADAPTOR_GAIN).exp()


def focals(scene: Scene) -> Tensor:  # (n or 1, 1)
    """Return focal lengths in pixels."""
    return (scene.focal / FOCAL_GAIN).exp()


def principal_points(scene: Scene, size: tuple[int, int]) -> Tensor:  # (n or 1, 2)
    """Return (cx, cy) in pixels of an image of ``size`` (H, W)."""
    middle = scene.principal.new_tensor([size[1] / 2, size[0] / 2])
    return middle + PP_GAIN * scene.principal


def _pixels(size: tuple[int, int], like: Tensor) -> Tensor:  # (H·W, 2)
    H, W = size
    v, u = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return torch.stack([u, v], dim=-1).reshape(-1, 2).to(like)


def points_in_cam(scene: Scene, size: tuple[int, int]) -> Tensor:  # (n, H·W, 3)
    """Unproject all depth maps."""
    depth = scene.log_depth.exp()[..., None]
    offset = _pixels(size, depth) - principal_points(scene, size)[:, None]
    xy = depth * offset / focals(scene)[:, None]
    return torch.cat([xy, depth], dim=-1)


def points_in_world(scene: Scene, size: tuple[int, int]) -> Tensor:  # (n, H·W, 3)
    """Unproject all depth maps into the world."""
    R, t = pose_matrices(scene.poses)
    return points_in_cam(scene, size) @ R.transpose(-1, -2) + t[:, None]


def moved_pairs(scene: Scene, pairs: PairSet) -> tuple[Tensor, Tensor]:  # 2 × (E, H·W, 3)
    """Move each pair's two pointmaps into the world by its own similarity."""
    R, t = pose_matrices(scene.pairs)
    scale = pair_scales(scene.pairs, normed=not pairs.world_has_size)[:, None, None]
    stretch = adaptor_factors(scene.adaptors)[:, None]

    def move(points: Tensor) -> Tensor:
        return scale * ((points.flatten(1, 2) * stretch) @ R.transpose(-1, -2) + t[:, None])

    return move(pairs.points_i), move(pairs.points_j)


def alignment_loss(scene: Scene, pairs: PairSet) -> Tensor:
    """Mean distance between the world points and the pairs' points, weighted by log confidence."""
    size = (pairs.points_i.shape[1], pairs.points_i.shape[2])
    world = points_in_world(scene, size)
    total = scene.log_depth.new_zeros(())
    moved = moved_pairs(scene, pairs)
    confidences = (pairs.confidence_i, pairs.confidence_j)
    for side, (points, confidence) in enumerate(zip(moved, confidences, strict=True)):
        distance = (world[pairs.edges[:, side]] - points).norm(dim=-1)
        total = total + (confidence.flatten(1).log() * distance).mean()
    return total


def smoothness_loss(scene: Scene, translation_weight: float = 1.0) -> Tensor:
    """Sum over time of how far neighbouring cameras are turned and moved from each other."""
    R, t = pose_matrices(scene.poses)
    turn = R[:-1].transpose(-1, -2) @ R[1:]
    shift = (R[:-1].transpose(-1, -2) @ (t[1:] - t[:-1])[..., None])[..., 0]
    off = (turn - torch.eye(3).to(turn)).flatten(1).norm(dim=-1)
    return (off + translation_weight * shift.norm(dim=-1)).sum()


def depth_loss(log_depth: Tensor, start: Tensor, is_moving: Tensor | None = None) -> Tensor:
    """Mean square of how far log depth (n, H·W) has left its start but for one scale a frame; movers count twice."""
    moved = log_depth - start
    moved = moved - moved.mean(dim=1, keepdim=True)
    weight = 1.0 if is_moving is None else 1.0 + is_moving.flatten(1)
    return (weight * moved**2).mean()


def ego_flow(scene: Scene, size: tuple[int, int], i: Tensor, j: Tensor) -> Tensor:  # (E, 2, H, W)
    """Return the flow from frames i to frames j that camera motion alone would cause."""
    R, t = pose_matrices(scene.poses)
    world = points_in_world(scene, size)[i]
    in_j = (world - t[j][:, None]) @ R[j]
    f, pp = focals(scene), principal_points(scene, size)
    f, pp = (x.expand(len(scene.poses), -1)[j][:, None] for x in (f, pp))
    projected = f * in_j[..., :2] / (in_j[..., 2:] + 1e-8) + pp
    return (projected - _pixels(size, projected)).transpose(1, 2).unflatten(2, size)


def flow_loss(scene: Scene, pairs: PairSet, weights: AlignmentWeights) -> Tensor:
    """Smooth-L1 distance between ego flow and optical flow on static pixels, both directions."""
    if pairs.flow_ij is None or pairs.flow_ji is None or pairs.is_moving is None:
        return scene.log_depth.new_zeros(())
    size = (pairs.points_i.shape[1], pairs.points_i.shape[2])
    i, j = pairs.edges.unbind(1)
    total = scene.log_depth.new_zeros(())
    for a, b, flow in ((i, j, pairs.flow_ij), (j, i, pairs.flow_ji)):
        error = torch.nn.functional.smooth_l1_loss(
            ego_flow(scene, size, a, b), flow, reduction="none"
        ).mean(dim=1)
        static = ~pairs.is_moving[a] & (error.detach() < weights.pixel_limit)
        total = total + (error * static).sum() / static.sum().clamp(min=1)
    return total


def objective(
    scene: Scene,
    pairs: PairSet,
    weights: AlignmentWeights,
    progress: float = 1.0,
    start: Tensor | None = None,  # (n, H·W) log depth
) -> tuple[Tensor, Tensor]:
    """Return the whole objective and the flow term in it (zero before it starts and above its limit)."""
    loss = alignment_loss(scene, pairs)
    if weights.smooth:
        loss = loss + weights.smooth * smoothness_loss(scene, weights.translation)
    if weights.depth and start is not None:
        loss = loss + weights.depth * depth_loss(scene.log_depth, start, pairs.is_moving)
    flow = loss.new_zeros(())
    if weights.flow and progress >= weights.flow_start:
        flow = flow_loss(scene, pairs, weights)
        if flow.item() > weights.flow_limit:
            flow = flow.new_zeros(())
    return loss + weights.flow * flow, flow


def linear_rate(progress: float, start: float = 0.01, end: float = 1e-3) -> float:
    """Fall from ``start`` to ``end`` linearly."""
    return (1 - progress) * start + progress * end


class Step(NamedTuple):
    """One iteration, for tests and logs."""

    loss: float
    flow: float
    rate: float


def optimise(
    scene: Scene,
    pairs: PairSet,
    weights: AlignmentWeights,
    *,
    iterations: int,
    total: int | None = None,
    rate: Callable[[float], float] = linear_rate,
    free: Sequence[str] = ("pairs", "log_depth", "poses", "focal"),
    frozen_frames: int = 0,
) -> tuple[Scene, list[Step]]:
    """Lower the objective by Adam (betas 0.9, 0.9).

    Args:
        total: iterations that the schedules of rate and flow are laid out for, if more than are run.
        free: fields of the scene that move.
        frozen_frames: the first frames whose depth and pose stay as they are.
    """
    total = total or iterations
    with torch.inference_mode(False), torch.enable_grad():
        scene = Scene(*(x.detach().clone() for x in scene))
        moving = [getattr(scene, name).requires_grad_() for name in free]
        adam = torch.optim.Adam(moving, lr=0.0, betas=(0.9, 0.9))
        pairs = _clone(pairs)
        start = scene.log_depth.detach().clone()
        steps = []
        for index in range(iterations):
            adam.param_groups[0]["lr"] = rate(index / total)
            adam.zero_grad()
            loss, flow = objective(scene, pairs, weights, index / total, start)
            loss.backward()
            if frozen_frames:
                for part in (scene.log_depth, scene.poses):
                    if part.grad is not None:
                        part.grad[:frozen_frames] = 0
            adam.step()
            steps.append(Step(loss.item(), flow.item(), adam.param_groups[0]["lr"]))
    return Scene(*(x.detach() for x in scene)), steps


def _clone(pairs: PairSet) -> PairSet:
    """Copy tensors out of inference mode, which autograd cannot save."""
    names = [
        name for name in PairSet.__dataclass_fields__ if isinstance(getattr(pairs, name), Tensor)
    ]
    return replace(pairs, **{name: getattr(pairs, name).clone() for name in names})

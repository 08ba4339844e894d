"""The whole training objective: which losses a batch has labels for, and their weighted sum.

Geometry is compared at the 1/4 resolution of the heads, flow at full resolution. A batch without a label (layered clips
know no depth, unlabelled video knows nothing) leaves out that term.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from stream4d.errors import TrainingError
from stream4d.models.temporal_net import ClipOutput, PairState
from stream4d.train import losses
from stream4d.train.clip import ClipBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """Weight of each term; 0 leaves it out."""

    flow: float = 1.0
    sigma: float = 0.2
    match: float = 0.1
    motion: float = 2.0
    points: float = 1.0
    gradient: float = 0.3
    focal: float = 0.3
    alignment: float = 0.2
    consistency: float = 0.3
    photometric: float = 1.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise TrainingError(f"weight of loss {f.name!r} must be ≥ 0, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Quarter:
    """Labels of one pair at 1/4 resolution, both frames in the batch (a's first)."""

    log_depth: Tensor  # (2B, h, w)
    valid: Tensor  # (2B, h, w)
    moving: Tensor  # (2B, h, w) in [0, 1]
    valid_motion: Tensor
    flow: Tensor  # (2B, 2, h, w)
    seen: Tensor  # (2B, h, w): in both frames
    rays: Tensor  # (2B, h, w, 3) of the true camera
    b_from_a: Tensor  # (B, 4, 4)
    has_pose: Tensor  # (B,)


def objective(
    output: ClipOutput, batch: ClipBatch, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of all losses and each of them (unweighted, detached)."""
    terms: dict[str, list[Tensor]] = {}
    for t, pair in enumerate(output.pairs):
        for name, value in _pair_terms(pair, batch, t).items():
            terms.setdefault(name, []).append(value)
    focal = [
        losses.focal_loss(f.focal, batch.K[:, t, 0, 0] / max(batch.size), batch.has_intrinsics)
        for t, f in enumerate(output.frames)
    ]
    terms["focal"] = focal
    means = {name: torch.stack(values).mean() for name, values in terms.items()}
    total = sum(getattr(weights, name) * value for name, value in means.items())
    assert isinstance(total, Tensor)
    return total, {name: value.detach() for name, value in means.items()}


def _pair_terms(pair: PairState, batch: ClipBatch, t: int) -> dict[str, Tensor]:
    flow = torch.cat([batch.flow[:, t], batch.flow_backward[:, t]]).permute(0, 3, 1, 2)
    valid = torch.cat([batch.valid_flow[:, t], batch.valid_flow_backward[:, t]])
    hidden = torch.cat([batch.occluded[:, t], batch.occluded_backward[:, t]])
    field, B = pair.flow, len(batch.rgb)
    assert field.mixture is not None  # only inference leaves it out
    terms = {
        "flow": losses.flow_sequence_loss(field.steps, flow, field.mixture, valid),
        "sigma": losses.laplace_scale_loss(field.steps[-1], flow, field.log_sigma, valid),
    }
    if field.match.logp is not None:
        seen = (valid & ~hidden)[:B]
        terms["match"] = losses.match_loss(field.match.logp, field.match.cell, flow[:B], seen)
    if not bool(batch.valid_flow[:, t].any()):
        terms["photometric"] = _self_supervised(pair, batch, t)
    labels = _quarter(batch, t, flow, valid & ~hidden)
    terms["motion"] = losses.motion_loss(pair.maps.motion[:, 0], labels.moving, labels.valid_motion)
    if bool(labels.valid.any()):
        terms |= _geometry_terms(pair, labels)
    return terms


def _geometry_terms(pair: PairState, labels: _Quarter) -> dict[str, Tensor]:
    """Depth, pointmaps and camera of a pair, after each side's own scale (shared by both frames) is taken out."""
    B = len(labels.b_from_a)
    log_depth = pair.maps.log_depth[:, 0]
    points = labels.rays * log_depth.exp()[..., None]
    target = labels.rays * labels.log_depth.exp()[..., None]
    scale = losses.typical_distance(_by_clip(points, B), _by_clip(labels.valid, B))
    true_scale = losses.typical_distance(_by_clip(target, B), _by_clip(labels.valid, B))
    points = points / scale.repeat(2)[:, None, None, None]
    target = target / true_scale.repeat(2)[:, None, None, None]
    true_log = labels.log_depth
    a_from_b = torch.linalg.inv(labels.b_from_a)
    scaled = labels.b_from_a.clone()
    scaled[:, :3, 3] /= true_scale[:, None]
    back = a_from_b.clone()
    back[:, :3, 3] /= true_scale[:, None]
    static = labels.seen & labels.valid & (labels.moving < 0.5)
    static = static & labels.has_pose.repeat(2)[:, None, None]
    pa, pb = points.chunk(2)
    fa, fb = labels.flow.chunk(2)
    sa, sb = static.chunk(2)
    da, db = log_depth.chunk(2)
    ta, tb = true_log.chunk(2)
    both = labels.seen & labels.valid
    return {
        "points": losses.confident_pointmap_loss(
            points.flatten(1, 2),
            target.flatten(1, 2),
            pair.maps.log_scale[:, 0].flatten(1),
            labels.valid.flatten(1),
        ),
        "gradient": losses.gradient_loss(log_depth, true_log, labels.valid),
        "alignment": 0.5 * losses.alignment_loss(pa, pb, fa, scaled, sa)
        + 0.5 * losses.alignment_loss(pb, pa, fb, back, sb),
        "consistency": losses.consistency_loss(da, db, ta, tb, fa, both[:B]),
    }


def _by_clip(x: Tensor, B: int) -> Tensor:  # (2B, h, w, ...) -> (B, 2hw, ...)
    a, b = x[:B].flatten(1, 2), x[B:].flatten(1, 2)
    return torch.cat([a, b], 1)


def _self_supervised(pair: PairState, batch: ClipBatch, t: int) -> Tensor:
    """Photometric and smoothness terms both ways, where the flow comes back to its start."""
    images = torch.cat([batch.rgb[:, t], batch.rgb[:, t + 1]])
    others = torch.cat([batch.rgb[:, t + 1], batch.rgb[:, t]])
    flow = pair.flow.steps[-1]
    with torch.no_grad():
        back, _ = losses.sample_at(torch.cat(flow.chunk(2)[::-1]), flow)
        miss = (flow + back).square().sum(1)
        limit = 0.01 * (flow.square().sum(1) + back.square().sum(1)) + 0.5  # UnFlow, eq. 2
    error = losses.photometric_loss(images, others, flow, miss < limit)
    return error + 0.05 * losses.smoothness_loss(flow, images)


def _shrink(x: Tensor) -> Tensor:  # (B, H, W) -> (B, h, w)
    return F.avg_pool2d(x[:, None].float(), 4)[:, 0]


def _quarter(batch: ClipBatch, t: int, flow: Tensor, seen: Tensor) -> _Quarter:
    pick = slice(t, t + 2)

    def frames(x: Tensor) -> Tensor:
        return x[:, pick].transpose(0, 1).flatten(0, 1)

    valid = frames(batch.valid_depth)
    log_depth = torch.where(valid, frames(batch.depth).clamp_min(1e-4), 1.0).log()
    share = _shrink(valid)
    mean = _shrink(log_depth * valid) / share.clamp_min(1e-6)
    h, w = mean.shape[-2:]
    # A pixel (u, v) of the level is the middle of 4x4 pixels: 4u + 1.5.
    y, x = torch.meshgrid(
        torch.arange(h, device=mean.device), torch.arange(w, device=mean.device), indexing="ij"
    )
    pixels = torch.stack([4 * x + 1.5, 4 * y + 1.5, torch.ones_like(x)], -1).float()
    rays = torch.einsum("bij,hwj->bhwi", torch.linalg.inv(frames(batch.K)), pixels)
    pose = batch.world_from_cam[:, pick]
    return _Quarter(
        log_depth=mean,
        valid=share > 0.5,
        moving=_shrink(frames(batch.motion_mask)),
        valid_motion=_shrink(frames(batch.valid_motion)) > 0.5,
        flow=F.avg_pool2d(flow, 4) / 4,
        seen=_shrink(seen) > 0.9,
        rays=rays,
        b_from_a=torch.linalg.inv(pose[:, 1]) @ pose[:, 0],
        has_pose=batch.has_pose,
    )

"""Scores of a network's output on clips with ground truth."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stream4d.models.temporal_net import ClipOutput
from stream4d.train.clip import ClipBatch
from stream4d.train.losses import rotation_angle


def clip_scores(output: ClipOutput, clips: ClipBatch, initial: Tensor) -> dict[str, float]:
    """Score one batch; NaN where it has no label.

    ``epe`` mean endpoint error in pixels (``epe_initial``: of the initial flow), ``inside_1sigma`` share of flow errors
    within the stated scale, ``iou`` of moving pixels at probability 1/2, ``depth`` AbsRel after one median scale per
    clip, ``rotation_deg`` and ``focal`` (log ratio) of the camera.
    """
    rows = [_pair_scores(output, clips, initial, t) for t in range(len(output.pairs))]
    names = {name for row in rows for name in row}
    means = {name: _mean([row[name] for row in rows if name in row]) for name in names}
    if bool(clips.has_intrinsics.any()):
        truth = clips.K[:, :, 0, 0] / max(clips.size)
        found = torch.stack([f.focal for f in output.frames], 1)
        means["focal"] = float((found / truth).log().abs()[clips.has_intrinsics].mean())
    return means


def _pair_scores(output: ClipOutput, clips: ClipBatch, initial: Tensor, t: int) -> dict[str, float]:
    pair, B = output.pairs[t], len(clips.rgb)
    truth = torch.cat([clips.flow[:, t], clips.flow_backward[:, t]]).permute(0, 3, 1, 2)
    valid = torch.cat([clips.valid_flow[:, t], clips.valid_flow_backward[:, t]])
    error = torch.linalg.vector_norm(pair.flow.steps[-1] - truth, dim=1)
    given = initial[:, t].transpose(0, 1).flatten(0, 1)
    given_error = torch.linalg.vector_norm(given - truth, dim=1)
    per_axis = (pair.flow.steps[-1] - truth).abs().mean(1)
    scores = {
        "epe": _mean_where(error, valid),
        "epe_initial": _mean_where(given_error, valid),
        "inside_1sigma": _mean_where(
            (per_axis < math.sqrt(2) * pair.flow.log_sigma[:, 0].exp()).float(), valid
        ),
        "iou": _iou(pair, clips, t),
    }
    if bool(clips.valid_depth.any()):
        scores["depth"] = _abs_rel(
            pair.maps.log_depth[B:, 0], clips.depth[:, t + 1], clips.valid_depth[:, t + 1]
        )
    if bool(clips.has_pose.any()):
        pose = clips.world_from_cam
        relative = torch.linalg.inv(pose[:, t]) @ pose[:, t + 1]
        angle = rotation_angle(pair.camera.rotation, relative[:, :3, :3])[clips.has_pose]
        scores["rotation_deg"] = math.degrees(float(angle.mean()))
    return scores


def _iou(pair: object, clips: ClipBatch, t: int) -> float:
    """Intersection over union of moving pixels on the later frame; NaN where nothing moves."""
    from stream4d.models.temporal_net import PairState

    assert isinstance(pair, PairState)
    found = pair.upsampled(pair.maps.motion)[len(clips.rgb) :, 0] > 0
    truth, known = clips.motion_mask[:, t + 1], clips.valid_motion[:, t + 1]
    both, either = (found & truth & known).sum(), ((found | truth) & known).sum()
    return float(both / either) if bool((truth & known).any()) else math.nan


def _abs_rel(log_depth: Tensor, truth: Tensor, valid: Tensor) -> float:
    depth = F.interpolate(
        log_depth[:, None], truth.shape[-2:], mode="bilinear", align_corners=False
    )
    depth = depth[:, 0].exp()
    values = []
    for found, true, known in zip(depth, truth, valid, strict=True):
        if bool(known.any()):
            scale = (true[known] / found[known]).median()
            values.append(float(((found[known] * scale - true[known]).abs() / true[known]).mean()))
    return _mean(values)


def _mean_where(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].mean()) if bool(mask.any()) else math.nan


def _mean(values: list[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan

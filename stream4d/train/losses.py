"""Losses of the temporal model, each with its source. All return a scalar; masks say which pixels count.

Shapes: B any batch, H W the image. A loss over an empty mask is zero and differentiable, never NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from stream4d.models.sampling import pixel_grid, warp


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average ``values`` where ``mask`` (broadcastable) is true; zero where it is nowhere."""
    weight = mask.to(values.dtype).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp_min(1)


def mixture_laplace(
    flow: Tensor,  # (B, 2, H, W)
    target: Tensor,
    mixture: Tensor,  # (B, 2, H, W): logit of the wide component, log of its scale ≥ 0
) -> Tensor:  # (B, H, W)
    """Score flow by the negative log likelihood of a two-component Laplace mixture, per pixel.

    ``-log(α · Lap(e; exp β) + (1 - α) · Lap(e; 1))`` for each component e of the error, summed; the narrow component
    has unit scale, so that sure pixels are trained by plain L1. Source: SEA-RAFT (Wang et al., ECCV 2024), eq. 5-7.
    """
    error = (flow - target).abs()
    logit, log_scale = mixture[:, :1], mixture[:, 1:]
    wide = F.logsigmoid(logit) - log_scale - error * torch.exp(-log_scale)
    narrow = F.logsigmoid(-logit) - error
    return (math.log(2.0) - torch.logaddexp(wide, narrow)).sum(1)


def flow_sequence_loss(
    steps: list[Tensor], target: Tensor, mixture: Tensor, valid: Tensor, gamma: float = 0.85
) -> Tensor:
    """Weigh the loss of every refinement step, later ones more: Σ γ^(N-i) L_i (RAFT, Teed & Deng 2020, eq. 7).

    All steps share the mixture that the last one states (it learns from the last alone): a pixel that stays uncertain
    weighs little everywhere. Errors above 400 px are not trained on, as in RAFT.
    """
    valid = valid & (torch.linalg.vector_norm(target, dim=1) < 400)
    total = masked_mean(mixture_laplace(steps[-1], target, mixture), valid)
    fixed = mixture.detach()
    for i, flow in enumerate(reversed(steps[:-1]), start=1):
        total = total + gamma**i * masked_mean(mixture_laplace(flow, target, fixed), valid)
    return total


def laplace_scale_loss(flow: Tensor, target: Tensor, log_sigma: Tensor, valid: Tensor) -> Tensor:
    """Teach the stated error: ``|e| / b + log 2b`` with the error detached, so that the flow itself is not bent.

    Source: heteroscedastic likelihood, Kendall & Gal, NeurIPS 2017, eq. 5 (Laplace form).
    """
    error = (flow - target).abs().detach().mean(1)
    log_b = log_sigma[:, 0]
    return masked_mean(error * torch.exp(-log_b) + log_b + math.log(2.0), valid)


def match_loss(logp: Tensor, cell: int, flow: Tensor, valid: Tensor) -> Tensor:
    """Score the coarse match: minus the log dual-softmax at the true cell (LoFTR, Sun et al. 2021, eq. 4).

    Args:
        logp: (B, N, N) log dual-softmax of frame a's cells against frame b's.
        cell: size of a cell in pixels.
        flow: (B, 2, H, W) true flow a → b.
        valid: (B, H, W) pixels that are seen in both frames.
    """
    H, W = flow.shape[-2:]
    h, w = H // cell, W // cell
    middle = slice(cell // 2, None, cell)
    at = flow[:, :, middle, middle][:, :, :h, :w]
    seen = valid[:, middle, middle][:, :h, :w]
    y, x = torch.meshgrid(
        torch.arange(h, device=flow.device), torch.arange(w, device=flow.device), indexing="ij"
    )
    to_x, to_y = ((start + at[:, i] / cell).round().long() for i, start in enumerate((x, y)))
    seen = seen & (to_x >= 0) & (to_x < w) & (to_y >= 0) & (to_y < h)
    index = (to_y.clamp(0, h - 1) * w + to_x.clamp(0, w - 1)).flatten(1)
    score = logp.gather(2, index[..., None])[..., 0]
    return masked_mean(-score, seen.flatten(1))


def motion_loss(logits: Tensor, moving: Tensor, valid: Tensor) -> Tensor:  # (B, H, W) each
    """Sum binary cross-entropy and Dice: the first calibrates, the second sees small movers.

    Dice: 1 - 2 Σ p y / (Σ p + Σ y), per image (V-Net, Milletari et al. 2016, eq. 1, with plain sums below).
    Images in which nothing moves have no Dice term: cross-entropy alone keeps them empty.
    """
    target = moving.to(logits.dtype)
    bce = masked_mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), valid)
    weight = valid.to(logits.dtype)
    p, y = logits.sigmoid() * weight, target * weight
    dice = 1 - 2 * (p * y).flatten(1).sum(1) / (p + y).flatten(1).sum(1).clamp_min(1e-6)
    return bce + masked_mean(dice, y.flatten(1).sum(1) > 0)


def typical_distance(points: Tensor, valid: Tensor) -> Tensor:  # (B, N, 3), (B, N) -> (B,)
    """Geometric mean of the distances of valid points from the origin, per clip.

    DUSt3R takes the arithmetic mean (Wang et al. 2024, eq. 3), which a few far points decide: by throwing those
    farther out, a network could shrink all others.
    """
    weight = valid.to(points.dtype)
    log = torch.linalg.vector_norm(points, dim=-1).clamp_min(1e-6).log()
    return ((log * weight).sum(1) / weight.sum(1).clamp_min(1)).exp()


def confident_pointmap_loss(
    points: Tensor,  # (B, N, 3), scaled
    target: Tensor,  # (B, N, 3), scaled
    log_scale: Tensor,  # (B, N) log of the relative error that the network expects
    valid: Tensor,
) -> Tensor:
    """Weigh the error of each point by its confidence C and pay for low confidence: ``C |x - x̄| / √(|x| |x̄|) - log C``.

    Source: DUSt3R (Wang et al., CVPR 2024), eq. 4, with C = 1 / b. The error is relative, so that b is the expected
    relative error at any depth, and symmetric: over |x̄| alone, too near would never cost more than 1.
    """
    found, true = (torch.linalg.vector_norm(x, dim=-1).clamp_min(1e-6) for x in (points, target))
    error = torch.linalg.vector_norm(points - target, dim=-1) / (found * true).sqrt()
    return masked_mean(error.clamp(max=5) * torch.exp(-log_scale) + log_scale, valid)


def gradient_loss(log_depth: Tensor, target: Tensor, valid: Tensor, scales: int = 4) -> Tensor:
    """Compare gradients of log depth at several scales: edges sharp, surfaces smooth.

    ``Σ_k mean |∇_k (log d - log d̄)|``: the scale-invariant gradient matching of MegaDepth (Li & Snavely 2018, eq. 3).
    """
    difference = log_depth - target  # (B, H, W)
    total = difference.new_zeros(())
    for k in range(scales):
        step = 2**k
        d, v = difference[..., ::step, ::step], valid[..., ::step, ::step]
        if min(d.shape[-2:]) < 2:
            break
        total = total + masked_mean((d[..., 1:] - d[..., :-1]).abs(), v[..., 1:] & v[..., :-1])
        total = total + masked_mean(
            (d[..., 1:, :] - d[..., :-1, :]).abs(), v[..., 1:, :] & v[..., :-1, :]
        )
    return total


def rotation_angle(a: Tensor, b: Tensor) -> Tensor:  # (..., 3, 3) twice -> (...)
    """Angle between rotations in radians, with a finite gradient at zero: 2 asin(‖A - B‖ / √8)."""
    chord = (a - b).square().sum((-1, -2)).clamp_min(1e-12).sqrt()
    return 2 * torch.asin((chord / math.sqrt(8)).clamp(max=1 - 1e-6))


def focal_loss(focal: Tensor, target: Tensor, valid: Tensor) -> Tensor:  # (B,) each
    """Compare focal lengths as log ratios, so that wide and long lenses count alike."""
    return masked_mean((focal.clamp_min(1e-6) / target.clamp_min(1e-6)).log().abs(), valid)


def alignment_loss(
    points_a: Tensor,  # (B, H, W, 3) in camera a
    points_b: Tensor,  # (B, H, W, 3) in camera b
    flow: Tensor,  # (B, 2, H, W) a → b
    b_from_a: Tensor,  # (B, 4, 4)
    static: Tensor,  # (B, H, W) seen in both frames and not moving
) -> Tensor:
    """Make both pointmaps agree on static surfaces: ‖P_B(x + flow) - (R P_A(x) + t)‖ relative to the distance.

    Source: the bidirectional alignment of pairwise pointmaps in MonST3R (Zhang et al. 2024, eq. 5); call it both ways.
    """
    moved = (
        torch.einsum("bij,bhwj->bhwi", b_from_a[:, :3, :3], points_a)
        + b_from_a[:, None, None, :3, 3]
    )
    seen, inside = sample_at(points_b.permute(0, 3, 1, 2), flow)
    error = torch.linalg.vector_norm(seen.permute(0, 2, 3, 1) - moved, dim=-1)
    scale = torch.linalg.vector_norm(moved, dim=-1).clamp_min(1e-3)
    return masked_mean((error / scale).clamp(max=2), static & inside)


def consistency_loss(
    log_depth_a: Tensor,  # (B, H, W)
    log_depth_b: Tensor,
    true_a: Tensor,
    true_b: Tensor,
    flow: Tensor,  # (B, 2, H, W) a → b
    seen: Tensor,  # (B, H, W) seen in both frames, depth known in both
) -> Tensor:
    """Make depth change over time as the true depth does along the flow: no flicker, whatever its bias.

    ``|(D_b(x + f) - D_a(x)) - (D̄_b(x + f) - D̄_a(x))|`` with D = log depth: the temporal gradient matching of
    Video Depth Anything (Chen et al. 2025, eq. 4), along the flow instead of at the pixel.
    """
    later, inside = sample_at(torch.stack([log_depth_b, true_b], 1), flow)
    change, true_change = later[:, 0] - log_depth_a, later[:, 1] - true_a
    # Where the warp mixes two surfaces the true change jumps: those pixels teach nothing.
    clean = seen & inside & (true_change.abs() < 0.3)
    return masked_mean((change - true_change).abs(), clean)


def photometric_loss(image_a: Tensor, image_b: Tensor, flow: Tensor, seen: Tensor) -> Tensor:
    """Compare frame a with frame b sampled along the flow: 0.85 (1 - SSIM) / 2 + 0.15 L1. Needs no labels.

    Source: Monodepth2 (Godard et al., ICCV 2019), eq. 2. ``seen`` (B, H, W) leaves out what is hidden in b, for
    instance by the round trip of the flow.
    """
    back, inside = sample_at(image_b, flow)
    error = 0.85 * _dissimilarity(image_a, back) + 0.15 * (image_a - back).abs().mean(1)
    return masked_mean(error, seen & inside)


def smoothness_loss(flow: Tensor, image: Tensor) -> Tensor:  # (B, 2, H, W), (B, 3, H, W)
    """Keep flow smooth except across image edges: |∇f| exp(-10 |∇I|).

    Source: first-order edge-aware smoothness of UFlow (Jonschkowski et al., ECCV 2020), eq. 3.
    """
    total = flow.new_zeros(())
    for axis in (-1, -2):
        slope = flow.diff(dim=axis).abs().mean(1)
        edge = image.diff(dim=axis).abs().mean(1)
        total = total + (slope * torch.exp(-10 * edge)).mean()
    return total


def _dissimilarity(a: Tensor, b: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, H, W)
    """(1 - SSIM) / 2 over 3×3 windows, mean over channels (Wang et al. 2004, eq. 13)."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (1,) * 4, mode="reflect"), 3, 1)

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return ((1 - ssim) / 2).clamp(0, 1).mean(1)


def sample_at(values: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:  # (B, C, H, W), (B, 2, H, W)
    """Sample ``values`` where the flow points, and say where that lies inside the image."""
    H, W = flow.shape[-2:]
    at = pixel_grid(H, W, flow) + flow
    inside = (at[:, 0] >= 0) & (at[:, 0] <= W - 1) & (at[:, 1] >= 0) & (at[:, 1] <= H - 1)
    return warp(values, flow, padding="border"), inside

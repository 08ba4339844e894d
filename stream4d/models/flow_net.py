"""Dense correspondence for the temporal model: coarse matching, fusion, recurrent refinement.

Works on both directions of a frame pair at once (the direction is one more batch entry). Three sources agree on a flow:
a classical initial flow (OpenCV DIS, ``temporal_cues``), a global match of learned descriptors at 1/16 resolution
(LoFTR's dual softmax) that knows large displacements, and a recurrent refinement over local correlation at 1/4
resolution with weights shared over iterations (PWC-Net's warped cost volume inside RAFT's update). The initial flow is
an input and not a crutch: training hides or weakens it in part of the samples.

Shapes: B batch (directions included), C channels, H W the image, h w the level at hand; flows are in pixels of their
level.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models import fused
from stream4d.models.convolution import Conv, rectified
from stream4d.models.flow_propagation import Mended, Propagation
from stream4d.models.frame_encoder import FrameFeatures
from stream4d.models.matching import GlobalMatch, correlation, global_match
from stream4d.models.sampling import convex_upsample, join, resize_flow, round_trip

STEP = 0.2
"""Gain of predicted flow corrections: most of them are fractions of a pixel, and Adam's steps are not."""


class MatchFeatures(NamedTuple):
    """What matching needs of one frame; made once, used with the frame before and with the one after."""

    unit: Tensor
    """(B, 64, H/8, W/8) descriptors of unit length."""
    descriptors: Tensor
    """(B, D, H/4, W/4) descriptors of length 4."""
    eighth: Tensor
    """(B, 32, H/8, W/8) context of the fusion."""
    quarter: Tensor
    """(B, 32, H/4, W/4) context of the refinement."""


class FlowFields(NamedTuple):
    """Flow of a batch of directed pairs."""

    steps: list[Tensor]
    """Estimates of growing quality, each (B, 2, H, W) pixels; the last is the answer."""
    mixture: Tensor | None
    """(B, 2, H, W): logit of the wide Laplace component and log of its scale in pixels; only for training."""
    log_sigma: Tensor
    """(B, 1, H, W) log of the Laplace scale of the answer's error, pixels per axis."""
    match: GlobalMatch
    """The coarse match that went in; its scores have a loss of their own."""
    hidden: Tensor
    """(B, Ch, H/4, W/4) state of the refinement, for the motion and depth heads."""
    upsampling: Tensor
    """(B, 144, H/4, W/4) logits of the convex upsampling from 1/4 to full resolution."""
    quarter: Tensor
    """(B, 2, H/4, W/4) the answer before upsampling, in pixels of that level."""


def roughness(flow: Tensor, mean: Tensor) -> Tensor:
    """Measure how much a flow varies inside each cell around the smooth field of the cells' means."""
    if fused.fits(flow):
        return fused.roughness(flow, mean)
    smooth = F.interpolate(mean, flow.shape[-2:], mode="bilinear", align_corners=False)
    return F.avg_pool2d(torch.log1p((flow - smooth).abs().sum(1, keepdim=True)), 4)


def finish_flow(
    values: Tensor,  # (2B, 4, h, w): the flow and the initial flow, in pixels of the full image
    logits: Tensor,  # (2B, 144, h, w) of the convex upsampling
    smooth: Tensor,  # (2B, 3, h, w): trust, logit of the detail's gain, log of the error's scale
    initial: Tensor,  # (2B, 2, H, W)
) -> tuple[Tensor, Tensor]:
    """Bring a flow and its log scale to full resolution.

    The learned upsampling, and what the initial flow knows inside a cell where it is trusted: an untrained network
    returns the mended flow.
    """
    if fused.fits(values):
        return fused.finish_flow(values, logits, smooth, initial)
    both = convex_upsample(values, logits)
    smooth = F.interpolate(smooth, initial.shape[-2:], mode="bilinear", align_corners=False)
    detail = smooth[:, :1] * smooth[:, 1:2].sigmoid() * (initial - both[:, 2:])
    return both[:, :2] + detail, smooth[:, 2:]


def tanh_of_sum(values: Tensor, added: Tensor) -> Tensor:  # (B, C, h, w) twice
    """Add up and bound to (-1, 1); without gradients ``values`` may be written over."""
    low = values.dtype == added.dtype == torch.bfloat16
    flat = values.stride() == added.stride() and values.stride(1) == 1
    if low and flat and fused.fits(values):
        return fused.tanh_of_sum(values, added)
    return torch.tanh(values + added)


class Fusion(nn.Module):
    """At 1/8: choose between the initial flow and the global match, and mend both."""

    def __init__(self, context: int, tokens: int, hidden: int) -> None:
        super().__init__()
        self.context = rectified(context + tokens, 32, 1)  # by FlowNet.describe_frame
        self.enter = rectified(18 + 3 + 4 + 32, 64)
        self.blocks = nn.ModuleList([rectified(64, 64, dilation=d) for d in (1, 2, 4, 1)])
        self.flow = Conv(64, 4)
        self.hidden = Conv(64, hidden)
        nn.init.zeros_(self.flow.weight)
        with torch.no_grad():  # start out as the initial flow
            self.flow.bias.copy_(  # type: ignore[union-attr]
                torch.tensor([0.0, 0.0, -4.0, 4.0])
            )

    def forward(
        self,
        initial: Tensor,  # (2B, 2, h, w) in cells
        match: GlobalMatch,
        unit: Tensor,  # (2B, 64, h, w) descriptors
        context: Tensor,  # (2B, 32, h, w)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return flow in cells, the trust in the initial flow's detail (0..1), and the hidden state."""
        costs = [correlation(4 * unit, f, 1)[0] for f in (initial, match.flow)]
        errors = [torch.log1p(round_trip(f)) for f in (initial, match.flow)]
        jump = match.flow - initial
        clues = [*costs, *errors, match.confidence, jump / (1 + jump.abs()), initial / 16]
        x = self.enter(join(context, *clues, context))
        for block in self.blocks:
            x = x + block(x)
        out = self.flow(x).float()
        flow = initial + out[:, 2:3].sigmoid() * jump + STEP * out[:, :2]
        return flow, out[:, 3:4].sigmoid(), self.hidden(x)


def _smooth_upsampling(layer: nn.Module) -> None:
    """Let the learned upsampling begin as a smooth interpolation: weights fall with the distance of the cells."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    at = torch.arange(4) / 4 - 0.375
    cells = torch.tensor([-1.0, 0.0, 1.0])
    y = (cells[:, None, None, None] - at[:, None]) ** 2
    x = (cells[None, :, None, None] - at[None, :]) ** 2
    with torch.no_grad():
        layer.weight.mul_(0.1)
        layer.bias.copy_(-2 * (y + x).flatten())


class Refiner(nn.Module):
    """At 1/4: recurrent refinement over local correlation, weights shared over iterations."""

    def __init__(self, context: int, hidden: int, radius: int) -> None:
        super().__init__()
        self.radius = radius
        self.context = rectified(context, 32, 1)  # by FlowNet.describe_frame
        self.enter = rectified((2 * radius + 1) ** 2 + 2 + 1 + 1 + 32 + 3 + hidden, hidden)
        self.blocks = nn.ModuleList([rectified(hidden, hidden, dilation=d) for d in (1, 2)])
        self.update = Conv(hidden, hidden)
        self.delta = Conv(hidden, 2)
        # Nothing stands between them: it keeps the names of the weights.
        self.mask = nn.Sequential(rectified(hidden, 64), nn.Identity(), Conv(64, 144, 1))
        self.scale = Conv(hidden, 4)
        for layer in (self.delta, self.scale):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        _smooth_upsampling(self.mask[2])

    def forward(
        self,
        flow: Tensor,  # (2B, 2, h, w) pixels of the level
        initial: Tensor,  # the classical flow at this level
        hidden: Tensor,
        context: Tensor,  # (2B, 35, h, w) of the frame and from full resolution
        descriptors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the better flow, the next hidden state, and what it says of the flow's error (2B, 4, h, w)."""
        costs, apart = correlation(descriptors, flow, self.radius)
        back = torch.log1p(round_trip(flow))
        away = (initial - flow).clamp(-8, 8) / 4
        x = self.enter(join(hidden, costs, away, back, apart, context, hidden))
        for block in self.blocks:
            x = x + block(x)
        hidden = tanh_of_sum(self.update(x), hidden)
        # One convolution for both: a few channels cost as much as sixteen.
        layers = (self.delta, self.scale)
        weight, bias = (torch.cat([getattr(x, n) for x in layers]) for n in ("weight", "bias"))
        delta, scale = F.conv2d(hidden, weight, bias, padding=1).float().split([2, 4], 1)
        return flow + STEP * delta, hidden, scale


class FlowNet(nn.Module):
    """Both flows of a frame pair from the frames' features, their tokens and an initial flow."""

    def __init__(
        self,
        *,
        quarter: int,
        tokens: int,
        hidden: int = 48,
        descriptor: int = 32,
        radius: int = 2,
        iterations: int = 2,
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.match_tokens = Conv(tokens, 64, 1)
        nn.init.zeros_(self.match_tokens.weight)
        nn.init.zeros_(self.match_tokens.bias)  # type: ignore[arg-type]
        self.match_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.propagation = Propagation()
        self.fusion = Fusion(64, tokens, hidden)
        self.describe = Conv(quarter + 64, descriptor, 1)
        self.refiner = Refiner(quarter, hidden, radius)

    def describe_frame(self, features: FrameFeatures, tokens: Tensor) -> MatchFeatures:
        """Prepare a frame with tokens (B, C, H/16, W/16) for matching."""
        quarter, eighth = features.quarter, features.eighth
        upped = F.interpolate(tokens, eighth.shape[-2:], mode="bilinear", align_corners=False)
        unit = F.normalize(eighth + self.match_tokens(upped), dim=1)
        wide = F.interpolate(unit, quarter.shape[-2:], mode="bilinear", align_corners=False)
        fine = self.describe(torch.cat([quarter, 8 * wide.to(quarter.dtype)], 1))
        return MatchFeatures(
            unit,
            4 * F.normalize(fine - fine.mean(1, keepdim=True), dim=1),
            self.fusion.context(torch.cat([eighth, upped], 1)),
            self.refiner.context(quarter),
        )

    def forward(
        self,
        a: FrameFeatures,
        b: FrameFeatures,
        matching: tuple[MatchFeatures, MatchFeatures],
        initial: Tensor,  # (2B, 2, H, W): a → b, then b → a
        *,
        iterations: int | None = None,
    ) -> FlowFields:
        size8, size4, size = a.eighth.shape[-2:], a.quarter.shape[-2:], initial.shape[-2:]
        scale = self.match_scale.exp().clamp(max=100)
        match = global_match(matching[0].unit, matching[1].unit, scale)
        near = MatchFeatures(*(torch.cat(both) for both in zip(*matching, strict=True)))
        grey = torch.cat([a.grey, b.grey])
        mended = self.propagation(initial, grey, torch.cat([a.colour, b.colour]))
        given4, initial4 = mended.mean / 4, mended.flow / 4
        initial8 = resize_flow(initial4, size8)
        flow8, trust, hidden8 = self.fusion(initial8, match, near.unit, near.eighth)
        trust = F.interpolate(trust, size4, mode="bilinear", align_corners=False)
        coarse = resize_flow(flow8, size4)
        # The detail that 1/8 cannot carry comes from the initial flow where it is trusted.
        flow = coarse + trust * (initial4 - resize_flow(initial8, size4))
        hidden = F.interpolate(hidden8, size4, mode="bilinear", align_corners=False)
        hidden = tanh_of_sum(hidden, torch.zeros_like(hidden))
        context = join(near.quarter, near.quarter, _clues(initial, mended))
        is_training = torch.is_grad_enabled()
        steps = [resize_flow(flow, size)] if is_training else []
        for _ in range(iterations or self.iterations):
            flow, hidden, scales = self.refiner(
                flow.detach(), given4, hidden, context, near.descriptors
            )
            if is_training:
                steps.append(resize_flow(flow, size))
        mask = self.refiner.mask(hidden)
        smooth = torch.cat([mended.trust, scales[:, 3:] + 3, scales[:, 2:3]], 1)
        answer, log_sigma = finish_flow(4 * torch.cat([flow, given4], 1), mask, smooth, initial)
        # Earlier steps are there for their losses.
        steps = [*steps[:-1], answer]
        mixture = _mixture(scales, size) if is_training else None
        return FlowFields(steps, mixture, log_sigma, match, hidden, mask, flow)


def _clues(initial: Tensor, mended: Mended) -> Tensor:
    """Say where the initial flow fails, from full resolution: (2B, 3, H/4, W/4).

    How far the other frame, brought back along it, differs from this one, how much the flow varies inside a cell, and
    how far propagation kept it.
    """
    rough = roughness(initial, mended.mean)
    return torch.cat([mended.apart.clamp(max=3), rough, mended.trust.detach()], 1)


def _mixture(scales: Tensor, size: tuple[int, ...]) -> Tensor:
    scales = F.interpolate(scales[:, :2], size, mode="bilinear", align_corners=False)
    return torch.cat([scales[:, :1], 10 * torch.sigmoid(scales[:, 1:] - 1)], 1)

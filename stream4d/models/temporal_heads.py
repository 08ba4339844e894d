"""Heads of the temporal model: dense depth and motion, focal length; and the unit of the camera's motion."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.convolution import Conv, rectified
from stream4d.models.rigid_motion import RigidFields
from stream4d.models.sampling import join


class DenseMaps(NamedTuple):
    """Maps on the pixel grid of a frame, at 1/4 resolution."""

    motion: Tensor
    """(B, 1, h, w) logit that the surface moves."""
    log_depth: Tensor
    """(B, 1, h, w)."""
    log_scale: Tensor
    """(B, 1, h, w) log of the Laplace scale of log depth."""


CUES = 11
"""Channels of ``motion_cues``."""


def motion_cues(
    rigid: Tensor,  # (B, 4, h, w) what the camera's motion leaves of the flow (``RigidFields.maps``)
    flow: Tensor,  # (B, 2, h, w)
    log_sigma: Tensor,  # (B, 1, h, w)
    round_trip: Tensor,  # (B, 1, h, w)
    earlier: Tensor,  # (B, 1, h, w) motion logit of the frame before, carried along
) -> Tensor:
    """Bring what speaks of motion to comparable ranges."""
    error = torch.exp(log_sigma).clamp(0.05, 20)
    residual = torch.log1p(4 * rigid[:, :2])
    normalised = torch.log1p(4 * rigid[:, :2] / error)
    field = flow / (1 + flow.abs())
    rest = [torch.log1p(round_trip), log_sigma.clamp(-4, 4) / 2, torch.tanh(earlier / 4)]
    along, inverse = rigid[:, 2:3], rigid[:, 3:]
    typical = inverse.abs().flatten(1).median(1).values[:, None, None, None] + 1e-6
    depth = [along.sign() * torch.log1p(4 * along.abs()), (inverse / typical).clamp(-2, 4)]
    return torch.cat([residual, normalised, field, *rest, *depth], 1).detach()


class DenseHead(nn.Module):
    """Depth and motion of one frame from its features, its tokens, and the flow to the neighbour."""

    def __init__(
        self, quarter: int, eighth: int, tokens: int, hidden: int, width: int = 48
    ) -> None:
        super().__init__()
        self.tokens = Conv(tokens, 48, 1)
        self.skip = rectified(quarter + hidden, 32, 1)
        self.enter = rectified(32 + CUES, 32)
        self.down = rectified(32, 48, stride=2)
        self.middle = rectified(48 + 48 + eighth, 64)
        self.blocks = nn.ModuleList([rectified(64, 64, dilation=d) for d in (1, 2, 4)])
        self.up = rectified(64 + 32, width)
        self.out = Conv(width, 3)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(
        self, quarter: Tensor, eighth: Tensor, tokens: Tensor, hidden: Tensor, cues: Tensor
    ) -> DenseMaps:
        """All inputs share the batch; ``tokens`` is at 1/16, ``hidden`` and ``cues`` at 1/4."""
        skip = self.skip(join(quarter, quarter, hidden))
        near = self.enter(join(skip, skip, cues))
        scene = F.interpolate(
            self.tokens(tokens), eighth.shape[-2:], mode="bilinear", align_corners=False
        )
        x = join(near, self.down(near), F.relu_(scene), eighth)
        x = self.middle(x)
        for block in self.blocks:
            x = x + block(x)
        x = F.interpolate(x, quarter.shape[-2:], mode="bilinear", align_corners=False)
        out = self.out(self.up(torch.cat([x, near], 1))).float()
        motion, depth, scale = out.split(1, 1)
        return DenseMaps(motion - 2, depth, scale.clamp(-5, 3))


class CameraMotion(NamedTuple):
    """Relative motion of the camera: points of the later frame's camera to the earlier's, x_a = R x_b + t."""

    rotation: Tensor
    """(B, 3, 3)."""
    translation: Tensor
    """(B, 3) in the unit of the predicted depth."""
    log_sigma: Tensor
    """(B, 2) log of the 1σ of the rotation (radians) and of the translation's direction (radians)."""


def camera_motion(
    rigid: RigidFields, maps: DenseMaps, log_sigma: Tensor
) -> (
    CameraMotion
):  # maps of both frames or of b alone; log_sigma (2B, 1, h, w) of the flow, pixels of the image
    """Give the camera's motion the unit of the predicted depth.

    Triangulation on a baseline of 1 says how deep the static cells are; the median ratio to the predicted depth is the
    baseline's length. No length where too little parallax tells it.
    """
    count = len(maps.motion)
    frames = count // len(rigid.rotation)
    sampson, _, along, inverse = rigid.maps.split(1, 1)
    noise = log_sigma[-count:].exp() / 4  # of the level
    clear = (maps.motion < 0) & (along > 3 * noise + 0.1) & (sampson < noise + 0.1) & (inverse > 0)
    ratio = torch.where(clear, inverse * maps.log_depth.exp(), torch.nan)
    length = torch.cat([*ratio.chunk(frames)], 1).flatten(1).nanmedian(1).values
    length = torch.where(clear.sum((1, 2, 3)).view(frames, -1).sum(0) < MIN_CLEAR, 0.0, length)
    return CameraMotion(
        rigid.rotation, rigid.direction * length.nan_to_num()[:, None], rigid.sigma.log()
    )


MIN_CLEAR = 16
"""Cells with clear parallax that a baseline's length needs."""


class FocalHead(nn.Module):
    """Focal length in units of the image's long side, from the scene's tokens and the unified queries."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * tokens, 64), nn.GELU(), nn.Linear(64, 1))
        nn.init.zeros_(self.layers[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[2].bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:  # (B, C, h, w), (B, Q, C) -> (B,)
        pooled = torch.cat([tokens.mean((2, 3)), queries.mean(1).to(tokens.dtype)], 1)
        # Zero is a long side of one focal length: about 53 degrees.
        return torch.exp(self.layers(pooled)[:, 0].float().clamp(-1.2, 1.6))

"""Heads of the temporal model: dense depth and motion, relative camera motion, focal length."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.flow_net import conv
from stream4d.models.sampling import join


class _NearestRotation(torch.autograd.Function):
    """The rotation nearest to a 3×3 matrix, with a gradient that is finite at the identity."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        U, S, Vh = torch.linalg.svd(matrix)
        # The sign keeps the nearest orthogonal matrix a rotation; det of 3 columns is their triple product.
        R = U @ Vh
        sign = torch.ones_like(S)
        sign[..., 2] = torch.linalg.vecdot(
            torch.linalg.cross(R[..., 0], R[..., 1]), R[..., 2]
        ).sign()
        U, S = U * sign[..., None, :], S * sign
        ctx.save_for_backward(U, S, Vh)
        out: Tensor = U @ Vh
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        U, S, Vh = ctx.saved_tensors
        inner = U.mT @ grad @ Vh.mT
        # d(UVᵀ) of a polar decomposition: antisymmetric part over the sums of singular values. Autograd through
        # the SVD itself would divide by their differences, which vanish at the identity.
        sums = (S[..., :, None] + S[..., None, :]).clamp_min(1e-4)
        out: Tensor = U @ ((inner - inner.mT) / sums) @ Vh
        return out


def nearest_rotation(matrix: Tensor) -> Tensor:  # (..., 3, 3)
    """Project onto SO(3) by SVD (Levinson et al., NeurIPS 2020, eq. 1: better than 6D or quaternions)."""
    with torch.autocast(matrix.device.type, enabled=False):
        out: Tensor = _NearestRotation.apply(matrix.float())  # type: ignore[no-untyped-call]
    return out


class DenseMaps(NamedTuple):
    """Maps on the pixel grid of a frame, at 1/4 resolution."""

    motion: Tensor
    """(B, 1, h, w) logit that the surface moves."""
    log_depth: Tensor
    """(B, 1, h, w)."""
    log_scale: Tensor
    """(B, 1, h, w) log of the Laplace scale of log depth."""


CUES = 9
"""Channels of ``motion_cues``."""


def motion_cues(
    rigid: Tensor,  # (B, 2, h, w) residuals of the two rigid models, pixels of the level
    flow: Tensor,  # (B, 2, h, w)
    log_sigma: Tensor,  # (B, 1, h, w)
    round_trip: Tensor,  # (B, 1, h, w)
    earlier: Tensor,  # (B, 1, h, w) motion logit of the frame before, carried along
) -> Tensor:
    """Bring what speaks of motion to comparable ranges."""
    error = torch.exp(log_sigma).clamp(0.05, 20)
    residual = torch.log1p(4 * rigid)
    normalised = torch.log1p(4 * rigid / error)
    field = flow / (1 + flow.abs())
    rest = [torch.log1p(round_trip), log_sigma.clamp(-4, 4) / 2, torch.tanh(earlier / 4)]
    return torch.cat([residual, normalised, field, *rest], 1).detach()


class DenseHead(nn.Module):
    """Depth and motion of one frame from its features, its tokens, and the flow to the neighbour."""

    def __init__(
        self, quarter: int, eighth: int, tokens: int, hidden: int, width: int = 48
    ) -> None:
        super().__init__()
        self.tokens = conv(tokens, 48, 1)
        self.skip = conv(quarter + hidden, 32, 1)
        self.enter = conv(32 + CUES, 32)
        self.down = conv(32, 48, stride=2)
        self.middle = conv(48 + 48 + eighth, 64)
        self.blocks = nn.ModuleList([conv(64, 64, dilation=d) for d in (1, 2, 4)])
        self.up = conv(64 + 32, width)
        self.out = conv(width, 3)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(
        self, quarter: Tensor, eighth: Tensor, tokens: Tensor, hidden: Tensor, cues: Tensor
    ) -> DenseMaps:
        """All inputs share the batch; ``tokens`` is at 1/16, ``hidden`` and ``cues`` at 1/4."""
        skip = F.relu(self.skip(join(quarter, quarter, hidden)))
        near = F.relu(self.enter(join(skip, skip, cues)))
        scene = F.interpolate(
            self.tokens(tokens), eighth.shape[-2:], mode="bilinear", align_corners=False
        )
        x = join(near, F.relu(self.down(near)), F.relu(scene), eighth)
        x = F.relu(self.middle(x))
        for block in self.blocks:
            x = x + F.relu(block(x))
        x = F.interpolate(x, quarter.shape[-2:], mode="bilinear", align_corners=False)
        out = self.out(F.relu(self.up(torch.cat([x, near], 1)))).float()
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


class CameraHead(nn.Module):
    """Relative camera motion from the flow, depth and motion on a small grid, and from both frames' tokens."""

    GRID = (6, 8)

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = conv(2 * tokens, 32, 1)
        self.layers = nn.ModuleList([conv(32 + 12, 64), conv(64, 64)])
        cells = self.GRID[0] * self.GRID[1]
        self.mix = nn.Linear(32 * cells, 128)
        self.narrow = conv(64, 32, 1)
        self.rotation = nn.Linear(128, 9)
        self.translation = nn.Linear(128, 3)
        self.sigma = nn.Linear(128, 2)
        for layer in (self.rotation, self.translation, self.sigma):
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        tokens: tuple[Tensor, Tensor],
        flow: Tensor,  # (2B, 2, h, w) a → b and b → a, pixels of the level
        maps: DenseMaps,  # of both frames, batch 2B
        focal: Tensor,  # (B,) in pixels of the level
    ) -> CameraMotion:
        h, w = flow.shape[-2:]
        rate = flow / focal.repeat(2)[:, None, None, None]
        static = 1 - maps.motion.detach().sigmoid()
        rate = rate.clamp(-1, 1) * 5
        clues = torch.cat(
            [rate * static, static, maps.log_depth.detach().clamp(-3, 3)], 1
        )  # (2B, 4, h, w)
        clues = torch.cat([*clues.chunk(2)], 1)
        y = (
            torch.linspace(-1, 1, h, device=flow.device)[:, None].expand(h, w)
            * (h / focal)[:, None, None]
        )
        x = torch.linspace(-1, 1, w, device=flow.device).expand(h, w) * (w / focal)[:, None, None]
        rays = torch.stack([x, y, x * y, x * x - y * y], 1)
        clues = F.adaptive_avg_pool2d(torch.cat([clues, rays], 1), self.GRID)
        scene = F.adaptive_avg_pool2d(F.relu(self.tokens(torch.cat(tokens, 1))), self.GRID)
        z = torch.cat([scene, clues.to(scene.dtype)], 1)
        for layer in self.layers:
            z = F.relu(layer(z))
        z = F.relu(self.mix(F.relu(self.narrow(z)).flatten(1)))
        turn = self.rotation(z).float().view(-1, 3, 3) * 0.3
        eye = torch.eye(3, device=turn.device)
        return CameraMotion(
            nearest_rotation(eye + turn),
            self.translation(z).float(),
            self.sigma(z).float().clamp(-4, 4) + torch.tensor([-3.5, -0.5], device=turn.device),
        )


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

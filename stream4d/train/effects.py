"""Traces that real cameras leave on perfect images. Colour only: the geometry and its labels stay exact.

Order as in a camera: lens (blur, motion blur, vignette), sensor (exposure, white balance, noise), codec (JPEG-like).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stream4d.train.cameras import Floats, log_uniform, smooth_noise

_BLOCK = 8
_MOTION_TAPS = 5
_LUMA = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))


def _some(rng: np.random.Generator, batch: int, share: float) -> Floats:
    """Return 1 for the clips that get an effect, else 0."""
    return (rng.random(batch) < share).astype(np.float64)


def _per_clip(values: Floats, like: Tensor) -> Tensor:
    """Return (B,) or (B, T) numbers as a tensor that broadcasts over (B, T, 3, H, W)."""
    tensor = torch.from_numpy(np.asarray(values)).to(like)
    return tensor.reshape(*tensor.shape, *[1] * (5 - tensor.ndim))


def soften(rgb: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur by the lens: a separable [w, 1 - 2w, w] kernel per clip, w up to 0.28."""
    B, T, C, H, W = rgb.shape
    w = _per_clip(rng.uniform(0.05, 0.28, B), rgb)
    padded = F.pad(rgb.view(B * T, C, H, W), (1, 1, 1, 1), mode="replicate").view(
        B, T, C, H + 2, W + 2
    )
    rows = padded[..., 1:-1, :].lerp(0.5 * (padded[..., :-2, :] + padded[..., 2:, :]), 2 * w)
    return rows[..., 1:-1].lerp(0.5 * (rows[..., :-2] + rows[..., 2:]), 2 * w)


def motion_blur(
    rgb: Tensor,
    velocity: Tensor,  # (B, T, H, W, 2) pixels a frame
    rng: np.random.Generator,
    share: float,
) -> Tensor:
    """Average along the flow over an open shutter, centred on the frame's time."""
    H, W = rgb.shape[-2:]
    scale = torch.tensor([2 / W, 2 / H], device=rgb.device)
    v, u = torch.meshgrid(
        (torch.arange(H, device=rgb.device) + 0.5) * 2 / H - 1,
        (torch.arange(W, device=rgb.device) + 0.5) * 2 / W - 1,
        indexing="ij",
    )
    here = torch.stack((u, v), -1)
    out = rgb.clone()
    shutter = rng.uniform(0.15, 0.7, len(rgb))
    for b in np.flatnonzero(_some(rng, len(rgb), share)):
        reach = velocity[b].clamp(-0.2 * W, 0.2 * W) * scale * float(shutter[b])
        total = torch.zeros_like(rgb[b])
        for at in np.linspace(-0.5, 0.5, _MOTION_TAPS):
            total += F.grid_sample(
                rgb[b], here + reach * float(at), align_corners=False, padding_mode="border"
            )
        out[b] = total / _MOTION_TAPS
    return out


def expose(rgb: Tensor, rng: np.random.Generator) -> Tensor:
    """Vignette, contrast, and an exposure and white balance that drift in time."""
    B, T, _, H, W = rgb.shape
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, H, device=rgb.device),
        torch.linspace(-1, 1, W, device=rgb.device),
        indexing="ij",
    )
    fall = _per_clip(rng.uniform(0, 0.35, B) * _some(rng, B, 0.4), rgb)
    gamma = _per_clip(np.exp(rng.normal(0, 0.15, B)), rgb)
    gain = np.exp(rng.normal(0, 0.12, (B, 1)) + 0.05 * smooth_noise(rng, (B, T), 0.8))
    white = np.exp(rng.normal(0, 0.05, (B, 1, 3)) + 0.01 * smooth_noise(rng, (B, T, 3), 0.8))
    out = rgb.clamp(1e-4, 1).pow(gamma) * (1 - fall * (x * x + y * y) / 2)
    return out * _per_clip(gain, rgb) * _per_clip(white, rgb)


def add_noise(rgb: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Add sensor noise whose variance is linear in brightness."""
    B = len(rgb)
    read = _per_clip(log_uniform(rng, 0.002, 0.03, (B,)) * _some(rng, B, 0.8), rgb)
    shot = _per_clip(log_uniform(rng, 0.002, 0.04, (B,)) * _some(rng, B, 0.8), rgb)
    noise = torch.randn(rgb.shape, generator=generator, device=rgb.device, dtype=rgb.dtype)
    return rgb + noise * (read**2 + shot**2 * rgb.clamp(0, 1)).sqrt()


def _cosines(like: Tensor) -> Tensor:
    """Return the orthonormal DCT-II matrix (8, 8)."""
    k, n = np.meshgrid(np.arange(_BLOCK), np.arange(_BLOCK), indexing="ij")
    matrix = np.sqrt(2 / _BLOCK) * np.cos(np.pi * (2 * n + 1) * k / (2 * _BLOCK))
    matrix[0] /= np.sqrt(2)
    return torch.from_numpy(matrix).to(like)


def compress(rgb: Tensor, step: float) -> Tensor:  # (N, 3, H, W)
    """Quantise 8×8 cosine blocks, coarser in high frequencies and in colour, like JPEG.

    Args:
        rgb: images in [0, 1].
        step: quantisation of the coarsest luma component, in units of 8-bit levels.
    """
    H, W = rgb.shape[-2:]
    mix = torch.tensor(_LUMA, device=rgb.device)
    planes = torch.einsum("ij,njhw->nihw", mix, rgb)
    planes = F.pad(planes, (0, -W % _BLOCK, 0, -H % _BLOCK), mode="replicate")
    N, C, Hp, Wp = planes.shape
    blocks = planes.view(N, C, Hp // _BLOCK, _BLOCK, Wp // _BLOCK, _BLOCK)
    D = _cosines(rgb)
    k = torch.arange(_BLOCK, device=rgb.device)
    quantum = step / 255 * (1 + 0.6 * (k[:, None] + k))[:, None]  # (8, 1, 8)
    quantum = quantum * torch.tensor([1.0, 2.0, 2.0], device=rgb.device)[:, None, None, None, None]
    frequencies = torch.einsum("ka,nciajb,lb->nciklj", D, blocks, D).permute(0, 1, 2, 3, 5, 4)
    frequencies = (frequencies / quantum).round() * quantum
    blocks = torch.einsum("ka,ncikjl,lb->nciajb", D, frequencies, D)
    planes = blocks.reshape(N, C, Hp, Wp)[..., :H, :W]
    return torch.einsum("ij,njhw->nihw", torch.linalg.inv(mix), planes)


def _compress_some(rgb: Tensor, rng: np.random.Generator, share: float) -> Tensor:
    steps = log_uniform(rng, 1.5, 16.0, (len(rgb),))
    for b in np.flatnonzero(_some(rng, len(rgb), share)):
        rgb[b] = compress(rgb[b], float(steps[b]))
    return rgb


def apply_effects(
    rgb: Tensor,  # (B, T, 3, H, W)
    velocity: Tensor,  # (B, T, H, W, 2)
    seed: int,
    *,
    blur_share: float = 0.35,
    jpeg_share: float = 0.4,
) -> Tensor:
    """Apply all effects, deterministic from the seed on one device; returns values in [0, 1]."""
    rng = np.random.default_rng([seed, 0xEFFE])
    generator = torch.Generator(device=rgb.device).manual_seed(int(rng.integers(1 << 62)))
    steps: list[Callable[[Tensor], Tensor]] = [
        lambda x: soften(x, rng),
        lambda x: motion_blur(x, velocity, rng, blur_share),
        lambda x: expose(x, rng),
        lambda x: add_noise(x, rng, generator).clamp_(0, 1),
        lambda x: _compress_some(x, rng, jpeg_share),
    ]
    for step in steps:
        rgb = step(rgb)
    return rgb.clamp_(0, 1)

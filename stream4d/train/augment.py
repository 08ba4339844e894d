"""Augmentation that keeps the geometry exact: what moves pixels moves ``K``, flow and masks with it.

Colour changes are drawn once a clip or once a frame; the asymmetric ones (drawn a frame, erasing in one frame)
teach that brightness is not constant (RAFT, Teed and Deng 2020, section 4; Zhao et al. 2020 for erasing).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stream4d.errors import ConfigError
from stream4d.train.clip import ClipBatch
from stream4d.train.crop import LABELS, crop_and_zoom
from stream4d.train.effects import soften


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentOptions:
    """How far training clips are changed."""

    size: tuple[int, int] | None = None
    """(H, W) of the crop; None keeps the size."""
    zoom: tuple[float, float] = (1.0, 1.5)
    """Range of magnification before the crop; what would leave the picture is raised to fit."""
    flip: float = 0.5
    """Probability of a left-right mirror image."""
    reverse: float = 0.5
    """Probability of playing the clip backwards."""
    brightness: float = 0.25
    """Largest relative change of brightness, contrast and saturation."""
    hue: float = 0.08
    """Largest turn of the hue, as a part of the circle."""
    asymmetric: float = 0.2
    """Probability that every frame of a clip gets colours of its own."""
    grey: float = 0.05
    """Probability of a black-and-white clip."""
    blur: float = 0.1
    """Probability of a softer lens."""
    erase: float = 0.3
    """Probability that patches of one frame are painted over."""

    def __post_init__(self) -> None:
        for name in ("flip", "reverse", "asymmetric", "grey", "blur", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be a probability, got {getattr(self, name)}")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ConfigError(f"zoom must be a range of positive numbers, got {self.zoom}")


def mirror(batch: ClipBatch) -> ClipBatch:
    """Swap left and right: pixels, flow, ``K``, and the x axes of cameras and world."""
    W = batch.size[1]
    swap = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], device=batch.rgb.device))
    sign = torch.tensor([-1.0, 1.0], device=batch.rgb.device)
    changed = {
        name: getattr(batch, name).flip(3) for name in (*LABELS, "depth") if name != "scene_flow"
    }
    K = batch.K.clone()
    K[..., 0, 2] = W - 1 - K[..., 0, 2]
    K[..., 0, 1] = -K[..., 0, 1]
    return replace(
        batch,
        **changed,
        rgb=batch.rgb.flip(-1),
        flow=batch.flow.flip(3) * sign,
        flow_backward=batch.flow_backward.flip(3) * sign,
        scene_flow=batch.scene_flow.flip(3) * torch.tensor([-1.0, 1, 1], device=batch.rgb.device),
        K=K,
        world_from_cam=swap.to(batch.world_from_cam)
        @ batch.world_from_cam
        @ swap.to(batch.world_from_cam),
    )


def reverse_time(batch: ClipBatch) -> ClipBatch:
    """Play backwards. The world stays where it was.

    The reversed scene flow belongs to the surfaces of the *later* frame. It is looked up where the forward labels
    saw the same surface (rounded to a pixel), and is zero for movers that were hidden in the earlier frame.
    """
    swapped = {
        "flow": batch.flow_backward,
        "flow_backward": batch.flow,
        "occluded": batch.occluded_backward,
        "occluded_backward": batch.occluded,
        "valid_flow": batch.valid_flow_backward,
        "valid_flow_backward": batch.valid_flow,
    }
    changed = {name: value.flip(1) for name, value in swapped.items()}
    for name in (
        "rgb",
        "depth",
        "K",
        "world_from_cam",
        "motion_mask",
        "valid_depth",
        "valid_motion",
    ):
        changed[name] = getattr(batch, name).flip(1)
    changed["scene_flow"] = _backward_scene_flow(batch).flip(1)
    return replace(batch, **changed)


def _backward_scene_flow(batch: ClipBatch) -> Tensor:
    """Return the displacement t+1 → t of the surfaces seen in t+1 (B, T-1, H, W, 3), in the world.

    Where it is seen in both frames the point itself is known in both; elsewhere it is zero.
    """
    B, P, H, W, _ = batch.flow.shape
    u = torch.arange(W, device=batch.rgb.device)
    v = torch.arange(H, device=batch.rgb.device)[:, None]
    x = (batch.flow_backward[..., 0] + u).round().long().clamp(0, W - 1)
    y = (batch.flow_backward[..., 1] + v).round().long().clamp(0, H - 1)
    index = (y * W + x).view(B, P, H * W, 1).expand(-1, -1, -1, 3)
    source = batch.scene_flow.reshape(B, P, H * W, 3).gather(2, index).view(B, P, H, W, 3)
    known = ~batch.occluded_backward & batch.motion_mask[:, 1:]
    return torch.where(known[..., None], -source, 0.0)


def _jitter(rgb: Tensor, factors: Tensor, hue: Tensor) -> Tensor:
    """Change brightness, contrast, saturation (…, 3) and hue (…) of (…, 3, H, W) in [0, 1]."""
    bright, contrast, saturation = (f[..., None, None, None] for f in factors.unbind(-1))
    rgb = rgb * bright
    mean = rgb.mean((-3, -2, -1), keepdim=True)
    rgb = mean + (rgb - mean) * contrast
    grey = (rgb * torch.tensor([0.299, 0.587, 0.114], device=rgb.device)[:, None, None]).sum(
        -3, keepdim=True
    )
    chroma = (rgb - grey) * saturation
    # a turn about the grey axis (Rodrigues, axis (1, 1, 1)/√3)
    angle = 2 * np.pi * hue[..., None, None, None]
    crossed = (chroma.roll(1, -3) - chroma.roll(-1, -3)) / np.sqrt(3)
    turned = chroma * angle.cos() + crossed * angle.sin()
    turned = turned + chroma.mean(-3, keepdim=True) * (1 - angle.cos())
    coloured: Tensor = grey + turned
    return coloured.clamp(0, 1)


def jitter_colour(rgb: Tensor, rng: np.random.Generator, options: AugmentOptions) -> Tensor:
    """Change the colours of clips (B, T, 3, H, W): alike in all frames, or frame by frame for some clips."""
    B, T = rgb.shape[:2]
    own = rng.random((B, 1, 1)) < options.asymmetric
    factors = 1 + options.brightness * rng.uniform(-1, 1, (B, T, 4))
    hue = options.hue * rng.uniform(-1, 1, (B, T, 1))
    values = np.concatenate([factors[..., :3], hue], -1)
    values = np.where(own, values, values[:, :1])
    values[..., 2] *= rng.random((B, 1)) >= options.grey
    drawn = torch.from_numpy(values).to(rgb)
    return _jitter(rgb, drawn[..., :3], drawn[..., 3])


def erase(rgb: Tensor, rng: np.random.Generator, share: float) -> Tensor:
    """Paint one to three rectangles of one frame (not the first) with its mean colour; labels stay."""
    B, T, _, H, W = rgb.shape
    out = rgb.clone()
    for b in np.flatnonzero(rng.random(B) < share):
        t = int(rng.integers(1, T))
        colour = rgb[b, t].mean((1, 2))[:, None, None]
        for _ in range(int(rng.integers(1, 4))):
            h, w = int(rng.integers(H // 10, H // 3)), int(rng.integers(W // 10, W // 3))
            y, x = int(rng.integers(0, H - h)), int(rng.integers(0, W - w))
            out[b, t, :, y : y + h, x : x + w] = colour
    return out


def _random_crop(batch: ClipBatch, rng: np.random.Generator, options: AugmentOptions) -> ClipBatch:
    H, W = batch.size
    h, w = options.size or (H, W)
    fit = max(h / H, w / W)
    zoom = max(fit, fit * float(np.exp(rng.uniform(*np.log(options.zoom)))))
    corner = (rng.uniform(0, zoom * W - w) - 0.0, rng.uniform(0, zoom * H - h) - 0.0)
    if zoom == 1.0:
        corner = (float(int(corner[0])), float(int(corner[1])))
    return crop_and_zoom(batch, zoom, corner, (h, w))


def augment(batch: ClipBatch, seed: int, options: AugmentOptions | None = None) -> ClipBatch:
    """Return a changed copy; deterministic from the seed. Geometry changes alike for all clips of the batch."""
    options = options or AugmentOptions()
    rng = np.random.default_rng([seed, 0xA06])
    if rng.random() < options.reverse:
        batch = reverse_time(batch)
    if rng.random() < options.flip:
        batch = mirror(batch)
    batch = _random_crop(batch, rng, options)
    rgb = jitter_colour(batch.rgb, rng, options)
    if rng.random() < options.blur:
        rgb = soften(rgb, rng)
    return replace(batch, rgb=erase(rgb, rng, options.erase).clamp(0, 1))

"""A small temporal network with weights that matter, and a video for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from stream4d.models import temporal
from stream4d.models.temporal_net import NetConfig, TemporalNet
from stream4d.packets import Array

TINY = NetConfig(quarter=16, tokens=32, depth=2, heads=2, queries=4, memory_frames=2, hidden=16)


def sliding_video() -> Array:
    """(9, 64, 96, 3) uint8: smooth texture that slides 2 px right a frame."""
    rng = np.random.default_rng(3)
    coarse = torch.from_numpy(rng.random((1, 3, 20, 36), np.float32))
    scene = torch.nn.functional.interpolate(coarse, (64, 120), mode="bicubic", align_corners=False)
    wide = (scene.clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    return np.stack([wide[:, 20 - 2 * t : 116 - 2 * t] for t in range(9)])


def tiny_model(**options: object) -> temporal.TemporalModel:
    torch.manual_seed(0)
    net = TemporalNet(TINY)
    # Heads start at zero so that training starts calm; noise makes every output depend on every input.
    for p in net.parameters():
        nn.init.normal_(p, std=0.05) if p.ndim > 1 else None
    return temporal.TemporalModel(net, temporal.TemporalOptions(**options))  # type: ignore[arg-type]

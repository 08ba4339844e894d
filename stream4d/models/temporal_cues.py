"""Classical cues that the temporal model refines: DIS flow, and how far flow is from one rigid camera motion.

Neither is learned and neither carries gradients. DIS (Kroeger et al., ECCV 2016) is exact where motion is small and
texture is rich; the network mends the rest. The two rigid models (a fundamental matrix for parallax, a homography for
rotation and planes) are fitted robustly to the flow; what fits neither probably moves.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from stream4d.models.dis import dis_flow, grey_image
from stream4d.packets import Array

InitialFlow = Literal["none", "ultrafast", "fast", "medium"]
"""DIS preset of the flow to begin with, or none: zeros."""


def initial_flow(
    a: Array, b: Array, preset: InitialFlow = "fast"
) -> Array:  # (H, W, 3) uint8 twice -> (2, H, W, 2)
    """Estimate flow a → b and b → a with DIS; zeros where the images are too small for it."""
    if preset == "none":
        return np.zeros((2, *a.shape[:2], 2), np.float32)
    first, second = grey_image(a), grey_image(b)
    return np.stack([dis_flow(first, second, preset), dis_flow(second, first, preset)])


def rigid_residuals(
    flow: Tensor, reliable: Tensor
) -> Tensor:  # (2, 2, h, w), (h, w) bool -> (2, 2, h, w)
    """Measure how far both flows of a pair are from one rigid camera motion, in pixels of the level.

    Channel 0 is the Sampson distance to the epipolar geometry (Hartley & Zisserman, eq. 11.9), channel 1 the distance
    to the dominant homography. Only ``reliable`` cells of the first flow vote. Zeros where no model can be fitted.
    """
    _, _, h, w = flow.shape
    out = np.zeros((2, 2, h, w), np.float32)
    fields = flow.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).astype(np.float64)
    votes = reliable.cpu().numpy().copy()
    votes[1::2] = votes[:, 1::2] = False  # every second cell is plenty
    start, end = grid[votes], (grid + fields[0])[votes]
    if len(start) >= 16:
        F, H = _fundamental(start, end), _homography(start, end)
        for i in range(2):
            if F is not None:
                out[i, 0] = _sampson(F if i == 0 else F.T, grid, grid + fields[i])
            if H is not None:
                out[i, 1] = _transfer(H if i == 0 else np.linalg.inv(H), grid, grid + fields[i])
    return torch.from_numpy(np.nan_to_num(out, posinf=0)).to(flow.device)


def _fundamental(start: Array, end: Array) -> Array | None:
    try:
        F, _ = cv2.findFundamentalMat(start, end, cv2.USAC_FAST, 0.3, 0.99, 300)
    except cv2.error:  # an assertion inside, where all its samples were degenerate
        return None
    return None if F is None or F.shape != (3, 3) or not np.isfinite(F).all() else F


def _homography(start: Array, end: Array) -> Array | None:
    try:
        H, _ = cv2.findHomography(start, end, cv2.USAC_FAST, 0.6, maxIters=200, confidence=0.99)
    except cv2.error:  # as above
        return None
    if H is None or not np.isfinite(H).all() or abs(np.linalg.det(H)) < 1e-6:
        return None
    return np.asarray(H)


def _sampson(F: Array, start: Array, end: Array) -> Array:
    x = np.concatenate([start, np.ones_like(start[..., :1])], -1)
    y = np.concatenate([end, np.ones_like(end[..., :1])], -1)
    Fx, Fy = x @ F.T, y @ F
    norm = Fx[..., 0] ** 2 + Fx[..., 1] ** 2 + Fy[..., 0] ** 2 + Fy[..., 1] ** 2
    return np.asarray(np.abs((y * Fx).sum(-1)) / np.sqrt(norm + 1e-12), np.float32)


def _transfer(H: Array, start: Array, end: Array) -> Array:
    x = np.concatenate([start, np.ones_like(start[..., :1])], -1) @ H.T
    depth = np.where(np.abs(x[..., 2:]) < 1e-6, 1e-6, x[..., 2:])
    return np.asarray(np.linalg.norm(x[..., :2] / depth - end, axis=-1), np.float32)

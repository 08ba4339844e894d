"""Bring frames to the size a network wants by its own rule, and its maps and intrinsics back, exactly.

Every rule is "resize, then crop" (some pad): an affine map between pixel grids, kept in a `Fit`. Resampling of images
is Pillow's, because the public models were trained and are shown with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stream4d.geometry.camera import crop_K, scale_K
from stream4d.packets import Array

EDGE_RATIO = 1.05
"""Neighbouring depths further apart than this lie on different surfaces and are not blended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Where the pixels of a frame land in the network's image.

    The frame (width × height) is resized to ``resized``, then the box of ``size`` whose left upper corner is
    (left, top) is cut out of it; a negative corner means padding. All sizes are (width, height).
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    left: float
    top: float
    size: tuple[int, int]
    filter: Image.Resampling = Image.Resampling.LANCZOS
    fill: int = 255
    """Grey value of padding."""

    @property
    def scale(self) -> tuple[float, float]:
        """Factors (x, y) from frame to network pixels."""
        return self.resized[0] / self.source[0], self.resized[1] / self.source[1]

    def image(self, rgb: Array) -> Array:  # (H, W, 3) uint8 -> (h, w, 3) uint8
        """Resize and crop one frame."""
        image = Image.fromarray(rgb)
        if image.size != self.resized:
            image = image.resize(self.resized, self.filter)
        left, top = int(self.left), int(self.top)
        box = (left, top, left + self.size[0], top + self.size[1])
        pixels = np.asarray(image)
        inner = pixels[max(0, box[1]) : box[3], max(0, box[0]) : box[2]]
        if inner.shape[1::-1] == self.size:
            return inner
        out = np.full((self.size[1], self.size[0], 3), self.fill, np.uint8)
        x, y = max(0, -left), max(0, -top)
        out[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
        return out

    def batch(
        self, frames: Sequence[Array]
    ) -> Tensor:  # T × (H, W, 3) uint8 -> (T, 3, h, w) in [0, 1]
        """Resize and crop frames into one float32 tensor."""
        stacked = np.stack([self.image(rgb) for rgb in frames])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(255)

    def K_to_network(self, K: Array) -> Array:
        """Translate intrinsics of the frame to the network's image."""
        return crop_K(scale_K(K, *self.scale), self.left, self.top)

    def K_to_frame(self, K: Array) -> Array:
        """Translate intrinsics of the network's image to the frame."""
        sx, sy = self.scale
        return scale_K(crop_K(K, -self.left, -self.top), 1 / sx, 1 / sy)

    def depth_to_network(self, depth: Array) -> Array:  # (H, W) -> (h, w)
        """Take given depth to the network's grid (nearest pixel); 0 where there is none."""
        u, v = self._network_pixels_in_frame()
        return cv2.remap(depth.astype(np.float32), u, v, cv2.INTER_NEAREST, borderValue=0)

    def flow_to_network(self, flow: Array) -> Array:  # (H, W, 2) -> (h, w, 2)
        """Take optical flow to the network's grid and pixels; 0 in padding."""
        u, v = self._network_pixels_in_frame()
        out = cv2.remap(flow.astype(np.float32), u, v, cv2.INTER_LINEAR, borderValue=0)
        return out * np.asarray(self.scale, np.float32)

    def map_to_frame(self, values: Array) -> Array:  # (h, w[, C]) -> (H, W[, C]) float32
        """Bring a smooth map (confidence, probability) back: bilinear, NaN outside the crop."""
        if self._is_identity:
            return values.astype(np.float32, copy=False)
        u, v, outside = self._frame_pixels_in_network()
        out = cv2.remap(
            values.astype(np.float32), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        out[outside] = np.nan
        return out

    def labels_to_frame(self, labels: Array) -> Array:  # (h, w) int -> (H, W) int32
        """Bring labels back: nearest pixel, -1 outside the crop."""
        u, v, outside = self._frame_pixels_in_network()
        columns = np.clip(np.rint(u).astype(int), 0, self.size[0] - 1)
        rows = np.clip(np.rint(v).astype(int), 0, self.size[1] - 1)
        out = labels[rows, columns].astype(np.int32)
        out[outside] = -1
        return out

    def geometry_to_frame(self, depth: Array, *maps: Array) -> tuple[Array, ...]:
        """Bring depth (h, w) and other maps of the same surface back to the frame.

        Bilinear inside a surface; the nearest pixel's value where depth jumps, so that no point floats between two
        surfaces. NaN outside the crop and where the network's depth is not finite and positive.
        """
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float32)
        if self._is_identity:
            return (depth, *(m.astype(np.float32, copy=False) for m in maps))
        u, v, outside = self._frame_pixels_in_network()
        at = (
            np.clip(np.rint(v), 0, self.size[1] - 1).astype(int),
            np.clip(np.rint(u), 0, self.size[0] - 1).astype(int),
        )
        is_edge = self._crosses_edge(depth, u, v)
        out = []
        for values in (depth, *maps):
            values = values.astype(np.float32, copy=False)
            smooth = cv2.remap(values, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            smooth[is_edge] = values[at][is_edge]
            smooth[outside] = np.nan
            out.append(smooth)
        return tuple(out)

    def _crosses_edge(self, depth: Array, u: Array, v: Array) -> Array:
        """Tell where the four pixels that bilinear sampling blends lie on different surfaces."""
        padded = np.pad(depth, ((0, 1), (0, 1)), mode="edge")
        corners = np.stack([padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]])
        low, high = (
            np.nan_to_num(corners, nan=0.0).min(0),
            np.nan_to_num(corners, nan=np.inf).max(0),
        )
        rows = np.clip(np.floor(v), 0, self.size[1] - 1).astype(int)
        columns = np.clip(np.floor(u), 0, self.size[0] - 1).astype(int)
        return (high > EDGE_RATIO * low)[rows, columns]

    @property
    def _is_identity(self) -> bool:
        return self.source == self.resized == self.size and self.left == self.top == 0

    def _frame_pixels_in_network(self) -> tuple[Array, Array, Array]:
        """Give each frame pixel its network coordinates (u, v), and whether it lies outside the crop."""
        (W, H), (sx, sy), (w, h) = self.source, self.scale, self.size
        u = ((np.arange(W) + 0.5) * sx - 0.5 - self.left).astype(np.float32)
        v = ((np.arange(H) + 0.5) * sy - 0.5 - self.top).astype(np.float32)
        outside = ((v < -0.5) | (v > h - 0.5))[:, None] | ((u < -0.5) | (u > w - 0.5))[None]
        return np.tile(u, (H, 1)), np.tile(v[:, None], (1, W)), outside

    def _network_pixels_in_frame(self) -> tuple[Array, Array]:
        (w, h), (sx, sy) = self.size, self.scale
        u = ((np.arange(w) + 0.5 + self.left) / sx - 0.5).astype(np.float32)
        v = ((np.arange(h) + 0.5 + self.top) / sy - 0.5).astype(np.float32)
        return np.tile(u, (h, 1)), np.tile(v[:, None], (1, w))


def fit_long_side(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Scale (width, height) so that the longer side is ``long_side``, each rounded."""
    factor = long_side / max(width, height)
    return round(width * factor), round(height * factor)


def resampling(width: int, height: int, new: tuple[int, int]) -> Image.Resampling:
    """Choose Lanczos when the long side shrinks and bicubic otherwise, as DUSt3R does."""
    shrinks = max(width, height) > max(new)
    return Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC

"""A stack of textures in two frames: what is seen of it, how it flows, what it hides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from stream4d.packets import Array


class Layer(NamedTuple):
    """A texture and where it lies in both frames."""

    texture: Array
    """(S, S, 3) uint8."""
    alpha: Array | None
    """(S, S) float32 coverage; None: all of it, and the border reflected."""
    image_from_texture: tuple[Array, Array]
    """(3, 3) homography into frame 0, and into frame 1."""


def composite(layers: list[Layer], t: int, size: tuple[int, int]) -> tuple[Array, Array]:
    """Paint layers back to front: rgb (H, W, 3) float32 and the index of the front layer (H, W)."""
    H, W = size
    rgb = np.zeros((H, W, 3), np.float32)
    owner = np.zeros((H, W), np.int32)
    for index, layer in enumerate(layers):
        place = layer.image_from_texture[t]
        border = cv2.BORDER_REFLECT_101 if layer.alpha is None else cv2.BORDER_REPLICATE
        colour = cv2.warpPerspective(
            layer.texture, place, (W, H), flags=cv2.INTER_LINEAR, borderMode=border
        )
        if layer.alpha is None:
            rgb[:] = colour
            continue
        alpha = cv2.warpPerspective(layer.alpha, place, (W, H), flags=cv2.INTER_LINEAR)
        rgb += (colour - rgb) * alpha[..., None]
        owner[alpha > 0.5] = index
    return rgb, owner


def _moved(layer: Layer, points: Array, t: int) -> Array:  # (N, 2) -> (N, 2)
    """Follow points of a layer from frame t to the other frame."""
    here, there = layer.image_from_texture[t], layer.image_from_texture[1 - t]
    matrix = there @ np.linalg.inv(here)
    return np.asarray(cv2.perspectiveTransform(points[None].astype(np.float64), matrix)[0])


def layer_flow(layers: list[Layer], owner: Array, t: int) -> Array:  # (H, W) -> (H, W, 2)
    """Return the flow from frame t to the other frame; ``owner`` as ``composite`` gives it."""
    flow = np.zeros((*owner.shape, 2), np.float32)
    for index, layer in enumerate(layers):
        y, x = np.nonzero(owner == index)
        if len(x):
            points = np.stack([x, y], 1)
            flow[y, x] = _moved(layer, points, t) - points
    return flow


def moves_apart(layers: list[Layer], owner: Array, flow: Array, t: int) -> Array:
    """Say where the flow differs from the background's by more than half a pixel."""
    out = np.zeros(owner.shape, bool)
    y, x = np.nonzero(owner)
    if len(x):
        points = np.stack([x, y], 1)
        background = _moved(layers[0], points, t) - points
        out[y, x] = np.linalg.norm(flow[y, x] - background, axis=1) > 0.5
    return out


def hidden_in_other(owners: Sequence[Array], flow: Array, t: int) -> Array:
    """Say where the front layer of frame t is not the front layer at its place in the other frame."""
    H, W = owners[t].shape
    y, x = np.mgrid[:H, :W]
    to_x, to_y = np.rint(x + flow[..., 0]), np.rint(y + flow[..., 1])
    inside = (to_x >= 0) & (to_x < W) & (to_y >= 0) & (to_y < H)
    there = owners[1 - t][
        np.clip(to_y, 0, H - 1).astype(np.int64), np.clip(to_x, 0, W - 1).astype(np.int64)
    ]
    return np.asarray(~inside | (there != owners[t]))

"""Colour maps: what depth, flow, confidence and motion look like, in the viewer and in pictures.

Every function takes one map and returns (H, W, 3) uint8 RGB. Unknown pixels are ``UNKNOWN``, a grey that no
map uses, so that "not known" is never mistaken for a value.
"""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.packets import Array

UNKNOWN = (48, 48, 52)
"""Colour of pixels without a value."""
MOVING = (255, 64, 129)
"""Accent of everything that moves: mask overlay, dynamic points. Pink is rare in videos and in turbo."""
UNSURE = 0.1
"""Depth with less confidence is drawn as unknown: it holds with one chance in ten."""
PATH = (0, 200, 255)
"""Camera path and frustum."""


def _apply(values: Array, table: int, known: Array) -> Array:  # (H, W) in [0, 1] → (H, W, 3)
    scaled = np.clip(np.where(known, values, 0.0) * 255.0, 0, 255).astype(np.uint8)
    rgb: Array = cv2.cvtColor(cv2.applyColorMap(scaled, table), cv2.COLOR_BGR2RGB)
    rgb[~known] = UNKNOWN
    return rgb


def known_depth(depth: Array, confidence: Array) -> Array:  # both (H, W)
    """Return the depth with NaN where it is not known or too unsure to be shown."""
    return np.where((depth > 0) & (confidence >= UNSURE), depth, np.nan).astype(depth.dtype)


def depth_range(depth: Array) -> tuple[float, float] | None:
    """Return the 2nd and 98th percentile of the known depth, or None where nothing is known."""
    known = depth[np.isfinite(depth) & (depth > 0)]
    if known.size == 0:
        return None
    near, far = np.percentile(known, (2, 98))
    return float(near), float(max(far, near * 1.01))


def color_depth(depth: Array, bounds: tuple[float, float] | None = None) -> Array:
    """Colour z-depth by its logarithm in turbo: near is red, far is blue.

    The logarithm gives a room and a street the same contrast, whatever the unit.

    Args:
        depth: (H, W), NaN or ≤ 0 where unknown.
        bounds: depth of the two ends; default ``depth_range`` of this map. Pass the same for all frames
            of a video to keep colours steady.
    """
    known = np.isfinite(depth) & (depth > 0)
    bounds = bounds or depth_range(depth)
    if bounds is None:
        return np.full((*depth.shape, 3), UNKNOWN, np.uint8)
    near, far = bounds
    with np.errstate(divide="ignore", invalid="ignore"):
        farness = np.log(np.where(known, depth, near) / near) / np.log(far / near)
    return _apply(1.0 - farness, cv2.COLORMAP_TURBO, known)


def color_confidence(confidence: Array) -> Array:
    """Colour a map in [0, 1] in viridis: dark is unsure, yellow is sure."""
    return _apply(confidence, cv2.COLORMAP_VIRIDIS, np.isfinite(confidence))


def flow_range(flow: Array) -> float:
    """Return the length in pixels that fills the wheel: the 98th percentile, at least one pixel."""
    length = np.linalg.norm(flow, axis=-1)
    known = length[np.isfinite(length)]
    return max(float(np.percentile(known, 98)), 1.0) if known.size else 1.0


def color_flow(flow: Array, longest_px: float | None = None) -> Array:
    """Colour optical flow: direction is hue, length is saturation; still pixels are white.

    Args:
        flow: (H, W, 2) pixels, NaN where unknown.
        longest_px: length of full saturation; default ``flow_range`` of this map.
    """
    known = np.isfinite(flow[..., 0]) & np.isfinite(flow[..., 1])
    u, v = np.where(known[..., None], flow, 0.0).astype(np.float32).transpose(2, 0, 1)
    length, angle = cv2.cartToPolar(u, v, angleInDegrees=True)
    strength = np.clip(length / (longest_px or flow_range(flow)), 0, 1)
    # Full value keeps the wheel readable on a screen; hue in OpenCV's float HSV is in degrees.
    hsv = np.dstack([angle, strength, np.ones_like(strength)]).astype(np.float32)
    rgb: Array = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)
    rgb[~known] = UNKNOWN
    return rgb


def overlay_motion(rgb: Array, motion_prob: Array, strength: float = 0.65) -> Array:
    """Tint ``rgb`` by the probability that a pixel moves, and dim what is static a little."""
    alpha = (np.nan_to_num(motion_prob) * strength)[..., None].astype(np.float32)
    mixed = rgb * 0.75 * (1 - alpha) + np.array(MOVING, np.float32) * alpha
    tinted: Array = mixed.clip(0, 255).astype(np.uint8)
    return tinted


def motion_layer(motion_prob: Array, strength: float = 0.65) -> Array:  # (H, W) → (H, W, 4)
    """Return the tint of ``overlay_motion`` as RGBA, to lie over an image. Steps of 1/8 compress well."""
    layer = np.empty((*motion_prob.shape, 4), np.uint8)
    layer[..., :3] = MOVING
    steps = np.round(np.nan_to_num(motion_prob) * 8) / 8
    layer[..., 3] = (steps * strength * 255).astype(np.uint8)
    return layer


def label_layer(labels: Array, strength: float = 0.55) -> Array:  # (H, W) int → (H, W, 4)
    """Return class or object labels as RGBA, to lie over an image; -1 is transparent.

    Hues step by the golden angle, so that neighbouring numbers look unlike, and a label keeps its colour
    through the video.
    """
    known = labels >= 0
    hsv = np.empty((*labels.shape, 3), np.uint8)
    hsv[..., 0] = (np.where(known, labels, 0).astype(np.int64) * 111) % 180  # OpenCV: half degrees
    hsv[..., 1], hsv[..., 2] = 190, 255
    layer = np.empty((*labels.shape, 4), np.uint8)
    layer[..., :3] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    layer[..., 3] = np.where(known, round(strength * 255), 0)
    return layer

"""VGGT: cameras, depth and points of many frames in one pass.

Wang, Chen, Karaev, Vedaldi, Rupprecht, Novotny, "VGGT: Visual Geometry Grounded Transformer", CVPR 2025. Our own
implementation, compatible with the public checkpoints (weights: CC BY-NC 4.0 for VGGT-1B, non-commercial; a separate
commercial checkpoint exists). Unusual: attention inside a frame and over all frames alternate; the first frame has
its own camera and register tokens; poses come out world-to-camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from stream4d.geometry.transforms import invert, transform_points
from stream4d.models.base import ModelCard
from stream4d.models.checkpoint import Checkpoint
from stream4d.models.family import (
    ForeignModel,
    ForeignSession,
    check_options,
    numpy,
    to_prediction,
)
from stream4d.models.pose_encoding import decode_cameras
from stream4d.models.resize import Fit
from stream4d.models.vggt_net import (
    VggtConfig,
    VggtNet,
    VggtOutput,
    key_map,
)
from stream4d.models.weights import KeyMap
from stream4d.packets import Array, Prediction, VideoInfo, Window

FOV_RANGE_RAD = (0.05, 3.0)


def fit_image(
    width: int, height: int, resolution: int = 518, mode: Literal["crop", "pad"] = "crop"
) -> Fit:
    """Apply VGGT's rule: width 518 and height to a multiple of 14, cut to 518; or padded to a square."""
    if mode == "crop":
        w, h = resolution, round(height * (resolution / width) / 14) * 14
        h = max(h, 14)
        kept = min(h, resolution)
        resized, size, left, top = (w, h), (w, kept), 0, (h - kept) // 2
    else:
        if width >= height:
            w, h = resolution, round(height * (resolution / width) / 14) * 14
        else:
            w, h = round(width * (resolution / height) / 14) * 14, resolution
        w, h = max(w, 14), max(h, 14)
        resized, size = (w, h), (resolution, resolution)
        left, top = -((resolution - w) // 2), -((resolution - h) // 2)
    return Fit(
        source=(width, height),
        resized=resized,
        left=left,
        top=top,
        size=size,
        filter=Image.Resampling.BICUBIC,
    )


class VggtModel(ForeignModel):
    """VGGT in chunks: all frames of a window in one pass."""

    cards: ClassVar[dict[str, ModelCard]] = {
        "vggt": ModelCard(
            name="vggt",
            summary="cameras, depth and points of many frames in one pass",
            paper="VGGT: Visual Geometry Grounded Transformer, Wang et al., CVPR 2025",
            weights_licence="CC BY-NC 4.0 (VGGT-1B; facebook/VGGT-1B-Commercial has its own)",
            is_commercial_ok=False,
            resolution="width 518, height a multiple of 14, at most 518",
            is_metric=False,
            streaming="windows",
            window=16,
            overlap=4,
            parameters_m=1256.5,
            hub_id="facebook/VGGT-1B",
        ),
    }

    @classmethod
    def configure(
        cls, name: str, checkpoint: Checkpoint | None, options: dict[str, Any]
    ) -> VggtConfig:
        check_options(VggtConfig, options, name)
        if options.get("points_from") == "points":
            options = {"point_head": True} | options
        return VggtConfig(**options)

    @classmethod
    def build(cls, config: VggtConfig) -> VggtNet:
        return VggtNet(config)

    @classmethod
    def key_map(cls, config: VggtConfig) -> KeyMap:
        return key_map(config)

    def session(self, info: VideoInfo) -> VggtSession:
        config = self.config
        return VggtSession(
            self, info, fit_image(info.width, info.height, config.resolution, config.fit_mode)
        )


class VggtSession(ForeignSession):
    """One window, one pass; nothing is remembered."""

    def predict(self, window: Window) -> Prediction:
        out = self.model.net(self.images(window)[None])
        return vggt_prediction(self.fit, out, self.model.config, self.given_K(window))


def vggt_prediction(
    fitted: Fit, out: VggtOutput, config: VggtConfig, given_K: Sequence[Array | None]
) -> Prediction:
    """Turn the network's output for one window into our frames: OpenCV axes, window from camera.

    The network takes no intrinsics; given ones replace its own where depth becomes points.
    """
    encoding = out.pose_encodings[-1][0].double()
    # A field of view of nothing (an untrained or confused head) would make an infinite focal length.
    encoding[..., 7:] = encoding[..., 7:].clamp(*FOV_RANGE_RAD)
    cam_from_scene, K = decode_cameras(encoding, fitted.size[::-1])
    scene_from_cam = invert(rigid_4x4(numpy(cam_from_scene)))
    points, confidence = None, out.depth_confidence
    if config.points_from == "points" and out.points is not None:
        assert out.points_confidence is not None
        cam0_from_scene = rigid_4x4(numpy(cam_from_scene[:1]))[0]
        points = transform_points(cam0_from_scene, numpy(out.points[0]))
        confidence = out.points_confidence
    return to_prediction(
        fitted,
        depth=numpy(out.depth[0]),
        confidence=numpy(confidence[0]),
        K=np.stack([own if k is None else k for own, k in zip(numpy(K), given_K, strict=True)]),
        window_from_cam=scene_from_cam,
        points_in_window=points,
    )


def rigid_4x4(matrix: Array) -> Array:  # (T, 3, 4) -> (T, 4, 4) float64
    """Append the row (0, 0, 0, 1)."""
    out = np.tile(np.eye(4), (len(matrix), 1, 1))
    out[:, :3] = matrix
    return out

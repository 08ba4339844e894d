"""DUSt3R: two images in, two pointmaps out, both in the first image's camera frame.

Wang, Leroy, Cabon, Chidlovskii, Revaud, "DUSt3R: Geometric 3D Vision Made Easy", CVPR 2024. Our own implementation,
compatible with the public checkpoints (weights: CC BY-NC-SA 4.0, non-commercial). Unusual: two decoders that read
each other's previous layer, rotary positions in cross-attention too, confidence as 1 + exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from stream4d.errors import ModelError
from stream4d.geometry.camera import default_focal, make_K
from stream4d.geometry.transforms import invert, transform_points
from stream4d.models.base import ModelCard
from stream4d.models.checkpoint import Checkpoint
from stream4d.models.dust3r_net import (
    KEY_MAP,
    Dust3rConfig,
    Dust3rNet,
)
from stream4d.models.family import (
    ForeignModel,
    ForeignSession,
    check_options,
    numpy,
    to_prediction,
)
from stream4d.models.pointmaps import estimate_focal, pose_by_pnp, scale_between
from stream4d.models.resize import Fit, fit_long_side, resampling
from stream4d.models.weights import KeyMap
from stream4d.packets import Array, Prediction, VideoInfo, Window

SQUARES = (224, 336, 448)
"""Resolutions at which the network sees squares."""


def fit_image(width: int, height: int, resolution: int = 512, *, square_ok: bool = False) -> Fit:
    """Apply DUSt3R's rule: long side to 512, centre crop to multiples of 16 (a square to 4:3); or a square of 224.

    MUSt3R has squares of 336 and 448 too, and leaves square frames square (``square_ok``).
    """
    if resolution in SQUARES:
        long_side = round(resolution * max(width / height, height / width))
        resized = fit_long_side(width, height, long_side)
    else:
        resized = fit_long_side(width, height, resolution)
    cx, cy = resized[0] // 2, resized[1] // 2
    half_w, half_h = float((2 * cx) // 16 * 8), float((2 * cy) // 16 * 8)
    if resolution in SQUARES:
        half_w = half_h = float(min(cx, cy))
    elif resized[0] == resized[1] and not square_ok:
        half_h = 3 * half_w / 4
    left, top, right, bottom = (
        round(edge) for edge in (cx - half_w, cy - half_h, cx + half_w, cy + half_h)
    )
    if right <= left or bottom <= top:
        raise ModelError(f"frames of {width}×{height} are too small for patches of 16 pixels")
    return Fit(
        source=(width, height),
        resized=resized,
        left=left,
        top=top,
        size=(right - left, bottom - top),
        filter=resampling(width, height, resized),
    )


class Dust3rModel(ForeignModel):
    """DUSt3R with either head, streaming by pairs: every frame of a window is paired with its first one."""

    cards: ClassVar[dict[str, ModelCard]] = {
        "dust3r": ModelCard(
            name="dust3r",
            summary="pointmaps of image pairs; the founder of the family",
            paper="DUSt3R: Geometric 3D Vision Made Easy, Wang et al., CVPR 2024",
            weights_licence="CC BY-NC-SA 4.0",
            is_commercial_ok=False,
            resolution="long side 512, multiples of 16",
            is_metric=False,
            streaming="pairs",
            window=6,
            overlap=2,
            parameters_m=571.2,
            hub_id="naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt",
        ),
    }

    @classmethod
    def configure(
        cls, name: str, checkpoint: Checkpoint | None, options: dict[str, Any]
    ) -> Dust3rConfig:
        check_options(Dust3rConfig, options, name)
        return Dust3rConfig.infer(checkpoint, **options)

    @classmethod
    def build(cls, config: Dust3rConfig) -> Dust3rNet:
        return Dust3rNet(config)

    @classmethod
    def key_map(cls, config: Dust3rConfig) -> KeyMap:
        return KEY_MAP

    def session(self, info: VideoInfo) -> Dust3rSession:
        return Dust3rSession(self, info, fit_image(info.width, info.height, self.config.resolution))


class Dust3rSession(ForeignSession):
    """Encodes each frame once; keeps the encodings of the last window for the overlap."""

    def __init__(self, model: Any, info: VideoInfo, fitted: Fit) -> None:
        super().__init__(model, info, fitted)
        self.encoded: dict[int, Tensor] = {}

    def encode(self, window: Window) -> list[Tensor]:
        """Return the encoder's output of each frame, reusing those of the previous window."""
        kept = {f.index: self.encoded[f.index] for f in window.frames if f.index in self.encoded}
        for frame in window.frames:
            if frame.index not in kept:
                image = self.fit.batch([frame.rgb]).to(self.model.device) * 2 - 1
                kept[frame.index] = self.model.net.encoder(image)
        self.encoded = kept
        return [kept[frame.index] for frame in window.frames]

    def pair(self, f1: Tensor, f2: Tensor) -> Pair:
        """Decode one pair and bring it to numpy."""
        size = self.fit.size[::-1]
        out = self.model.net.decode_pair(f1, f2, size, size)
        return Pair(*(numpy(x[0]) for x in out))

    def predict(self, window: Window) -> Prediction:
        encoded = self.encode(window)
        others = range(1, len(encoded)) if len(encoded) > 1 else [0]
        pairs = [self.pair(encoded[0], encoded[j]) for j in others]
        return anchored_prediction(self.fit, pairs, self.given_K(window)[: len(encoded)])


class Pair(NamedTuple):
    """`PairOutput` of one pair in numpy, without the batch dimension."""

    points1: Array
    confidence1: Array
    points2: Array
    confidence2: Array


def anchored_prediction(
    fitted: Fit, pairs: Sequence[Pair], given_K: Sequence[Array | None]
) -> Prediction:
    """Merge the pairs (first frame, frame t) of one window.

    Each pair has a scale of its own: all are brought to that of the first pair by their common view of the first
    frame. The first frame's points are averaged by confidence; every other frame is placed by PnP.
    """
    scales = [
        scale_between(p.points1[..., 2], pairs[0].points1[..., 2], p.confidence1 - 1) for p in pairs
    ]
    weight = np.stack([p.confidence1 for p in pairs])
    first = (
        sum(w[..., None] * s * p.points1 for w, s, p in zip(weight, scales, pairs, strict=True))
        / weight.sum(0)[..., None]
    )
    points, confidence = [first], [weight.mean(0)]
    if len(given_K) > 1:
        points += [s * p.points2 for s, p in zip(scales, pairs, strict=True)]
        confidence += [p.confidence2 for p in pairs]
    K = shared_K(fitted, first, given_K)
    poses, depth = [], []
    for t, (cloud, conf) in enumerate(zip(points, confidence, strict=True)):
        cam_from_window = np.eye(4) if t == 0 else pose_by_pnp(cloud, conf, K[t])
        if cam_from_window is None:
            # No pose fits: the frame stays where the anchor is, and says that it is worth nothing.
            cam_from_window, confidence[t] = np.eye(4), np.zeros_like(conf)
        poses.append(invert(cam_from_window))
        depth.append(transform_points(cam_from_window, cloud)[..., 2])
    return to_prediction(
        fitted,
        depth=np.stack(depth),
        confidence=np.stack(confidence),
        K=np.stack(K),
        window_from_cam=np.stack(poses),
        points_in_window=np.stack(points).astype(np.float32),
    )


def shared_K(fitted: Fit, points_in_cam: Array, given: Sequence[Array | None]) -> list[Array]:
    """Return each frame's intrinsics: the given ones, else one focal length fitted to a pointmap."""
    W, H = fitted.size
    focal = estimate_focal(points_in_cam, min_focal=0.5, max_focal=3.5)
    if not np.isfinite(focal):
        focal = default_focal(W, H)
    fitted_K = make_K(focal, focal, W / 2, H / 2)
    return [fitted_K if K is None else K for K in given]

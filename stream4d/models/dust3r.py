"""DUSt3R: two images in, two pointmaps out, both in the first image's camera frame.

Wang, Leroy, Cabon, Chidlovskii, Revaud, "DUSt3R: Geometric 3D Vision Made Easy", CVPR 2024. Our own implementation,
compatible with the public checkpoints (weights: CC BY-NC-SA 4.0, non-commercial). Unusual: two decoders that read
each other's previous layer, rotary positions in cross-attention too, confidence as 1 + exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stream4d.errors import ModelError
from stream4d.geometry.camera import default_focal, make_K
from stream4d.geometry.transforms import invert, transform_points
from stream4d.models.base import ModelCard
from stream4d.models.blocks import DecoderBlock, image_size, rope_2d
from stream4d.models.encoders import CrocoEncoder
from stream4d.models.family import (
    ForeignModel,
    ForeignSession,
    check_options,
    numpy,
    to_prediction,
)
from stream4d.models.heads import Dpt, LinearHead, exp_of_norm, resize_bilinear
from stream4d.models.pointmaps import estimate_focal, pose_by_pnp, scale_between
from stream4d.models.resize import Fit, fit_long_side, resampling
from stream4d.models.weights import Checkpoint, KeyMap, parse_constructor
from stream4d.packets import Array, Prediction, VideoInfo, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Dust3rConfig:
    """Sizes of the network; the defaults are those of all public checkpoints."""

    encoder_dim: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_dim: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    patch: int = 16
    head: Literal["dpt", "linear"] = "dpt"
    dpt_features: int = 256
    dpt_last: int = 128
    dpt_layers: tuple[int, int, int, int] = (96, 192, 384, 768)
    resolution: int = 512
    """Long side of the network's image; 224 crops a square."""

    @classmethod
    def infer(cls, checkpoint: Checkpoint | None, **options: Any) -> Dust3rConfig:
        """Tell the head from a checkpoint's names and the resolution from its arguments; ``options`` win."""
        if checkpoint is None:
            return cls(**options)
        linear = any(n.endswith("downstream_head1.proj.weight") for n in checkpoint.tensors)
        found: dict[str, Any] = {"head": "linear" if linear else "dpt"}
        text = checkpoint.args.get("model", "")
        arguments = checkpoint.args
        if isinstance(text, str) and "(" in text:
            # Old files name a patch embedding of training; only literal arguments are read.
            _, arguments = parse_constructor(text)
        size = arguments.get("img_size")
        if isinstance(size, tuple | list) and size:
            found["resolution"] = int(size[0])
        return cls(**(found | options))


class PairOutput(NamedTuple):
    """Both pointmaps of a pair, in the first image's camera frame."""

    points1: Tensor
    """(B, H, W, 3) of the first image."""
    confidence1: Tensor
    """(B, H, W) > 1."""
    points2: Tensor
    """(B, H2, W2, 3) of the second image."""
    confidence2: Tensor
    """(B, H2, W2) > 1."""


class TwoViewTrunk(nn.Module):
    """CroCo encoder and the two cross-attending decoders; SIU3R builds on it too."""

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__()
        self.encoder = CrocoEncoder(
            patch=config.patch,
            dim=config.encoder_dim,
            depth=config.encoder_depth,
            heads=config.encoder_heads,
        )
        self.decoder_embed = nn.Linear(config.encoder_dim, config.decoder_dim)
        depth, dim, heads = config.decoder_depth, config.decoder_dim, config.decoder_heads
        self.dec_blocks = nn.ModuleList(DecoderBlock(dim, heads) for _ in range(depth))
        self.dec_blocks2 = nn.ModuleList(DecoderBlock(dim, heads) for _ in range(depth))
        self.dec_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head_dim = dim // heads

    def decode(
        self,
        f1: Tensor,  # (B, N, C) encoder output of the first image
        f2: Tensor,  # (B, M, C)
        positions1: Tensor,  # (N, 2)
        positions2: Tensor,  # (M, 2)
        keep: Sequence[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run both decoders and return the layers in ``keep`` for each image.

        Layer 0 is the encoder's output, layer k the output of block k; the last one is normed.
        """
        rope1 = rope_2d(positions1, self.head_dim)
        rope2 = rope_2d(positions2, self.head_dim)
        kept1, kept2 = ([f1], [f2]) if 0 in keep else ([], [])
        x1, x2 = self.decoder_embed(f1), self.decoder_embed(f2)
        last = len(self.dec_blocks)
        for layer, (block1, block2) in enumerate(
            zip(self.dec_blocks, self.dec_blocks2, strict=True), 1
        ):
            x1, x2 = block1(x1, x2, rope1, rope2), block2(x2, x1, rope2, rope1)
            if layer in keep:
                kept1.append(self.dec_norm(x1) if layer == last else x1)
                kept2.append(self.dec_norm(x2) if layer == last else x2)
        return kept1, kept2


class PointHead(nn.Module):
    """DUSt3R's DPT head: the shared trunk and three convolutions up to the image."""

    def __init__(self, config: Dust3rConfig, channels: int = 4) -> None:
        super().__init__()
        dim, features, last = config.decoder_dim, config.dpt_features, config.dpt_last
        self.dpt = Dpt(
            in_dims=(config.encoder_dim, dim, dim, dim),
            layer_dims=config.dpt_layers,
            features=features,
            rectified_skip=False,
        )
        self.head = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, padding=1),
            nn.Identity(),  # the upsampling, whose size depends on the input
            nn.Conv2d(features // 2, last, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(last, channels, 1),
        )

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        x = self.dpt(tokens, grid, (0, 0))
        x = self.head[0](x)
        x = resize_bilinear(x, (2 * x.shape[-2], 2 * x.shape[-1]))
        return self.head[2:](x)


class Dust3rNet(TwoViewTrunk):
    """The whole network. ``encode`` once per image, ``decode_pair`` once per pair."""

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__(config)
        self.config = config
        depth = config.decoder_depth
        if config.head == "dpt":
            self.keep: tuple[int, ...] = (0, depth // 2, depth * 3 // 4, depth)
            self.downstream_head1: nn.Module = PointHead(config)
            self.downstream_head2: nn.Module = PointHead(config)
        else:
            self.keep = (depth,)
            self.downstream_head1 = LinearHead(config.decoder_dim, config.patch, 4)
            self.downstream_head2 = LinearHead(config.decoder_dim, config.patch, 4)

    def forward(self, image1: Tensor, image2: Tensor) -> PairOutput:  # (B, 3, H, W) in [-1, 1]
        f1, f2 = self.encoder(image1), self.encoder(image2)
        return self.decode_pair(f1, f2, image_size(image1), image_size(image2))

    def decode_pair(
        self, f1: Tensor, f2: Tensor, size1: tuple[int, int], size2: tuple[int, int]
    ) -> PairOutput:
        """Predict both pointmaps from the encodings of two images of ``size`` (H, W)."""
        positions1 = self.encoder.positions(*size1, f1.device)
        positions2 = self.encoder.positions(*size2, f2.device)
        kept1, kept2 = self.decode(f1, f2, positions1, positions2, self.keep)
        points1, confidence1 = self._head(self.downstream_head1, kept1, size1)
        points2, confidence2 = self._head(self.downstream_head2, kept2, size2)
        return PairOutput(points1, confidence1, points2, confidence2)

    def _head(
        self, head: nn.Module, tokens: Sequence[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        grid = (size[0] // self.config.patch, size[1] // self.config.patch)
        # Heads always run in float32: exp of a rounded number is far off.
        with torch.autocast(tokens[0].device.type, enabled=False):
            tokens = [x.float() for x in tokens]
            raw = head(tokens if self.config.head == "dpt" else tokens[-1], grid)
            raw = raw.movedim(1, -1)
            return exp_of_norm(raw[..., :3]), 1 + raw[..., 3].exp()


CROCO_RENAMES = (
    (r"^(backbone\.)?patch_embed\.", r"\1encoder.patch_embed."),
    (r"^(backbone\.)?enc_blocks\.", r"\1encoder.blocks."),
    (r"^(backbone\.)?enc_norm\.", r"\1encoder.norm."),
)
DPT_RENAMES = (
    (r"\.dpt\.head\.", r".head."),
    (r"\.act_postprocess\.(\d)\.0\.", r".projects.\1."),
    (r"\.act_postprocess\.(\d)\.1\.", r".resize_layers.\1."),
    *((rf"\.scratch\.layer_rn\.{i}\.", rf".scratch.layer{i + 1}_rn.") for i in range(4)),
)
KEY_MAP = KeyMap(
    prefixes=("module.",),
    renames=CROCO_RENAMES + DPT_RENAMES,
    # Used in training only, and the unit of the coarsest level that has nothing to fuse.
    ignored=(r"mask_token$", r".*\.refinenet4\.resConfUnit1\."),
)


def fit_image(width: int, height: int, resolution: int = 512, *, square_ok: bool = False) -> Fit:
    """Apply DUSt3R's rule: long side to 512, centre crop to multiples of 16 (a square to 4:3), or 224 × 224."""
    if resolution == 224:
        long_side = round(224 * max(width / height, height / width))
        resized = fit_long_side(width, height, long_side)
    else:
        resized = fit_long_side(width, height, resolution)
    cx, cy = resized[0] // 2, resized[1] // 2
    half_w, half_h = float((2 * cx) // 16 * 8), float((2 * cy) // 16 * 8)
    if resolution == 224:
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

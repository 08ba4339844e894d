"""VGGT: cameras, depth and points of many frames in one pass.

Wang, Chen, Karaev, Vedaldi, Rupprecht, Novotny, "VGGT: Visual Geometry Grounded Transformer", CVPR 2025. Our own
implementation, compatible with the public checkpoints (weights: CC BY-NC 4.0 for VGGT-1B, non-commercial; a separate
commercial checkpoint exists). Unusual: attention inside a frame and over all frames alternate; the first frame has
its own camera and register tokens; poses come out world-to-camera.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stream4d.geometry.transforms import invert, transform_points
from stream4d.models.base import ModelCard
from stream4d.models.blocks import Block, KVCache, Rope, image_size
from stream4d.models.encoders import DinoEncoder, normalise_imagenet, special_token_rope
from stream4d.models.family import (
    ForeignModel,
    ForeignSession,
    check_options,
    numpy,
    to_prediction,
)
from stream4d.models.heads import CameraHead, Dpt, resize_bilinear, signed_expm1, uv_map
from stream4d.models.pose_encoding import decode_cameras
from stream4d.models.resize import Fit
from stream4d.models.tracker import TrackerConfig, TrackHead, Tracks
from stream4d.models.weights import Checkpoint, KeyMap
from stream4d.packets import Array, Prediction, VideoInfo, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class VggtConfig:
    """Sizes of the network; the defaults are those of VGGT-1B."""

    dim: int = 1024
    depth: int = 24
    heads: int = 16
    patch: int = 14
    patch_depth: int = 24
    """Blocks of the DINOv2 patch embedder."""
    patch_grid: int = 37
    registers: int = 4
    camera_depth: int = 4
    camera_heads: int = 16
    dpt_layers: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    dpt_features: int = 256
    taps: tuple[int, int, int, int] = (4, 11, 17, 23)
    """Layers whose tokens the dense heads read; only these are kept."""
    point_head: bool = False
    """Build the point head; without it its weights are not loaded (depth and camera give better points)."""
    track_head: bool = False
    """Build the tracker; without it its weights are not loaded."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    head_chunk: int = 2
    """Frames that pass through a dense head together: bounds memory."""
    resolution: int = 518
    """Width of the network's image (long side in ``pad`` mode)."""
    fit_mode: Literal["crop", "pad"] = "crop"
    """``crop`` cuts tall images to a square, ``pad`` fills up to a square with white."""
    points_from: Literal["depth", "points"] = "depth"
    """Where the pointmap comes from: depth and camera (more accurate), or the point head."""


FOV_RANGE_RAD = (0.05, 3.0)


class VggtTokens(NamedTuple):
    """What the trunk keeps."""

    taps: list[Tensor]
    """4 × (B, T, P, 2C): frame and global state after the tapped layers, all tokens."""
    camera: Tensor
    """(B, T, 2C): camera tokens of the last layer."""


class VggtOutput(NamedTuple):
    """Raw predictions in the frame of the first image, up to scale. B is kept."""

    pose_encodings: list[Tensor]
    """(B, T, 9) after each iteration; the last counts."""
    depth: Tensor
    """(B, T, H, W) z-depth."""
    depth_confidence: Tensor
    """(B, T, H, W) > 1."""
    points: Tensor | None
    """(B, T, H, W, 3) in the first frame's camera."""
    points_confidence: Tensor | None
    """(B, T, H, W) > 1."""


class Aggregator(nn.Module):
    """DINOv2 tokens, camera and register tokens, then frame and global attention in turn."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = DinoEncoder(
            patch=config.patch,
            dim=config.dim,
            depth=config.patch_depth,
            heads=config.heads,
            registers=config.registers,
            grid=config.patch_grid,
            interpolate_offset=0.0,
            antialias=True,
        )
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, config.dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.registers, config.dim))

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                Block(config.dim, config.heads, eps=1e-5, qk_norm=True, layer_scale=0.01)
                for _ in range(config.depth)
            )

        self.frame_blocks = blocks()
        self.global_blocks = blocks()

    @property
    def specials(self) -> int:
        """Tokens of a frame before its patches."""
        return 1 + self.config.registers

    def tokens(self, images: Tensor, has_first: bool = True) -> Tensor:
        """Return the tokens that enter the first layer: (B, T, 3, H, W) -> (B·T, P, C).

        The first frame of a sequence has tokens of its own; ``has_first`` is False where a later part of a
        sequence comes alone.
        """
        B, T = images.shape[:2]
        patches = self.patch_embed(normalise_imagenet(images.flatten(0, 1)))
        patches = patches[:, 1 + self.config.registers :]
        index = torch.ones(T, dtype=torch.long, device=images.device)
        if has_first:
            index[0] = 0
        special = torch.cat([self.camera_token, self.register_token], dim=2)[0, index]
        special = special.repeat(B, 1, 1).to(patches.dtype)
        return torch.cat([special, patches], dim=1)

    def forward(
        self,
        images: Tensor,  # (B, T, 3, H, W) in [0, 1]
        *,
        mask: Tensor | None = None,
        caches: Sequence[KVCache] | None = None,
        has_first: bool = True,
    ) -> VggtTokens:
        """Run the trunk.

        ``mask`` limits global attention (T·P, T·P); ``caches`` (one per layer) let one new frame see past ones.
        """
        B, T, _, H, W = images.shape
        x = self.tokens(images, has_first)
        rope = special_token_rope(
            H // self.config.patch,
            W // self.config.patch,
            self.specials,
            self.config.dim // self.config.heads,
            images.device,
        )
        # The same place in every frame has the same rotation: there is no temporal position.
        everywhere = Rope(rope.cos.repeat(1, 1, T, 1), rope.sin.repeat(1, 1, T, 1))
        taps = []
        local = x
        for layer, (frame_block, global_block) in enumerate(
            zip(self.frame_blocks, self.global_blocks, strict=True)
        ):
            local = frame_block(x, rope)
            wide = local.unflatten(0, (B, T)).flatten(1, 2)
            cache = caches[layer] if caches is not None else None
            wide = global_block(wide, everywhere, mask, cache)
            x = wide.unflatten(1, (T, -1)).flatten(0, 1)
            if layer in self.config.taps:
                taps.append(torch.cat([local, x], dim=-1).unflatten(0, (B, T)))
        camera = torch.cat([local[:, 0], x[:, 0]], dim=-1).unflatten(0, (B, T))
        return VggtTokens(taps, camera)


class DenseHead(Dpt):
    """VGGT's DPT head: the shared trunk, two convolutions and the activation of values and confidence."""

    def __init__(self, config: VggtConfig, channels: int) -> None:
        super().__init__(
            in_dims=2 * config.dim,
            layer_dims=config.dpt_layers,
            features=config.dpt_features,
            rectified_skip=True,
            token_norm=True,
            uv_embed=True,
            exact_sizes=True,
        )
        features = config.dpt_features
        self.scratch.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.scratch.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, channels, 1)
        )

    def forward(
        self, tokens: Sequence[Tensor], grid: tuple[int, int], image_size: tuple[int, int]
    ) -> Tensor:  # 4 × (B, N, C) -> (B, channels, H, W), not activated
        x = self.scratch.get_submodule("output_conv1")(super().forward(tokens, grid, image_size))
        x = resize_bilinear(x, image_size)
        return self.scratch.get_submodule("output_conv2")(x + uv_map(x, image_size))


class VggtNet(nn.Module):
    """Trunk and heads."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        self.config = config
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(
            2 * config.dim, trunk_depth=config.camera_depth, heads=config.camera_heads
        )
        self.depth_head = DenseHead(config, 2)
        if config.point_head:
            self.point_head = DenseHead(config, 4)
        if config.track_head:
            self.track_head = TrackHead(2 * config.dim, config.tracker, config.dpt_layers)

    def forward(self, images: Tensor) -> VggtOutput:  # (B, T, 3, H, W) in [0, 1]
        tokens = self.aggregator(images)
        with torch.autocast(images.device.type, enabled=False):
            encodings = self.camera_head(tokens.camera.float())
        return self.dense(tokens, encodings, image_size(images))

    def dense(
        self, tokens: VggtTokens, encodings: list[Tensor], size: tuple[int, int]
    ) -> VggtOutput:
        """Run the dense heads on the trunk's tokens, a few frames at a time, in float32."""
        depth = self._run(self.depth_head, tokens, size)
        points = self._run(self.point_head, tokens, size) if self.config.point_head else None
        return VggtOutput(
            pose_encodings=encodings,
            depth=depth[:, :, 0].exp(),
            depth_confidence=1 + depth[:, :, 1].exp(),
            points=None if points is None else signed_expm1(points[:, :, :3]).movedim(2, -1),
            points_confidence=None if points is None else 1 + points[:, :, 3].exp(),
        )

    def track(self, images: Tensor, queries: Tensor) -> Tracks:  # (B, N, 2) pixels of frame 0
        """Follow points of the first frame through all frames (needs ``track_head``)."""
        tokens = self.aggregator(images)
        size = image_size(images)
        taps = [tap[:, :, self.aggregator.specials :].float() for tap in tokens.taps]
        return self.track_head(taps, self.grid(size), size, queries)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of patches."""
        return size[0] // self.config.patch, size[1] // self.config.patch

    def _run(self, head: nn.Module, tokens: VggtTokens, size: tuple[int, int]) -> Tensor:
        B, T = tokens.camera.shape[:2]
        flat = [tap.flatten(0, 1)[:, self.aggregator.specials :] for tap in tokens.taps]

        def chunks() -> Iterator[Tensor]:
            for start in range(0, B * T, self.config.head_chunk):
                part = [tap[start : start + self.config.head_chunk].float() for tap in flat]
                yield head(part, self.grid(size), size)

        with torch.autocast(flat[0].device.type, enabled=False):
            return torch.cat(list(chunks())).unflatten(0, (B, T))


def key_map(config: VggtConfig) -> KeyMap:
    """Return the key map: VGGT's names are ours; parts that are not built are left out."""
    ignored = [r"aggregator\.patch_embed\.mask_token$"]
    if not config.point_head:
        ignored.append(r"point_head\.")
    if not config.track_head:
        ignored.append(r"track_head\.")
    return KeyMap(prefixes=("module.", "model."), ignored=tuple(ignored))


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

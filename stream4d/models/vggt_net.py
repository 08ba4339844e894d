"""VGGT's network: trunk of alternating attention, dense heads, tracker. The adapter is in ``vggt.py``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from stream4d.models.blocks import Block, KVCache, image_size
from stream4d.models.encoders import DinoEncoder, normalise_imagenet, special_token_rope
from stream4d.models.heads import CameraHead, Dpt, resize_bilinear, signed_expm1, uv_map
from stream4d.models.rope import Rope
from stream4d.models.tracker import TrackerConfig, TrackHead, Tracks
from stream4d.models.weights import KeyMap


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

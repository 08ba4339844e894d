"""DUSt3R's network: encoder, twin decoders, heads. The adapter is in ``dust3r.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stream4d.models.blocks import DecoderBlock, image_size
from stream4d.models.checkpoint import Checkpoint, parse_constructor
from stream4d.models.encoders import CrocoEncoder
from stream4d.models.heads import Dpt, LinearHead, exp_of_norm, resize_bilinear
from stream4d.models.rope import rope_2d
from stream4d.models.weights import KeyMap


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

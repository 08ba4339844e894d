"""MUSt3R's network: encoder, and the decoder with its memory of tokens. The adapter is in ``must3r.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from stream4d.models.blocks import DecoderBlock, Mlp
from stream4d.models.checkpoint import Checkpoint, parse_constructor
from stream4d.models.encoders import CrocoEncoder
from stream4d.models.heads import LinearHead, exp_of_norm
from stream4d.models.rope import Rope, rope_2d
from stream4d.models.weights import KeyMap

Storage = Literal["kv", "norm_y", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Must3rConfig:
    """Sizes of the network; the defaults are those of all public checkpoints."""

    encoder_dim: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_dim: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    patch: int = 16
    rope_scale: float = 1.0
    """Training size / image size, for images larger than those of training."""
    storage: Storage = "kv"
    """What the memory holds: projected keys and values (fastest), normed tokens, or tokens (half the size)."""
    resolution: int = 512
    """Long side of the network's image; 224 crops a square."""
    crop: Literal["little", "table"] = "little"
    """``little``: whole frame, but for multiples of 16. ``table``: crop to the nearest aspect ratio of training."""
    memory_images: int = 12
    """Images that the memory keeps: the first one for ever, then keyframes; the oldest gives way."""
    keyframe_threshold: float = 0.1
    """A frame enters the memory when this share of its depth lies between its points and the known ones."""
    local_images: int = 4
    """Newest images that stay in the memory whether keyframes or not."""

    @classmethod
    def infer(cls, checkpoint: Checkpoint | None, **options: Any) -> Must3rConfig:
        """Take the resolution and RoPE's scale from the constructor strings in the file, as data."""
        text = "" if checkpoint is None else checkpoint.args.get("encoder", "")
        if isinstance(text, str) and "(" in text:
            _, arguments = parse_constructor(text)
            size = arguments.get("img_size")
            if isinstance(size, tuple) and "resolution" not in options:
                options["resolution"] = int(size[0])
            code = str(arguments.get("pos_embed", ""))
            if "_" in code and "rope_scale" not in options:
                old, _, new = code.split("_", 1)[1].partition(":")
                options["rope_scale"] = float(old) / float(new)
        return cls(**options)


@dataclass(slots=True)
class Memory:
    """What past images left: per layer the tokens of all of them, and which image each is from."""

    layers: list[Tensor] = field(default_factory=list)
    """Per decoder layer (1, N, C) or (1, N, 2C) for keys and values."""
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """(N,) image number of each token."""
    images: int = 0
    """Images that ever entered: the number of the next one."""

    def keep(self, images: Sequence[int]) -> Memory:
        """Return a memory that holds only some images."""
        wanted = torch.isin(self.labels, torch.tensor(list(images), device=self.labels.device))
        return Memory([x[:, wanted] for x in self.layers], self.labels[wanted], self.images)

    @property
    def held(self) -> list[int]:
        """Numbers of the images in the memory, oldest first."""
        return sorted(set(self.labels.tolist()))


class Encoded(NamedTuple):
    """Images of one shape, encoded."""

    tokens: Tensor
    """(n, N, C)."""
    size: tuple[int, int]
    """(H, W) in pixels."""


class Must3rDecoder(nn.Module):
    """The decoder with its memory."""

    def __init__(self, config: Must3rConfig) -> None:
        super().__init__()
        self.config = config
        dim, heads = config.decoder_dim, config.decoder_heads
        self.head_dim = dim // heads
        self.image2_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.feat_embed_enc_to_dec = nn.Linear(config.encoder_dim, dim)
        self.blocks_dec = nn.ModuleList(
            DecoderBlock(dim, heads) for _ in range(config.decoder_depth)
        )
        self.feedback_layer = Mlp(dim, 4 * dim)
        self.feedback_norm = nn.LayerNorm(dim, eps=1e-5)
        self.norm_dec = nn.LayerNorm(dim, eps=1e-6)
        self.head_dec = LinearHead(dim, config.patch, 7)

    @property
    def layers(self) -> list[DecoderBlock]:
        """The decoder blocks, typed."""
        return cast("list[DecoderBlock]", list(self.blocks_dec))

    def store(self, block: DecoderBlock, x: Tensor) -> Tensor:
        """Bring tokens to the form that the memory keeps."""
        if self.config.storage == "raw":
            return x
        x = block.norm_y(x)
        if self.config.storage == "norm_y":
            return x
        return torch.cat([block.cross_attn.projk(x), block.cross_attn.projv(x)], dim=-1)

    def recall(self, block: DecoderBlock, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Bring stored tokens to keys and values."""
        if self.config.storage == "kv":
            keys, values = stored.chunk(2, dim=-1)
            return keys, values
        y = block.norm_y(stored) if self.config.storage == "raw" else stored
        return block.cross_attn.projk(y), block.cross_attn.projv(y)

    def forward(
        self, groups: Sequence[Encoded], memory: Memory, *, render: bool = False
    ) -> tuple[list[Tensor], Memory]:
        """Decode images against the memory, and (unless ``render``) add them to it.

        Returns:
            per group (n, H, W, 7) raw head outputs, and the new memory; the old one is unchanged.
        """
        states, ropes, numbers = self._enter(groups, memory, render)
        entered: list[list[Tensor]] = []
        for layer, block in enumerate(self.layers):
            if not render:
                entered.append([x for group in states for x in group.split(1)])
            own = [] if render else [self.store(block, x) for x in entered[-1]]
            past = memory.layers[layer] if memory.layers else None
            states = self._layer(block, states, ropes, past, own)
        outputs = [
            self._head(self.norm_dec(x), group.size)
            for x, group in zip(states, groups, strict=True)
        ]
        return outputs, memory if render else self._remember(memory, entered, numbers)

    def _enter(
        self, groups: Sequence[Encoded], memory: Memory, render: bool
    ) -> tuple[list[Tensor], list[Rope], list[int]]:
        """Embed the images; all but the very first are marked as not being the reference."""
        states: list[Tensor] = []
        ropes: list[Rope] = []
        numbers: list[int] = []
        for group in groups:
            x = self.feat_embed_enc_to_dec(group.tokens)
            is_reference = memory.images == 0 and not states and not render
            first = 1 if is_reference else 0
            x = torch.cat([x[:first], x[first:] + self.image2_embed])
            states.append(x)
            patch = self.config.patch
            rows, columns = group.size[0] // patch, group.size[1] // patch
            grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(x.device)
            ropes.append(rope_2d(grid, self.head_dim, scale=self.config.rope_scale))
            start = memory.images + len(numbers)
            numbers += list(range(start, start + len(x)))
        return states, ropes, numbers

    def _layer(
        self,
        block: DecoderBlock,
        states: Sequence[Tensor],
        ropes: Sequence[Rope],
        past: Tensor | None,
        own: Sequence[Tensor],
    ) -> list[Tensor]:
        """Run one block; each image sees the memory and the other new images, never itself."""
        out, position = [], 0
        for x, rope in zip(states, ropes, strict=True):
            x = x + block.attn(block.norm1(x), rope)
            query = block.norm2(x)
            seen = []
            for i in range(len(x)):
                # A lone first image has nothing else to look at.
                alone = len(own) == 1 and past is None
                others = [o for j, o in enumerate(own) if j != position or alone]
                context = torch.cat(([] if past is None else [past]) + others, dim=1)
                keys, values = self.recall(block, context)
                seen.append(block.cross_attn.attend(query[i : i + 1], keys, values))
                position += 1
            x = x + torch.cat(seen)
            out.append(x + block.mlp(block.norm3(x)))
        return out

    def _remember(
        self, memory: Memory, entered: list[list[Tensor]], numbers: Sequence[int]
    ) -> Memory:
        """Append the new images' tokens, with the feedback of the deepest layer in all shallower ones."""
        offsets = [self.feedback_layer(self.feedback_norm(x)) for x in entered[-1]]
        layers = []
        last = len(self.blocks_dec) - 1
        for layer, (block, tokens) in enumerate(zip(self.layers, entered, strict=True)):
            if layer < last:
                tokens = [x + offset for x, offset in zip(tokens, offsets, strict=True)]
            new = torch.cat([self.store(block, x) for x in tokens], dim=1)
            layers.append(torch.cat([memory.layers[layer], new], dim=1) if memory.layers else new)
        counts = torch.tensor([x.shape[1] for x in entered[0]])
        labels = torch.repeat_interleave(torch.tensor(list(numbers)), counts)
        labels = torch.cat([memory.labels, labels.to(memory.labels.device)])
        return Memory(layers, labels, memory.images + len(numbers))

    def _head(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        patch = self.config.patch
        with torch.autocast(x.device.type, enabled=False):
            raw = self.head_dec(x.float(), (size[0] // patch, size[1] // patch))
        return raw.movedim(1, -1)


class Must3rNet(nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: Must3rConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = CrocoEncoder(
            patch=config.patch,
            dim=config.encoder_dim,
            depth=config.encoder_depth,
            heads=config.encoder_heads,
            rope_scale=config.rope_scale,
        )
        self.decoder = Must3rDecoder(config)

    def encode(self, images: Tensor) -> Encoded:  # (n, 3, H, W) in [-1, 1]
        """Encode images of one shape."""
        return Encoded(self.encoder(images), (int(images.shape[-2]), int(images.shape[-1])))

    def forward(
        self, images: Tensor, memory: Memory, *, render: bool = False
    ) -> tuple[Tensor, Memory]:
        """Encode and decode images of one shape: (n, H, W, 7) raw, and the new memory."""
        outputs, memory = self.decoder([self.encode(images)], memory, render=render)
        return outputs[0], memory


class Points(NamedTuple):
    """Activated head output."""

    in_scene: Tensor
    """(..., H, W, 3) in the frame of the memory's first image."""
    in_cam: Tensor
    """(..., H, W, 3) in the image's own camera."""
    confidence: Tensor
    """(..., H, W) > 1."""


def activate(raw: Tensor) -> Points:  # (..., H, W, 7)
    """Split and activate the seven channels."""
    return Points(exp_of_norm(raw[..., :3]), exp_of_norm(raw[..., 3:6]), 1 + raw[..., 6].exp())


KEY_MAP = KeyMap(
    prefixes=("module.",),
    renames=(
        (r"^encoder\.blocks_enc\.", "encoder.blocks."),
        (r"^encoder\.norm_enc\.", "encoder.norm."),
    ),
)


def refine(
    decoder: Must3rDecoder, memory: Memory, batch: dict[int, Encoded]
) -> tuple[list[Tensor], Memory]:
    """Run images again that are in the memory, and replace what they left there (the reference image stays).

    Args:
        batch: image number → its encoding; the images see each other and the whole memory.

    Returns:
        per image (1, H, W, 7) raw head outputs, and the new memory.
    """
    outputs, grown = decoder(list(batch.values()), memory)
    labels = grown.labels.clone()
    for place, number in enumerate(batch):
        is_old, is_new = grown.labels == number, grown.labels == memory.images + place
        labels[is_new] = number if number != 0 else -1
        if number != 0:
            labels[is_old] = -1
    order = torch.argsort(labels, stable=True)
    order = order[labels[order] >= 0]
    return outputs, Memory([x[:, order] for x in grown.layers], labels[order], memory.images)

"""The temporal network: one frame at a time, each related to the frame before it.

::

    frame ─▶ FrameEncoder ─▶ SceneTokens (frame + causal temporal attention, unified queries U) ─▶ FrameState
    FrameState of t-1, of t, initial flow ─▶ FlowNet (both directions) ─▶ rigid motion ─▶ DenseHead ─▶ PairState

``forward`` runs a clip for training; a session calls ``observe`` and ``relate`` frame by frame. Both do the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.errors import ModelError
from stream4d.models.flow_net import FlowFields, FlowNet, MatchFeatures
from stream4d.models.frame_encoder import FrameEncoder, FrameFeatures
from stream4d.models.rigid_motion import rigid_fields
from stream4d.models.sampling import convex_upsample, round_trip, warp
from stream4d.models.temporal_heads import (
    CameraMotion,
    DenseHead,
    DenseMaps,
    FocalHead,
    camera_motion,
    motion_cues,
)
from stream4d.models.temporal_tokens import SceneTokens, TokenMemory

STRIDE = 32
"""Image sides must be multiples of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetConfig:
    """Size of the network. The defaults are those of the shipped weights."""

    quarter: int = 48
    """Channels at 1/4 resolution."""
    tokens: int = 128
    """Channels of a scene token; a multiple of 16 times ``heads``."""
    depth: int = 3
    """Layers of alternating frame and temporal attention."""
    heads: int = 4
    """Attention heads."""
    queries: int = 32
    """Unified queries: the scene memory."""
    memory_frames: int = 4
    """Past frames in the temporal attention's window of keys and values."""
    hidden: int = 48
    """Channels of the refinement's state."""
    radius: int = 2
    """Radius of the local correlation, cells at 1/4 resolution."""
    iterations: int = 1
    """Refinement steps at 1/4 resolution."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(f"{name} must be a positive integer, got {value!r}")
        if self.tokens % (4 * self.heads):
            raise ModelError(
                f"tokens must be a multiple of 4 · heads = {4 * self.heads}, got {self.tokens}"
            )


class FrameState(NamedTuple):
    """Everything later frames need of this one."""

    features: FrameFeatures
    matching: MatchFeatures
    tokens: Tensor
    """(B, C, H/16, W/16)."""
    focal: Tensor
    """(B,) focal length over the long side."""


class PairState(NamedTuple):
    """What two consecutive frames say together. Where both have maps, they share the batch: a's first, then b's."""

    flow: FlowFields
    """a → b, then b → a."""
    maps: DenseMaps
    """Of frame a, then of frame b, or of b alone, at 1/4 resolution."""
    camera: CameraMotion
    """Points of b's camera to a's."""

    def upsampled(self, values: Tensor) -> Tensor:
        """Bring maps at 1/4 resolution, of both frames or of b alone, to full resolution along the flow's edges."""
        return convex_upsample(values, self.flow.upsampling.detach()[-len(values) :])


class ClipOutput(NamedTuple):
    """A whole clip: T frames and T - 1 pairs."""

    frames: list[FrameState]
    pairs: list[PairState]
    memory: TokenMemory


class TemporalNet(nn.Module):
    """The network of the ``temporal`` model."""

    def __init__(self, config: NetConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or NetConfig()
        self.encoder = FrameEncoder(c.quarter)
        self.tokens = SceneTokens(
            3 * 64,
            c.tokens,
            depth=c.depth,
            heads=c.heads,
            queries=c.queries,
            frames=c.memory_frames,
        )
        self.flow = FlowNet(
            quarter=c.quarter,
            tokens=c.tokens,
            hidden=c.hidden,
            radius=c.radius,
            iterations=c.iterations,
        )
        self.dense = DenseHead(c.quarter, 64, c.tokens, c.hidden)
        self.focal = FocalHead(c.tokens)

    def observe(self, image: Tensor, memory: TokenMemory | None) -> tuple[FrameState, TokenMemory]:
        """Look at one frame, (B, 3, H, W) in [0, 1], in the light of the stream so far."""
        if image.shape[-2] % STRIDE or image.shape[-1] % STRIDE:
            raise ValueError(f"image sides must be multiples of {STRIDE}, got {tuple(image.shape)}")
        features = self.encoder(image)
        inputs = torch.cat(
            [
                features.sixteenth,
                F.avg_pool2d(features.eighth, 2),
                F.interpolate(features.thirtysecond, features.sixteenth.shape[-2:], mode="nearest"),
            ],
            1,
        )
        tokens, memory = self.tokens(inputs, memory)
        matching = self.flow.describe_frame(features, tokens)
        focal = self.focal(tokens, memory.queries)
        return FrameState(features, matching, tokens, focal), memory

    def relate(
        self,
        a: FrameState,
        b: FrameState,
        initial: Tensor,  # (2B, 2, H, W): a → b, then b → a
        earlier: Tensor
        | None = None,  # (B, 1, H/4, W/4) motion logit of frame a from the pair before
        K: Tensor | None = None,
        *,
        iterations: int | None = None,
        both: bool = True,
    ) -> PairState:
        """Relate two consecutive frames; a stream that knows the depth and motion of frame a needs not ``both``.

        ``K`` (B, 3, 3): intrinsics of the images; NaN where unknown. Where the focal length is, the network's guess is
        refined; where the principal point is, it is the image's centre.
        """
        flow = self.flow(
            a.features, b.features, (a.matching, b.matching), initial, iterations=iterations
        )
        quarter = flow.quarter.detach()
        log_sigma = F.avg_pool2d(flow.log_sigma.detach(), 4)
        trip = round_trip(quarter)
        carried = _carry(earlier, quarter)
        guess = _lens(K, b.focal.detach(), quarter)
        known = torch.zeros_like(b.focal, dtype=torch.bool) if K is None else K[:, 0, 0].isfinite()
        sigma = (
            math.sqrt(2) / 4 * log_sigma.exp()
        )  # of a Laplace distribution, in pixels of the level
        rigid = rigid_fields(quarter, sigma, trip, carried.sigmoid(), guess, known, both=both)
        seen = [a, b] if both else [b]
        count = len(seen) * len(b.focal)
        cues = motion_cues(rigid.maps, *(x[-count:] for x in (quarter, log_sigma, trip, carried)))
        maps = self.dense(
            torch.cat([x.features.quarter for x in seen]),
            torch.cat([x.features.eighth for x in seen]),
            torch.cat([x.tokens for x in seen]),
            flow.hidden.detach()[-count:],
            cues,
        )
        with torch.no_grad():
            camera = camera_motion(rigid, maps, log_sigma)
        return PairState(flow, maps, camera)

    def forward(self, images: Tensor, initial: Tensor, K: Tensor | None = None) -> ClipOutput:
        """Run clips: images (B, T, 3, H, W), initial flow (B, T - 1, 2, 2, H, W) with the direction third.

        ``K`` (B, T, 3, 3), NaN where unknown, see ``relate``.
        """
        frames: list[FrameState] = []
        pairs: list[PairState] = []
        memory: TokenMemory | None = None
        for t in range(images.shape[1]):
            frame, memory = self.observe(images[:, t], memory)
            frames.append(frame)
            if t > 0:
                earlier = pairs[-1].maps.motion.chunk(2)[1] if pairs else None
                directed = initial[:, t - 1].transpose(0, 1).flatten(0, 1)
                lens = None if K is None else K[:, t]
                pairs.append(self.relate(frames[-2], frame, directed, earlier, lens))
        assert memory is not None
        return ClipOutput(frames, pairs, memory)


def _lens(K: Tensor | None, focal: Tensor, flow: Tensor) -> Tensor:  # (B,) over the long side
    """Return intrinsics (B, 3, 3) at 1/4 resolution: those given, and guesses where they are NaN."""
    h, w = flow.shape[-2:]
    out = torch.eye(3, device=flow.device).repeat(len(focal), 1, 1)
    out[:, 0, 0] = out[:, 1, 1] = focal * max(h, w)
    out[:, 0, 2], out[:, 1, 2] = (w - 1) / 2, (h - 1) / 2
    if K is None:
        return out
    given = K / 4
    # Integer coordinates are centres of pixels: those of a cell are 1.5 pixels in.
    given[:, :2, 2] = (K[:, :2, 2] + 0.5) / 4 - 0.5
    given[:, 2, 2] = 1
    return torch.where(given.isfinite(), given, out)


def _carry(earlier: Tensor | None, flow: Tensor) -> Tensor:
    """Bring the motion logit of frame a to both frames: as it is, and along the flow b → a."""
    backward = flow.chunk(2)[1]
    if earlier is None:
        return torch.zeros_like(flow[:, :1])
    earlier = earlier.detach()
    return torch.cat([earlier, warp(earlier, backward)])

"""StreamVGGT: VGGT made causal. A frame sees itself and the past, through caches of keys and values.

Zhuo, Zheng et al., "Streaming 4D Visual Geometry Transformer", 2025. Same names and shapes as VGGT-1B; weights:
CC BY-NC-SA 4.0, non-commercial. Two things differ from the authors' loop: keys are cached after norm and rotation (same
numbers, no work per cached frame), and the caches are bounded: the first frame stays, then the newest ``cache_frames``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stream4d.errors import ModelError
from stream4d.geometry.transforms import invert
from stream4d.models.base import ModelCard
from stream4d.models.blocks import KVCache, causal_frame_mask, image_size
from stream4d.models.checkpoint import Checkpoint
from stream4d.models.family import ForeignModel, check_options, numpy
from stream4d.models.native import FrameResult, NativeSession
from stream4d.models.pose_encoding import decode_cameras
from stream4d.models.vggt import FOV_RANGE_RAD, fit_image, rigid_4x4
from stream4d.models.vggt_net import VggtConfig, VggtNet, VggtOutput, key_map
from stream4d.models.weights import KeyMap
from stream4d.packets import Frame, VideoInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamVggtConfig(VggtConfig):
    """VGGT's config and the bound of the memory."""

    cache_frames: int = 8
    """Frames that global attention remembers (one costs about 205 MB at 518×392 in float32)."""
    camera_cache_frames: int = 64
    """Frames that the camera head remembers (one token each)."""
    camera_cache: Literal["iteration", "shared"] = "iteration"
    """One cache per refinement step, as in training; or one for all, as in the authors' demo."""


class StreamCaches:
    """Caches of all layers for one video."""

    def __init__(self, config: StreamVggtConfig) -> None:
        anchors = min(1, config.cache_frames - 1)
        self.trunk = [KVCache(config.cache_frames, anchors) for _ in range(config.depth)]
        steps = 4
        if config.camera_cache == "shared":
            frames = steps * config.camera_cache_frames
            shared = [KVCache(frames, steps) for _ in range(config.camera_depth)]
            self.camera = [shared] * steps
        else:
            self.camera = [
                [KVCache(config.camera_cache_frames, 1) for _ in range(config.camera_depth)]
                for _ in range(steps)
            ]
        self.seen = 0

    def all(self) -> list[KVCache]:
        """Return every cache once."""
        camera = {id(cache): cache for step in self.camera for cache in step}
        return [*self.trunk, *camera.values()]


class StreamVggtNet(VggtNet):
    """VGGT's network with a causal mask (all frames at once) or with caches (one frame at a time)."""

    def causal(self, images: Tensor) -> VggtOutput:  # (B, T, 3, H, W)
        """Run all frames at once, each seeing itself and the past."""
        T = images.shape[1]
        size = image_size(images)
        rows, columns = self.grid(size)
        per_frame = self.aggregator.specials + rows * columns
        tokens = self.aggregator(images, mask=causal_frame_mask(T, per_frame, images.device))
        with torch.autocast(images.device.type, enabled=False):
            encodings = self.camera_head(
                tokens.camera.float(), causal_frame_mask(T, 1, images.device)
            )
        return self.dense(tokens, encodings, size)

    def stream(self, image: Tensor, caches: StreamCaches) -> VggtOutput:  # (B, 1, 3, H, W)
        """Run the next frame."""
        tokens = self.aggregator(image, caches=caches.trunk, has_first=caches.seen == 0)
        with torch.autocast(image.device.type, enabled=False):
            encodings = self.camera_head(tokens.camera.float(), caches=caches.camera)
        caches.seen += 1
        return self.dense(tokens, encodings, image_size(image))


class StreamVggtModel(ForeignModel):
    """StreamVGGT with bounded caches."""

    cards: ClassVar[dict[str, ModelCard]] = {
        "streamvggt": ModelCard(
            name="streamvggt",
            summary="VGGT frame by frame, with a bounded memory",
            paper="Streaming 4D Visual Geometry Transformer, Zhuo et al., 2025",
            weights_licence="CC BY-NC-SA 4.0",
            is_commercial_ok=False,
            resolution="width 518, height a multiple of 14, at most 518",
            is_metric=False,
            streaming="native",
            window=4,
            overlap=1,
            parameters_m=1256.5,
            hub_id="lch01/StreamVGGT:checkpoints.pth",
        ),
    }

    @classmethod
    def configure(
        cls, name: str, checkpoint: Checkpoint | None, options: dict[str, Any]
    ) -> StreamVggtConfig:
        check_options(StreamVggtConfig, options, name)
        config = StreamVggtConfig(**options)
        if config.cache_frames < 1 or config.camera_cache_frames < 2:
            raise ModelError(
                f"cache_frames must be at least 1 and camera_cache_frames at least 2, "
                f"got {config.cache_frames} and {config.camera_cache_frames}"
            )
        return config

    @classmethod
    def build(cls, config: StreamVggtConfig) -> nn.Module:
        return StreamVggtNet(config)

    @classmethod
    def key_map(cls, config: StreamVggtConfig) -> KeyMap:
        return key_map(config)

    def session(self, info: VideoInfo) -> StreamVggtSession:
        config = self.config
        return StreamVggtSession(
            self, info, fit_image(info.width, info.height, config.resolution, config.fit_mode)
        )


class StreamVggtSession(NativeSession):
    """The caches of one video."""

    def __init__(self, model: Any, info: VideoInfo, fitted: Any) -> None:
        super().__init__(model, info, fitted)
        self.caches = StreamCaches(model.config)

    def memory_state(self) -> dict[str, Tensor]:
        caches = self.caches.all()
        state = {
            f"{index}.{name}": value
            for index, cache in enumerate(caches)
            for name, value in cache.state().items()
        }
        return state | {"seen": torch.tensor(self.caches.seen)}

    def restore_memory(self, state: dict[str, Tensor]) -> None:
        self.caches.seen = int(state["seen"])
        for index, cache in enumerate(self.caches.all()):
            prefix = f"{index}."
            cache.restore(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )

    def advance(self, frames: Sequence[Frame]) -> list[FrameResult]:
        return [self._one(frame) for frame in frames]

    def _one(self, frame: Frame) -> FrameResult:
        image = self.fit.batch([frame.rgb]).to(self.model.device)
        out = self.model.net.stream(image[None], self.caches)
        encoding = out.pose_encodings[-1][0].double()
        encoding[..., 7:] = encoding[..., 7:].clamp(*FOV_RANGE_RAD)
        cam_from_scene, K = decode_cameras(encoding, self.fit.size[::-1])
        return FrameResult(
            depth=numpy(out.depth[0, 0]),
            confidence=numpy(out.depth_confidence[0, 0]),
            K=numpy(K[0]) if frame.K is None else self.fit.K_to_network(frame.K),
            scene_from_cam=invert(rigid_4x4(numpy(cam_from_scene)))[0],
        )

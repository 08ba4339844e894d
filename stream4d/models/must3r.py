"""MUSt3R: DUSt3R made symmetric, multi-view and streaming, by a memory of decoder tokens.

Cabon, Stoffl, Antsfeld, Csurka, Chidlovskii, Revaud, Leroy, "MUSt3R: Multi-view Network for Stereo 3D Reconstruction",
CVPR 2025. Our own implementation, compatible with the public checkpoints (weights: MUSt3R Non-Commercial License).
Unusual: every layer cross-attends to what earlier images left in the memory of the same layer; deep layers feed back
into shallow memories; each pixel gets a point in the first image's frame and one in its own camera's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from stream4d.errors import ModelError
from stream4d.geometry.camera import default_focal, make_K
from stream4d.models.base import ModelCard
from stream4d.models.checkpoint import Checkpoint
from stream4d.models.crop_table import fit_to_table
from stream4d.models.dust3r import fit_image
from stream4d.models.family import ForeignModel, check_options, numpy
from stream4d.models.must3r_net import (
    KEY_MAP,
    Memory,
    Must3rConfig,
    Must3rNet,
    Points,
    activate,
)
from stream4d.models.native import FrameResult, NativeSession
from stream4d.models.overlap import PointIndex
from stream4d.models.pointmaps import estimate_focal, rigid_fit
from stream4d.models.resize import Fit
from stream4d.models.weights import KeyMap
from stream4d.packets import Array, Frame, VideoInfo


class Must3rModel(ForeignModel):
    """MUSt3R, streaming natively: a frame enters the memory when it shows something new."""

    cards: ClassVar[dict[str, ModelCard]] = {
        "must3r": ModelCard(
            name="must3r",
            summary="multi-view DUSt3R with a memory, made for streams",
            paper="MUSt3R: Multi-view Network for Stereo 3D Reconstruction, Cabon et al., CVPR 2025",
            weights_licence="MUSt3R Non-Commercial License (NAVER)",
            is_commercial_ok=False,
            resolution="long side 512, multiples of 16",
            is_metric=False,
            streaming="native",
            window=4,
            overlap=1,
            parameters_m=423.4,
            hub_id=None,
        ),
    }

    @classmethod
    def configure(
        cls, name: str, checkpoint: Checkpoint | None, options: dict[str, Any]
    ) -> Must3rConfig:
        check_options(Must3rConfig, options, name)
        config = Must3rConfig.infer(checkpoint, **options)
        if not 1 <= config.local_images < config.memory_images:
            raise ModelError(
                f"local_images must be in [1, memory_images={config.memory_images}), "
                f"got {config.local_images}"
            )
        return config

    @classmethod
    def build(cls, config: Must3rConfig) -> nn.Module:
        return Must3rNet(config)

    @classmethod
    def key_map(cls, config: Must3rConfig) -> KeyMap:
        return KEY_MAP

    def session(self, info: VideoInfo) -> Must3rSession:
        size = (info.width, info.height, self.config.resolution)
        fitted = (
            fit_to_table(*size) if self.config.crop == "table" else fit_image(*size, square_ok=True)
        )
        return Must3rSession(self, info, fitted)


class Must3rSession(NativeSession):
    """The memory of one video: the first image, keyframes, and the newest images."""

    def __init__(self, model: Any, info: VideoInfo, fitted: Fit) -> None:
        super().__init__(model, info, fitted)
        self.memory = Memory(labels=torch.zeros(0, dtype=torch.long, device=model.device))
        self.keyframes: list[int] = []
        self.known = PointIndex(frames=model.config.memory_images)
        self.focal_sum = 0.0
        self.focal_weight = 0.0

    def memory_state(self) -> dict[str, Tensor]:
        state = {f"layer.{i}": x for i, x in enumerate(self.memory.layers)}
        state |= {f"known.{name}": torch.from_numpy(x) for name, x in self.known.state().items()}
        return state | {
            "labels": self.memory.labels,
            "images": torch.tensor(self.memory.images),
            "keyframes": torch.tensor(self.keyframes, dtype=torch.long),
            "focal": torch.tensor([self.focal_sum, self.focal_weight], dtype=torch.float64),
        }

    def restore_memory(self, state: dict[str, Tensor]) -> None:
        count = sum(name.startswith("layer.") for name in state)
        layers = [state[f"layer.{i}"] for i in range(count)]
        self.memory = Memory(layers, state["labels"], int(state["images"]))
        self.keyframes = state["keyframes"].tolist()
        self.focal_sum, self.focal_weight = state["focal"].tolist()
        prefix = "known."
        self.known.restore(
            {k.removeprefix(prefix): numpy(v) for k, v in state.items() if k.startswith(prefix)}
        )

    def advance(self, frames: Sequence[Frame]) -> list[FrameResult]:
        out = []
        # The first two images enter together: each helps the other, and neither sees only itself.
        first = 2 if self.memory.images == 0 else 1
        for part in (frames[:first], *([f] for f in frames[first:])):
            if part:
                images = self.fit.batch([f.rgb for f in part]).to(self.model.device) * 2 - 1
                raw, self.memory = self.model.net(images, self.memory)
                points = activate(raw)
                for i, frame in enumerate(part):
                    number = self.memory.images - len(part) + i
                    out.append(self._place(frame, number, Points(*(x[i] for x in points))))
                self._forget()
        return out

    def _place(self, frame: Frame, number: int, points: Points) -> FrameResult:
        """Turn an image's points into a posed depth map; decide whether it becomes a keyframe."""
        in_scene, in_cam, confidence = (numpy(x).astype(np.float64) for x in points)
        K, stretch = self._intrinsics(frame, in_cam, confidence)
        in_cam[..., 2] *= stretch
        # The first image's camera is the scene's frame.
        pose = np.eye(4) if number == 0 else rigid_fit(in_cam, in_scene, confidence - 1)
        depth = in_cam[..., 2]
        novelty = self.known.novelty(in_scene, depth, confidence, pose[:3, 3])
        if novelty > self.model.config.keyframe_threshold or number < 2:
            self.known.add(in_scene, depth, confidence, pose[:3, 3])
            self.keyframes.append(number)
        return FrameResult(depth=depth, confidence=confidence, K=K, scene_from_cam=pose)

    def _intrinsics(self, frame: Frame, in_cam: Array, confidence: Array) -> tuple[Array, float]:
        """Return K and the factor on z that makes the points agree with it.

        One focal length serves the whole video: the given one, or the confidence-weighted mean of the frames before.
        """
        W, H = self.fit.size
        own = estimate_focal(in_cam, min_focal=0.5, max_focal=3.5)
        if not np.isfinite(own):
            own = default_focal(W, H)
        focal = self.focal_sum / self.focal_weight if self.focal_weight else own
        weight = max(float((confidence - 1).sum()), 1e-9)
        self.focal_sum += weight * own
        self.focal_weight += weight
        if frame.K is not None:
            K = self.fit.K_to_network(frame.K)
            return K, float(K[0, 0]) / own
        return make_K(focal, focal, W / 2, H / 2), focal / own

    def _forget(self) -> None:
        """Keep the reference, the newest keyframes and the newest images, within the bound."""
        config = self.model.config
        newest = self.memory.images - 1
        held = self.memory.held
        recent = [i for i in held if i > newest - config.local_images]
        room = config.memory_images - len(recent) - 1
        older = [i for i in self.keyframes if i in held and i not in recent and i != 0]
        keep = {0, *older[len(older) - room if len(older) > room else 0 :], *recent}
        self.keyframes = [i for i in self.keyframes if i in keep]
        if len(keep) < len(held):
            self.memory = self.memory.keep(sorted(keep))

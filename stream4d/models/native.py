"""Sessions of models with a memory of their own, which see each frame once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stream4d.geometry.transforms import invert, transform_points
from stream4d.models.family import ForeignSession, numpy, to_prediction
from stream4d.models.resize import Fit
from stream4d.packets import Array, Frame, Prediction, State, VideoInfo, Window

RESUME_BYTES = 256 << 20
"""A larger memory is not written into the store at every commit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameResult:
    """What a natively streaming model says of one frame, in the scene frame of its memory."""

    depth: Array
    """(h, w) z-depth."""
    confidence: Array
    """(h, w)."""
    K: Array
    """(3, 3) of the network's image."""
    scene_from_cam: Array
    """(4, 4)."""
    points_in_scene: Array | None = None
    """(h, w, 3), or None where depth, K and pose say it all."""


class NativeSession(ForeignSession):
    """Session of a model with a memory of its own: each frame passes once, results of the overlap are kept."""

    is_metric = False

    def __init__(self, model: Any, info: VideoInfo, fitted: Fit) -> None:
        super().__init__(model, info, fitted)
        self.results: dict[int, FrameResult] = {}

    def advance(self, frames: Sequence[Frame]) -> list[FrameResult]:
        """Take new frames, in order."""
        raise NotImplementedError

    def memory_state(self) -> dict[str, torch.Tensor]:
        """Return the memory as tensors; empty if the family cannot save it."""
        return {}

    def restore_memory(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `memory_state` returned."""

    def state(self) -> State:
        """Return memory and kept results, or nothing where they exceed ``RESUME_BYTES``.

        Without a state a resumed run begins a new memory at the overlap, and the pose chain joins the two there.
        """
        memory = self.memory_state()
        if sum(x.numel() * x.element_size() for x in memory.values()) > RESUME_BYTES:
            return {}
        out = {f"memory.{name}": numpy(value) for name, value in memory.items()}
        for index, result in self.results.items():
            for name in ("depth", "confidence", "K", "scene_from_cam"):
                out[f"result.{index}.{name}"] = np.asarray(getattr(result, name))
        return out

    def restore(self, state: State) -> None:
        """Go on from an earlier ``state``."""
        if not state:
            return
        tensors = {
            name.removeprefix("memory."): torch.from_numpy(np.array(value)).to(self.model.device)
            for name, value in state.items()
            if name.startswith("memory.")
        }
        with torch.inference_mode():
            self.restore_memory(tensors)
        indices = sorted({int(n.split(".")[1]) for n in state if n.startswith("result.")})
        self.results = {
            i: FrameResult(
                **{
                    name: state[f"result.{i}.{name}"]
                    for name in ("depth", "confidence", "K", "scene_from_cam")
                }
            )
            for i in indices
        }

    def predict(self, window: Window) -> Prediction:
        new = [frame for frame in window.frames if frame.index not in self.results]
        for frame, result in zip(new, self.advance(new) if new else [], strict=True):
            self.results[frame.index] = result
        self.results = {frame.index: self.results[frame.index] for frame in window.frames}
        parts = list(self.results.values())
        window_from_scene = invert(parts[0].scene_from_cam)
        points = [p.points_in_scene for p in parts]
        return to_prediction(
            self.fit,
            depth=np.stack([p.depth for p in parts]),
            confidence=np.stack([p.confidence for p in parts]),
            K=np.stack([p.K for p in parts]),
            window_from_cam=np.stack([p.scene_from_cam for p in parts]),
            points_in_window=None
            if any(p is None for p in points)
            else transform_points(window_from_scene, np.stack(points)),  # type: ignore[arg-type]
            is_metric=self.is_metric,
        )

"""A model that knows the answer: it returns the synthetic scene's truth as a ``Prediction``."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np

from stream4d.geometry import camera, transforms
from stream4d.models.base import ModelCard
from stream4d.packets import Array, Prediction, State, VideoInfo, Window
from tests.synthetic import Scene

CARD = ModelCard(
    name="oracle", summary="The synthetic scene's truth", paper="", weights_licence="none needed",
    is_commercial_ok=True, resolution="any", is_metric=False, streaming="windows", window=2,
    overlap=1, needs_weights=False,
)  # fmt: skip


@dataclass(frozen=True)
class OracleModel:
    """Gives exact flow and motion (``gives="flow"``), or exact pointmaps (``"pointmap"``), or both (``"all"``)."""

    scene: Scene
    gives: Literal["flow", "pointmap", "all"] = "flow"
    flow_noise_px: float = 0.0
    depth_noise: float = 0.0
    """1σ of log depth."""
    window_scale: float = 1.0
    """Windows come in this scale, changed by ±30 % from one to the next unless it is exactly 1."""
    knows_motion: bool = True
    knows_camera: bool = True
    """Whether pointmap predictions carry K and poses."""
    card: ModelCard = CARD

    def session(self, info: VideoInfo) -> OracleSession:
        """Open the (memoryless) session."""
        return OracleSession(self)


class OracleSession:
    """Looks up each frame by its index."""

    def __init__(self, model: OracleModel) -> None:
        self.model = model

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def step(self, window: Window) -> Prediction:
        """Return the truth for the window's frames, with the noise asked for."""
        times = [frame.index for frame in window.frames]
        rng = np.random.default_rng(times[0])
        parts: dict[str, Array] = {}
        if self.model.gives in ("flow", "all") and len(times) > 1:
            parts |= self._flows(times, rng)
        if self.model.gives in ("pointmap", "all"):
            parts |= self._geometry(times, window.index, rng)
        if self.model.knows_motion:
            moving = np.stack([self.model.scene.moving(t) for t in times])
            parts["motion_prob"] = (0.02 + 0.96 * moving).astype(np.float32)
        return Prediction(**parts)  # type: ignore[arg-type]

    def _flows(self, times: list[int], rng: np.random.Generator) -> dict[str, Array]:
        there, back, sigma = [], [], []
        for a, b in itertools.pairwise(times):
            forward, visible = self.model.scene.flow(a, b)
            noise = self.model.flow_noise_px
            there.append(forward + noise * rng.normal(size=forward.shape))
            backward = self.model.scene.flow(b, a)[0]
            back.append(backward + noise * rng.normal(size=backward.shape))
            sigma.append(np.where(visible, max(noise, 0.05), 20.0))
        return {
            "flow": np.stack(there).astype(np.float32),
            "flow_backward": np.stack(back).astype(np.float32),
            "flow_uncertainty": np.stack(sigma).astype(np.float32),
        }

    def _geometry(
        self, times: list[int], number: int, rng: np.random.Generator
    ) -> dict[str, Array]:
        scene, noise = self.model.scene, self.model.depth_noise
        scale = self.model.window_scale * (
            1.0 if self.model.window_scale == 1 else 1 + 0.3 * np.sin(number)
        )
        depth = np.stack([scene.depth(t) for t in times])
        depth = scale * depth * np.exp(noise * rng.normal(size=depth.shape))
        poses = np.stack([scene.world_from_cam(t) for t in times])
        window_from_cam = transforms.invert(poses[0]) @ poses
        window_from_cam[:, :3, 3] *= scale
        K = np.repeat(scene.K[None], len(times), axis=0)
        points = transforms.transform_points(window_from_cam, camera.unproject(depth, K))
        known = {"K": K, "window_from_cam": window_from_cam} if self.model.knows_camera else {}
        return {
            "depth": depth.astype(np.float32),
            "pointmap_in_window": points.astype(np.float32),
            "confidence": np.ones_like(depth, np.float32),
            **known,
        }

    def state(self) -> State:
        """Nothing to remember."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing to remember."""

"""Optical flow without a network: OpenCV's DIS both ways, with an uncertainty that was measured, not guessed.

DIS: Kroeger, Timofte, Dai, Van Gool, "Fast Optical Flow using Dense Inverse Search", ECCV 2016. Depth, motion masks
and poses are the pose chain's work: an epipolar test on the flow alone cannot tell a mover from parallax before a
planar background. It is the baseline that a learned model has to beat.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from stream4d.errors import ModelError
from stream4d.models import epipolar_sweep
from stream4d.models.base import ModelCard
from stream4d.models.dis import PRESETS, Preset, grey_image, missed_trip
from stream4d.models.epipolar_sweep import StartedPair
from stream4d.packets import Array, Prediction, State, VideoInfo, Window

CARD = ModelCard(
    name="classical",
    summary="DIS optical flow both ways with measured uncertainty; no weights",
    paper="Kroeger et al., Fast Optical Flow using Dense Inverse Search, 2016",
    weights_licence="none needed",
    is_commercial_ok=True,
    resolution="any",
    is_metric=False,
    streaming="windows",
    window=4,
    overlap=1,
    needs_weights=False,
)

# Fit of log |error| over 41 image pairs with exact flow (rendered, FlyingChairs, KITTI) at 384 px; over each of
# the six sources on its own between 55 % and 77 % of the errors lie within the 1σ it states.
SIGMA_GAIN = 3.5
SIGMA_CONSISTENCY_PX = 0.05
SIGMA_GRADIENT = 0.02
SIGMA_UNSEEN_PX = 10.0
"""1σ where the flow leaves the view, so that nothing checks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassicalConfig:
    """Options of the model."""

    preset: Preset = "medium"
    """Medium halves the error of fast (median 0.25 px against 0.40 px on rendered clips) at 5 times its cost."""


class ClassicalModel:
    """DIS flow; sessions share nothing."""

    cards = {"classical": CARD}  # noqa: RUF012
    options_class = ClassicalConfig

    def __init__(self, config: ClassicalConfig) -> None:
        self.card = CARD
        self.config = config

    @classmethod
    def create(
        cls, name: str, *, weights: str | Path | None, device: str, **options: Any
    ) -> ClassicalModel:
        """Build the model; ``device`` is accepted and ignored, as OpenCV runs on the CPU.

        Raises:
            ModelError: weights were given, or an option is unknown or out of range.
        """
        if weights is not None:
            raise ModelError(
                f"model {name!r} has no weights, got {str(weights)!r}: leave --weights out"
            )
        try:
            config = ClassicalConfig(**options)
        except TypeError:
            known = ", ".join(ClassicalConfig.__dataclass_fields__)
            given = ", ".join(options)
            raise ModelError(f"model {name!r} has the options {known}; got {given}") from None
        if config.preset not in PRESETS:
            raise ModelError(f"preset must be one of {', '.join(PRESETS)}, got {config.preset!r}")
        return cls(config)

    def session(self, info: VideoInfo) -> ClassicalSession:
        """Open a session; it needs nothing of the video."""
        return ClassicalSession(self.config)


class ClassicalSession:
    """Two threads that run DIS; nothing is remembered between windows."""

    def __init__(self, config: ClassicalConfig) -> None:
        self._preset = config.preset
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="dis")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown()

    def step(self, window: Window) -> Prediction:
        """Return flow both ways and its uncertainty for one window."""
        grey = [grey_image(frame.rgb) for frame in window.frames]
        T, (H, W) = len(grey), grey[0].shape
        flow = np.zeros((T - 1, H, W, 2), np.float32)
        flow_backward, sigma = np.zeros_like(flow), np.zeros((T - 1, H, W), np.float32)
        found = [
            StartedPair.start(a, b, self._preset, self._pool) for a, b in itertools.pairwise(grey)
        ]
        for i, pair in enumerate(found):
            flow[i], flow_backward[i] = pair.flows(window.frames[i].K)
            sigma[i] = flow_sigma(flow[i], flow_backward[i])
        return Prediction(
            flow=flow if T > 1 else None,
            flow_backward=flow_backward if T > 1 else None,
            flow_uncertainty=sigma if T > 1 else None,
        )

    def rehearse(self) -> None:
        """Call what only hard frame pairs need."""
        epipolar_sweep.rehearse()

    def state(self) -> State:
        """Nothing to remember."""
        return {}

    def snapshot(self) -> Callable[[], State]:
        """Nothing to remember."""
        return dict

    def restore(self, state: State) -> None:
        """Nothing to remember."""


def flow_sigma(flow: Array, flow_backward: Array) -> Array:  # (H, W, 2) twice -> (H, W)
    """Return 1σ per component of ``flow`` in pixels, from inconsistency and from the flow's own gradient."""
    H, W = flow.shape[:2]
    inconsistency = missed_trip(flow, flow_backward)
    du = cv2.Sobel(flow, cv2.CV_32F, 1, 0, scale=1 / 8)
    dv = cv2.Sobel(flow, cv2.CV_32F, 0, 1, scale=1 / 8)
    square = du * du + dv * dv
    gradient = np.sqrt(square[..., 0] + square[..., 1])
    # fitted exponents 0.54 and 0.63, taken as 1/2 and 5/8 so that square roots do
    smooth = np.sqrt(gradient + np.float32(SIGMA_GRADIENT))
    sigma = np.sqrt(inconsistency + np.float32(SIGMA_CONSISTENCY_PX)) * smooth
    sigma *= np.float32(SIGMA_GAIN) * np.sqrt(np.sqrt(smooth))
    u = np.arange(W, dtype=np.float32) + flow[..., 0]
    v = np.arange(H, dtype=np.float32)[:, None] + flow[..., 1]
    leaves = (u < 0) | (v < 0) | (u > W - 1) | (v > H - 1)
    sigma[leaves] = np.maximum(sigma[leaves], SIGMA_UNSEEN_PX)
    return np.asarray(sigma, np.float32)

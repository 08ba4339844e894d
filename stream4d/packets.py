"""The frozen packets that flow between stages, and the protocol of what receives them.

::

    reader ──Frame──▶ sliding window ──Window──▶ session ──Prediction──▶ pose chain ──PosedFrame──▶ sinks

Stages share nothing else. A packet is complete when it is made and never changes; a changed packet is a new
one (``dataclasses.replace``). Shapes use one alphabet: T frames in a window, H rows, W columns. Conventions
(axes, pixel centres, names of transforms) are in ``docs/conventions.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
State = dict[str, Array]
"""Flat name → array map that lets a stage be stopped and resumed. Never holds Python objects."""


def _check(packet: object, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Raise ``ValueError`` naming the first field whose shape is not as stated (None: any size)."""
    for name, expected in shapes.items():
        value = getattr(packet, name)
        if value is None:
            continue
        fits = len(value.shape) == len(expected) and all(
            want is None or want == got for want, got in zip(expected, value.shape, strict=True)
        )
        if not fits:
            wanted = str(expected).replace("None", "*")
            raise ValueError(f"{type(packet).__name__}.{name} must be {wanted}, got {value.shape}")


class _ShapeRepr:
    """Print arrays as shape and dtype, so that a packet fits on a line."""

    __slots__ = ()

    def __repr__(self) -> str:
        parts = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            shown = f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else repr(value)
            parts.append(f"{field.name}={shown}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class VideoInfo(_ShapeRepr):
    """What is known of a source before its first frame."""

    source: str
    """Path, glob, URL or camera name as the user gave it."""
    backend: str
    """Which reader decodes it (``pyav``, ``decord``, ``camera``, ``folder``)."""
    width: int
    """Columns of the processed (stored) frames."""
    height: int
    """Rows of the processed (stored) frames."""
    source_width: int
    """Columns of the source after rotation metadata, before resizing."""
    source_height: int
    """Rows of the source after rotation metadata, before resizing."""
    fps: float
    """Frames per second after stride; an average where the rate varies."""
    frame_count: int | None
    """Frames that will come, or None where that cannot be known (live, damaged index)."""
    rotation_deg: int = 0
    """Rotation from the container's metadata, already applied to the frames."""
    is_live: bool = False
    """True for cameras and network streams: frames may be dropped."""
    reason: str = ""
    """Why this backend was picked, for the log."""

    @classmethod
    def of_frames(
        cls, source: str, width: int, height: int, *, fps: float = 30.0, count: int | None = None
    ) -> VideoInfo:
        """Describe frames that are at hand already, at the size that they have."""
        return cls(
            source=source, backend="frames", width=width, height=height, source_width=width,
            source_height=height, fps=fps, frame_count=count,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Frame(_ShapeRepr):
    """One decoded image at processed resolution."""

    index: int
    """Position in the processed stream: 0, 1, 2, … without gaps, whatever the stride."""
    timestamp_ns: int
    """Presentation time from the container, nanoseconds from the start of the source."""
    rgb: Array
    """(H, W, 3) uint8, sRGB."""
    source_index: int = -1
    """Position in the source (differs from ``index`` with start, stride or fps); -1: same as index."""
    K: Array | None = None
    """(3, 3) float64 intrinsics in pixels of ``rgb``, or None where unknown."""
    world_from_cam: Array | None = None
    """(4, 4) float64 given pose, or None. Optional input for models that can use one."""
    depth: Array | None = None
    """(H, W) float32 given z-depth, 0 where unknown, or None. Optional input likewise."""

    def __post_init__(self) -> None:
        _check(self, {"rgb": (None, None, 3), "K": (3, 3), "world_from_cam": (4, 4)})
        _check(self, {"depth": self.rgb.shape[:2]})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Window(_ShapeRepr):
    """Frames that a model sees together."""

    index: int
    """0, 1, 2, …"""
    frames: tuple[Frame, ...]
    """T consecutive frames, oldest first."""
    overlap: int
    """How many of the first frames the previous window held too (0 for the first window)."""

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("Window.frames must not be empty")
        if not 0 <= self.overlap < len(self.frames):
            raise ValueError(
                f"Window.overlap must be in [0, {len(self.frames)}), got {self.overlap}"
            )

    @property
    def new_frames(self) -> tuple[Frame, ...]:
        """The frames that no earlier window held."""
        return self.frames[self.overlap :]

    @property
    def rgb(self) -> Array:
        """(T, H, W, 3) uint8 copy of all frames."""
        return np.stack([frame.rgb for frame in self.frames])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Prediction(_ShapeRepr):
    """What a model says of one window, at the resolution of the window's frames.

    A field that the model does not predict is None; the pose chain works with what there is.
    Maps are float32, poses and K float64, all numpy. Invalid pixels are NaN in maps of geometry and flow.
    """

    flow: Array | None = None
    """(T-1, H, W, 2) optical flow in pixels, frame t → t+1."""
    flow_backward: Array | None = None
    """(T-1, H, W, 2) optical flow in pixels, frame t+1 → t."""
    flow_uncertainty: Array | None = None
    """(T-1, H, W) 1σ of ``flow`` in pixels; large where occluded or inconsistent."""
    depth: Array | None = None
    """(T, H, W) z-depth in the camera frame, in the window's (arbitrary but shared) scale."""
    depth_uncertainty: Array | None = None
    """(T, H, W) 1σ of log depth."""
    pointmap_in_window: Array | None = None
    """(T, H, W, 3) points of each frame in the camera frame of the window's first image."""
    confidence: Array | None = None
    """(T, H, W) ≥ 0, larger is better; comparable within one model only."""
    motion_prob: Array | None = None
    """(T, H, W) probability that the pixel's surface moves in the world."""
    K: Array | None = None
    """(T, 3, 3) intrinsics as the model sees them."""
    window_from_cam: Array | None = None
    """(T, 4, 4) camera poses in the frame of the window's first image, in the window's scale."""
    rotation_uncertainty_rad: Array | None = None
    """(T-1,) 1σ of the relative rotation t → t+1."""
    translation_uncertainty: Array | None = None
    """(T-1,) 1σ of the direction of relative translation t → t+1, radians (π: unknown)."""
    semantics: Array | None = None
    """(T, H, W) int32 class or instance label, -1 where none."""
    descriptor: Array | None = None
    """(T, C) one global descriptor per frame, for place recognition."""
    is_metric: bool = False
    """True where lengths are metres."""

    def __post_init__(self) -> None:
        maps = [
            getattr(self, name)
            for name in ("depth", "pointmap_in_window", "confidence", "motion_prob")
            if getattr(self, name) is not None
        ]
        if maps:
            T, H, W = maps[0].shape[:3]
        elif self.flow is not None:
            T, H, W = self.flow.shape[0] + 1, *self.flow.shape[1:3]
        else:
            return
        _check(
            self,
            {
                "flow": (T - 1, H, W, 2),
                "flow_backward": (T - 1, H, W, 2),
                "flow_uncertainty": (T - 1, H, W),
                "depth": (T, H, W),
                "depth_uncertainty": (T, H, W),
                "pointmap_in_window": (T, H, W, 3),
                "confidence": (T, H, W),
                "motion_prob": (T, H, W),
                "K": (T, 3, 3),
                "window_from_cam": (T, 4, 4),
                "rotation_uncertainty_rad": (T - 1,),
                "translation_uncertainty": (T - 1,),
                "semantics": (T, H, W),
                "descriptor": (T, None),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FrameTracks(_ShapeRepr):
    """Where followed points are in one frame; N slots, each taken by one point at a time."""

    id: Array
    """(N,) int32 number of the point, −1 where the slot is free. Numbers count up and never come again."""
    uv: Array
    """(N, 2) float32 pixel; NaN where the slot is free, a guess where the point is hidden."""
    visible: Array
    """(N,) bool: seen, not guessed."""
    depth: Array
    """(N,) float32 z-depth in world units; NaN where hidden or unknown."""

    def __post_init__(self) -> None:
        N = len(self.id)
        _check(self, {"id": (N,), "uv": (N, 2), "visible": (N,), "depth": (N,)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PosedFrame(_ShapeRepr):
    """One frame, placed in the world. This is what sinks receive, in order of ``index``."""

    index: int
    """As in ``Frame``."""
    timestamp_ns: int
    """As in ``Frame``."""
    rgb: Array
    """(H, W, 3) uint8."""
    K: Array
    """(3, 3) float64 intrinsics in pixels of ``rgb``; always finite, focal > 0."""
    world_from_cam: Array
    """(4, 4) float64; always finite and rigid."""
    pose_covariance: Array
    """(6, 6) float64 of the left se(3) perturbation ξ = (ρ, φ): ``exp(ξ) @ world_from_cam``; drift since the
    segment's first frame included. All NaN where nothing is stated: in a refined store."""
    depth: Array
    """(H, W) float32 z-depth in world units; NaN where unknown."""
    confidence: Array
    """(H, W) float32 in [0, 1]: probability that depth is within 10 % of the truth."""
    motion_prob: Array
    """(H, W) float32 in [0, 1]."""
    flow: Array | None = None
    """(H, W, 2) float32 pixels to the next frame; None for the last frame."""
    flow_uncertainty: Array | None = None
    """(H, W) float32 1σ pixels."""
    semantics: Array | None = None
    """(H, W) int32, -1 where none."""
    tracks: FrameTracks | None = None
    """Followed points, where they were asked for."""
    is_keyframe: bool = False
    """True where the pose chain keeps the frame as a reference."""
    is_tracked: bool = True
    """False where the pose could not be measured and was predicted (its covariance is large)."""
    segment: int = 0
    """Counts up at each cut: poses of different segments share no scale or origin."""
    is_metric: bool = False
    """True where lengths are metres."""

    def __post_init__(self) -> None:
        _check(self, {"rgb": (None, None, 3), "K": (3, 3)})
        _check(self, {"world_from_cam": (4, 4), "pose_covariance": (6, 6)})
        H, W = self.rgb.shape[:2]
        _check(self, {"depth": (H, W), "confidence": (H, W), "motion_prob": (H, W)})
        _check(self, {"flow": (H, W, 2), "flow_uncertainty": (H, W), "semantics": (H, W)})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class PoseRevision(_ShapeRepr):
    """Better poses, and cameras, for frames that were already written."""

    indices: Array
    """(N,) int64 frame indices, increasing."""
    world_from_cam: Array
    """(N, 4, 4) float64."""
    scale: Array
    """(N,) float64: multiply the stored depth by this."""
    pose_covariance: Array | None = None
    """(N, 6, 6) float64 as in ``PosedFrame``; None: as it was."""
    K: Array | None = None
    """(N, 3, 3) float64 intrinsics in pixels of the frames' ``rgb``; None: as they were."""

    def __post_init__(self) -> None:
        N = len(self.indices)
        _check(self, {"indices": (N,), "world_from_cam": (N, 4, 4), "scale": (N,)})
        _check(self, {"pose_covariance": (N, 6, 6), "K": (N, 3, 3)})


class Sink(Protocol):
    """Anything that accepts posed frames: a store, a viewer, an exporter."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def write(self, frame: PosedFrame) -> None:
        """Take one frame. Indices come in order, without gaps."""

    def revise(self, revision: PoseRevision) -> None:
        """Replace poses, and what else the revision holds, of frames already written."""

    def commit(self, resume_state: Callable[[], State]) -> None:
        """Make everything written so far durable.

        A window boundary: ``resume_state`` returns what the pipeline needs to go on from here; it is only
        called by sinks that keep it.
        """

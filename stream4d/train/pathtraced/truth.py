"""Labels of a rendered clip, and its files in the layout of MPI Sintel.

``training/{final,depth,camdata_left,flow,flow_backward,occlusions}/CLIP/frame_0001.*``; ``flow_backward`` is an
addition of ours (Sintel has no backward flow), which the loader takes where it is there. Lengths are metres.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from stream4d.errors import TrainingError
from stream4d.packets import Array

_TAG = np.float32(202021.25).tobytes()
_UNKNOWN_FLOW = 1e10
_SAME_DEPTH = 0.02
"""Relative difference up to which a nearer depth belongs to the same surface."""

_TOUCH_PX = 0.45
"""A place between two pixels touches both, unless it is nearly in the middle of one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RenderedClip:
    """T frames with everything that the renderer knows. OpenCV axes, integer coordinates at pixel centres."""

    rgb: Array
    """(T, H, W, 3) uint8."""
    depth: Array
    """(T, H, W) z-depth in metres at pixel centres, 0 where nothing is hit."""
    mover: Array
    """(T, H, W) uint8: 0 still, else index + 1 into ``world_from_mover``."""
    K: Array
    """(3, 3) pixels."""
    world_from_cam: Array
    """(T, 4, 4)."""
    world_from_mover: Array
    """(N, T, 4, 4) of the rigid movers."""


def pair_labels(clip: RenderedClip, a: int, b: int) -> tuple[Array, Array]:
    """Return the flow a → b (H, W, 2), NaN where unknown, and where the surface is hidden or outside in b (H, W)."""
    H, W = clip.depth.shape[1:]
    v, u = np.mgrid[:H, :W].astype(np.float64)
    depth = np.where(clip.depth[a] > 0, clip.depth[a], np.nan).astype(np.float64)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(clip.K).T
    points = np.concatenate([rays * depth[..., None], np.ones((H, W, 1))], -1)
    b_from_world = np.linalg.inv(clip.world_from_cam[b])
    there = points @ (b_from_world @ clip.world_from_cam[a]).T
    for index, world_from_mover in enumerate(clip.world_from_mover):
        moved = b_from_world @ world_from_mover[b] @ np.linalg.inv(world_from_mover[a])
        on_it = clip.mover[a] == index + 1
        there[on_it] = points[on_it] @ (moved @ clip.world_from_cam[a]).T
    z = there[..., 2]
    ahead = z > 1e-3  # NaN compares as False
    seen = there[..., :3] @ clip.K.T / np.where(ahead, z, np.nan)[..., None]
    flow = seen[..., :2] - np.stack([u, v], -1)
    return flow.astype(np.float32), _hidden(clip, a, b, seen, z)


def _hidden(clip: RenderedClip, a: int, b: int, seen: Array, z: Array) -> Array:  # (H, W) bool
    """Return where the target in b lies outside, or all pixels it touches show something nearer or another mover."""
    H, W = z.shape
    known = np.isfinite(seen[..., 0])
    x, y = (np.nan_to_num(seen[..., i], nan=-9.0) for i in (0, 1))
    inside = known & (x >= -0.5) & (x <= W - 0.5) & (y >= -0.5) & (y <= H - 0.5)
    visible = np.zeros((H, W), bool)
    for dy in (-_TOUCH_PX, _TOUCH_PX):
        for dx in (-_TOUCH_PX, _TOUCH_PX):
            column = np.clip(np.round(x + dx), 0, W - 1).astype(int)
            row = np.clip(np.round(y + dy), 0, H - 1).astype(int)
            open_to = clip.depth[b][row, column] > z * (1 - _SAME_DEPTH)
            visible |= open_to & (clip.mover[b][row, column] == clip.mover[a])
    return np.asarray(~(visible & inside))


def _floats(path: Path, values: Array) -> None:
    H, W = values.shape[:2]
    path.write_bytes(_TAG + np.array([W, H], "<i4").tobytes() + values.astype("<f4").tobytes())


def _picture(path: Path, values: Array) -> None:
    if not cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values):
        raise TrainingError(f"cannot write {str(path)!r}: is the disk full?")


def has_clip(root: Path, name: str) -> bool:
    """Return whether a clip was written wholly."""
    return (root / "training" / "final" / name).is_dir()


def write_clip(root: Path, name: str, clip: RenderedClip) -> None:
    """Write a clip; its pictures appear last, so that a loader never sees half of it.

    Raises:
        TrainingError: a picture cannot be written.
    """
    training = root / "training"
    parts = ("depth", "camdata_left", "flow", "flow_backward", "occlusions")
    for part in parts:
        (training / part / name).mkdir(parents=True, exist_ok=True)
    partial = training / ".partial" / name
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for t in range(len(clip.rgb)):
        stem = f"frame_{t + 1:04d}"

        def beside(part: str, suffix: str, stem: str = stem) -> Path:
            return training / part / name / f"{stem}{suffix}"

        _picture(partial / f"{stem}.png", clip.rgb[t])
        _floats(beside("depth", ".dpt"), clip.depth[t])
        cam_from_world = np.linalg.inv(clip.world_from_cam[t])[:3]
        numbers = np.concatenate([clip.K.ravel(), cam_from_world.ravel()]).astype("<f8")
        beside("camdata_left", ".cam").write_bytes(_TAG + numbers.tobytes())
        if t + 1 < len(clip.rgb):
            flow, hidden = pair_labels(clip, t, t + 1)
            _floats(beside("flow", ".flo"), np.nan_to_num(flow, nan=_UNKNOWN_FLOW))
            _picture(beside("occlusions", ".png"), hidden.astype(np.uint8) * 255)
        if t > 0:
            flow, _ = pair_labels(clip, t, t - 1)
            _floats(beside("flow_backward", ".flo"), np.nan_to_num(flow, nan=_UNKNOWN_FLOW))
    (training / "final").mkdir(exist_ok=True)
    partial.rename(training / "final" / name)

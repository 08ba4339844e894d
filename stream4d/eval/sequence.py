"""A sequence to measure on: its frames, and the ground truth that belongs to them.

``load_folder`` reads the project's own layout::

    sequence.json       name, kind, fps, camera {fx, fy, cx, cy, distortion [k1 k2 p1 p2 k3]} or null, depth_scale
    video.mp4           or frames/000000.{jpg,png}: the frames, in order
    timestamps.txt      seconds, one line a frame (optional: otherwise index / fps)
    groundtruth.txt     TUM: timestamp tx ty tz qx qy qz qw, camera-to-world, OpenCV axes (optional)
    gps.txt             timestamp latitude longitude height (optional)
    depth/000008.png    16-bit z-depth, value × depth_scale metres, 0 = none (optional, may be sparse in time)
    masks/000000.png    255 moving, 0 static, 128 unknown (optional)
    flow/000000.{flo,png}   flow to the next frame, pixels (optional)

or a folder of ``NAME-img0``, ``NAME-img1``, ``NAME-gt`` files: pairs of images with flow. Ground truth is read frame by
frame, when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stream4d.errors import EvaluationError
from stream4d.eval.flow import read_flow
from stream4d.eval.trajectory import Trajectory, read_tum
from stream4d.packets import Array

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Camera:
    """Intrinsics of the source images."""

    K: Array
    """(3, 3) pixels of the source image; integer coordinates are pixel centres."""
    distortion: tuple[float, ...] = ()
    """OpenCV k1, k2, p1, p2[, k3], or empty."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Maps:
    """Ground-truth images of some frames, read on demand."""

    paths: Mapping[int, Path] = field(default_factory=dict)
    """Frame index → file."""
    read: Callable[[Path], Array] = lambda path: np.zeros(0)
    """Turns a file into an array."""

    def get(self, index: int) -> Array | None:
        """Return the map of one frame, or None where there is none."""
        path = self.paths.get(index)
        return None if path is None else self.read(path)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvalSequence:
    """Frames and ground truth. Frame i of the pipeline is frame i here."""

    name: str
    """What the results call it."""
    source: Path | None
    """Video file or folder of images, or None where ``frames`` lists images."""
    frames: tuple[Path, ...] = ()
    """The images in order, where a protocol picks them."""
    timestamps_s: Array
    """(N,) seconds, the clock of ``truth``."""
    kind: str = "unknown"
    """static, mostly static, dynamic, or unknown."""
    camera: Camera | None = None
    """True intrinsics where known."""
    truth: Trajectory | None = None
    """True poses; may miss frames."""
    gps: tuple[Array, Array] | None = None
    """(M,) seconds and (M, 3) latitude°, longitude°, height m."""
    depth: Maps = field(default_factory=Maps)
    """(H, W) float32 metres, 0 where unknown."""
    masks: Maps = field(default_factory=Maps)
    """(H, W) uint8: 255 moving, 0 static, 128 unknown."""
    flow: Maps = field(default_factory=Maps)
    """(H, W, 2) float32 pixels to the next frame, NaN where unknown."""
    pairs: tuple[tuple[Path, Path, Path], ...] = ()
    """Image, image, flow: a flow sequence has these and no frames."""
    depth_alignments: tuple[str, str] = ("scale", "scale_shift")
    """How depth is aligned before scoring, see ``depth.ALIGNMENTS``."""
    max_depth_m: float | None = None
    """True depth beyond this does not count."""
    notes: str = ""
    """What a reader of the results should know."""

    @property
    def frame_count(self) -> int:
        """Frames that a run should produce."""
        return 2 * len(self.pairs) if self.pairs else len(self.timestamps_s)

    def true_poses(self, max_difference_s: float) -> dict[int, Array]:
        """Return the true world-from-camera (4, 4) of every frame that has one within the time difference."""
        if self.truth is None or len(self.truth) < 2:
            return {}
        times, frames = self.truth.timestamps_s, self.timestamps_s
        after = np.clip(np.searchsorted(times, frames), 1, len(times) - 1)
        nearest = after - (frames - times[after - 1] < times[after] - frames)
        near = np.abs(times[nearest] - frames) <= max_difference_s
        return {i: self.truth.world_from_cam[nearest[i]] for i in np.flatnonzero(near).tolist()}


def load_folder(folder: Path) -> EvalSequence:
    """Read one sequence folder.

    Raises:
        EvaluationError: no frames, or ground truth that is malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is not a folder")
    pairs = _flow_pairs(folder)
    if pairs:
        return EvalSequence(
            name=folder.name, source=None, timestamps_s=np.zeros(0), kind="flow", pairs=pairs
        )
    about = _read_json(folder / "sequence.json")
    source = _find_source(folder)
    timestamps = _timestamps(folder, source, about)
    count = len(timestamps)
    truth = folder / "groundtruth.txt"
    gps = folder / "gps.txt"
    return EvalSequence(
        name=str(about.get("name") or folder.name),
        source=source,
        timestamps_s=timestamps,
        kind=str(about.get("kind") or "unknown"),
        camera=_camera(about.get("camera"), folder),
        truth=read_tum(truth) if truth.is_file() else None,
        gps=_read_gps(gps) if gps.is_file() else None,
        depth=depth_maps(_numbered(folder / "depth", count), about.get("depth_scale") or 0.001),
        masks=Maps(paths=_numbered(folder / "masks", count), read=read_mask),
        flow=Maps(paths=_numbered(folder / "flow", count), read=read_flow),
        notes=str(about.get("mask_kind") or ""),
    )


def depth_maps(paths: Mapping[int, Path], scale: float) -> Maps:
    """Return lazily read 16-bit depth: metres = value × scale."""
    return Maps(paths=paths, read=lambda path: read_depth(path, scale))


def read_depth(path: Path, scale: float, invalid: int = 0) -> Array:
    """Read a 16-bit PNG of depth: (H, W) float32 metres, 0 where the value is 0 or ``invalid``."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 2:
        raise EvaluationError(f"{path} is not a one-channel depth image")
    depth = image.astype(np.float32) * np.float32(scale)
    depth[image == invalid] = 0
    return depth


def read_mask(path: Path) -> Array:
    """Read a motion mask: (H, W) uint8 of 0, 128 and 255."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise EvaluationError(f"{path} is not an image")
    return np.asarray(image)


def natural_sort(paths: list[Path]) -> list[Path]:
    """Sort by the number in each name, then by name: 2.jpg comes before 10.jpg."""

    def key(path: Path) -> tuple[int, str]:
        digits = "".join(c for c in path.stem if c.isdigit())
        return (int(digits) if digits else -1, path.name)

    return sorted(paths, key=key)


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order (none where it does not exist)."""
    if not folder.is_dir():
        return []
    return natural_sort([p for p in folder.iterdir() if p.suffix.lower() in IMAGES])


def camera_from(fx: float, fy: float, cx: float, cy: float, *distortion: float) -> Camera:
    """Make a camera from its numbers."""
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)
    return Camera(K=K, distortion=tuple(distortion) if any(distortion) else ())


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationError(f"{path} is not JSON: {error}") from None
    if not isinstance(about, dict):
        raise EvaluationError(f"{path} must hold an object, got {type(about).__name__}")
    return about


def _find_source(folder: Path) -> Path:
    videos = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEOS)
    if len(videos) > 1:
        raise EvaluationError(
            f"{folder} holds {len(videos)} videos: a sequence folder has one, with its ground truth"
        )
    if videos:
        return videos[0]
    for images in (folder / "frames", folder):
        if list_images(images):
            return images
    raise EvaluationError(f"{folder} holds neither a video nor a frames/ folder of images")


def _timestamps(folder: Path, source: Path, about: dict[str, Any]) -> Array:
    path = folder / "timestamps.txt"
    if path.is_file():
        try:
            return np.loadtxt(path, ndmin=1, usecols=0).astype(np.float64)
        except (ValueError, IndexError) as error:
            raise EvaluationError(f"{path} must hold one number a line: {error}") from None
    count = len(list_images(source)) if source.is_dir() else int(about.get("frames") or 0)
    fps = float(about.get("fps") or 0)
    if source.is_file() and (count == 0 or fps == 0):
        capture = cv2.VideoCapture(str(source))
        count = count or int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        fps = fps or float(capture.get(cv2.CAP_PROP_FPS))
        capture.release()
    return np.arange(count, dtype=np.float64) / (fps or 30.0)


def _camera(about: Any, folder: Path) -> Camera | None:
    if about is None:
        return None
    try:
        return camera_from(
            *(float(about[key]) for key in ("fx", "fy", "cx", "cy")),
            *(float(k) for k in about.get("distortion") or ()),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"camera in {folder / 'sequence.json'} needs numbers fx, fy, cx, cy: {error!r}"
        ) from None


def _numbered(folder: Path, count: int) -> dict[int, Path]:
    """Map the frame number in each file name to the file."""
    if not folder.is_dir():
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        if not path.stem.isdigit() or path.suffix not in (".png", ".flo"):
            continue
        if int(path.stem) >= count:
            raise EvaluationError(f"{path} has no frame: the sequence has {count} frames")
        found[int(path.stem)] = path
    return found


def _flow_pairs(folder: Path) -> tuple[tuple[Path, Path, Path], ...]:
    pairs = []
    for first in sorted(p for p in folder.iterdir() if p.stem.endswith("-img0")):
        name = first.stem.removesuffix("-img0")
        second = first.with_name(f"{name}-img1{first.suffix}")
        truth = [first.with_name(f"{name}-gt{suffix}") for suffix in (".flo", ".png")]
        found = [path for path in truth if path.is_file()]
        if not second.is_file() or not found:
            raise EvaluationError(
                f"{first} needs {second.name} and {name}-gt.flo or .png beside it"
            )
        pairs.append((first, second, found[0]))
    return tuple(pairs)


def _read_gps(path: Path) -> tuple[Array, Array]:
    from stream4d.eval.geodesy import read_gps

    return read_gps(path)

"""Film and road sequences in their official layouts: Sintel, DAVIS, KITTI odometry, KITTI depth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from stream4d.errors import EvaluationError
from stream4d.eval.flow import FLO_TAG, read_flow
from stream4d.eval.layouts_indoor import MONST3R_ALIGNMENTS
from stream4d.eval.sequence import (
    Camera,
    EvalSequence,
    Maps,
    depth_maps,
    list_images,
)
from stream4d.eval.trajectory import Trajectory
from stream4d.packets import Array

SINTEL_SEQUENCES = (
    "alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2",
    "market_5", "market_6", "shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3",
)  # fmt: skip
"""The 14 of ParticleSfM, MonST3R and CUT3R: the others have still cameras or only rotate."""
SINTEL_FPS = 24


def sintel(root: Path) -> Iterator[EvalSequence]:
    """MPI Sintel training set, final pass, 14 sequences: poses, depth below 70 m, flow.

    ``camdata_left/SEQ/frame_0001.cam`` holds K and camera-from-world; depth is ``.dpt``. The layout is that of the
    official archives, unpacked into one folder.
    """
    training = root / "training" if (root / "training").is_dir() else root
    for name in SINTEL_SEQUENCES:
        frames = list_images(training / "final" / name)
        if not frames:
            raise EvaluationError(f"{training / 'final' / name} holds no images: is --root right?")
        cameras = [read_cam(training / "camdata_left" / name / f"{p.stem}.cam") for p in frames]
        times = np.arange(len(frames)) / SINTEL_FPS
        depth = _beside(training / "depth" / name, frames, ".dpt")
        yield EvalSequence(
            name=name,
            source=None,
            frames=tuple(frames),
            timestamps_s=times,
            kind="dynamic",
            camera=Camera(K=cameras[0][0]),
            truth=Trajectory(
                timestamps_s=times, world_from_cam=np.linalg.inv(np.stack([N for _, N in cameras]))
            ),
            depth=Maps(paths=depth, read=read_dpt),
            flow=Maps(paths=_beside(training / "flow" / name, frames, ".flo"), read=read_flow),
            depth_alignments=MONST3R_ALIGNMENTS,
            max_depth_m=70.0,
        )


def read_cam(path: Path) -> tuple[Array, Array]:
    """Read a Sintel camera: K (3, 3) and camera-from-world (4, 4)."""
    data = path.read_bytes()
    _check_tag(path, data, size=4 + 8 * 21)
    numbers = np.frombuffer(data, "<f8", 21, offset=4)
    camera_from_world = np.vstack([numbers[9:].reshape(3, 4), [0, 0, 0, 1]])
    return numbers[:9].reshape(3, 3).copy(), camera_from_world


def read_dpt(path: Path) -> Array:
    """Read Sintel depth: (H, W) float32 metres."""
    data = path.read_bytes()
    W, H = (int(n) for n in np.frombuffer(data, "<i4", 2, offset=4))
    _check_tag(path, data, size=12 + 4 * W * H)
    return np.frombuffer(data, "<f4", offset=12).reshape(H, W).copy()


def davis_2016(root: Path) -> Iterator[EvalSequence]:
    """DAVIS 2016 validation, 480p: one binary mask; first and last frame are left out, as in its toolkit."""
    for name, frames, masks in _davis(root, ("2016/val.txt", "480p/val.txt")):
        inner = {i: path for i, path in masks.items() if 0 < i < len(frames) - 1}
        yield _davis_sequence(name, frames, inner)


def davis_2017(root: Path) -> Iterator[EvalSequence]:
    """DAVIS 2017 validation, 480p, all frames: the union of the annotated objects against the motion mask."""
    for name, frames, masks in _davis(root, ("2017/val.txt",)):
        yield _davis_sequence(name, frames, masks)


def kitti_odometry(root: Path) -> Iterator[EvalSequence]:
    """KITTI odometry 00 to 10: left colour camera where present, else left grey; GPS/IMU poses.

    Published poses are those of camera 0; the offset of the colour camera in ``calib.txt`` is applied.
    """
    for poses in sorted((root / "poses").glob("*.txt")):
        folder = root / "sequences" / poses.stem
        camera = 2 if (folder / "image_2").is_dir() else 0
        frames = list_images(folder / f"image_{camera}")
        if not frames:
            raise EvaluationError(f"{folder} holds neither image_2 nor image_0")
        P = _kitti_projection(folder / "calib.txt", f"P{camera}")
        rows = np.loadtxt(poses).reshape(-1, 3, 4)
        world_from_cam0 = np.tile(np.eye(4), (len(rows), 1, 1))
        world_from_cam0[:, :3] = rows
        times = np.loadtxt(folder / "times.txt")[: len(frames)]
        yield EvalSequence(
            name=poses.stem,
            source=None,
            frames=tuple(frames),
            timestamps_s=times,
            kind="mostly static",
            camera=Camera(K=P[:, :3].copy()),
            truth=Trajectory(
                timestamps_s=times[: len(rows)],
                world_from_cam=world_from_cam0[: len(times)] @ _cam0_from_cam(P),
            ),
        )


def kitti_depth(root: Path) -> Iterator[EvalSequence]:
    """KITTI depth, validation drives, first 110 annotated images of camera 2 (DepthCrafter, MonST3R).

    Depth in ``val/DRIVE/proj_depth/groundtruth/image_02``, images in ``raw/DRIVE/image_02/data`` or in
    ``raw/DATE/DRIVE/image_02/data``.
    """
    for folder in sorted((root / "val").glob("*/proj_depth/groundtruth/image_02")):
        drive = folder.parents[2].name
        depth = list_images(folder)[:110]
        places = (root / "raw" / drive, root / "raw" / drive[:10] / drive)
        raw = next((p for p in places if p.is_dir()), places[0]) / "image_02" / "data"
        kept = [(raw / p.name, p) for p in depth if (raw / p.name).is_file()]
        if not kept:
            raise EvaluationError(f"no image of {drive} lies in {raw}")
        yield EvalSequence(
            name=drive,
            source=None,
            frames=tuple(image for image, _ in kept),
            timestamps_s=np.arange(len(kept)) / 10,
            kind="mostly static",
            depth=depth_maps({i: d for i, (_, d) in enumerate(kept)}, 1 / 256),
            depth_alignments=MONST3R_ALIGNMENTS,
        )


def _check_tag(path: Path, data: bytes, size: int) -> None:
    if len(data) < 4 or np.frombuffer(data, "<f4", 1)[0] != np.float32(FLO_TAG):
        raise EvaluationError(f"{path} does not begin with Sintel's tag {FLO_TAG}")
    if len(data) != size:
        raise EvaluationError(f"{path} should hold {size} bytes, holds {len(data)}")


def _beside(folder: Path, frames: list[Path], suffix: str) -> dict[int, Path]:
    paths = ((i, folder / f"{frame.stem}{suffix}") for i, frame in enumerate(frames))
    return {i: path for i, path in paths if path.is_file()}


def _davis(root: Path, lists: tuple[str, ...]) -> Iterator[tuple[str, list[Path], dict[int, Path]]]:
    found = [root / "ImageSets" / name for name in lists if (root / "ImageSets" / name).is_file()]
    if not found:
        raise EvaluationError(f"{root} has none of ImageSets/{', ImageSets/'.join(lists)}")
    lines = [line.split()[0] for line in found[0].read_text().splitlines() if line.strip()]
    # Lists hold names, or (480p/val.txt) one line per image: /JPEGImages/480p/NAME/00000.jpg.
    names = dict.fromkeys(Path(word).parent.name if "/" in word else word for word in lines)
    for name in names:
        frames = list_images(root / "JPEGImages" / "480p" / name)
        if not frames:
            raise EvaluationError(f"{root / 'JPEGImages' / '480p' / name} holds no images")
        yield name, frames, _beside(root / "Annotations" / "480p" / name, frames, ".png")


def _davis_sequence(name: str, frames: list[Path], masks: dict[int, Path]) -> EvalSequence:
    return EvalSequence(
        name=name,
        source=None,
        frames=tuple(frames),
        timestamps_s=np.arange(len(frames)) / 24,
        kind="dynamic",
        masks=Maps(paths=masks, read=read_annotation),
        notes="masks hold salient objects only: other movers count as errors",
    )


def read_annotation(path: Path) -> Array:
    """Read a DAVIS annotation (binary, or a palette of object numbers) as 0 and 255."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise EvaluationError(f"{path} is not an image")
    # OpenCV expands palettes to colours: every object has a colour other than black.
    any_object = image.max(axis=-1) > 0 if image.ndim == 3 else image > 0
    return np.where(any_object, 255, 0).astype(np.uint8)


def _kitti_projection(path: Path, key: str) -> Array:
    for line in path.read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name == key:
            return np.array([float(x) for x in numbers.split()]).reshape(3, 4)
    raise EvaluationError(f"{path} has no line {key}:")


def _cam0_from_cam(P: Array) -> Array:
    """Return the 4×4 that takes camera coordinates to camera 0: P = K [I | t] with x_cam = x_cam0 + t."""
    cam_from_cam0 = np.eye(4)
    cam_from_cam0[:3, 3] = np.linalg.solve(P[:, :3], P[:, 3])
    inverse: Array = np.linalg.inv(cam_from_cam0)
    return inverse

"""Handheld and robot sequences in their official layouts: TUM RGB-D, Bonn, ScanNet, 7-Scenes, NRGBD, EuRoC.

Frame selections follow the published protocols; each function names its source.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from stream4d.errors import EvaluationError
from stream4d.eval.sequence import (
    Camera,
    EvalSequence,
    Maps,
    camera_from,
    depth_maps,
    list_images,
    natural_sort,
    read_depth,
)
from stream4d.eval.trajectory import MAX_TIME_DIFFERENCE_S, Trajectory, read_tum
from stream4d.packets import Array

TUM_DEPTH_SCALE = 1 / 5000
TUM_CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    "freiburg2": (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
"""Colour cameras as published with the data set; freiburg3's images are already undistorted."""
BONN_CAMERA = (
    542.822841,
    542.576870,
    315.593520,
    237.756098,
    0.039903,
    -0.099343,
    -0.000730,
    -0.000144,
)
BONN_SEQUENCES = ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous")
MONST3R_ALIGNMENTS = ("scale_l1", "scale_shift_l1")
"""How MonST3R's and CUT3R's video-depth tables are aligned."""


def tum_rgbd(
    root: Path, prefix: str = "", stride: int = 1, limit: int | None = None
) -> Iterator[EvalSequence]:
    """TUM RGB-D: every ``rgbd_dataset_*`` folder with ``rgb.txt``, ``depth.txt`` and ``groundtruth.txt``.

    With stride and limit, frames are picked after association with ground truth (0.02 s), as MonST3R prepares
    TUM-dynamics.
    """
    for folder in _folders(root, f"rgbd_dataset_{prefix}*"):
        frames = _read_list(folder / "rgb.txt")
        truth = read_tum(folder / "groundtruth.txt")
        if stride > 1 or limit is not None:
            matched = _associate([t for t, _ in frames], truth.timestamps_s.tolist())
            frames = [frames[i] for i, _ in matched][::stride][:limit]
        times = [t for t, _ in frames]
        depth = _read_list(folder / "depth.txt") if (folder / "depth.txt").is_file() else []
        near = _associate(times, [t for t, _ in depth])
        camera = next((c for name, c in TUM_CAMERAS.items() if name in folder.name), None)
        yield EvalSequence(
            name=folder.name.removeprefix("rgbd_dataset_"),
            source=None,
            frames=tuple(folder / name for _, name in frames),
            timestamps_s=np.array(times),
            camera=camera_from(*camera) if camera else None,
            truth=truth,
            depth=depth_maps({i: folder / depth[j][1] for i, j in near}, TUM_DEPTH_SCALE),
        )


def tum_dynamics(root: Path) -> Iterator[EvalSequence]:
    """TUM-dynamics of MonST3R (ICLR 2025): the freiburg3 sitting and walking sequences, 90 frames, stride 3."""
    for prefix in ("freiburg3_sitting", "freiburg3_walking"):
        yield from tum_rgbd(root, prefix, stride=3, limit=90)


def tum_freiburg1(root: Path) -> Iterator[EvalSequence]:
    """TUM RGB-D freiburg1, every frame, as DROID-SLAM and its successors report it."""
    yield from tum_rgbd(root, "freiburg1")


def bonn(root: Path) -> Iterator[EvalSequence]:
    """Bonn RGB-D Dynamic of MonST3R: five sequences, images 30 to 139.

    Depth is paired by position, as there. Poses are associated by time: the original takes rows 30 to 139 of
    ``groundtruth.txt``, whose clock differs from the images'.
    """
    for sequence in BONN_SEQUENCES:
        folder = root / f"rgbd_bonn_{sequence}"
        frames = _images(folder / "rgb")[30:140]
        depth = list_images(folder / "depth")[30:140]
        yield EvalSequence(
            name=sequence,
            source=None,
            frames=tuple(frames),
            timestamps_s=np.array([float(path.stem) for path in frames]),
            kind="dynamic",
            camera=camera_from(*BONN_CAMERA),
            truth=read_tum(folder / "groundtruth.txt"),
            depth=depth_maps(dict(enumerate(depth)), TUM_DEPTH_SCALE),
            depth_alignments=MONST3R_ALIGNMENTS,
            max_depth_m=70.0,
        )


def scannet(root: Path) -> Iterator[EvalSequence]:
    """ScanNet of MonST3R: the first 90 frames at stride 3 of every scene (``color``, ``depth``, ``pose``)."""
    for folder in _folders(root, "scene*"):
        frames = _images(folder / "color")[: 90 * 3 : 3]
        poses = natural_sort(list((folder / "pose").glob("*.txt")))[: 90 * 3 : 3]
        depth = list_images(folder / "depth")[: 90 * 3 : 3]
        K = folder / "intrinsic" / "intrinsic_color.txt"
        matrix = np.loadtxt(K) if K.is_file() else None
        yield EvalSequence(
            name=folder.name,
            source=None,
            frames=tuple(frames),
            timestamps_s=np.arange(len(frames)) / 10,
            kind="static",
            camera=None
            if matrix is None
            else camera_from(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]),
            truth=_from_matrices([np.loadtxt(p) for p in poses], np.arange(len(poses)) / 10),
            depth=depth_maps(dict(enumerate(depth)), 0.001),
        )


def seven_scenes(root: Path, every: int = 40) -> Iterator[EvalSequence]:
    """7-Scenes, test split, every 40th frame (the dense protocol of Spann3R's successors; sparse is 200).

    Depth registered to the colour camera (``depth.proj.png``, written by SimpleRecon's tool) is used where it
    exists; the raw depth is off by the baseline of the sensor. Values of 65535 and beyond 10 m do not count.
    """
    for split in sorted(Path(root).glob("*/TestSplit.txt")):
        numbers = ["".join(c for c in line if c.isdigit()) for line in split.read_text().split()]
        for number in filter(None, numbers):
            folder = split.parent / f"seq-{int(number):02d}"
            frames = sorted(folder.glob("frame-*.color.png"))[::every]
            if not frames:
                raise EvaluationError(f"{folder} holds no frame-*.color.png")
            stems = [path.name.removesuffix(".color.png") for path in frames]
            times = np.arange(len(stems)) * every / 30
            proj = [folder / f"{stem}.depth.proj.png" for stem in stems]
            raw = [folder / f"{stem}.depth.png" for stem in stems]
            depth = proj if proj[0].is_file() else raw
            yield EvalSequence(
                name=f"{split.parent.name}/{folder.name}",
                source=None,
                frames=tuple(frames),
                timestamps_s=times,
                kind="static",
                camera=camera_from(525, 525, 320, 240),
                truth=_from_matrices([np.loadtxt(folder / f"{s}.pose.txt") for s in stems], times),
                depth=Maps(
                    paths=dict(enumerate(depth)), read=lambda p: read_depth(p, 0.001, 65535)
                ),
                max_depth_m=10.0,
                notes="" if depth is proj else "depth is not registered to colour",
            )


def nrgbd(root: Path, every: int = 100) -> Iterator[EvalSequence]:
    """Neural RGB-D (Azinović et al., CVPR 2022), every 100th frame (dense protocol; sparse is 500).

    ``poses.txt`` holds 4×4 camera-to-world matrices with OpenGL axes; rows of nan are frames without a pose.
    """
    for poses in sorted(Path(root).glob("*/poses.txt")):
        folder = poses.parent
        numbers = range(0, len(_images(folder / "images")), every)
        matrices = np.loadtxt(poses).reshape(-1, 4, 4)
        cv = matrices @ np.diag([1.0, -1.0, -1.0, 1.0])
        times = np.array([n / 30 for n in numbers])
        yield EvalSequence(
            name=folder.name,
            source=None,
            frames=tuple(folder / "images" / f"img{n}.png" for n in numbers),
            timestamps_s=times,
            kind="static",
            camera=camera_from(554.2562584220408, 554.2562584220408, 320, 240),
            truth=_from_matrices([cv[n] for n in numbers], times),
            depth=depth_maps(
                {i: folder / "depth" / f"depth{n}.png" for i, n in enumerate(numbers)}, 0.001
            ),
            max_depth_m=10.0,
        )


def euroc(root: Path) -> Iterator[EvalSequence]:
    """EuRoC MAV (ASL layout): left camera, every frame; body poses are moved to the camera by ``T_BS``."""
    for folder in sorted(path.parent for path in Path(root).glob("*/mav0")):
        camera_folder = folder / "mav0" / "cam0"
        rows = _read_csv(camera_folder / "data.csv")
        times = np.array([int(row[0]) for row in rows]) * 1e-9
        camera, body_from_cam = _euroc_camera(camera_folder / "sensor.yaml")
        states = _read_csv(folder / "mav0" / "state_groundtruth_estimate0" / "data.csv")
        numbers = np.array([[float(x) for x in row[:8]] for row in states])
        world_from_body = np.tile(np.eye(4), (len(numbers), 1, 1))
        world_from_body[:, :3, :3] = Rotation.from_quat(
            numbers[:, 4:8], scalar_first=True
        ).as_matrix()
        world_from_body[:, :3, 3] = numbers[:, 1:4]
        yield EvalSequence(
            name=folder.name,
            source=None,
            frames=tuple(camera_folder / "data" / row[1].strip() for row in rows),
            timestamps_s=times,
            kind="static",
            camera=camera,
            truth=Trajectory(
                timestamps_s=numbers[:, 0] * 1e-9, world_from_cam=world_from_body @ body_from_cam
            ),
        )


def _euroc_camera(path: Path) -> tuple[Camera, Array]:
    import yaml

    about = yaml.safe_load(path.read_text(encoding="utf-8"))
    camera = camera_from(*about["intrinsics"], *about["distortion_coefficients"])
    return camera, np.array(about["T_BS"]["data"], np.float64).reshape(4, 4)


def _read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.reader(file) if row and not row[0].startswith("#")]


def _read_list(path: Path) -> list[tuple[float, str]]:
    """Read TUM's ``timestamp filename`` lines."""
    lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    return [(float(words[0]), words[1]) for words in lines if len(words) >= 2]


def _associate(first: list[float], second: list[float]) -> list[tuple[int, int]]:
    """Pair two clocks greedily by smallest difference, each time used once (TUM's associate.py rule)."""
    a, b = np.asarray(first), np.asarray(second)
    candidates = []
    for i, time in enumerate(a):
        low, high = np.searchsorted(b, [time - MAX_TIME_DIFFERENCE_S, time + MAX_TIME_DIFFERENCE_S])
        candidates += [(abs(time - b[j]), i, int(j)) for j in range(low, high)]
    pairs, used_a, used_b = [], set(), set()
    for _, i, j in sorted(candidates):
        if i not in used_a and j not in used_b:
            pairs.append((i, j))
            used_a.add(i)
            used_b.add(j)
    return sorted(pairs)


def _from_matrices(matrices: list[Array], times: Array) -> Trajectory:
    """Stack 4×4 matrices, leaving out those that are not finite (ScanNet and NRGBD mark lost frames so)."""
    stacked = np.stack(matrices)
    finite = np.isfinite(stacked).all(axis=(1, 2))
    return Trajectory(timestamps_s=times[finite], world_from_cam=stacked[finite])


def _folders(root: Path, pattern: str) -> list[Path]:
    return sorted(path for path in Path(root).glob(pattern) if path.is_dir())


def _images(folder: Path) -> list[Path]:
    images = list_images(folder)
    if not images:
        raise EvaluationError(f"{folder} holds no images: is --root the folder of the data set?")
    return images

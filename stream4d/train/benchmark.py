"""Score the network alone, without the pose chain, on real clips with ground truth (``stream4d train --validate``).

Reads the sequence folders and flow pairs that ``stream4d eval`` reads. Ground truth is looked at, never trained on.
Flow stands beside OpenCV's DIS (medium) at the same working size, because that is what the network starts from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from stream4d.config import ReaderConfig
from stream4d.errors import TrainingError
from stream4d.models.dis import dis_flow, grey_image
from stream4d.models.temporal import TemporalModel
from stream4d.packets import Array, Frame, Prediction, VideoInfo, Window
from stream4d.reader.base import open_video
from stream4d.reader.windows import sliding_windows


@dataclass(slots=True)
class Scores:
    """Sums of one sequence; NaN where it has no such ground truth."""

    name: str
    errors: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """Add one frame's values."""
        for name, value in values.items():
            self.errors.setdefault(name, []).append(float(value))

    def mean(self, name: str) -> float:
        """Average over the frames that have the value."""
        values = [v for v in self.errors.get(name, []) if np.isfinite(v)]
        return float(np.mean(values)) if values else float("nan")


COLUMNS = ("epe", "dis_epe", "fl", "dis_fl", "mask_j", "static", "abs_rel", "delta", "rot_deg")
"""Endpoint error in pixels of the ground truth's image and of DIS; Fl (share above 3 px and 5 %, per cent) likewise;
IoU of the motion mask; share of pixels called static; depth error and share within 25 % after one scale per sequence;
mean error of the relative rotation in degrees."""


def validate(
    folder: Path, model: TemporalModel, *, frames: int = 48, side: int = 384
) -> list[Scores]:
    """Score every sequence and flow pair under a folder.

    Raises:
        TrainingError: nothing to score there.
    """
    out = []
    for path in sorted(folder.rglob("sequence.json")):
        out.append(score_sequence(path.parent, model, frames, side))
    for pairs in sorted({p.parent for p in folder.rglob("*-gt.*")}):
        out += score_pairs(pairs, model, side)
    if not out:
        raise TrainingError(
            f"{folder} holds no sequence.json and no flow pairs (NAME-gt.flo or .png)"
        )
    return out


def table(scores: list[Scores]) -> str:
    """Format scores as a table, one line a sequence."""
    width = max(len(s.name) for s in scores)
    lines = [" ".join([" " * width, *(f"{c:>8}" for c in COLUMNS)])]
    for s in scores:
        cells = [f"{v:8.3f}" if np.isfinite(v := s.mean(c)) else " " * 7 + "-" for c in COLUMNS]
        lines.append(" ".join([f"{s.name:<{width}}", *cells]))
    return "\n".join(lines)


def score_sequence(folder: Path, model: TemporalModel, frames: int, side: int) -> Scores:
    """Run the network over the first frames of a sequence and compare with what is known of it."""
    scores = Scores(folder.name)
    about = json.loads((folder / "sequence.json").read_text(encoding="utf-8"))
    poses = _poses(folder)
    depths: list[tuple[Array, Array]] = []
    config = ReaderConfig(resolution=side, max_frames=frames)
    with open_video(folder, config) as reader, model.session(reader.info) as session:
        for window in sliding_windows(iter(reader), model.card.window, model.card.overlap):
            prediction = session.step(window)
            for t, frame in enumerate(window.frames):
                if t >= window.overlap:
                    _score_maps(folder, about, frame, prediction, t, scores, depths)
                if t + 1 < len(window.frames):
                    _score_motion(folder, window, prediction, t, poses, scores)
    _score_depth(depths, scores)
    return scores


def score_pairs(folder: Path, model: TemporalModel, side: int) -> list[Scores]:
    """Score flow on pairs named ``NAME_i-img0.png``, ``-img1.png``, ``-gt.flo`` or ``-gt.png``; one line a NAME."""
    found: dict[str, Scores] = {}
    for truth_path in sorted(folder.glob("*-gt.*")):
        stem = truth_path.name.partition("-gt")[0]
        images = [_read(folder / f"{stem}-img{i}.png", cv2.IMREAD_COLOR)[..., ::-1] for i in (0, 1)]
        truth, valid = read_flow(truth_path)
        name = stem.rpartition("_")[0] or stem
        scores = found.setdefault(name, Scores(name))
        a, b = (_shrink(image, side) for image in images)
        _score_flow(_flow_of(model, a, b), _dis(a, b), truth, valid, scores)
    return list(found.values())


def _flow_of(model: TemporalModel, a: Array, b: Array) -> Array:
    H, W = a.shape[:2]
    info = VideoInfo.of_frames("pair", W, H, fps=10, count=2)
    frames = tuple(Frame(index=i, timestamp_ns=i, rgb=x) for i, x in enumerate((a, b)))
    with model.session(info) as session:
        flow = session.step(Window(index=0, frames=frames, overlap=0)).flow
    assert flow is not None
    return np.asarray(flow[0])


def _dis(a: Array, b: Array) -> Array:  # (H, W, 3) uint8 twice -> (H, W, 2)
    return dis_flow(grey_image(a), grey_image(b), "medium")


def _score_flow(found: Array, dis: Array, truth: Array, valid: Array, scores: Scores) -> None:
    for prefix, flow in (("", found), ("dis_", dis)):
        H, W = truth.shape[:2]
        gain = np.array([W / flow.shape[1], H / flow.shape[0]], np.float32)
        error = np.linalg.norm(cv2.resize(flow, (W, H)) * gain - truth, axis=-1)[valid]
        length = np.linalg.norm(truth, axis=-1)[valid]
        bad = (error > 3) & (error > 0.05 * length)
        scores.add(**{f"{prefix}epe": error.mean(), f"{prefix}fl": 100 * bad.mean()})


def _score_motion(
    folder: Path,
    window: Window,
    prediction: Prediction,
    t: int,
    poses: dict[int, Array],
    scores: Scores,
) -> None:
    """Flow and relative rotation of frames t and t + 1 of a window."""
    frame, later = window.frames[t], window.frames[t + 1]
    if t + 1 < window.overlap:
        return  # the window before has had this pair
    truth_path = folder / "flow" / f"{frame.source_index:06d}.png"
    if truth_path.is_file() and prediction.flow is not None:
        truth, valid = read_flow(truth_path)
        _score_flow(
            prediction.flow[t],
            _dis(frame.rgb, later.rgb),
            truth,
            valid,
            scores,
        )
    if (
        frame.source_index in poses
        and later.source_index in poses
        and prediction.window_from_cam is not None
    ):
        true = np.linalg.inv(poses[frame.source_index]) @ poses[later.source_index]
        pose = prediction.window_from_cam
        found = np.linalg.inv(pose[t]) @ pose[t + 1]
        cosine = (np.trace(true[:3, :3].T @ found[:3, :3]) - 1) / 2
        scores.add(rot_deg=np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _score_maps(
    folder: Path,
    about: dict[str, object],
    frame: Frame,
    prediction: Prediction,
    t: int,
    scores: Scores,
    depths: list[tuple[Array, Array]],
) -> None:
    assert prediction.motion_prob is not None
    assert prediction.depth is not None
    moving = prediction.motion_prob[t] > 0.5
    if frame.index == 0:
        return  # nothing has moved yet
    scores.add(static=1 - moving.mean())
    path = folder / "masks" / f"{frame.source_index:06d}.png"
    if path.is_file():
        truth = _read(path, cv2.IMREAD_GRAYSCALE)
        known, mover = truth != 128, truth == 255
        found = (
            cv2.resize(moving.astype(np.uint8), truth.shape[::-1], interpolation=cv2.INTER_NEAREST)
            > 0
        )
        union = ((found | mover) & known).sum()
        if mover.any():
            scores.add(mask_j=(found & mover).sum() / max(union, 1))
    path = folder / "depth" / f"{frame.source_index:06d}.png"
    if path.is_file():
        scale = about.get("depth_scale") or 0.001
        assert isinstance(scale, int | float)
        depths.append(
            (prediction.depth[t], _read(path, cv2.IMREAD_UNCHANGED).astype(np.float32) * scale)
        )


def _score_depth(depths: list[tuple[Array, Array]], scores: Scores) -> None:
    """AbsRel and δ < 1.25 after the median scale of the whole sequence."""
    ratios = []
    for found, truth in depths:
        resized = cv2.resize(found, truth.shape[::-1])
        ratios.append((resized / np.where(truth > 0, truth, np.inf))[truth > 0])
    ratios = [r for r in ratios if len(r)]
    if not ratios:
        return
    scale = 1 / np.median(np.concatenate(ratios))
    for ratio in ratios:
        relative = ratio * scale
        inside = np.maximum(relative, 1 / np.maximum(relative, 1e-9)) < 1.25
        scores.add(abs_rel=np.abs(relative - 1).mean(), delta=inside.mean())


def _poses(folder: Path) -> dict[int, Array]:
    """Ground-truth poses by frame: TUM lines associated with the frames' timestamps within half a frame."""
    truth, stamps = folder / "groundtruth.txt", folder / "timestamps.txt"
    if not truth.is_file() or not stamps.is_file():
        return {}
    from scipy.spatial.transform import Rotation

    rows = np.loadtxt(truth, ndmin=2)
    times = np.loadtxt(stamps, ndmin=1)
    limit = 0.5 * float(np.median(np.diff(times))) if len(times) > 1 else 0.02
    out = {}
    for index, time in enumerate(times):
        nearest = int(np.argmin(np.abs(rows[:, 0] - time)))
        if abs(rows[nearest, 0] - time) <= limit:
            pose = np.eye(4)
            pose[:3, :3] = Rotation.from_quat(rows[nearest, 4:8]).as_matrix()
            pose[:3, 3] = rows[nearest, 1:4]
            out[index] = pose
    return out


def read_flow(path: Path) -> tuple[Array, Array]:
    """Read Middlebury ``.flo`` or KITTI 16-bit ``.png``: (H, W, 2) pixels and (H, W) bool.

    Raises:
        TrainingError: the file is neither.
    """
    if path.suffix == ".flo":
        data = path.read_bytes()
        if data[:4] != b"PIEH":
            raise TrainingError(f"{path} is not a Middlebury flow file")
        W, H = (int(n) for n in np.frombuffer(data, "<i4", 2, 4))
        flow = np.frombuffer(data, "<f4", 2 * W * H, 12).reshape(H, W, 2)
        return flow, np.abs(flow).max(-1) < 1e9
    picture = _read(path, cv2.IMREAD_UNCHANGED)
    if picture.ndim != 3 or picture.dtype != np.uint16:
        raise TrainingError(f"{path} is not a KITTI flow file (16-bit RGB)")
    rgb = picture[..., ::-1].astype(np.float32)
    return (rgb[..., :2] - 32768) / 64, rgb[..., 2] > 0


def _read(path: Path, flags: int) -> Array:
    picture = cv2.imread(str(path), flags)
    if picture is None:
        raise TrainingError(f"cannot read {path}")
    return np.asarray(picture)


def _shrink(image: Array, side: int) -> Array:
    H, W = image.shape[:2]
    scale = side / max(H, W)
    if scale >= 1:
        return np.ascontiguousarray(image)
    size = (round(W * scale / 2) * 2, round(H * scale / 2) * 2)
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA))


def lines(scores: list[Scores]) -> Iterator[dict[str, float | str]]:
    """Give the table as plain data."""
    for s in scores:
        yield {"name": s.name, **{c: s.mean(c) for c in COLUMNS if np.isfinite(s.mean(c))}}

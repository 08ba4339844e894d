"""What the benchmarks run: single parts with real data, ready to be timed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from stream4d.config import bundled
from stream4d.errors import EvaluationError
from stream4d.geometry.camera import centred_K, pixel_rays
from stream4d.packets import Array, Frame, PosedFrame, VideoInfo, Window

WIDTH, HEIGHT = 384, 288
"""The processed size that the budgets speak of."""


def bundled_clip() -> Path:
    """Return the path of the clip that is measured; ``bundled`` says where it lies."""
    return bundled("recordings", "recordings") / "room_walker.mp4"


def clip_frames(count: int) -> list[Array]:
    """Return the first frames of the bundled clip as (288, 384, 3) uint8.

    Raises:
        EvaluationError: the clip is not there.
    """
    path = bundled_clip()
    capture = cv2.VideoCapture(str(path))
    frames: list[Array] = []
    while len(frames) < count:
        is_read, image = capture.read()
        if not is_read:
            break
        small = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        frames.append(np.ascontiguousarray(small[..., ::-1]))
    capture.release()
    if len(frames) < count:
        raise EvaluationError(f"{path} gave {len(frames)} frames, the benchmark needs {count}")
    return frames


def write_long_video(folder: Path, count: int) -> Path:
    """Write the clip forwards and backwards as ``count`` images; images of the clip are stored once and linked.

    Raises:
        EvaluationError: as ``clip_frames``.
    """
    folder.mkdir(parents=True)
    images = folder.with_name(folder.name + "-images")
    images.mkdir()
    clip = clip_frames(72)
    for i, rgb in enumerate(clip):
        cv2.imwrite(str(images / f"{i}.jpg"), rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    order = [*range(len(clip)), *range(len(clip) - 2, 0, -1)]
    for i in range(count):
        source = images / f"{order[i % len(order)]}.jpg"
        link = folder / f"{i:06d}.jpg"
        try:
            link.symlink_to(source)
        except OSError:
            os.link(source, link)
    return folder


def posed_frames(count: int) -> Iterator[PosedFrame]:
    """Yield posed frames with every array filled, as the chain gives them."""
    rng = np.random.default_rng(0)
    clip = clip_frames(min(count, 72))
    x, y = np.meshgrid(np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT))
    for i in range(count):
        # Smooth maps with sensor-like noise compress as real ones do; constants would flatter the store.
        depth = (3 + x + 0.5 * y + 0.01 * rng.standard_normal((HEIGHT, WIDTH))).astype(np.float32)
        flow = np.stack([2 + x, y], axis=-1) + 0.05 * rng.standard_normal((HEIGHT, WIDTH, 2))
        probability = rng.random((HEIGHT, WIDTH), np.float32)
        yield PosedFrame(
            index=i,
            timestamp_ns=i * 40_000_000,
            rgb=clip[i % len(clip)],
            K=centred_K(350.0, WIDTH, HEIGHT),
            world_from_cam=np.eye(4),
            pose_covariance=np.eye(6) * 1e-6,
            depth=depth,
            confidence=probability,
            motion_prob=(probability > 0.97).astype(np.float32),
            flow=flow.astype(np.float32),
            flow_uncertainty=0.1 + probability,
            is_keyframe=i % 8 == 0,
        )


def video_info(count: int) -> VideoInfo:
    """Describe a video of the processed size."""
    return VideoInfo.of_frames("benchmark", WIDTH, HEIGHT, fps=25, count=count)


def model_step(name: str) -> Callable[[], object]:
    """Return a call that runs one window of a model; every call is the next window of one session."""
    from stream4d.models.registry import create_model

    model = create_model(name)
    size, overlap = model.card.window, model.card.overlap
    clip = clip_frames(72)
    session = model.session(video_info(72)).__enter__()
    number = 0

    def step() -> object:
        nonlocal number
        first = number * (size - overlap)
        frames = tuple(
            Frame(
                index=first + i, timestamp_ns=(first + i) * 40_000_000, rgb=clip[(first + i) % 72]
            )
            for i in range(size)
        )
        window = Window(index=number, frames=frames, overlap=overlap if number else 0)
        number += 1
        return session.step(window)

    return step


def bundle_step() -> Callable[[], object]:
    """Return a call that does one Levenberg–Marquardt iteration over 10 keyframes × 96 patches."""
    from stream4d.pose.refine import Observations, adjust

    rng = np.random.default_rng(0)
    F, n = 10, 96
    cam = np.array([350.0, 350, 191.5, 143.5])
    host = np.repeat(np.arange(F), n)
    uv0 = rng.uniform([10, 10], [374, 278], (F * n, 2))
    rays = np.concatenate([(uv0 - cam[2:]) / cam[:2], np.ones((F * n, 1))], axis=1)
    rho = 1 / rng.uniform(2, 6, F * n)
    poses = np.tile(np.eye(3, 4), (F, 1, 1))
    poses[:, 0, 3] = -0.05 * np.arange(F)
    patch, frame = np.nonzero(host[:, None] != np.arange(F)[None])
    points = rays[patch] / rho[patch, None] - poses[host[patch], :, 3] + poses[frame, :, 3]
    uv = points[:, :2] / points[:, 2:] * cam[:2] + cam[2:] + rng.normal(0, 0.3, (len(patch), 2))
    seen = Observations(patch, frame, uv, np.tile([10.0, 0.0, 10.0], (len(patch), 1)))

    def step() -> object:
        return adjust(
            cam.copy(), rays.copy(), host, poses.copy(), np.arange(2, F), 1.1 * rho, rho.copy(),
            np.full(len(rho), 1e-3), seen, iterations=1,
        )  # fmt: skip

    return step


def chain_seconds(video: str | Path, frames: int) -> float:
    """Return the wall time per frame of the pose chain alone, camera unknown, on the predictions of ``classical``.

    A window's predictions are made, not timed, then the chain takes it; a shorter run before loads the kernels.

    Raises:
        VideoError: the video cannot be read.
    """
    from threadpoolctl import threadpool_limits

    from stream4d.config import ChainConfig, ReaderConfig
    from stream4d.models.registry import create_model
    from stream4d.pose.chain import PoseChain
    from stream4d.reader import open_video
    from stream4d.reader.windows import sliding_windows

    model = create_model("classical")
    seconds, count = 0.0, 0
    for most in (min(frames, 72), frames):
        reader = ReaderConfig(resolution=WIDTH, max_frames=most)
        with (
            threadpool_limits(1, user_api="blas"),
            open_video(video, reader) as source,
            model.session(source.info) as session,
        ):
            chain, seconds, count = PoseChain(ChainConfig(), source.info), 0.0, 0
            for window in sliding_windows(iter(source), model.card.window, model.card.overlap):
                prediction = session.step(window)
                started = time.perf_counter()
                count += sum(1 for _ in chain.extend(window, prediction))
                seconds += time.perf_counter() - started
            started = time.perf_counter()
            count += sum(1 for _ in chain.finish())
            seconds += time.perf_counter() - started
    return seconds / count


def overlap_alignment() -> Callable[[], object]:
    """Return a call that aligns one 512 × 288 overlap (147,456 points, 10 % of them moving) in Sim(3)."""
    from stream4d.geometry.align import align_points

    rng = np.random.default_rng(0)
    rays = pixel_rays(centred_K(470.0, 512, 288), 288, 512).reshape(-1, 3)
    target = rays * rng.uniform(1, 8, (len(rays), 1))
    angle = 0.2
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    source = (target - [0.3, 0.1, 0.2]) @ R / 1.7 + 0.01 * rng.standard_normal(target.shape)
    movers = rng.random(len(rays)) < 0.1
    source[movers] += 0.5
    weights = rng.uniform(0.2, 1, len(rays))
    return lambda: align_points(source, target, weights)


def dis_pair() -> Callable[[], object]:
    """Return a call that runs OpenCV's DIS on one pair: a unit to compare machines by."""
    from stream4d.eval.flow import dis_flow

    first, second = clip_frames(2)
    return lambda: dis_flow(first, second)


def help_command() -> list[str]:
    """Return the command whose start-up time is a budget."""
    return [sys.executable, "-m", "stream4d", "--help"]

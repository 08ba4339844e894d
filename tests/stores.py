"""Small stores that tests write: frames whose every value depends on their index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stream4d.config import RunConfig, StoreConfig, dump
from stream4d.packets import PosedFrame, PoseRevision, VideoInfo
from stream4d.store.writer import StoreWriter

H, W = 32, 48


INFO = VideoInfo(
    source="clip.mp4",
    backend="pyav",
    width=W,
    height=H,
    source_width=2 * W,
    source_height=2 * H,
    fps=30.0,
    frame_count=None,
)


ROOT = Path(__file__).resolve().parents[1]


def posed(index: int, **changes: object) -> PosedFrame:
    """Make a frame whose every value depends on its index."""
    rng = np.random.default_rng(index)
    pose = np.eye(4)
    pose[:3, 3] = rng.normal(size=3)
    depth = rng.uniform(0.5, 20, (H, W)).astype(np.float32)
    depth[0, :5] = np.nan
    values: dict[str, object] = {
        "index": index,
        "timestamp_ns": index * 33_333_333,
        "rgb": rng.integers(0, 256, (H, W, 3), dtype=np.uint8),
        "K": np.array([[40.0 + index, 0, 23.5], [0, 41.0, 15.5], [0, 0, 1]]),
        "world_from_cam": pose,
        "pose_covariance": np.eye(6) * (index + 1) * 1e-6,
        "depth": depth,
        "confidence": rng.uniform(0, 1, (H, W)).astype(np.float32),
        "motion_prob": rng.uniform(0, 1, (H, W)).astype(np.float32),
        "flow": rng.normal(0, 8, (H, W, 2)).astype(np.float32),
        "flow_uncertainty": rng.uniform(0.1, 3, (H, W)).astype(np.float32),
        "is_keyframe": index % 3 == 0,
        "is_tracked": index % 7 != 0,
        "segment": index // 40,
    }
    return PosedFrame(**{**values, **changes})  # type: ignore[arg-type]


def writer(
    path: Path, *, store: StoreConfig | None = None, tracks: int = 0, **extra: object
) -> StoreWriter:
    config = RunConfig(store=store or StoreConfig(), tracks=tracks)
    return StoreWriter(
        path,
        info=INFO,
        config=dump(config),
        card={"name": "oracle"},
        store_config=config.store,
        **extra,  # type: ignore[arg-type]
    )


def fill(path: Path, frames: int, step: int = 4, **extra: object) -> None:
    with writer(path, **extra) as sink:  # type: ignore[arg-type]
        for index in range(frames):
            sink.write(posed(index))
            if index % step == step - 1:
                sink.commit(lambda: {"x": np.zeros(2)})


@contextmanager
def interrupted(path: Path, **extra: object) -> Iterator[StoreWriter]:
    """A writer whose run ends in Ctrl-C."""
    sink = writer(path, **extra)  # type: ignore[arg-type]
    sink.__enter__()
    yield sink
    sink.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def assert_same(got: PosedFrame, want: PosedFrame) -> None:
    """Compare within the error bounds that the format states."""
    for name in ("rgb", "K", "world_from_cam", "pose_covariance"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    for name in ("index", "timestamp_ns", "is_keyframe", "is_tracked", "segment", "is_metric"):
        assert getattr(got, name) == getattr(want, name), name
    np.testing.assert_allclose(got.depth, want.depth, rtol=2**-11)
    for name in ("confidence", "motion_prob"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1 / 510 + 1e-6)
    for name in ("flow", "flow_uncertainty"):
        a, b = getattr(got, name), getattr(want, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=2**-11, atol=1e-7)


def revision(indices: list[int], scale: float) -> PoseRevision:
    poses = np.stack([np.eye(4)] * len(indices))
    poses[:, 0, 3] = [1000.0 + index for index in indices]
    return PoseRevision(
        indices=np.array(indices),
        world_from_cam=poses,
        scale=np.full(len(indices), scale),
        pose_covariance=np.eye(6) * np.full((len(indices), 1, 1), scale),
    )


def edit_root(path: Path, **changes: object) -> None:
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"].update(changes)
    (path / "zarr.json").write_text(json.dumps(root))

"""What the tests of all foreign families share: a made-up window, and the contract of a prediction."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream4d.geometry.camera import project
from stream4d.geometry.transforms import invert, transform_points
from stream4d.models.dust3r import Dust3rConfig
from stream4d.models.mapanything_inputs import InputConfig
from stream4d.models.resize import Fit
from stream4d.packets import Frame, Prediction, VideoInfo, Window


def video_info(width: int, height: int) -> VideoInfo:
    """Describe a made-up video."""
    return VideoInfo.of_frames("made-up", width, height)


def make_frames(count: int, width: int, height: int, **given: Any) -> tuple[Frame, ...]:
    """Return frames of smooth noise that drifts, so that they resemble one another."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 255, (height // 8 + 3, (width + 8 * count) // 8 + 3, 3), np.uint8)
    wide = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    return tuple(
        Frame(
            index=i,
            timestamp_ns=i * 33_000_000,
            rgb=np.ascontiguousarray(wide[:height, 2 * i : 2 * i + width]),
            **given,
        )
        for i in range(count)
    )


def run_windows(
    model: Any,
    width: int,
    height: int,
    *,
    count: int = 5,
    size: int = 3,
    overlap: int = 1,
    **given: Any,
) -> list[Prediction]:
    """Stream made-up frames through a session of ``model``; return the predictions."""
    frames = make_frames(count, width, height, **given)
    out = []
    with model.session(video_info(width, height)) as session:
        start, index = 0, 0
        while start + (overlap if index else 0) < count:
            part = frames[start : start + size]
            out.append(
                session.step(Window(index=index, frames=part, overlap=overlap if index else 0))
            )
            start, index = start + size - overlap, index + 1
    return out


def placed(fit: Fit) -> tuple[list[int], str, list[float], list[int]]:
    """Say of a fit what the official tables say: resized to, filter, box of the crop, size."""
    box = [fit.left, fit.top, fit.left + fit.size[0], fit.top + fit.size[1]]
    return list(fit.resized), fit.filter.name, box, list(fit.size)


def check_prediction(prediction: Prediction, count: int, width: int, height: int) -> None:
    """Assert the contract: shapes, dtypes, rigid poses from identity, and geometry that agrees with itself."""
    depth, points = prediction.depth, prediction.pointmap_in_window
    K, poses = prediction.K, prediction.window_from_cam
    assert depth is not None
    assert points is not None
    assert K is not None
    assert poses is not None
    assert prediction.confidence is not None
    assert depth.shape == (count, height, width)
    assert {depth.dtype, points.dtype, prediction.confidence.dtype} == {np.dtype(np.float32)}
    assert np.isfinite(K).all()
    assert (K[:, [0, 1], [0, 1]] > 0).all()
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-9)
    R = poses[:, :3, :3]
    np.testing.assert_allclose(
        R @ np.swapaxes(R, 1, 2), np.tile(np.eye(3), (count, 1, 1)), atol=1e-6
    )
    assert np.isfinite(prediction.confidence).all()
    assert (prediction.confidence >= 0).all()
    known = np.isfinite(depth)
    assert known.any()
    assert (depth[known] > 0).all()
    assert (np.isfinite(points).all(-1) == known).all()
    for t in range(count):
        # Depth is the z of the points in their own camera.
        in_cam = transform_points(invert(poses[t]), points[t])
        np.testing.assert_allclose(
            in_cam[known[t]][:, 2], depth[t][known[t]], rtol=2e-3, atol=2e-3 * np.nanmax(depth[t])
        )


def check_pinhole(prediction: Prediction, tolerance_px: float = 0.02) -> None:
    """Assert that points project to their own pixels (models whose points come from depth and camera)."""
    points, poses, K = prediction.pointmap_in_window, prediction.window_from_cam, prediction.K
    assert points is not None
    assert poses is not None
    assert K is not None
    H, W = points.shape[1:3]
    v, u = np.mgrid[:H, :W]
    for t in range(len(points)):
        in_cam = transform_points(invert(poses[t]), points[t])
        uv = project(in_cam, K[t])
        known = np.isfinite(uv).all(-1)
        error = np.abs(uv - np.stack([u, v], -1)).max(-1)[known]
        # Points are float32: far from the origin (untrained networks) their last digit shows.
        digit = 2e-7 * np.linalg.norm(points[t], axis=-1)[known] / in_cam[known][:, 2]
        assert (error < tolerance_px + 4 * K[t].max() * digit).all()


_CROCO = {
    "encoder_dim": 64,
    "encoder_depth": 2,
    "encoder_heads": 4,
    "decoder_dim": 48,
    "decoder_depth": 4,
    "decoder_heads": 3,
}
_DPT = {"dpt_features": 16, "dpt_last": 8, "dpt_layers": (8, 16, 24, 32)}
_SIU3R_TRUNK = Dust3rConfig(
    encoder_dim=48,
    encoder_depth=4,
    encoder_heads=3,
    decoder_dim=32,
    decoder_depth=4,
    decoder_heads=2,
    dpt_features=12,
    dpt_last=6,
    dpt_layers=(6, 8, 12, 16),
)
TINY: dict[str, dict[str, Any]] = {
    "dust3r": _CROCO | _DPT,
    "must3r": _CROCO,
    "vggt": {
        "dim": 40,
        "depth": 5,
        "heads": 2,
        "patch_depth": 2,
        "patch_grid": 5,
        "camera_depth": 2,
        "camera_heads": 4,
        "dpt_layers": (8, 12, 16, 20),
        "dpt_features": 16,
        "taps": (0, 2, 3, 4),
    },
    "da3": {
        "dim": 48,
        "depth": 8,
        "heads": 3,
        "patch_grid": 5,
        "alternate_from": 2,
        "taps": (3, 5, 6, 7),
        "dpt_layers": (8, 12, 16, 20),
        "dpt_features": 16,
        "camera_encoder_depth": 2,
        "camera_encoder_heads": 4,
    },
    "mapanything": {
        "dim": 48,
        "encoder_depth": 2,
        "encoder_heads": 3,
        "patch_grid": 5,
        "trunk_dim": 48,
        "trunk_depth": 6,
        "trunk_heads": 3,
        "taps": (1, 3),
        "dpt_layers": (8, 12, 16, 20),
        "dpt_features": 16,
        "pose_hidden": 36,
        "scale_hidden": 20,
        "inputs": InputConfig(dense=(16, 12, 20), flat=(8, 12, 16)),
    },
    "siu3r": {
        "trunk": _SIU3R_TRUNK,
        "adapter_layers": (0, 1, 2, 3),
        "adapter_width": 8,
        "adapter_heads": 4,
        "query_dim": 64,
        "mask_dim": 32,
        "query_heads": 4,
        "pixel_hidden": 48,
        "pixel_layers": 2,
        "query_hidden": 80,
        "query_layers": 4,
        "queries": 9,
        "classes": 5,
        "sh_degree": 2,
    },
}
"""Sizes of the networks in the golden files."""

TINY_OPTIONS: dict[str, dict[str, Any]] = {
    "dust3r": {"resolution": 96, **TINY["dust3r"]},
    "monst3r": {"resolution": 96, "iterations": 10, **TINY["dust3r"]},
    "must3r": {"resolution": 96, **TINY["must3r"]},
    "vggt": {"resolution": 98, **TINY["vggt"]},
    "streamvggt": {"resolution": 98, "cache_frames": 3, **TINY["vggt"]},
    "da3-small": {"resolution": 98, **TINY["da3"]},
    "mapanything-apache": {"size": (98, 70), **TINY["mapanything"]},
    "siu3r": {"resolution": 64, **TINY["siu3r"]},
}
"""Options that make each family small enough for a test."""

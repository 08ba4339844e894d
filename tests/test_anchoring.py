"""A camera that loses its anchor at every frame: poses stay rotations however long that lasts."""

from __future__ import annotations

import numpy as np

from stream4d.config import ChainConfig
from stream4d.packets import Array, Frame, PosedFrame, Prediction, VideoInfo, Window
from stream4d.pose.chain import PoseChain

H, W, FRAMES = 64, 96, 60
SHIFT = 66
"""Pixels between frames: two thirds of the patches leave the view, so that each frame begins anew."""


def panorama() -> Array:
    """Smooth texture as wide as the whole pan."""
    rng = np.random.default_rng(0)
    coarse = rng.random((H // 4 + 1, (W + SHIFT * FRAMES) // 4 + 1, 3))
    blocks = coarse.repeat(4, 0).repeat(4, 1)
    shifted = [np.roll(blocks, (dy, dx), (0, 1)) for dy in range(4) for dx in range(4)]
    return (255 * np.mean(shifted, 0)).astype(np.uint8)


def test_a_fast_pan_never_leaves_the_rotations() -> None:
    """Each anchor's pose is a product with the last one's; its rounding used to triple, to a singular matrix."""
    wide = panorama()
    K = np.array([[80.0, 0, 47.5], [0, 80, 31.5], [0, 0, 1]])
    info = VideoInfo.of_frames("test", W, H, fps=10, count=FRAMES)
    frames = [
        Frame(index=t, timestamp_ns=t, rgb=wide[:H, SHIFT * t : SHIFT * t + W].copy(), K=K)
        for t in range(FRAMES)
    ]
    flow = np.zeros((1, H, W, 2), np.float32)
    flow[..., 0] = -SHIFT
    there = Prediction(
        flow=flow, flow_backward=-flow, flow_uncertainty=np.full((1, H, W), 0.3, np.float32)
    )
    chain = PoseChain(ChainConfig(), info)
    posed: list[PosedFrame] = []
    for t in range(FRAMES - 1):
        window = Window(index=t, frames=tuple(frames[t : t + 2]), overlap=1 if t else 0)
        posed += chain.extend(window, there)
        assert chain._progress is not None
        R = chain._progress.records[-1].pose[:, :3]
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    posed += chain.finish()
    assert [frame.index for frame in posed] == list(range(FRAMES))

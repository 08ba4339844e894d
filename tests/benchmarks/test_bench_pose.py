"""Speed of alignment, bundle adjustment, patch alignment, the dense filter and the whole chain."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream4d.config import ChainConfig
from stream4d.geometry import align
from stream4d.models.classical import flow_sigma
from stream4d.models.registry import create_model
from stream4d.pose import refine
from stream4d.pose.chain import PoseChain
from tests.synthetic import Scene
from tests.test_kernels import CAM, Bundle


def test_align_150k_points(benchmark: Any) -> None:
    rng = np.random.default_rng(0)
    source = rng.normal(size=(512 * 288, 3)).astype(np.float32)
    target = (1.3 * source + [1, 2, 3] + 0.01 * rng.normal(size=source.shape)).astype(np.float32)
    target[:30_000] += 1
    weights = rng.random(len(source)).astype(np.float32)
    result = benchmark(align.align_points, source, target, weights)
    assert result.ok


def test_bundle_step_10_keyframes_96_patches(benchmark: Any) -> None:
    bundle = Bundle(frames=10, patches=960)
    near = (
        np.abs(bundle.frame - bundle.host[bundle.patch]) <= 3
    )  # a patch lives for a few keyframes
    obs = refine.Observations(
        bundle.patch[near], bundle.frame[near], bundle.uv[near], bundle.info[near]
    )

    def step() -> None:
        refine.adjust(
            CAM.copy(), bundle.rays.copy(), bundle.host, bundle.poses.copy(), np.arange(1, 10), bundle.rho.copy(),
            bundle.prior, bundle.prior_info, obs, iterations=1,
        )  # fmt: skip

    benchmark(step)


def test_flow_sigma_384x288(benchmark: Any) -> None:
    flow = np.random.default_rng(0).normal(size=(288, 384, 2)).astype(np.float32)
    benchmark(flow_sigma, flow, -flow)


def test_chain_per_frame_384x288(benchmark: Any) -> None:
    """The chain alone over 30 frames; divide by 30."""
    scene = Scene("walk", width=384, height=288, focal=330)
    session = create_model("classical").session(scene.info())
    steps = [(window, session.step(window)) for window in scene.windows(30)]

    def chain() -> int:
        pose_chain = PoseChain(ChainConfig(), scene.info(30))
        posed = [f for window, prediction in steps for f in pose_chain.extend(window, prediction)]
        return len(posed) + len(list(pose_chain.finish()))

    assert benchmark.pedantic(chain, rounds=3, warmup_rounds=1) == 30

"""Training batches: which clips a step sees, and the initial flow that the network is given with them.

A step's batch follows from (recipe, step, rank) alone, so that a resumed run sees what it would have seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from stream4d.errors import TrainingError
from stream4d.models.temporal_cues import InitialFlow, initial_flow
from stream4d.train.augment import AugmentOptions, augment
from stream4d.train.clip import ClipBatch
from stream4d.train.layers import LayeredClips, LayeredPair, load_photos
from stream4d.train.recipe import Recipe, Stage
from stream4d.train.scenes import render_clips

PRESET_SHARES: tuple[tuple[InitialFlow, float], ...] = (
    ("none", 0.05), ("ultrafast", 0.1), ("fast", 0.25), ("medium", 0.6),
)  # fmt: skip
"""How often each initial flow is given: the network must use a good one and survive without."""
_REAL_CHANGES = AugmentOptions(zoom=(1.0, 1.15))
"""How real clips are varied, of which there are few; crops stay near the middle, where the network takes the
principal point to be."""


class Batches:
    """Endless batches of a recipe, from any step on."""

    def __init__(
        self, recipe: Recipe, *, rank: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.recipe = recipe
        self.rank = rank
        self.device = torch.device(device)
        self._layers = LayeredClips(photos=load_photos(recipe.photos), options=recipe.layers)
        self._scenes = replace(recipe.scenes, photo_dir=recipe.scenes.photo_dir or recipe.photos)
        self._real = [_open_real(text) for text in recipe.real]

    def batch(self, step: int) -> tuple[ClipBatch, Tensor]:
        """Make the batch of one step: clips, and their initial flow (B, T - 1, 2, 2, H, W)."""
        seed = np.random.SeedSequence([self.recipe.seed, step, self.rank]).generate_state(1)[0]
        rng = np.random.default_rng(seed)
        stage = self.recipe.stage(step)
        size = (stage.height, stage.width)
        if rng.random() < self.recipe.layered:
            pairs = [self._layers.pair(int(seed) * 64 + i, size) for i in range(stage.batch)]
            clips = layered_batch(pairs)
        else:
            clips = self._rendered_or_real(rng, int(seed), stage)
        presets = [p for p, _ in PRESET_SHARES]
        shares = [s for _, s in PRESET_SHARES]
        chosen = [presets[i] for i in rng.choice(len(presets), len(clips.rgb), p=shares)]
        return clips.to(self.device), initial_flows(clips, chosen).to(self.device)

    def _rendered_or_real(self, rng: np.random.Generator, seed: int, stage: Stage) -> ClipBatch:
        size = (stage.height, stage.width)
        source = int(rng.integers(len(self._real) + 1))
        if source == len(self._real):
            on = self.device if self.device.type == "cuda" else "cpu"
            return render_clips(seed, stage.batch, stage.frames, size, on, self._scenes).to("cpu")
        clips = self._real[source].batch(rng, stage.batch, stage.frames, size)
        return augment(clips, seed, _REAL_CHANGES)

    def iterate(self, start: int) -> Iterator[tuple[int, ClipBatch, Tensor]]:
        """Yield (step, clips, initial flow) from ``start`` to the last step, prepared ahead by the workers."""
        if self.recipe.workers == 0:
            for step in range(start, self.recipe.steps):
                yield step, *self.batch(step)
            return
        ahead: deque[tuple[int, Future[tuple[ClipBatch, Tensor]]]] = deque()
        with ThreadPoolExecutor(self.recipe.workers, thread_name_prefix="batch") as pool:
            following = iter(range(start, self.recipe.steps))
            for step in following:
                ahead.append((step, pool.submit(self.batch, step)))
                if len(ahead) > self.recipe.workers:
                    ready, future = ahead.popleft()
                    yield ready, *future.result()
            while ahead:
                ready, future = ahead.popleft()
                yield ready, *future.result()


class RealData(Protocol):
    """What ``train.datasets`` offers: random clips of a data set."""

    def batch(
        self, rng: np.random.Generator, batch: int, frames: int, size: tuple[int, int]
    ) -> ClipBatch:
        """Draw clips."""


def _open_real(text: str) -> RealData:
    name, separator, path = text.partition(":")
    if not separator:
        raise TrainingError(
            f"real data must be name:path, for example sintel:/data/sintel; got {text!r}"
        )
    from stream4d.train.datasets import open_dataset

    data: RealData = open_dataset(name, path)
    return data


def initial_flows(clips: ClipBatch, presets: list[InitialFlow]) -> Tensor:  # (B, T-1, 2, 2, H, W)
    """Compute the classical initial flow of every neighbouring pair, both directions."""
    frames = (clips.rgb.permute(0, 1, 3, 4, 2) * 255).round().byte().cpu().numpy()
    B, T = frames.shape[:2]
    flows = [
        [initial_flow(frames[b, t], frames[b, t + 1], presets[b]) for t in range(T - 1)]
        for b in range(B)
    ]
    return torch.from_numpy(np.array(flows, np.float32)).permute(0, 1, 2, 5, 3, 4).contiguous()


def layered_batch(pairs: list[LayeredPair]) -> ClipBatch:
    """Give layered pairs the common sample type: flow and motion are known, depth and camera are not."""
    rgb = torch.from_numpy(np.stack([p.rgb for p in pairs])).permute(0, 1, 4, 2, 3).float() / 255
    flow = torch.from_numpy(np.stack([p.flow for p in pairs]))  # (B, 2, H, W, 2)
    hidden = torch.from_numpy(np.stack([p.occluded for p in pairs]))
    moving = torch.from_numpy(np.stack([p.moving for p in pairs]))
    B, T, _, H, W = rgb.shape
    K = torch.tensor([[W, 0, (W - 1) / 2], [0, W, (H - 1) / 2], [0, 0, 1.0]])
    no, yes = torch.zeros(B, dtype=torch.bool), torch.ones(B, 1, H, W, dtype=torch.bool)
    return ClipBatch(
        rgb=rgb,
        depth=torch.zeros(B, T, H, W),
        K=K.expand(B, T, 3, 3).clone(),
        world_from_cam=torch.eye(4).expand(B, T, 4, 4).clone(),
        flow=flow[:, :1],
        flow_backward=flow[:, 1:],
        occluded=hidden[:, :1],
        occluded_backward=hidden[:, 1:],
        scene_flow=torch.zeros(B, 1, H, W, 3),
        motion_mask=moving,
        valid_depth=torch.zeros(B, T, H, W, dtype=torch.bool),
        valid_flow=yes,
        valid_flow_backward=yes,
        valid_motion=torch.ones(B, T, H, W, dtype=torch.bool),
        has_pose=no,
        has_intrinsics=no,
        is_metric=no,
    )

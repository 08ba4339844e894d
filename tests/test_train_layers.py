"""Layered clips: true flow, repeatable, photos read; and the scores of a perfect answer to one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stream4d.train import loop
from stream4d.train.batches import initial_flows, layered_batch
from stream4d.train.layers import LayeredClips, load_photos
from stream4d.train.validation import clip_scores
from tests.tiny_runs import TINY


def test_layered_flow_is_true() -> None:
    """Frame 1 sampled along the flow shows frame 0, both ways, where nothing is hidden."""
    clips = LayeredClips()
    better = []
    for seed in range(6):
        pair = clips.pair(seed, (96, 128))
        for t in (0, 1):
            v, u = np.mgrid[:96, :128].astype(np.float32)
            at = (u + pair.flow[t, ..., 0], v + pair.flow[t, ..., 1])
            back = cv2.remap(pair.rgb[1 - t], *at, cv2.INTER_LINEAR)
            seen = ~pair.occluded[t]
            # Exposure drift and noise differ between frames: compare contrast, not level.
            here = pair.rgb[t].astype(np.float32) - pair.rgb[t][seen].mean()
            there = back.astype(np.float32) - back[seen].mean()
            plain = pair.rgb[1 - t].astype(np.float32) - pair.rgb[1 - t][seen].mean()
            error, unmoved = np.abs(here - there)[seen].mean(), np.abs(here - plain)[seen].mean()
            assert error < 18
            better.append(error <= unmoved + 1)
    assert all(better)


def test_layered_clips_repeat_and_differ() -> None:
    clips = LayeredClips()
    a, b, c = clips.pair(1, (64, 64)), LayeredClips().pair(1, (64, 64)), clips.pair(2, (64, 64))
    assert np.array_equal(a.rgb, b.rgb)
    assert np.array_equal(a.flow, b.flow)
    assert not np.array_equal(a.rgb, c.rgb)


def test_photos_are_used(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (300, 1400, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    cv2.imwrite(str(tmp_path / "blank.png"), np.full((50, 50, 3), 7, np.uint8))
    photos = load_photos(tmp_path)
    assert [p.shape for p in photos] == [(214, 1000, 3)]


def test_scores_of_a_perfect_answer() -> None:
    """The network's output replaced by the truth: no error, full overlap."""
    pairs = [LayeredClips().pair(seed, (64, 64)) for seed in range(40)]
    moving = next(p for p in pairs if 0.1 < p.moving[1].mean() < 0.6)
    clips = layered_batch([moving])
    initial = initial_flows(clips, ["fast"])
    trainer_net = loop.TemporalNet(TINY.net)
    with torch.no_grad():
        output = trainer_net(clips.rgb, initial)
    pair = output.pairs[0]
    truth = torch.cat([clips.flow[:, 0], clips.flow_backward[:, 0]]).permute(0, 3, 1, 2)
    motion = torch.nn.functional.avg_pool2d(clips.motion_mask.transpose(0, 1).float(), 4) * 20 - 10
    perfect = pair._replace(
        flow=pair.flow._replace(steps=[truth]), maps=pair.maps._replace(motion=motion)
    )
    scores = clip_scores(output._replace(pairs=[perfect]), clips, initial)
    assert scores["epe"] == pytest.approx(0, abs=1e-5)
    assert scores["inside_1sigma"] == 1
    assert scores["iou"] > 0.7  # at a quarter of the resolution
    assert scores["epe_initial"] > 0
    assert "depth" not in scores

"""StreamVGGT: the same weights as VGGT, causal: batch and stream against the official code, and the bounded cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import check_pinhole, check_prediction, make_frames, run_windows, video_info
from golden import Golden, Recorder, check_manifest
from test_vggt import TINY

from stream4d.errors import ModelError
from stream4d.models.registry import create_model
from stream4d.models.streamvggt import StreamCaches, StreamVggtConfig, StreamVggtNet
from stream4d.models.vggt_net import key_map
from stream4d.packets import Window


def tiny(**options):
    return StreamVggtConfig(point_head=True, cache_frames=4, **options, **TINY)


def test_manifest():
    config = StreamVggtConfig(point_head=True, track_head=True)
    check_manifest("streamvggt", lambda: StreamVggtNet(config), key_map(config))


def heads_of(x, heads):  # (1, P, 3C) of a qkv layer -> q, k, v (1, heads, P, d)
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in x.chunk(3, dim=-1)]


def batch_outputs(net, frames):
    last = net.config.depth - 1
    names = [f"aggregator.{kind}_blocks.{last}" for kind in ("frame", "global")]
    with Recorder(net, "aggregator.global_blocks.0", *names) as seen:
        out = net.causal(frames[None])
    local, wide = (seen[name][0] for name in names)
    T = len(frames)
    return {
        "batch.global0": seen["aggregator.global_blocks.0"][0],
        "batch.agg_last": torch.cat(
            [local.unflatten(0, (1, T)), wide.unflatten(1, (T, -1))], dim=-1
        ),
        "batch.pose_enc_iters": torch.stack(out.pose_encodings),
        "batch.camera_pose": out.pose_encodings[-1][0],
        "batch.pts3d_in_other_view": out.points[0],
        "batch.conf": out.points_confidence[0],
        "batch.depth": out.depth[0][..., None],
        "batch.depth_conf": out.depth_confidence[0],
    }


def stream_outputs(net, frames):
    config = net.config
    last = config.depth - 1
    names = [f"aggregator.{kind}_blocks.{last}" for kind in ("frame", "global")]
    qkv = [f"aggregator.global_blocks.{i}.attn.qkv" for i in (0, last)]
    cam = [f"camera_head.trunk.{i}.attn.qkv" for i in range(config.camera_depth)]
    caches = StreamCaches(config)
    with Recorder(net, *names, *qkv, *cam) as seen:
        outs = [net.stream(frame[None, None], caches) for frame in frames]
    got = {}
    for t, out in enumerate(outs):
        local, wide = (seen[name][t] for name in names)
        got[f"stream.agg_last.frame{t}"] = torch.cat([local, wide], dim=-1)[:, None]
        got[f"stream.pose_enc_iters.frame{t}"] = torch.stack(out.pose_encodings)
    got["stream.camera_pose"] = torch.cat([out.pose_encodings[-1][0] for out in outs])
    got["stream.pts3d_in_other_view"] = torch.cat([out.points[0] for out in outs])
    got["stream.conf"] = torch.cat([out.points_confidence[0] for out in outs])
    got["stream.depth"] = torch.cat([out.depth[0] for out in outs])[..., None]
    got["stream.depth_conf"] = torch.cat([out.depth_confidence[0] for out in outs])
    # The official cache holds keys before norm and rotation; ours are compared by what made them.
    for i, name in zip((0, last), qkv, strict=True):
        _, k, v = zip(*(heads_of(x, config.heads) for x in seen[name]), strict=True)
        got[f"stream.kv.agg{i}.k"] = torch.stack(k, dim=2)
        got[f"stream.kv.agg{i}.v"] = torch.stack(v, dim=2)
        cached = caches.trunk[i].state()["values"]
        torch.testing.assert_close(cached, torch.cat(v, dim=2))
    for i, name in enumerate(cam):
        _, k, v = zip(*(heads_of(x, config.camera_heads) for x in seen[name]), strict=True)
        got[f"stream.kv.cam{i}.k"] = torch.stack(k, dim=2)
        got[f"stream.kv.cam{i}.v"] = torch.stack(v, dim=2)
    return got


def test_numbers_equal_the_official_code():
    golden = Golden("tiny", "streamvggt")
    config = tiny(camera_cache="shared")
    net = golden.load(lambda: StreamVggtNet(config), key_map(config))
    frames = golden.inputs["frames"]
    golden.check(batch_outputs(net, frames) | stream_outputs(net, frames))


def test_streaming_equals_one_causal_pass():
    golden = Golden("tiny", "streamvggt")
    config = tiny()
    net = golden.load(lambda: StreamVggtNet(config), key_map(config))
    frames = golden.inputs["frames"]
    whole, caches = net.causal(frames[None]), StreamCaches(config)
    for t, frame in enumerate(frames):
        out = net.stream(frame[None, None], caches)
        for a, b in zip(out.pose_encodings, whole.pose_encodings, strict=True):
            torch.testing.assert_close(a[:, 0], b[:, t], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(out.depth[:, 0], whole.depth[:, t], atol=1e-5, rtol=1e-4)


def test_memory_does_not_grow():
    model = create_model("streamvggt", weights="random", resolution=56, cache_frames=3, **TINY)
    frames = make_frames(9, 56, 42)
    sizes = []
    with model.session(video_info(56, 42)) as session:
        for start in range(0, 9, 3):
            session.step(Window(index=start // 3, frames=frames[start : start + 3], overlap=0))
            state = session.caches.trunk[0].state()
            sizes.append(state["keys"].numel())
        assert session.caches.seen == 9
        assert len(session.results) == 3
    assert len(set(sizes)) == 1


def test_overlap_is_not_predicted_again():
    model = create_model("streamvggt", weights="random", resolution=56, **TINY)
    frames = make_frames(5, 56, 42)
    with model.session(video_info(56, 42)) as session:
        first = session.step(Window(index=0, frames=frames[:3], overlap=0))
        second = session.step(Window(index=1, frames=frames[2:], overlap=1))
        assert session.caches.seen == 5
    np.testing.assert_array_equal(first.depth[2], second.depth[0])


@pytest.mark.parametrize("size", [(150, 101), (60, 110)])
def test_prediction(size):
    model = create_model("streamvggt", weights="random", resolution=98, **TINY)
    for prediction in run_windows(model, *size):
        check_prediction(prediction, 3, *size)
        check_pinhole(prediction)


def test_impossible_cache_is_refused():
    with pytest.raises(ModelError, match="cache_frames"):
        create_model("streamvggt", weights="random", cache_frames=0)

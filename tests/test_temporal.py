"""The temporal network and its session: parts against slow twins, streaming against batch, weights, options."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stream4d.errors import ModelError, WeightsError
from stream4d.models import temporal, temporal_weights
from stream4d.models.registry import create_model, model_card
from stream4d.models.temporal_cues import initial_flow
from stream4d.models.temporal_net import NetConfig, TemporalNet
from stream4d.packets import Array, Frame, VideoInfo, Window
from stream4d.train.layers import LayeredClips, LayerOptions
from tests.tiny import TINY, sliding_video, tiny_model
from tests.videos import textured_pan


@pytest.fixture(scope="module")
def video() -> Array:
    return sliding_video()


def info(width: int = 96, height: int = 64) -> VideoInfo:
    return VideoInfo.of_frames("test", width, height, fps=10)


def frames(video: Array) -> list[Frame]:
    return [Frame(index=i, timestamp_ns=i, rgb=rgb) for i, rgb in enumerate(video)]


def windows(video: Array, size: int, overlap: int) -> list[Window]:
    all_frames, out, start = frames(video), [], 0
    while start + overlap < len(all_frames) or not out:
        part = tuple(all_frames[start : start + size])
        out.append(Window(index=len(out), frames=part, overlap=overlap if out else 0))
        start += size - overlap
    return out


def test_the_network_is_small_enough() -> None:
    assert sum(p.numel() for p in TemporalNet().parameters()) <= 12e6


def test_every_parameter_is_trained() -> None:
    torch.manual_seed(0)
    net = TemporalNet(TINY)
    for p in net.parameters():
        nn.init.normal_(p, std=0.05)
    out = net(torch.rand(1, 3, 3, 64, 64), torch.randn(1, 2, 2, 2, 64, 64))
    total = sum(f.focal.sum() for f in out.frames)
    for pair in out.pairs:
        assert pair.flow.match.logp is not None
        parts = [*pair.flow.steps, pair.flow.mixture, pair.flow.log_sigma, pair.flow.match.logp]
        total = total + sum(x.square().sum() for x in [*parts, *pair.maps])
    total.backward()
    idle = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("size", [(64, 96), (32, 32), (96, 160)])
def test_shapes(size: tuple[int, int]) -> None:
    H, W = size
    with torch.no_grad():
        out = TemporalNet(TINY)(torch.rand(2, 3, 3, H, W), torch.zeros(2, 2, 2, 2, H, W))
    pair = out.pairs[1]
    assert pair.flow.steps[-1].shape == (4, 2, H, W)
    assert pair.flow.log_sigma.shape == (4, 1, H, W)
    assert pair.maps.motion.shape == (4, 1, H // 4, W // 4)
    assert pair.camera.rotation.shape == (2, 3, 3)
    assert out.frames[0].focal.shape == (2,)


def test_sides_must_fit_the_stride() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        TemporalNet(TINY).observe(torch.rand(1, 3, 60, 96), None)


def test_untrained_network_returns_the_initial_flow() -> None:
    """Training starts from DIS, details included: the match of noise may pull by a hundredth of its length."""
    torch.manual_seed(0)
    initial = torch.full((1, 1, 2, 2, 64, 64), 3.0) + torch.rand(1, 1, 2, 2, 64, 64)
    initial[:, :, 1] *= -1
    with torch.no_grad():
        out = TemporalNet(TINY)(torch.rand(1, 2, 3, 64, 64), initial)
    given = initial[0, 0]
    assert (out.pairs[0].flow.steps[-1] - given).abs().mean() < 0.5


def test_frames_never_see_the_future(video: Array) -> None:
    model = tiny_model(precision="float32")
    changed = video.copy()
    changed[5:] = 255 - changed[5:]
    results = []
    for clip in (video, changed):
        with model.session(info()) as session:
            results.append([session.step(w) for w in windows(clip, 3, 1)][:2])
    for a, b in zip(*results, strict=True):  # frames 0..4
        np.testing.assert_array_equal(a.depth, b.depth)
        np.testing.assert_array_equal(a.flow, b.flow)


def test_streaming_equals_the_whole_clip(video: Array) -> None:
    """One frame at a time through a session is the training forward."""
    model = tiny_model(precision="float32", initial="fast")
    clip = video[:5]
    images = torch.from_numpy(clip).permute(0, 3, 1, 2)[None].float() / 255
    flows = np.stack([initial_flow(a, b, "fast") for a, b in itertools.pairwise(clip)])
    with torch.inference_mode():
        out = model.net(images, torch.from_numpy(flows).permute(0, 1, 4, 2, 3)[None])
    with model.session(info()) as session:
        found = session.step(windows(clip, 5, 1)[0])
    assert found.flow is not None
    assert found.flow_backward is not None
    assert found.depth is not None
    for t, pair in enumerate(out.pairs):
        flow = pair.flow.steps[-1].permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(found.flow[t], flow[0], atol=1e-5)
        np.testing.assert_allclose(found.flow_backward[t], flow[1], atol=1e-5)
        depth = pair.upsampled(pair.maps.log_depth)[1, 0].exp().numpy()
        np.testing.assert_allclose(found.depth[t + 1], depth, rtol=1e-5)


@pytest.mark.parametrize(("size", "overlap"), [(3, 1), (4, 2), (2, 1), (9, 1)])
def test_results_do_not_depend_on_the_windows(video: Array, size: int, overlap: int) -> None:
    model = tiny_model(precision="float32")

    def flows(size: int, overlap: int) -> dict[int, Array]:
        out = {}
        with model.session(info()) as session:
            for window in windows(video, size, overlap):
                prediction = session.step(window)
                assert prediction.flow is not None
                for t, flow in enumerate(prediction.flow):
                    out[window.frames[t].index] = flow
        return out

    reference, found = flows(5, 1), flows(size, overlap)
    assert found.keys() == reference.keys()
    for index, flow in reference.items():
        np.testing.assert_array_equal(found[index], flow)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_restored_session_goes_on_exactly(video: Array, precision: str) -> None:
    model = tiny_model(precision=precision)
    parts = windows(video, 3, 1)
    with model.session(info()) as first, model.session(info()) as second:
        for window in parts[:2]:
            first.step(window)
        state = first.state()
        assert all(isinstance(v, np.ndarray) for v in state.values())
        second.restore(state)
        for window in parts[2:]:
            a, b = first.step(window), second.step(window)
            for name in (
                "flow",
                "flow_uncertainty",
                "depth",
                "motion_prob",
                "K",
                "window_from_cam",
            ):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_the_state_of_a_session_does_not_grow(video: Array) -> None:
    model = tiny_model()
    sizes = []
    with model.session(info()) as session:
        long = np.concatenate([video, video[::-1], video])
        for window in windows(long, 3, 1):
            session.step(window)
            sizes.append(sum(v.nbytes for v in session.state().values()))
    assert max(sizes[2:]) == min(sizes[2:-1])


def test_a_session_carries_16_mb_at_working_size() -> None:
    """As docs/models.md says; in bfloat16, maps of the overlap's frames included."""
    model = create_model("temporal", weights=temporal.RANDOM, precision="bfloat16")
    with model.session(info(384, 288)) as session:
        for window in windows(textured_pan(7, (288, 384)), 4, 1):
            session.step(window)
        carried = sum(v.nbytes for v in session.state().values())
    assert 15e6 < carried < 16e6


def test_prediction_is_complete_and_finite(video: Array) -> None:
    with tiny_model().session(info()) as session:
        p = session.step(windows(video, 4, 1)[0])
    for name in (
        "flow", "flow_backward", "flow_uncertainty", "depth", "depth_uncertainty", "confidence",
        "pointmap_in_window", "motion_prob", "K", "window_from_cam", "rotation_uncertainty_rad",
        "translation_uncertainty",
    ):  # fmt: skip
        value = getattr(p, name)
        assert value is not None, name
        assert np.isfinite(value).all(), name
    assert p.depth.min() > 0
    assert p.flow_uncertainty.min() > 0
    R = p.window_from_cam[:, :3, :3]  # type: ignore[index]
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.tile(np.eye(3), (4, 1, 1)), atol=1e-5)
    # The pointmap is ray times depth: projecting it gives the pixel back.
    x = p.pointmap_in_window[0]  # type: ignore[index]
    uvw = x @ p.K[0].T  # type: ignore[index]
    v, u = np.mgrid[:64, :96]
    np.testing.assert_allclose(uvw[..., 0] / uvw[..., 2], u, atol=1e-2)
    np.testing.assert_allclose(uvw[..., 1] / uvw[..., 2], v, atol=1e-2)


@pytest.mark.parametrize("size", [(70, 100), (33, 57), (64, 1), (20, 24)])
def test_any_frame_size(size: tuple[int, int]) -> None:
    H, W = size
    rgb = np.random.default_rng(0).integers(0, 255, (3, H, W, 3), np.uint8)
    with tiny_model().session(info(W, H)) as session:
        p = session.step(windows(rgb, 3, 1)[0])
    assert p.flow is not None
    assert p.flow.shape == (2, H, W, 2)
    assert np.isfinite(p.flow).all()


def test_large_frames_are_shrunk_for_the_network(video: Array) -> None:
    """Twice the size gives the same flow in pixels twice as long."""
    big = video.repeat(2, 1).repeat(2, 2)
    model = tiny_model(max_side=96, precision="float32")
    found = []
    for clip, (H, W) in ((video, (64, 96)), (big, (128, 192))):
        with model.session(info(W, H)) as session:
            p = session.step(windows(clip[:2], 2, 1)[0])
        assert p.flow is not None
        assert p.flow.shape == (1, H, W, 2)
        inner = p.flow[0, H // 4 : -H // 4, W // 4 : -W // 4]
        found.append(np.median(inner, axis=(0, 1)))
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=0.01)


def test_given_intrinsics_are_kept(video: Array) -> None:
    K = np.array([[80.0, 0, 47], [0, 81, 30], [0, 0, 1]])
    given = [Frame(index=i, timestamp_ns=i, rgb=rgb, K=K) for i, rgb in enumerate(video[:2])]
    with tiny_model().session(info()) as session:
        p = session.step(Window(index=0, frames=tuple(given), overlap=0))
    np.testing.assert_array_equal(p.K, np.stack([K, K]))


def test_a_single_frame_has_depth_and_no_flow(video: Array) -> None:
    with tiny_model().session(info()) as session:
        p = session.step(windows(video[:1], 1, 0)[0])
    assert p.flow is None
    assert p.depth is not None
    assert np.isfinite(p.depth).all()


@pytest.mark.skipif(not temporal.SHIPPED.is_file(), reason="no shipped weights")
def test_bfloat16_stays_close_to_float32(video: Array) -> None:
    """bfloat16 keeps 8 bits: with the shipped weights the median pixel stays within 0.05 px, 95 % within 0.5 px."""
    flows = []
    for precision in ("float32", "bfloat16"):
        model = create_model("temporal", precision=precision)
        with model.session(info()) as session:
            flows.append(session.step(windows(video[:3], 3, 1)[0]).flow)
    apart = np.abs(flows[0] - flows[1])
    assert np.median(apart) < 0.05
    assert np.percentile(apart, 95) < 0.5


@pytest.mark.skipif(not temporal.SHIPPED.is_file(), reason="no shipped weights")
def test_shipped_weights_beat_dis_on_hard_clips() -> None:
    """Layered clips with occlusion and noise: less error than the flow it starts from."""
    clips = LayeredClips(options=LayerOptions(background_px=0.02, shape_px=0.03))
    model = create_model("temporal")
    ours, given = [], []
    for seed in range(12):
        pair = clips.pair(seed, (128, 192))
        with model.session(info(192, 128)) as session:
            flow = session.step(windows(pair.rgb, 2, 1)[0]).flow
        assert flow is not None
        error = np.linalg.norm(flow[0] - pair.flow[0], axis=-1)
        start = np.linalg.norm(
            initial_flow(pair.rgb[0], pair.rgb[1], "medium")[0] - pair.flow[0], axis=-1
        )
        ours.append(np.minimum(error, 5).mean())
        given.append(np.minimum(start, 5).mean())
    assert np.mean(ours) < 0.99 * np.mean(given)


def test_shipped_weights_fit_the_wheel() -> None:
    if temporal.SHIPPED.is_file():
        assert temporal.SHIPPED.stat().st_size <= 25_000_000


def test_a_stream_needs_the_maps_of_the_later_frame_only(video: Array) -> None:
    """Half of the dense head's work; what is said of that frame stays the same."""
    net = tiny_model(precision="float32").net
    images = torch.from_numpy(video[:2]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        a, memory = net.observe(images[:1], None)
        b, _ = net.observe(images[1:], memory)
        initial = torch.from_numpy(initial_flow(*video[:2])).permute(0, 3, 1, 2)
        both, later = (net.relate(a, b, initial, both=x) for x in (True, False))
        for x, y in zip(both.maps, later.maps, strict=True):
            torch.testing.assert_close(x[1:], y, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            both.upsampled(both.maps.motion)[1:], later.upsampled(later.maps.motion)
        )


# --- weights and options ---------------------------------------------------------------------------------------------


def saved(path: Path, **metadata: str) -> Path:
    torch.manual_seed(0)
    net = TemporalNet(TINY)
    text = {
        "format": temporal_weights.FORMAT,
        "config": json.dumps({f: getattr(TINY, f) for f in TINY.__slots__}),
    }
    half = {k: v.half() for k, v in net.state_dict().items()}
    save_file(half, path, text | metadata)
    return path


def test_a_checkpoint_brings_its_own_size(tmp_path: Path) -> None:
    model = create_model("temporal", weights=saved(tmp_path / "a.safetensors"))
    assert model.net.config == TINY  # type: ignore[attr-defined]
    assert model.net.flow.match_scale.dtype == torch.float32  # type: ignore[attr-defined]


def test_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(temporal, "SHIPPED", tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="--model classical"):
        create_model("temporal")


def test_damaged_and_foreign_weights(tmp_path: Path) -> None:
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"\x00" * 50)
    with pytest.raises(WeightsError, match="cannot read"):
        create_model("temporal", weights=junk)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(WeightsError, match="not a checkpoint of the temporal model"):
        create_model("temporal", weights=foreign)
    pickle = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, pickle)
    with pytest.raises(WeightsError, match="not a checkpoint of the temporal model"):
        create_model("temporal", weights=pickle)
    unknown = saved(tmp_path / "b.safetensors", config=json.dumps({"wings": 2}))
    with pytest.raises(WeightsError, match="no network that this version knows"):
        create_model("temporal", weights=unknown)
    other = saved(tmp_path / "c.safetensors", config=json.dumps({"quarter": 32}))
    with pytest.raises(WeightsError, match="misshapen"):
        create_model("temporal", weights=other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wings": 2}, "has the options"),
        ({"initial": "slow"}, "initial must be one of"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"max_side": 4}, "max_side must be"),
        ({"iterations": -1}, "iterations must be"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model("temporal", weights="random", **options)


def test_bad_sizes() -> None:
    with pytest.raises(ModelError, match="positive integer"):
        NetConfig(depth=0)
    with pytest.raises(ModelError, match="multiple of"):
        NetConfig(tokens=30)


def test_card() -> None:
    card = model_card("temporal")
    assert card.weights_licence == "Apache-2.0"
    assert card.streaming == "native"
    assert card.parameters_m == pytest.approx(
        sum(p.numel() for p in TemporalNet().parameters()) / 1e6, abs=0.1
    )

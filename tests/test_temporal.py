"""The temporal network and its session: parts against slow twins, streaming against batch, weights, options."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stream4d.errors import ModelError, WeightsError
from stream4d.models import flow_net, sampling, temporal, temporal_tokens, temporal_weights
from stream4d.models.convolution import Conv, rectified
from stream4d.models.flow_propagation import Propagation
from stream4d.models.registry import create_model, model_card
from stream4d.models.temporal_cues import initial_flow
from stream4d.models.temporal_net import NetConfig, TemporalNet
from stream4d.packets import Array, Frame, VideoInfo, Window
from stream4d.train.layers import LayeredClips, LayerOptions
from tests.interpreted import run_without_compilation

TINY = NetConfig(quarter=16, tokens=32, depth=2, heads=2, queries=4, memory_frames=2, hidden=16)


@pytest.fixture(scope="module")
def video() -> Array:
    """(9, 64, 96, 3) uint8: smooth texture that slides 2 px right a frame."""
    rng = np.random.default_rng(3)
    coarse = torch.from_numpy(rng.random((1, 3, 20, 36), np.float32))
    scene = torch.nn.functional.interpolate(coarse, (64, 120), mode="bicubic", align_corners=False)
    wide = (scene.clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    return np.stack([wide[:, 20 - 2 * t : 116 - 2 * t] for t in range(9)])


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


def tiny_model(**options: object) -> temporal.TemporalModel:
    torch.manual_seed(0)
    net = TemporalNet(TINY)
    # Heads start at zero so that training starts calm; noise makes every output depend on every input.
    for p in net.parameters():
        nn.init.normal_(p, std=0.05) if p.ndim > 1 else None
    return temporal.TemporalModel(net, temporal.TemporalOptions(**options))  # type: ignore[arg-type]


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


# --- fused kernels against the torch expressions ----------------------------------------------------------------------


def both_ways(expression: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Evaluate with kernels (no gradients are wanted) and without."""
    with torch.no_grad():
        fused = expression()
    return fused, expression().detach()


def fields(h: int = 16, w: int = 24) -> Tensor:
    """(2, 2, h, w): both flows of a pair, some of them far out of view."""
    torch.manual_seed(0)
    flow = 2 * torch.randn(2, 2, h, w)
    flow[..., : h // 4, : w // 4] *= 20
    return flow


@pytest.mark.parametrize("threads", [1, 2])
def test_fused_parts_equal_the_expressions(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 keeps 24 bits; sums of 25 products and bilinear weights at 100 px lose up to seven of them."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    flow, full = fields(), fields(64, 96)
    features, logits = torch.randn(2, 8, 16, 24), 3 * torch.randn(2, 144, 16, 24)
    values, smooth = torch.randn(2, 4, 16, 24), torch.randn(2, 3, 16, 24)
    mean = nn.functional.avg_pool2d(full, 4)
    for expression in (
        lambda: sampling.round_trip(flow),
        lambda: torch.cat(flow_net.correlation(features, flow, 2), 1),
        lambda: torch.cat(flow_net.correlation(features, flow, 1), 1),
        lambda: flow_net.roughness(full, mean),
        lambda: sampling.convex_upsample(values, logits),
        lambda: torch.cat(flow_net.finish_flow(values, logits, smooth, full), 1),
    ):
        fused, plain = both_ways(expression)
        torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-5)


def test_fused_propagation_equals_the_expression() -> None:
    propagation, grey = Propagation(), torch.randn(2, 1, 64, 96)
    colour, flow = torch.rand(2, 3, 16, 24), fields(64, 96)
    fused, plain = both_ways(lambda: torch.cat(propagation(flow, grey, colour), 1))
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-5)


def test_fused_inference_equals_training(video: Array) -> None:
    """In float32 both give the same flow within 1e-3 px and the same maps within 1e-4."""
    net = tiny_model(precision="float32").net
    clip = video[:3]
    images = torch.from_numpy(clip).permute(0, 3, 1, 2)[None].float() / 255
    given = np.stack([initial_flow(a, b, "fast") for a, b in itertools.pairwise(clip)])
    initial = torch.from_numpy(given).permute(0, 1, 4, 2, 3)[None]

    with torch.no_grad():
        fused = net(images, initial)
    plain = net(images, initial)
    compared = 0
    for a, b in zip(fused.pairs, plain.pairs, strict=True):
        if (a.flow.match.flow - b.flow.match.flow).abs().max() > 0.1:
            continue  # a tie of the coarse match fell the other way: a change of 1e-7 in the image does that too
        compared += 1
        torch.testing.assert_close(a.flow.steps[-1], b.flow.steps[-1], atol=1e-3, rtol=1e-4)
        for x, y in zip((a.flow.log_sigma, *a.maps), (b.flow.log_sigma, *b.maps), strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    assert compared


def test_fused_attention_and_squashing_keep_bfloat16() -> None:
    """Scores are rounded to bfloat16 (8 bits) before the softmax, what comes out after it."""
    torch.manual_seed(0)
    query, keys, values = (torch.randn(1, 2, n, 16).bfloat16() for n in (12, 35, 35))
    bias = torch.randn(2, 35)
    fused, plain = both_ways(lambda: temporal_tokens.attend(query, keys, values, bias))
    assert fused.dtype == torch.bfloat16
    torch.testing.assert_close(fused, plain, atol=0.02, rtol=0.02)
    x, y = (3 * torch.randn(2, 5, 7, 24).bfloat16().permute(0, 3, 1, 2) for _ in range(2))
    exact = torch.tanh(x.float() + y.float())
    with torch.no_grad():
        found = flow_net.tanh_of_sum(x, y)
    torch.testing.assert_close(found.float(), exact, atol=1 / 256, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_convolutions_equal_plain_ones(dtype: torch.dtype) -> None:
    """Sums of 72 products, rounded once; weights are packed anew for inputs of another shape."""
    torch.manual_seed(0)
    low = dtype == torch.bfloat16
    for make in (Conv, rectified):
        layer = make(8, 24).to(dtype).requires_grad_(False)
        for shape in ((1, 8, 12, 16), (2, 8, 6, 10), (1, 8, 12, 16)):
            x = torch.randn(shape).to(dtype)
            layer.is_frozen = False
            plain = layer(x)
            layer.is_frozen = True
            with torch.no_grad():
                torch.testing.assert_close(
                    layer(x), plain, atol=1e-5, rtol=1 / 128 if low else 1e-5
                )
    assert (plain >= 0).all()


def test_fused_tokens_keep_bfloat16() -> None:
    """The expression rounds every product to 8 bits, and cosines too: half a per cent of values up to 4."""
    torch.manual_seed(0)
    grid, heads = (3, 5), 2
    x = torch.randn(2, 15, 3 * heads * 16).bfloat16()
    ropes = temporal_tokens._ropes(grid, 16, x)
    for expression in (
        lambda: temporal_tokens.split_heads(x, heads, ropes[0], parts=3, turned=2),
        lambda: temporal_tokens.split_heads(x, 3 * heads, ropes[0])[0],
        lambda: temporal_tokens.pool_tokens(x, grid),
    ):
        fused, plain = both_ways(expression)
        assert fused.dtype == torch.bfloat16
        torch.testing.assert_close(fused, plain, atol=0.04, rtol=0.01)
    exact = temporal_tokens.split_heads(x.float(), heads, ropes[0], parts=3, turned=2)
    with torch.no_grad():
        found = temporal_tokens.split_heads(x, heads, ropes[0], parts=3, turned=2)
    torch.testing.assert_close(found.float(), exact, atol=1e-5, rtol=1 / 256)


def test_fused_matching_equals_the_expression() -> None:
    """Sums of 35 exponentials in float32."""
    torch.manual_seed(0)
    scores = 5 * torch.randn(2, 35, 35)
    fused, plain = both_ways_all(lambda: flow_net.nearest_both_ways(scores, (5, 7))[:2])
    for x, y in zip(fused, plain, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


def test_fused_normalisation_equals_the_expression() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 64)
    for fused, plain in zip(*both_ways_all(lambda: flow_net.normalise(images)), strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


def both_ways_all(expression: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], ...]:
    """Evaluate with kernels and without."""
    with torch.no_grad():
        fused = expression()
    return fused, expression()


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


@pytest.mark.slow
def test_kernels_run_without_compilation() -> None:
    run_without_compilation(__file__, "fused and not inference")


# --- parts -----------------------------------------------------------------------------------------------------------


def test_warp_by_nothing_and_by_whole_pixels() -> None:
    x = torch.rand(1, 2, 5, 7)
    torch.testing.assert_close(sampling.warp(x, torch.zeros(1, 2, 5, 7)), x)
    flow = torch.zeros(1, 2, 5, 7)
    flow[:, 0], flow[:, 1] = 2, -1
    torch.testing.assert_close(sampling.warp(x, flow)[..., 1:, :-2], x[..., :-1, 2:])


def test_local_correlation_equals_its_slow_twin() -> None:
    a, b = torch.randn(1, 6, 4, 5), torch.randn(1, 6, 4, 5)
    found = flow_net.local_correlation(a, b, 1)
    for y in range(4):
        for x in range(5):
            for i, (dy, dx) in enumerate((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                inside = 0 <= y + dy < 4 and 0 <= x + dx < 5
                dot = float(a[0, :, y, x] @ b[0, :, y + dy, x + dx]) / 4 if inside else 0.0
                assert found[0, i, y, x].item() == pytest.approx(dot, abs=1e-5)


def test_global_match_finds_a_shift() -> None:
    """Cells at 1/16 hold 2×2 descriptors: a shift of 4 and 2 descriptors is one of 2 and 1 cells."""
    torch.manual_seed(0)
    cells = torch.randn(1, 32, 9, 14)
    scene = nn.functional.normalize(cells.repeat_interleave(2, 2).repeat_interleave(2, 3), dim=1)
    a, b = scene[..., 2:, 4:], scene[..., :-2, :-4]
    match = flow_net.global_match(a, b, torch.tensor(40.0))
    assert match.cell == 16
    assert match.logp is not None
    assert match.logp.shape == (1, 96, 96)
    assert match.flow.shape == (2, 2, 16, 24)
    inner = match.flow[0, :, :-4, :-6]
    torch.testing.assert_close(inner[0], torch.full_like(inner[0], 4.0), atol=0.1, rtol=0)
    torch.testing.assert_close(inner[1], torch.full_like(inner[1], 2.0), atol=0.1, rtol=0)
    assert match.confidence[0, 0, :-4, :-6].min() > 0.9
    assert match.confidence[0, 0, :, -4:].mean() < 0.3


def test_propagation_fills_what_cannot_be_trusted() -> None:
    """Two surfaces of their own colour and flow; a hole in the left one takes the left flow, not the right one."""
    H, W = 64, 96
    flow = torch.zeros(2, 2, H, W)
    flow[0, 0, :, :48], flow[0, 0, :, 48:] = 2.0, -6.0
    flow[1] = -flow[0]
    colour = torch.full((2, 3, H // 4, W // 4), 0.2)
    colour[..., 12:] = 0.8
    truth = flow.clone()
    hole = (slice(None), slice(None), slice(24, 40), slice(36, 48))
    flow[hole] = 200.0  # out of the image
    mended = Propagation()(flow, torch.zeros(2, 1, H, W), colour)
    cells = torch.nn.functional.avg_pool2d(truth, 4)
    assert mended.trust[0, 0, 6:10, 9:12].max() < 0.2
    torch.testing.assert_close(
        mended.flow[0, :, 6:10, 9:12], cells[0, :, 6:10, 9:12], atol=0.3, rtol=0
    )
    far = mended.flow[0, :, :, :6]
    torch.testing.assert_close(far, cells[0, :, :, :6], atol=1e-3, rtol=0)


def test_convex_upsampling_keeps_constants_and_can_copy() -> None:
    values = torch.rand(1, 2, 3, 4)
    flat = sampling.convex_upsample(torch.ones(1, 1, 3, 4), torch.randn(1, 144, 3, 4))
    torch.testing.assert_close(flat, torch.ones(1, 1, 12, 16))
    centre = torch.full((1, 9, 4, 4, 3, 4), -50.0)
    centre[:, 4] = 50
    copied = sampling.convex_upsample(values, centre.reshape(1, 144, 3, 4))
    torch.testing.assert_close(copied, values.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_resized_flow_keeps_its_meaning() -> None:
    flow = torch.ones(1, 2, 8, 12)
    small = sampling.resize_flow(flow, (4, 3))
    torch.testing.assert_close(small[0, 0], torch.full((4, 3), 0.25))
    torch.testing.assert_close(small[0, 1], torch.full((4, 3), 0.5))


def test_xfeat_folds_its_batch_norm() -> None:
    """A layer with running statistics equals our plain convolution with the folded weights."""
    torch.manual_seed(0)
    names = [f"block1.{i}" for i in range(4)] + [f"block2.{i}" for i in range(2)]
    names += [f"block3.{i}" for i in range(3)] + [f"block4.{i}" for i in range(3)]
    names += [f"block5.{i}" for i in range(4)] + ["block_fusion.0", "block_fusion.1"]
    encoder = flow_net.FrameEncoder()
    ours = {k: v for k, v in encoder.state_dict().items() if k.endswith("weight")}
    public: dict[str, torch.Tensor] = {}
    for name in names:
        weight = torch.randn_like(ours[name.replace("block_fusion", "fusion") + ".weight"])
        public[f"{name}.layer.0.weight"] = weight
        public[f"{name}.layer.1.running_mean"] = torch.randn(len(weight))
        public[f"{name}.layer.1.running_var"] = torch.rand(len(weight)) + 0.5
    for name, key in (("skip1.1", "skip"), ("block_fusion.2", "fused")):
        public[f"{name}.weight"] = torch.randn_like(ours[f"{key}.weight"])
        public[f"{name}.bias"] = torch.randn(len(ours[f"{key}.weight"]))
    report = encoder.load_state_dict(flow_net.convert_xfeat(public), strict=False)
    assert not report.unexpected_keys
    assert {k.split(".")[0] for k in report.missing_keys} == {"colour", "residual"}
    x = torch.randn(1, 24, 6, 6)
    norm = nn.BatchNorm2d(64, affine=False).eval()
    norm.running_mean, norm.running_var = (
        public["block3.0.layer.1.running_mean"], public["block3.0.layer.1.running_var"],
    )  # fmt: skip
    plain = nn.functional.conv2d(x, public["block3.0.layer.0.weight"], stride=2, padding=1)
    torch.testing.assert_close(encoder.block3[0](x), norm(plain).relu(), atol=1e-4, rtol=1e-4)


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

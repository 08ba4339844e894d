"""Fused kernels of the temporal model against the torch expressions that they stand in for."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stream4d.models import flow_net, frame_encoder, matching, sampling, temporal_tokens
from stream4d.models.convolution import Conv, rectified
from stream4d.models.flow_propagation import Propagation
from stream4d.models.temporal_cues import initial_flow
from tests.interpreted import run_without_compilation
from tests.tiny import sliding_video, tiny_model


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
        lambda: torch.cat(matching.correlation(features, flow, 2), 1),
        lambda: torch.cat(matching.correlation(features, flow, 1), 1),
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


def test_fused_inference_equals_training() -> None:
    """In float32 both give the same flow within 1e-3 px and the same maps within 1e-4."""
    net = tiny_model(precision="float32").net
    clip = sliding_video()[:3]
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
    fused, plain = both_ways_all(lambda: matching.nearest_both_ways(scores, (5, 7))[:2])
    for x, y in zip(fused, plain, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


def test_fused_normalisation_equals_the_expression() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 64)
    for fused, plain in zip(*both_ways_all(lambda: frame_encoder.normalise(images)), strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


def both_ways_all(expression: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], ...]:
    """Evaluate with kernels and without."""
    with torch.no_grad():
        fused = expression()
    return fused, expression()


@pytest.mark.slow
def test_kernels_run_without_compilation() -> None:
    run_without_compilation(__file__, "fused and not inference")

"""Attention parts: what each option does, against the formula written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream4d.geometry.transforms import se3_exp
from stream4d.models.blocks import (
    Attention,
    Block,
    CrossAttention,
    KVCache,
    SwiGlu,
    causal_frame_mask,
)
from stream4d.models.encoders import DinoEncoder, special_token_rope
from stream4d.models.heads import Dpt, LinearHead, exp_of_norm, signed_expm1
from stream4d.models.rope import apply_rope, grid_positions, rope_2d
from stream4d.models.unified import (
    QueryAttention,
    UnifiedQueryDecoder,
    anchor_tokens,
    epipolar_bias,
)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def naive_attention(q, k, v, mask=None):
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(-1) @ v


def heads_of(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def test_attention_is_the_formula():
    layer = Attention(16, 2, qk_norm=True)
    x = torch.randn(3, 5, 16)
    rope = rope_2d(grid_positions(1, 5), 8)
    q, k, v = (heads_of(part, 2) for part in layer.qkv(x).chunk(3, dim=-1))
    q, k = apply_rope(layer.q_norm(q), rope), apply_rope(layer.k_norm(k), rope)
    mask = torch.rand(5, 5) > 0.3
    mask.fill_diagonal_(True)
    wanted = layer.proj(naive_attention(q, k, v, mask).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, rope, mask), wanted, atol=1e-6, rtol=1e-5)


def test_cross_attention_is_the_formula():
    layer = CrossAttention(16, 2)
    x, y = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    out = naive_attention(
        heads_of(layer.projq(x), 2), heads_of(layer.projk(y), 2), heads_of(layer.projv(y), 2)
    )
    wanted = layer.proj(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, y), wanted, atol=1e-6, rtol=1e-5)


def test_rope_depends_on_differences_only():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def logit(a, b, **options):
        table = [rope_2d(torch.tensor([place]), 16, **options) for place in (a, b)]
        return (apply_rope(q, table[0]) * apply_rope(k, table[1])).sum()

    torch.testing.assert_close(logit((1, 2), (3, 7)), logit((11, 22), (13, 27)))
    assert not torch.isclose(logit((1, 2), (3, 7)), logit((1, 2), (7, 3)))
    torch.testing.assert_close(logit((2, 4), (6, 8), scale=0.5), logit((1, 2), (3, 4)))


def test_rope_at_zero_changes_nothing():
    x = torch.randn(2, 3, 4, 16)
    assert torch.equal(apply_rope(x, rope_2d(torch.zeros(4, 2), 16)), x)


def test_special_tokens_sit_at_the_origin():
    rope = special_token_rope(2, 3, 5, 16, "cpu")
    assert rope.cos.shape == (1, 1, 11, 16)
    assert (rope.cos[0, 0, :5] == 1).all()
    assert (rope.cos[0, 0, 5:] != 1).any(dim=-1).all()


def test_cached_frames_equal_one_causal_pass():
    block = Block(16, 2, qk_norm=True, layer_scale=0.5)
    T, P = 4, 3
    x = torch.randn(1, T * P, 16)
    one = rope_2d(grid_positions(1, P), 8)
    rope = type(one)(one.cos.repeat(1, 1, T, 1), one.sin.repeat(1, 1, T, 1))
    at_once = block(x, rope, causal_frame_mask(T, P))
    cache = KVCache(frames=T)
    for t in range(T):
        part = slice(t * P, (t + 1) * P)
        torch.testing.assert_close(
            block(x[:, part], one, cache=cache), at_once[:, part], atol=1e-5, rtol=1e-4
        )


def test_full_cache_keeps_anchors_and_the_newest():
    cache = KVCache(frames=4, anchors=1)
    for t in range(9):
        keys, values = cache.extend(
            torch.full((1, 1, 2, 4), float(t)), torch.full((1, 1, 2, 4), -float(t))
        )
    assert sorted(set(keys[0, 0, :, 0].tolist())) == [0, 6, 7, 8]
    assert torch.equal(keys, -values)
    assert keys.shape[2] == 8


def test_cache_goes_on_from_its_state():
    cache, frames = KVCache(frames=3, anchors=1), torch.randn(7, 1, 2, 5, 4)
    for frame in frames[:5]:
        cache.extend(frame, frame)
    other = KVCache(frames=3, anchors=1)
    other.restore({k: v.clone() for k, v in cache.state().items()})
    for frame in frames[5:]:
        a, b = cache.extend(frame, frame)[0], other.extend(frame, frame)[0]
        assert torch.equal(a, b)


def test_swiglu_width_is_dinov2_giants():
    layer = SwiGlu(1536, 4 * 1536)
    assert tuple(layer.w12.weight.shape) == (8192, 1536)


def test_position_map_is_untouched_at_its_own_size():
    encoder = DinoEncoder(dim=8, depth=1, heads=2, grid=4)
    torch.nn.init.normal_(encoder.pos_embed)
    assert encoder.resized_positions(4, 4) is encoder.pos_embed
    resized = encoder.resized_positions(2, 7)
    assert resized.shape == (1, 15, 8)
    assert torch.equal(resized[:, :1], encoder.pos_embed[:, :1])


def test_registers_come_after_the_class_token():
    encoder = DinoEncoder(dim=8, depth=1, heads=2, grid=4, registers=3)
    torch.nn.init.ones_(encoder.register_tokens)
    tokens = encoder.embed(torch.rand(2, 3, 28, 42))
    assert tokens.shape == (2, 1 + 3 + 6, 8)
    assert (tokens[:, 1:4] == 1).all()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("grid", [(3, 5), (4, 6), (1, 1)])
def test_dpt_gives_eight_times_the_grid(grid, exact):
    head = Dpt(
        in_dims=8,
        layer_dims=(4, 6, 8, 10),
        features=5,
        rectified_skip=exact,
        exact_sizes=exact,
        uv_embed=False,
    )
    tokens = [torch.randn(2, grid[0] * grid[1], 8) for _ in range(4)]
    assert head(tokens, grid, (0, 0)).shape == (2, 5, 8 * grid[0], 8 * grid[1])


def test_linear_head_puts_patches_in_place():
    head = LinearHead(3, 4, 2)
    tokens = torch.zeros(1, 6, 3)
    with torch.no_grad():
        head.proj.bias.zero_()
        tokens[0, 4] = 1  # row 1, column 1 of a 2 × 3 grid
        image = head(tokens, (2, 3))
    assert image.shape == (1, 2, 8, 12)
    touched = image[0].abs().sum(0) > 0
    assert touched[4:8, 4:8].all()
    assert touched.sum() == 16


def test_activations():
    xyz = torch.tensor([[0.0, 3.0, 4.0], [0.0, 0.0, 0.0]])
    out = exp_of_norm(xyz)
    torch.testing.assert_close(out[0], torch.tensor([0, 0.6, 0.8]) * np.expm1(5))
    assert (out[1] == 0).all()
    torch.testing.assert_close(
        signed_expm1(torch.tensor([-2.0, 2.0])), torch.tensor([-1.0, 1.0]) * float(np.expm1(2))
    )


class TestUnifiedQueries:
    def test_attention_equals_its_weights(self):
        layer = QueryAttention(16, 2)
        u, r = torch.randn(2, 4, 16), torch.randn(2, 9, 16)
        bias, allowed = torch.randn(1, 4, 9), torch.rand(2, 9) > 0.3
        weights = layer.weights(u, r, bias, allowed)
        out = weights @ heads_of(layer.projv(r), 2)
        wanted = layer.proj(out.transpose(1, 2).flatten(2))
        torch.testing.assert_close(layer(u, r, bias, allowed), wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4))

    def test_temperature_flattens_its_own_head_only(self):
        layer = QueryAttention(16, 2)
        u, r = torch.randn(1, 4, 16), torch.randn(1, 9, 16)
        before = layer.weights(u, r)
        with torch.no_grad():
            layer.log_temperature[0] = 2.0
        after = layer.weights(u, r)

        def entropy(w):
            return -(w * w.log()).sum(-1)

        assert (entropy(after[:, 0]) > entropy(before[:, 0])).all()
        assert torch.equal(after[:, 1], before[:, 1])

    def test_temperature_is_learned(self):
        layer = QueryAttention(16, 2)
        layer(torch.randn(1, 4, 16), torch.randn(1, 9, 16)).square().sum().backward()
        assert (layer.log_temperature.grad != 0).all()

    def test_tokens_without_confidence_are_not_read(self):
        layer = QueryAttention(16, 2)
        u, r = torch.randn(1, 4, 16), torch.randn(1, 9, 16)
        allowed = torch.ones(1, 9, dtype=torch.bool)
        allowed[0, 3] = False
        weights = layer.weights(u, r, None, allowed)
        assert (weights[..., 3] == 0).all()
        moved = r.clone()
        moved[0, 3] += 10
        assert torch.equal(layer(u, r, None, allowed), layer(u, moved, None, allowed))

    def test_nothing_readable_leaves_the_queries_alone(self):
        layer = QueryAttention(16, 2)
        out = layer(
            torch.randn(1, 4, 16),
            torch.randn(1, 9, 16),
            None,
            torch.zeros(1, 9, dtype=torch.bool),
        )
        torch.testing.assert_close(out, layer.proj.bias.expand_as(out))

    def test_epipolar_bias_is_zero_on_the_line_and_falls_off(self):
        K = torch.tensor([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]]).expand(2, 3, 3).double()
        poses = torch.eye(4).repeat(2, 1, 1).double()
        poses[1] = torch.from_numpy(se3_exp(np.array([0.3, -0.1, 0.05, 0.02, 0.1, -0.05])))
        anchor = torch.tensor([[40.0, 20.0]]).double()
        ray = torch.linalg.inv(K[0]) @ torch.tensor([40.0, 20, 1]).double()
        on_line = []
        for depth in (2.0, 3.0, 8.0):
            cam = poses[1, :3, :3] @ (ray * depth) + poses[1, :3, 3]
            pixel = K[1] @ cam
            on_line.append(pixel[:2] / pixel[2])
        along = torch.stack(on_line)
        direction = (along[1] - along[0]) / (along[1] - along[0]).norm()
        beside = along[0] + 5 * torch.stack([-direction[1], direction[0]])
        places = torch.cat([along, beside[None], anchor + 30])
        views = torch.tensor([1, 1, 1, 1, 0])
        bias = epipolar_bias(anchor, torch.tensor([0]), places, views, K, poses, sigma_px=5.0)[0, 0]
        torch.testing.assert_close(bias[:3], torch.zeros(3).double(), atol=1e-12, rtol=0)
        torch.testing.assert_close(bias[3], torch.tensor(-0.5).double())
        assert bias[4] == 0

    def test_bias_moves_the_attention(self):
        layer = QueryAttention(16, 2)
        u, r = torch.randn(1, 4, 16), torch.randn(1, 9, 16)
        bias = torch.full((1, 4, 9), -8.0)
        bias[0, 1, 5] = 0
        before, after = layer.weights(u, r), layer.weights(u, r, bias)
        assert (after[0, :, 1, 5] > before[0, :, 1, 5]).all()
        torch.testing.assert_close(after[0, :, 0], before[0, :, 0])

    def test_queries_from_data_are_the_confident_tokens(self):
        tokens, confidence = torch.randn(1, 12, 16), torch.zeros(1, 12)
        confidence[0, [2, 5, 11]] = 1.0
        assert anchor_tokens(tokens, 3, confidence)[0].tolist() == [2, 5, 11]
        assert anchor_tokens(tokens, 3)[0].tolist() == [2, 6, 10]
        decoder = UnifiedQueryDecoder(16, 2, queries=3, from_data=True)
        start = decoder.start(tokens, confidence)
        torch.testing.assert_close(start, decoder.to_query(tokens[:, [2, 5, 11]]))

    def test_learned_queries_do_not_depend_on_the_tokens(self):
        decoder = UnifiedQueryDecoder(16, 2, queries=3)
        a, b = decoder.start(torch.randn(1, 12, 16)), decoder.start(torch.randn(1, 7, 16))
        assert torch.equal(a, b)

    def test_scene_reaches_the_views_and_is_remembered(self):
        decoder = UnifiedQueryDecoder(16, 2, queries=3, min_confidence=0.5)
        first, second = torch.randn(1, 12, 16), torch.randn(1, 20, 16)
        memory = decoder(first)
        assert memory.queries.shape == (1, 3, 16)
        assert memory.tokens.shape == first.shape
        with_memory = decoder(second, memory.queries)
        assert not torch.allclose(with_memory.tokens, decoder(second).tokens)
        # A token that is not read still is written to.
        confidence = torch.ones(1, 12)
        confidence[0, 0] = 0.0
        masked = decoder(first, confidence=confidence)
        assert not torch.allclose(masked.tokens[0, 0], first[0, 0])
        other = first.clone()
        other[0, 0] += 1.0
        torch.testing.assert_close(decoder(other, confidence=confidence).queries, masked.queries)

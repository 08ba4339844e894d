"""Fused twins of the temporal model's torch expressions, for inference on a CPU.

Each function here equals the expression that calls it, but for rounding (``tests/test_fused.py`` holds them against
each other); it makes one pass over memory where torch makes ten. Training, GPUs and compiled graphs keep the
expressions. Flow fields are (2B, 2, h, w), the first half a → b, the second b → a.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stream4d.models import _kernels_flow as kernels
from stream4d.models import _kernels_tokens as token_kernels
from stream4d.models import _kernels_upsampling as upsampling_kernels
from stream4d.models._kernels_frame import lift, normalise_frame, squash
from stream4d.models.rope import Rope
from stream4d.packets import Array


def fits(x: Tensor) -> bool:
    """Say whether the kernels may stand in: no gradients are wanted and ``x`` lies in the CPU's memory."""
    return (
        x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    )


def round_trip(flow: Tensor) -> Tensor:
    """Do what ``sampling.round_trip`` does."""
    fields = _planes(flow)
    out = np.empty((len(fields), *fields.shape[2:]), np.float32)
    _each(kernels.missed_trips, [(fields[n], fields[m], out[n]) for n, m in _directions(fields)])
    return torch.from_numpy(out)[:, None]


def correlation(features: Tensor, flow: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Do what ``matching.correlation`` does."""
    cells, fields = _cells(features), _planes(flow)
    N, h, w, C = cells.shape
    moved = np.empty((N, h + 2 * radius, w + 2 * radius, C), np.float32)
    out = np.empty((N, h, w, (2 * radius + 1) ** 2 + 1), np.float32)
    _each(
        kernels.follow,
        [(cells[m], fields[n], radius, moved[n]) for n, m in _directions(cells)],
    )
    _each(kernels.correlate, [(cells[n], moved[n], out[n]) for n in range(N)])
    both = torch.from_numpy(out).permute(0, 3, 1, 2)
    return both[:, :-1], both[:, -1:]


def mend(
    flow: Tensor,  # (2B, 2, H, W)
    grey: Tensor,  # (2B, 1, H, W)
    colour: Tensor,  # (2B, 3, H/4, W/4)
    limits: Sequence[float],
    scales: dict[int, float],
    own: float,
    order: Sequence[int],
) -> Tensor:
    """Do what ``Propagation.forward`` does.

    Returns (2B, 7, H/4, W/4): the mended flow, trust, likeness, difference of the images, the flow's mean.
    """
    fields, images, colours = _cells(flow), _planes(grey)[:, 0], _planes(colour)
    N, _, h, w = colours.shape
    out = np.empty((N, 7, h, w), np.float32)
    limit = np.array(limits, np.float32)
    _each(
        kernels.trust_of_cells,
        [
            (fields[n], fields[m], images[n], images[m], limit, out[n, 2:])
            for n, m in _directions(fields)
        ],
    )
    _each(_propagate, [(colours[n], scales, own, order, out[n]) for n in range(N)])
    return torch.from_numpy(out)


def _propagate(
    colour: Array, scales: dict[int, float], own: float, order: Sequence[int], out: Array
) -> None:
    """Spread one direction's flow in the first two maps of ``out`` (7, h, w), whose others hold what is known."""
    cells, mended = out[2:], out[:2]
    affinity = {d: np.empty((9, *colour.shape[1:]), np.float32) for d in scales}
    for d, scale in scales.items():
        kernels.likeness(colour, d, np.float32(scale), affinity[d])
    weight = cells[0] + np.float32(1e-4)
    mended[:] = cells[3:]
    for d in order:
        kernels.spread(affinity[d], d, cells, np.float32(own), weight, mended)


def nearest_both_ways(scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Do what ``matching.nearest_both_ways`` does."""
    B, N, _ = scores.shape
    flow, confidence = (
        np.empty((2 * B, 2, *size), np.float32),
        np.empty((2 * B, 1, *size), np.float32),
    )
    for n in range(B):
        there = _floats(scores[n])
        back = there.T.copy()
        top, best = np.empty((2, N), np.float32), np.empty((2, N), np.int64)
        across, down = np.empty((2, N), np.float32)
        token_kernels.best_of_rows(there, top[0], best[0])
        token_kernels.best_of_rows(back, top[1], best[1])
        token_kernels.log_sums(there, top[0], across, down)
        for i, (s, r, c) in enumerate(((there, across, down), (back, down, across))):
            k = n + i * B
            token_kernels.refine_matches(s, top[i], best[i], r, c, flow[k], confidence[k, 0])
    return torch.from_numpy(flow), torch.from_numpy(confidence)


def roughness(flow: Tensor, mean: Tensor) -> Tensor:
    """Do what ``flow_net.roughness`` does."""
    fields, means = _cells(flow), _planes(mean)
    out = np.empty((len(means), *means.shape[2:]), np.float32)
    _each(
        kernels.roughness,
        [(fields[n], means[n, 0], means[n, 1], out[n]) for n in range(len(out))],
    )
    return torch.from_numpy(out)[:, None]


def convex_upsample(values: Tensor, logits: Tensor) -> Tensor:
    """Do what ``sampling.convex_upsample`` does for a factor of 4."""
    cells, weights = _cells(values), _bits(logits)
    N, h, w, C = cells.shape
    out = np.empty((N, C, 4 * h, 4 * w), np.float32)
    _each(upsampling_kernels.upsample, [(weights[n], cells[n], out[n]) for n in range(N)])
    return torch.from_numpy(out)


def finish_flow(
    values: Tensor, logits: Tensor, smooth: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor]:
    """Do what ``flow_net.finish_flow`` does."""
    cells, evens, fields = (_cells(x) for x in (values, smooth, initial))
    weights = _bits(logits)
    out, log_sigma = np.empty_like(fields), np.empty(fields.shape[:3], np.float32)
    _each(
        upsampling_kernels.finish_flow,
        [
            (weights[n], cells[n], evens[n], _tent(), fields[n], out[n], log_sigma[n])
            for n in range(len(out))
        ],
    )
    return torch.from_numpy(out).permute(0, 3, 1, 2), torch.from_numpy(log_sigma)[:, None]


def tanh_of_sum(values: Tensor, added: Tensor) -> Tensor:
    """Do what ``flow_net.tanh_of_sum`` does, in bfloat16; ``values`` is written over. Both are laid out alike."""
    N = len(values)
    first, second = (_words(x.permute(0, 2, 3, 1)).reshape(N, -1) for x in (values, added))
    _each(squash, [(first[n], second[n]) for n in range(N)])
    return values


def normalise(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do what ``frame_encoder.normalise`` does."""
    pixels = _cells(images)
    N, H, W, _ = pixels.shape
    grey = np.empty((N, 1, H, W), np.float32)
    patches = np.empty((N, H // 4, W // 4, 48), np.float32)
    colour = np.empty((N, 3, H // 4, W // 4), np.float32)
    _each(normalise_frame, [(pixels[n], grey[n, 0], patches[n], colour[n]) for n in range(N)])
    cells = torch.from_numpy(patches).permute(0, 3, 1, 2)
    return torch.from_numpy(grey), cells, torch.from_numpy(colour)


def points(
    depth: Array, K: Array, window_from_cam: Array
) -> Array:  # (T, H, W), (T, 3, 3), (T, 4, 4)
    """Unproject depth maps and move their points to the window's frame: (T, H, W, 3) float32."""
    out = np.empty((*depth.shape, 3), np.float32)
    rays = (window_from_cam[:, :3, :3] @ np.linalg.inv(K)).astype(np.float32)
    origins = window_from_cam[:, :3, 3].astype(np.float32)
    _each(lift, [(depth[t], rays[t], origins[t], out[t]) for t in range(len(depth))])
    return out


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Do what ``temporal_tokens.attend`` does in bfloat16: torch's matrix products, a softmax of our own between."""
    scores = torch.matmul(query, keys.mT)
    B, heads, N, M = scores.shape
    added = np.zeros((heads, M), np.float32) if bias is None else _floats(bias)
    gain = np.float32(query.shape[-1] ** -0.5)
    rows = _words(scores).reshape(B * heads, N, M)
    shares = np.empty((B * heads, N), np.float32)
    _each(
        token_kernels.weigh,
        [(rows[n], added[n % heads], gain, shares[n]) for n in range(B * heads)],
    )
    found = _words(torch.matmul(scores, values))
    out = values.new_empty(B, N, heads * found.shape[-1])
    for n in range(B):
        token_kernels.merge_heads(found[n], shares[heads * n : heads * n + heads], _words(out)[n])
    return out


def split_heads(x: Tensor, heads: int, parts: int, rope: Rope, turned: int) -> Tensor:
    """Do what ``temporal_tokens.split_heads`` does in bfloat16."""
    B, N, C = x.shape
    out = x.new_empty(parts, B, heads, N, C // (parts * heads))
    tokens, sorted_ = _words(x.contiguous()), _words(out)
    cos, sin = (np.asarray(table[0, 0].numpy()) for table in rope)
    for n in range(B):
        token_kernels.split_heads(tokens[n], cos, sin, turned, sorted_[:, n])
    return out


def pool_tokens(x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Do what ``temporal_tokens.pool_tokens`` does in bfloat16."""
    B, _, C = x.shape
    h, w = (-(-n // side) for n in grid)
    out = x.new_empty(B, h * w, C)
    tokens, pooled = _words(x.contiguous()), _words(out)
    for n in range(B):
        token_kernels.pool_tokens(tokens[n].reshape(*grid, C), side, pooled[n].reshape(h, w, C))
    return out


@functools.cache
def _tent() -> Array:
    """Weights of bilinear upsampling by 4, laid out as learned ones: 9 neighbours of 16 sub-pixels each."""
    away = (np.arange(4) + 0.5) / 4 - 0.5
    line = np.maximum(0, 1 - np.abs(away - np.arange(-1, 2)[:, None]))  # (3, 4)
    both = line[:, None, :, None] * line[None, :, None, :]  # (3, 3, 4, 4)
    return np.ascontiguousarray(both.reshape(-1), np.float32)


def _directions(x: Array) -> list[tuple[int, int]]:
    """Pair each entry of a batch with the one of the other direction."""
    N = len(x)
    return [(n, (n + N // 2) % N) for n in range(N)]


def _floats(x: Tensor) -> Array:
    return np.asarray(x.float().contiguous().numpy())


def _planes(x: Tensor) -> Array:  # (N, C, h, w)
    return _floats(x)


def _cells(x: Tensor) -> Array:  # (N, C, h, w) -> (N, h, w, C)
    return np.asarray(x.permute(0, 2, 3, 1).float().contiguous().numpy())


def _bits(x: Tensor) -> Array:
    """Lay out as ``_cells`` does; bfloat16, which numpy does not know, stays as its bits."""
    if x.dtype != torch.bfloat16:
        return _cells(x)
    return _words(x.permute(0, 2, 3, 1).contiguous())


def _words(x: Tensor) -> Array:
    """See bfloat16, which numpy does not know, as its bits in the same memory."""
    return np.asarray(x.view(torch.int16).numpy()).view(np.uint16)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="fused")


def _each(kernel: Callable[..., None], jobs: Sequence[tuple[Any, ...]]) -> None:
    """Run a kernel over a batch, every second entry in another thread where torch may use more than one."""
    if torch.get_num_threads() == 1:
        for job in jobs:
            kernel(*job)
        return
    others = [_pool().submit(kernel, *job) for job in jobs[1::2]]
    for job in jobs[::2]:
        kernel(*job)
    for other in others:
        other.result()

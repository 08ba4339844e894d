"""Transformer parts that every network here is built from: attention, blocks, KV cache.

One `Block` serves CroCo, DINOv2, VGGT, Depth Anything 3 and MapAnything: they differ in options (norm of q and k,
layer scale, feed-forward kind, epsilon), not in structure. Parameter names are those of the public checkpoints
(``norm1``, ``attn.qkv``, ``mlp.fc1``, …), so that a family's key map stays short.

All attention runs through ``scaled_dot_product_attention``. Shapes: B batch, N tokens, C channels, h heads, d = C / h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.rope import Rope, apply_rope


class KVCache:
    """Keys and values of past frames for one attention layer, in buffers of fixed size.

    Keys are stored as attention sees them (after norm and rotation), so that a cached frame costs nothing but its
    attention. The first ``anchors`` frames stay for ever; after them the oldest frame gives way to the newest.
    Attention does not depend on the order of keys, so a slot is simply overwritten.
    """

    def __init__(self, frames: int, anchors: int = 1) -> None:
        if not 0 <= anchors < frames:
            raise ValueError(f"anchors must be in [0, frames={frames}), got {anchors}")
        self.frames = frames
        self.anchors = anchors
        self.seen = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def slot(self) -> int:
        """Say which slot the next frame takes."""
        if self.seen < self.frames:
            return self.seen
        return self.anchors + (self.seen - self.anchors) % (self.frames - self.anchors)

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:  # (B, h, P, d) each
        """Store one frame and return all that is stored, this frame included."""
        B, h, P, d = keys.shape
        if self._keys is None or self._values is None:
            self._keys = keys.new_empty(B, h, self.frames * P, d)
            self._values = values.new_empty(B, h, self.frames * P, d)
        start = self.slot() * P
        self._keys[:, :, start : start + P] = keys
        self._values[:, :, start : start + P] = values
        self.seen += 1
        filled = min(self.seen, self.frames) * P
        return self._keys[:, :, :filled], self._values[:, :, :filled]

    def state(self) -> dict[str, Tensor]:
        """Return the filled part of the buffers, to be stored and given to ``restore``."""
        state = {"seen": torch.tensor(self.seen)}
        if self._keys is not None and self._values is not None:
            size = self._keys.shape[2] // self.frames
            filled = min(self.seen, self.frames) * size
            state |= {"keys": self._keys[:, :, :filled], "values": self._values[:, :, :filled]}
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from an earlier ``state``."""
        self.seen = int(state["seen"])
        self._keys = self._values = None
        if "keys" in state:
            B, h, filled, d = state["keys"].shape
            size = filled // min(self.seen, self.frames)
            self._keys = state["keys"].new_empty(B, h, self.frames * size, d)
            self._values = torch.empty_like(self._keys)
            self._keys[:, :, :filled] = state["keys"]
            self._values[:, :, :filled] = state["values"]


class Attention(nn.Module):
    """Self-attention with fused qkv; optional norm of q and k, rotation, mask and cache (in this order)."""

    def __init__(
        self, dim: int, heads: int, *, qkv_bias: bool = True, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(dim // heads, eps=1e-5) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=1e-5) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,  # (B, N, C)
        rope: Rope | None = None,
        mask: Tensor
        | None = None,  # broadcasts to (B, h, N, N): bool (True: may look) or added to logits
        cache: KVCache | None = None,
    ) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if cache is not None:
            k, v = cache.extend(k, v)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class CrossAttention(nn.Module):
    """Attention of one token set to another, with separate projections (CroCo's names)."""

    def __init__(self, dim: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(dim, dim, bias=bias)
        self.projk = nn.Linear(dim, dim, bias=bias)
        self.projv = nn.Linear(dim, dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:  # (B, N, C) -> (B, h, N, d)
        """Divide channels into heads."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        x: Tensor,  # (B, N, C)
        context: Tensor,  # (B, M, C)
        rope: Rope | None = None,
        context_rope: Rope | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return self.attend(x, self.projk(context), self.projv(context), rope, context_rope, mask)

    def attend(
        self,
        x: Tensor,
        keys: Tensor,  # (B, M, C), already projected
        values: Tensor,
        rope: Rope | None = None,
        context_rope: Rope | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend to keys and values that are projected already (a memory keeps them so)."""
        q, k, v = self.split(self.projq(x)), self.split(keys), self.split(values)
        if rope is not None and context_rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, context_rope)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU (erf) between."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """Gated feed-forward of DINOv2-giant: ``w3(silu(a) · b)`` with a, b from one layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        # DINOv2 takes 2/3 of the usual width, rounded up to a multiple of 8.
        inner = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * inner)
        self.w3 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """Learned gain per channel."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: ``x += ls1(attn(norm1 x)); x += ls2(mlp(norm2 x))``."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        qk_norm: bool = False,
        layer_scale: float | None = None,
        swiglu: bool = False,
        attention: type[Attention] = Attention,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attention(dim, heads, qk_norm=qk_norm)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        hidden = int(dim * mlp_ratio)
        self.mlp: nn.Module = SwiGlu(dim, hidden) if swiglu else Mlp(dim, hidden)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(
        self,
        x: Tensor,  # (B, N, C)
        rope: Rope | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope, mask, cache))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DecoderBlock(nn.Module):
    """CroCo decoder block: self-attention, cross-attention to another view (or a memory), feed-forward."""

    def __init__(self, dim: int, heads: int, *, mlp_ratio: float = 4.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.norm_y = nn.LayerNorm(dim, eps=eps)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self,
        x: Tensor,  # (B, N, C)
        y: Tensor,  # (B, M, C), the other view as it enters the layer
        rope: Rope | None = None,
        rope_y: Rope | None = None,
    ) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), rope, rope_y)
        return x + self.mlp(self.norm3(x))


class PatchEmbed(nn.Module):
    """Cut images into patches and project each to a token."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, N, C)
        H, W = images.shape[-2:]
        if H % self.patch or W % self.patch:
            raise ValueError(f"image sides must be multiples of {self.patch}, got {H}×{W}")
        return self.proj(images).flatten(2).transpose(1, 2)


def image_size(images: Tensor) -> tuple[int, int]:  # (..., H, W)
    """Return (H, W)."""
    return int(images.shape[-2]), int(images.shape[-1])


def causal_frame_mask(frames: int, tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """Let the tokens of a frame see its own and earlier frames: (T·P, T·P) bool, True where allowed."""
    index = torch.arange(frames, device=device).repeat_interleave(tokens)
    return index[:, None] >= index[None, :]

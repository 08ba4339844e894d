"""The convolutions of the temporal model: with their clip at zero in them, and packed weights for inference."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.fused import fits


class Packed(NamedTuple):
    """Weights of a convolution as oneDNN wants them for inputs of one shape; torch sorts them anew in each call."""

    shape: torch.Size
    weight: Tensor


class Conv(nn.Conv2d):
    """A convolution that keeps the size (at stride 1), and a clip at zero where it ``rectifies``."""

    is_frozen = False
    """Say that the weights will never change: they are packed for inference once."""
    _packed: Packed | None = None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        rectifies: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation)
        self.rectifies = rectifies

    def forward(self, x: Tensor) -> Tensor:
        if self.is_frozen and packs(x, self.weight):
            packed = self._packed
            if packed is None or packed.shape != x.shape:
                packed = self._packed = pack(x, self)
            return convolve(x, self, packed, rectify=self.rectifies)
        out = super().forward(x)
        return F.relu_(out) if self.rectifies else out


def rectified(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> Conv:
    """Make a convolution that clips at zero, as most do."""
    return Conv(inputs, outputs, kernel, stride=stride, dilation=dilation, rectifies=True)


def packs(x: Tensor, weight: Tensor) -> bool:
    """Say whether oneDNN is there and knows the arithmetic, and its convolution needs no other than the map's."""
    return fits(x) and x.dtype == weight.dtype and _packs(x.dtype)


@functools.cache
def _packs(dtype: torch.dtype) -> bool:
    """Say whether weights of a type can be packed here: those in bfloat16 need some of AVX-512."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(x: Tensor, layer: nn.Conv2d) -> Packed:
    """Pack the weights of a convolution for inputs like ``x``."""
    weight = torch.ops.mkldnn._reorder_convolution_weight(
        layer.weight.detach(), *_geometry(layer), list(x.shape)
    )
    return Packed(x.shape, weight)


def convolve(x: Tensor, layer: nn.Conv2d, packed: Packed, *, rectify: bool) -> Tensor:
    """Do what the layer does; the clip at zero costs nothing while the sums are in registers."""
    run = torch.ops.mkldnn._convolution_pointwise.default
    after = "relu" if rectify else "none"
    return run(x, packed.weight, layer.bias, *_geometry(layer), after, [], "")  # type: ignore[no-any-return]


def _geometry(layer: nn.Conv2d) -> tuple[Any, ...]:
    return layer.padding, layer.stride, layer.dilation, layer.groups

"""The convolutions of the temporal model: with their clip at zero in them, and packed weights for inference."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models import fused


class Conv(nn.Conv2d):
    """A convolution that keeps the size (at stride 1), and a clip at zero where it ``rectifies``."""

    is_frozen = False
    """Say that the weights will never change: they are packed for inference once."""
    _packed: fused.Packed | None = None

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
        if self.is_frozen and fused.packs(x, self.weight):
            packed = self._packed
            if packed is None or packed.shape != x.shape:
                packed = self._packed = fused.pack(x, self)
            return fused.convolve(x, self, packed, rectify=self.rectifies)
        out = super().forward(x)
        return F.relu_(out) if self.rectifies else out


def rectified(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> Conv:
    """Make a convolution that clips at zero, as most do."""
    return Conv(inputs, outputs, kernel, stride=stride, dilation=dilation, rectifies=True)

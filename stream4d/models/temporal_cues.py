"""The flow that the temporal model begins with: DIS (Kroeger et al., ECCV 2016).

Exact where motion is small and texture is rich; not learned, without gradients. The network mends the rest.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from stream4d.models.dis import dis_flow, grey_image
from stream4d.models.epipolar_sweep import BothWays, mend_hard_pair
from stream4d.packets import Array

InitialFlow = Literal["none", "ultrafast", "fast", "medium"]
"""DIS preset of the flow to begin with, or none: zeros."""


def initial_flow(
    a: Array, b: Array, preset: InitialFlow = "fast"
) -> Array:  # (H, W, 3) uint8 twice -> (2, H, W, 2)
    """Estimate flow a → b and b → a with DIS; zeros where the images are too small for it."""
    if preset == "none":
        return np.zeros((2, *a.shape[:2], 2), np.float32)
    first, second = grey_image(a), grey_image(b)
    flows = BothWays(dis_flow(first, second, preset), dis_flow(second, first, preset))
    return np.stack(mend_hard_pair(first, second, flows))

"""The temporal model: small network with shipped weights, its options and its card.

The network is in ``temporal_net``, what happens on a stream in ``temporal_session``. Licence of the weights:
Apache-2.0; the encoder's grey branch began as XFeat (Potje et al., CVPR 2024, Apache-2.0). Limits are stated in
``docs/models.md``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from stream4d.errors import ModelError
from stream4d.models.base import ModelCard
from stream4d.models.convolution import Conv
from stream4d.models.temporal_cues import InitialFlow
from stream4d.models.temporal_net import STRIDE, TemporalNet
from stream4d.models.temporal_session import TemporalSession
from stream4d.models.temporal_weights import read_weights
from stream4d.packets import VideoInfo

SHIPPED = Path(__file__).parent / "weights" / "temporal.safetensors"
RANDOM = "random"
"""In place of a file: untrained weights, to measure speed or test the machinery."""
Precision = Literal["auto", "float32", "bfloat16"]

CARD = ModelCard(
    name="temporal",
    summary="temporal-attention network: flow with uncertainty, motion, depth prior, relative pose, focal",
    paper="",
    weights_licence="Apache-2.0",
    is_commercial_ok=True,
    resolution="any; padded to multiples of 32, shrunk to max_side where larger",
    is_metric=False,
    streaming="native",
    window=4,
    overlap=1,
    parameters_m=2.3,
    needs_weights=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalOptions:
    """How the model runs; the size of its network is the checkpoint's business."""

    initial: InitialFlow = "medium"
    """DIS preset of the initial flow that the network refines."""
    precision: Precision = "auto"
    """Arithmetic of the network; auto takes bfloat16 where the hardware has it."""
    iterations: int = 0
    """Refinement steps (0: as trained)."""
    max_side: int = 640
    """Frames with a longer side are shrunk for the network, and its maps brought back."""

    def __post_init__(self) -> None:
        if self.initial not in get_args(InitialFlow):
            raise ModelError(
                f"initial must be one of {', '.join(get_args(InitialFlow))}, got {self.initial!r}"
            )
        if self.precision not in get_args(Precision):
            raise ModelError(
                f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}"
            )
        for name, low in (("iterations", 0), ("max_side", STRIDE)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ModelError(f"{name} must be a whole number of at least {low}, got {value!r}")


def has_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 is computed in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and probe is not None and bool(probe())


def _for_inference(net: TemporalNet, dtype: torch.dtype) -> TemporalNet:
    """Copy a network with its weights as the arithmetic wants them, so that no call converts them again."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
        if isinstance(module, Conv):
            module.is_frozen = True
    # Channels together: oneDNN's convolutions and our kernels take maps as they lie.
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class TemporalModel:
    """Network and options; sessions hold the memory of one stream each."""

    cards = {"temporal": CARD}  # noqa: RUF012
    options_class = TemporalOptions

    def __init__(self, net: TemporalNet, options: TemporalOptions, *, device: str = "cpu") -> None:
        self.card = CARD
        self.device = torch.device(device)
        self.options = options
        wants = options.precision == "bfloat16" or (
            options.precision == "auto" and has_bfloat16(self.device)
        )
        self.dtype = torch.bfloat16 if wants else torch.float32
        self.net = _for_inference(net, self.dtype).to(self.device)

    @classmethod
    def create(
        cls, name: str, *, weights: str | Path | None = None, device: str = "cpu", **options: Any
    ) -> TemporalModel:
        """Build the model with shipped, given or (``weights="random"``) untrained weights.

        Raises:
            ModelError: an unknown option, or one that makes no sense.
            WeightsError: the checkpoint is missing, unsafe or does not fit.
        """
        known = [f.name for f in fields(TemporalOptions)]
        for option in options:
            if option not in known:
                raise ModelError(
                    f"model {name!r} has the options {', '.join(known)}; got {option!r}"
                )
        chosen = TemporalOptions(**options)
        if weights == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                net = TemporalNet()
        else:
            net = read_weights(SHIPPED if weights is None else weights)
        return cls(net, chosen, device=device)

    def session(self, info: VideoInfo) -> TemporalSession:
        """Open the memory of one video."""
        return TemporalSession(self, info)

"""What all foreign families share: creation from a checkpoint, licence notice, sessions, the way back to packets.

A family file holds its config, what is truly its own, the key map and a model class::

    class FooModel(ForeignModel):
        cards = {"foo": ModelCard(...)}
        configure(name, checkpoint, options) -> config        build(config) -> net        key_map(config) -> KeyMap
        session(info) -> ForeignSession with  predict(window) -> Prediction
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from torch import nn

from stream4d.errors import ModelError, WeightsError
from stream4d.geometry.camera import unproject
from stream4d.geometry.transforms import invert, transform_points, without_scale
from stream4d.models.base import ModelCard
from stream4d.models.checkpoint import Checkpoint, read_checkpoint
from stream4d.models.resize import Fit
from stream4d.models.weights import KeyMap, fit, randomise
from stream4d.packets import Array, Prediction, State, VideoInfo, Window

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16", "float16"]
RANDOM = "random"
"""As ``weights``: untrained, for measuring speed and memory."""

_announced: set[str] = set()


class ForeignModel:
    """Weights and architecture of a public model, shared by any number of sessions."""

    cards: ClassVar[dict[str, ModelCard]]

    def __init__(
        self, name: str, net: nn.Module, config: Any, *, device: str, precision: Precision
    ) -> None:
        self.card = self.cards[name]
        self.device = torch.device(device)
        self.net: Any = net.eval().to(self.device)
        self.config = config
        self.precision = precision

    @classmethod
    def configure(cls, name: str, checkpoint: Checkpoint | None, options: dict[str, Any]) -> Any:
        """Return the config of a checkpoint (None: random weights) with ``options`` applied."""
        raise NotImplementedError

    @classmethod
    def build(cls, config: Any) -> nn.Module:
        """Return the network; called on the ``meta`` device."""
        raise NotImplementedError

    @classmethod
    def key_map(cls, config: Any) -> KeyMap:
        """Return how the checkpoint's names become the network's."""
        raise NotImplementedError

    def session(self, info: VideoInfo) -> ForeignSession:
        """Open the memory for one video."""
        raise NotImplementedError

    @classmethod
    def create(
        cls,
        name: str,
        *,
        weights: str | Path | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
        **options: Any,
    ) -> Self:
        """Build the network and give it weights.

        Args:
            name: one of ``cards``.
            weights: file, hub id, ``"random"`` (untrained, to measure), or None for the card's hub id.
            device: torch device string.
            precision: arithmetic of the transformer; heads are always float32.
            options: fields of the family's config.

        Raises:
            ModelError: an unknown option or precision.
            WeightsError: the checkpoint is missing, unsafe or does not fit.
        """
        card = cls.cards[name]
        if precision not in get_args(Precision):
            raise ModelError(
                f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}"
            )
        source = card.hub_id if weights is None else weights
        if source is None:
            raise WeightsError(
                f"{name} has no weights on the hub: get its checkpoint and pass it with --weights FILE"
            )
        checkpoint = None if source == RANDOM else read_checkpoint(source)
        config = cls.configure(name, checkpoint, options)
        with torch.device("meta"):
            net = cls.build(config)
        if checkpoint is None:
            randomise(net)
        else:
            fit(net, checkpoint, cls.key_map(config), family=name)
        announce_licence(card)
        return cls(name, net, config, device=device, precision=precision)

    def autocast(self) -> torch.autocast:
        """Return the context in which the network runs."""
        dtype = getattr(torch, self.precision)
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "float32")


class ForeignSession:
    """Base of the families' sessions: context manager, inference mode, and no memory of its own."""

    def __init__(self, model: Any, info: VideoInfo, fitted: Fit) -> None:
        self.model = model
        self.info = info
        self.fit = fitted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def step(self, window: Window) -> Prediction:
        """Predict one window; windows come in order."""
        with torch.inference_mode(), self.model.autocast():
            return self.predict(window)

    def predict(self, window: Window) -> Prediction:
        """Do the family's work."""
        raise NotImplementedError

    def state(self) -> State:
        """Return what ``restore`` needs: nothing, unless a family keeps a memory."""
        return {}

    def restore(self, state: State) -> None:
        """Go on from an earlier ``state``."""

    def images(self, window: Window) -> torch.Tensor:  # (T, 3, h, w) in [0, 1] on the device
        """Bring all frames of a window to the network's size."""
        return self.fit.batch([frame.rgb for frame in window.frames]).to(self.model.device)

    def given_K(self, window: Window) -> list[Array | None]:
        """Return the given intrinsics, translated to the network's image."""
        return [None if f.K is None else self.fit.K_to_network(f.K) for f in window.frames]


def check_options(config: type, options: dict[str, Any], family: str) -> None:
    """Refuse options that are no fields of a config dataclass.

    Raises:
        ModelError: naming the first unknown option and the nearest field.
    """
    known = [field.name for field in fields(config)]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ModelError(f"{family} has no option {option!r}.{hint} Known: {', '.join(known)}")


def announce_licence(card: ModelCard) -> None:
    """Say once per process under which licence the weights are; loudly where commerce is forbidden."""
    if card.name in _announced:
        return
    _announced.add(card.name)
    if card.is_commercial_ok:
        logger.info("weights of %s: %s", card.name, card.weights_licence)
    else:
        logger.warning(
            "weights of %s: %s — NON-COMMERCIAL use only", card.name, card.weights_licence
        )


def to_prediction(
    fitted: Fit,
    *,
    depth: Array,  # (T, h, w) z-depth in each camera, not positive where invalid
    confidence: Array,  # (T, h, w)
    K: Array,  # (T, 3, 3) of the network's image
    window_from_cam: Array,  # (T, 4, 4)
    points_in_window: Array | None = None,  # (T, h, w, 3); from depth, K and pose where None
    motion_prob: Array | None = None,  # (T, h, w)
    semantics: Array | None = None,  # (T, h, w) int
    flow: Array | None = None,  # (T-1, H, W, 2), at the frames' resolution already
    flow_backward: Array | None = None,
    flow_uncertainty: Array | None = None,
    is_metric: bool = False,
) -> Prediction:
    """Bring a network's maps and intrinsics to the frames' resolution and pack them.

    NaN marks pixels outside the network's crop, and depth that is not finite and positive. The first camera becomes
    the identity.
    """
    window_from_cam = without_scale(invert(window_from_cam[0]) @ window_from_cam)
    K_frame = np.stack([fitted.K_to_frame(k) for k in K])
    depths, points = [], []
    for t, values in enumerate(depth):
        if points_in_window is None:
            (mapped,) = fitted.geometry_to_frame(values)
            in_window = transform_points(window_from_cam[t], unproject(mapped, K_frame[t]))
        else:
            mapped, in_window = fitted.geometry_to_frame(values, points_in_window[t])
            in_window = np.where(np.isfinite(mapped)[..., None], in_window, np.nan)
        depths.append(mapped)
        points.append(in_window.astype(np.float32))
    conf = np.stack([fitted.map_to_frame(c) for c in confidence])
    return Prediction(
        depth=np.stack(depths),
        pointmap_in_window=np.stack(points),
        confidence=np.nan_to_num(conf, nan=0.0, posinf=0.0),
        K=K_frame,
        window_from_cam=window_from_cam,
        motion_prob=None
        if motion_prob is None
        else np.nan_to_num(np.stack([fitted.map_to_frame(m) for m in motion_prob])),
        semantics=None
        if semantics is None
        else np.stack([fitted.labels_to_frame(s) for s in semantics]),
        flow=flow,
        flow_backward=flow_backward,
        flow_uncertainty=flow_uncertainty,
        is_metric=is_metric,
    )


def numpy(tensor: torch.Tensor) -> Array:
    """Return a tensor as a numpy array on the CPU (halves as float32)."""
    is_half = tensor.dtype in (torch.float16, torch.bfloat16)
    array: Array = (tensor.float() if is_half else tensor).detach().cpu().numpy()
    return array

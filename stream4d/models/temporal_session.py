"""The temporal model on a stream: what it remembers, frames looked at ahead in threads, predictions of windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stream4d.geometry.camera import scale_K
from stream4d.models import epipolar_sweep
from stream4d.models.dis import grey_image
from stream4d.models.epipolar_sweep import StartedPair
from stream4d.models.flow_net import MatchFeatures
from stream4d.models.frame_encoder import FrameFeatures
from stream4d.models.temporal_maps import FrameMaps, prediction
from stream4d.models.temporal_net import STRIDE, FrameState, PairState
from stream4d.models.temporal_tokens import TokenMemory
from stream4d.packets import Array, Frame, Prediction, State, VideoInfo, Window

if TYPE_CHECKING:
    from stream4d.models.temporal import TemporalModel


class _Ahead(NamedTuple):
    """A frame whose work was started in threads."""

    frame: Frame
    rgb: Array
    """As the network sees it."""
    state: Future[FrameState]
    dis: StartedPair | None
    """DIS from the frame before, and back."""


class TemporalSession:
    """Streaming memory of one video: keys and values of a few frames, U, and the last frame's features."""

    def __init__(self, model: TemporalModel, info: VideoInfo) -> None:
        self._model = model
        self._info = info
        self._memory: TokenMemory | None = None
        self._last: FrameState | None = None
        self._last_rgb: Array | None = None
        self._motion: Tensor | None = None
        self._maps: dict[int, FrameMaps] = {}
        self._dis = ThreadPoolExecutor(2, thread_name_prefix="dis")
        # One thread: a frame is observed in the light of those before it.
        self._observer = ThreadPoolExecutor(1, thread_name_prefix="observe")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._observer.shutdown(cancel_futures=True)
        self._dis.shutdown(cancel_futures=True)

    def step(self, window: Window) -> Prediction:
        """Predict one window; each frame passes the network once."""
        with self._arithmetic():
            for ahead in self._look_ahead([f for f in window.frames if f.index not in self._maps]):
                self._advance(ahead)
        keep = [frame.index for frame in window.frames]
        self._maps = {index: self._maps[index] for index in keep}
        return prediction([self._maps[index] for index in keep])

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Set up this thread as the network wants it."""
        model = self._model
        low = model.dtype != torch.float32
        with torch.inference_mode(), torch.autocast(model.device.type, model.dtype, enabled=low):
            yield

    def _look_ahead(self, frames: list[Frame]) -> list[_Ahead]:
        """Start what does not wait for earlier pairs, in threads: the frames' own features, in order, and DIS."""
        preset, out = self._model.options.initial, []
        before = self._last_rgb
        for frame in frames:
            rgb, image = self._network_image(frame.rgb)
            dis = None
            if preset != "none" and before is not None and before.shape == rgb.shape:
                dis = StartedPair.start(grey_image(before), grey_image(rgb), preset, self._dis)
            out.append(_Ahead(frame, rgb, self._observer.submit(self._observe, image), dis))
            before = rgb
        return out

    def _observe(self, image: Tensor) -> FrameState:
        with self._arithmetic():
            state, self._memory = self._model.net.observe(image, self._memory)
            return _laid_out(state)

    def _advance(self, ahead: _Ahead) -> None:
        """Relate a frame to the one before it; the first is related to itself."""
        frame, state = ahead.frame, ahead.state.result()
        before = self._last
        if self._last_rgb is None or self._last_rgb.shape != ahead.rgb.shape:
            before = None
        lens = self._lens(frame, ahead.rgb)
        initial = np.zeros((2, *ahead.rgb.shape[:2], 2), np.float32)
        if ahead.dis is not None:
            initial = np.stack(ahead.dis.flows(None if frame.K is None else lens))
        pair = self._model.net.relate(
            before or state,
            state,
            _pad(torch.from_numpy(initial).permute(0, 3, 1, 2).to(self._model.device)),
            self._motion if before else None,
            torch.from_numpy(lens).float()[None].to(self._model.device),
            both=False,
            iterations=self._model.options.iterations or None,
        )
        self._last, self._last_rgb = state, ahead.rgb
        self._motion = pair.maps.motion[-1:].clone() if before else None
        self._keep(frame, pair, frame.index - 1 if before else None, float(state.focal[0]))

    def _lens(self, frame: Frame, rgb: Array) -> Array:  # (3, 3)
        """Return the intrinsics of the image that the network sees; the focal length is NaN where it is not given."""
        h, w = rgb.shape[:2]
        K = np.array([[np.nan, 0, (w - 1) / 2], [0, np.nan, (h - 1) / 2], [0, 0, 1]])
        if frame.K is not None:
            K = scale_K(frame.K, w / frame.rgb.shape[1], h / frame.rgb.shape[0])
        return K

    def _network_image(self, rgb: Array) -> tuple[Array, Tensor]:
        """Shrink where needed; return the frame that the network sees and its padded tensor."""
        H, W = rgb.shape[:2]
        scale = min(1.0, self._model.options.max_side / max(H, W))
        image = torch.from_numpy(np.ascontiguousarray(rgb)).to(self._model.device)
        image = image.permute(2, 0, 1)[None].float() / 255
        if scale < 1:
            size = (max(8, round(H * scale)), max(8, round(W * scale)))
            image = F.interpolate(image, size, mode="area")
            rgb = (image[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        return rgb, _pad(image)

    def _keep(self, frame: Frame, pair: PairState, previous: int | None, focal: float) -> None:
        """Bring a pair's maps to the frame's resolution; give the earlier frame its flow."""
        H, W = frame.rgb.shape[:2]
        h, w = self._last_rgb.shape[:2] if self._last_rgb is not None else (H, W)
        maps = torch.cat([pair.maps.motion.sigmoid(), pair.maps.log_depth, pair.maps.log_scale], 1)
        full = pair.upsampled(maps[-1:])
        motion, log_depth, log_scale = (
            _back(full[:, i : i + 1], (h, w), (H, W))[0, 0] for i in range(3)
        )
        K = frame.K
        if K is None:
            f = focal * max(H, W)
            K = np.array([[f, 0, (W - 1) / 2], [0, f, (H - 1) / 2], [0, 0, 1]])
        pose = np.eye(4)
        pose[:3, :3] = pair.camera.rotation[0].double().cpu().numpy()
        pose[:3, 3] = pair.camera.translation[0].double().cpu().numpy()
        kept = FrameMaps(
            depth=_numpy(log_depth.exp()),
            # 1σ of a Laplace distribution is √2 of its scale.
            depth_sigma=_numpy(math.sqrt(2) * log_scale.exp()),
            motion=_numpy(motion),
            K=np.asarray(K, np.float64),
        )
        if previous is not None:
            kept = replace(
                kept,
                prev_from_cam=pose,
                camera_sigma=pair.camera.log_sigma[0].exp().clamp(max=np.pi).double().cpu().numpy(),
            )
            if previous in self._maps:
                flows = _back(pair.flow.steps[-1], (h, w), (H, W))
                if (h, w) != (H, W):
                    flows = flows * flows.new_tensor([W / w, H / h])[:, None, None]
                sigma = (
                    _back(pair.flow.log_sigma[:1].exp(), (h, w), (H, W))[0, 0]
                    * math.sqrt(2)
                    * (W / w)
                )
                self._maps[previous] = replace(
                    self._maps[previous],
                    flow=_numpy(flows[0].permute(1, 2, 0)),
                    flow_backward=_numpy(flows[1].permute(1, 2, 0)),
                    sigma=_numpy(sigma),
                )
        self._maps[frame.index] = kept

    def rehearse(self) -> None:
        """Call what only hard frame pairs need."""
        epipolar_sweep.rehearse()

    def state(self) -> State:
        """Everything the next step depends on, as arrays; ``restore`` continues exactly."""
        return self.snapshot()()

    def snapshot(self) -> Callable[[], State]:
        """Return a function that gives ``state`` as it is now: steps replace what they remember, never write to it."""
        tensors: dict[str, Tensor | None] = {"motion": self._motion}
        if self._memory is not None:
            tensors["queries"] = self._memory.queries
            for i, (k, v) in enumerate(zip(self._memory.keys, self._memory.values, strict=True)):
                tensors |= {f"keys.{i}": k, f"values.{i}": v}
        if self._last is not None:
            tensors |= {f"features.{n}": x for n, x in self._last.features._asdict().items()}
            tensors |= {f"matching.{n}": x for n, x in self._last.matching._asdict().items()}
            tensors |= {"tokens": self._last.tokens, "focal": self._last.focal}
        arrays = {
            f"maps.{index}.{f.name}": getattr(maps, f.name)
            for index, maps in self._maps.items()
            for f in fields(maps)
        }
        arrays["rgb"] = self._last_rgb

        def state() -> State:
            exact = {name: _exact(x) for name, x in tensors.items() if x is not None}
            return exact | {name: x for name, x in arrays.items() if x is not None}

        return state

    def restore(self, state: State) -> None:
        """Go on from an earlier ``state``."""
        device = self._model.device

        def tensor(name: str) -> Tensor:
            x = torch.from_numpy(np.array(state[name]))
            return (x.view(torch.bfloat16) if x.dtype == torch.int16 else x).to(device)

        self._motion = tensor("motion") if "motion" in state else None
        if "queries" in state:
            layers = range(sum(name.startswith("keys.") for name in state))
            self._memory = TokenMemory(
                tensor("queries"),
                tuple(tensor(f"keys.{i}") for i in layers),
                tuple(tensor(f"values.{i}") for i in layers),
            )
            features = FrameFeatures(*(tensor(f"features.{n}") for n in FrameFeatures._fields))
            matching = MatchFeatures(*(tensor(f"matching.{n}") for n in MatchFeatures._fields))
            self._last = _laid_out(
                FrameState(features, matching, tensor("tokens"), tensor("focal"))
            )
            self._last_rgb = np.array(state["rgb"])
        found: dict[int, dict[str, Array]] = {}
        for name, value in state.items():
            if name.startswith("maps."):
                _, index, part = name.split(".")
                found.setdefault(int(index), {})[part] = value
        self._maps = {index: FrameMaps(**parts) for index, parts in sorted(found.items())}


def _pad(x: Tensor) -> Tensor:
    """Repeat the last row and column up to multiples of the network's stride."""
    H, W = x.shape[-2:]
    right, bottom = -W % STRIDE, -H % STRIDE
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if right or bottom else x


def _laid_out(state: FrameState) -> FrameState:
    """Keep channels together in memory: a restored state must be laid out as one that never was an array."""

    def last(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    features = FrameFeatures(*map(last, state.features))
    matching = MatchFeatures(*map(last, state.matching))
    return FrameState(features, matching, last(state.tokens), state.focal)


def _back(x: Tensor, inner: tuple[int, int], outer: tuple[int, int]) -> Tensor:
    """Cut the padding off and bring maps to the frame's resolution."""
    x = x[..., : inner[0], : inner[1]].float()
    return x if inner == outer else F.interpolate(x, outer, mode="bilinear", align_corners=False)


def _numpy(x: Tensor) -> Array:
    return np.asarray(x.detach().float().cpu().numpy())


def _exact(x: Tensor) -> Array:
    """Turn a tensor into an array bit by bit: numpy has no bfloat16, so its bits travel as int16."""
    x = x.detach().cpu().contiguous()
    return np.asarray((x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy())

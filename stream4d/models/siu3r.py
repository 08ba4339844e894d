"""SIU3R: 3D Gaussians and panoptic segmentation of two unposed images from one set of unified queries.

Xu, Wei et al., "SIU3R: Simultaneous Scene Understanding and 3D Reconstruction Beyond Feature Alignment", NeurIPS
2025. Our own implementation, compatible with the public checkpoint (its repository states no licence: all rights
reserved; it starts from MASt3R's non-commercial weights). Unusual: a token of the lens, an adapter beside the frozen
encoder, queries that span both views, so that one query is one object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stream4d.geometry.camera import centred_K
from stream4d.models.base import ModelCard
from stream4d.models.checkpoint import Checkpoint
from stream4d.models.dust3r import Pair, anchored_prediction
from stream4d.models.dust3r_net import CROCO_RENAMES, DPT_RENAMES
from stream4d.models.family import ForeignModel, ForeignSession, check_options, numpy
from stream4d.models.resize import Fit
from stream4d.models.siu3r_net import (
    Encoding,
    Gaussians,
    Siu3rConfig,
    Siu3rNet,
    Siu3rOutput,
    unpack_gaussians,
)
from stream4d.models.siu3r_panoptic import (
    NOTHING,
    ObjectNumbers,
    Panoptic,
    keep_queries,
    lift,
    segment,
)
from stream4d.models.weights import KeyMap
from stream4d.packets import Array, Prediction, State, VideoInfo, Window

_DECODER = r"^mask2former\.model\.transformer_module\.decoder"
KEY_MAP = KeyMap(
    prefixes=("model.",),
    renames=(
        *CROCO_RENAMES,
        *DPT_RENAMES,
        (r"\.dpt\.input_merger\.", ".input_merger."),
        *((rf"\.scratch\.layer_rn\.{i}\.", f".scratch.layer{i + 1}_rn.") for i in range(4)),
        (
            _DECODER + r"\.mask_predictor\.mask_embedder\.0\.0\.",
            "mask2former.decoder.mask_embedder.0.",
        ),
        (
            _DECODER + r"\.mask_predictor\.mask_embedder\.1\.0\.",
            "mask2former.decoder.mask_embedder.2.",
        ),
        (
            _DECODER + r"\.mask_predictor\.mask_embedder\.2\.0\.",
            "mask2former.decoder.mask_embedder.4.",
        ),
        (r"(decoder\.layers\.\d+\.self_attn)\.([qkv])_proj\.", r"\1.proj\2."),
        (r"(decoder\.layers\.\d+\.self_attn)\.out_proj\.", r"\1.proj."),
        (r"^mask2former\.model\.(transformer_module\.)?", "mask2former."),
    ),
    # The loss's class weights, the metric of training, and a unit that has nothing to fuse.
    ignored=(r"lpips\.", r"mask2former\.criterion\.", r".*\.refinenet4\.resConfUnit1\."),
)


def fit_image(width: int, height: int, resolution: int = 256) -> Fit:
    """Apply SIU3R's rule: short side to 256, centre-cropped to a square."""
    factor = max(resolution / width, resolution / height)
    resized = (int(width * factor + 1e-6), int(height * factor + 1e-6))
    return Fit(
        source=(width, height),
        resized=resized,
        left=(resized[0] - resolution) // 2,
        top=(resized[1] - resolution) // 2,
        size=(resolution, resolution),
        filter=Image.Resampling.LANCZOS,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnderstoodPair:
    """Two images as one scene of labelled Gaussians, in the first image's camera, up to scale."""

    gaussians: Gaussians
    """(2, H, W) of each, one per pixel of the network's images."""
    panoptic: Panoptic
    """Which segment each pixel, and so each Gaussian, belongs to."""
    segment_logits: Tensor
    """(2, H, W, S, classes + 1): what each segment says of each Gaussian."""


class Siu3rModel(ForeignModel):
    """SIU3R, streaming by pairs: every frame of a window is paired with its first one."""

    cards: ClassVar[dict[str, ModelCard]] = {
        "siu3r": ModelCard(
            name="siu3r",
            summary="Gaussians and panoptic segmentation of image pairs, indoors",
            paper="SIU3R: Simultaneous Scene Understanding and 3D Reconstruction Beyond Feature Alignment, "
            "Xu, Wei et al., NeurIPS 2025",
            weights_licence="none stated (all rights reserved; built on non-commercial weights)",
            is_commercial_ok=False,
            resolution="256 × 256, centre crop",
            is_metric=False,
            streaming="pairs",
            window=6,
            overlap=2,
            parameters_m=655.5,
            hub_id="datasets/insomnia7/SIU3R:siu3r_epoch100.ckpt",
        ),
    }

    @classmethod
    def configure(
        cls, name: str, checkpoint: Checkpoint | None, options: dict[str, Any]
    ) -> Siu3rConfig:
        check_options(Siu3rConfig, options, name)
        told: dict[str, Any] = {}
        for key, tensor in () if checkpoint is None else checkpoint.tensors.items():
            if key.endswith("mask2former.class_predictor.bias"):
                told["classes"] = len(tensor) - 1
            if key.endswith("gaussian_param_head1.dpt.head.4.bias"):
                told["sh_degree"] = math.isqrt((len(tensor) - 8) // 3) - 1
        return Siu3rConfig(**(told | options))

    @classmethod
    def build(cls, config: Siu3rConfig) -> nn.Module:
        return Siu3rNet(config)

    @classmethod
    def key_map(cls, config: Siu3rConfig) -> KeyMap:
        return KEY_MAP

    def session(self, info: VideoInfo) -> Siu3rSession:
        return Siu3rSession(self, info, fit_image(info.width, info.height, self.config.resolution))

    def understand(self, images: Tensor, K: Tensor | None = None) -> UnderstoodPair:
        """Turn two images into labelled Gaussians.

        Args:
            images: (2, 3, H, W) in [0, 1], sides multiples of 32.
            K: (2, 3, 3) intrinsics in pixels of the images; None for a usual lens.
        """
        size = (int(images.shape[-1]), int(images.shape[-2]))
        cameras = [None, None] if K is None else list(numpy(K))
        known = torch.stack([self.encoded_K(k, size) for k in cameras])
        with torch.inference_mode(), self.autocast():
            out = self.net(images[None].to(self.device), known[None])
            return self.understood(out, size)

    def understood(self, out: Siu3rOutput, size: tuple[int, int]) -> UnderstoodPair:
        """Turn the network's output (B = 1) for images of ``size`` (width, height) into labelled Gaussians."""
        config = self.config
        kept = keep_queries(
            out.queries.class_logits[0],
            out.queries.mask_logits[0],
            size[::-1],
            config.score_threshold,
        )
        panoptic = segment(kept, config.fused_classes)
        return UnderstoodPair(
            gaussians=unpack_gaussians(out.points[0], out.gaussians[0], config.sh_degree),
            panoptic=panoptic,
            segment_logits=lift(kept, panoptic),
        )

    def encoded_K(self, K: Array | None, size: tuple[int, int]) -> Tensor:  # (3, 3)
        """Divide intrinsics by the image's (width, height); a usual lens where there are none."""
        W, H = size
        if K is None:
            K = centred_K(self.config.default_focal * W, W, H)
        scaled = K / np.array([[W], [H], [1.0]])
        return torch.from_numpy(scaled).float().to(self.device)


class Siu3rSession(ForeignSession):
    """Encodes each frame once; keeps encodings and object numbers of the last window for the overlap."""

    model: Siu3rModel

    def __init__(self, model: Siu3rModel, info: VideoInfo, fitted: Fit) -> None:
        super().__init__(model, info, fitted)
        self.encoded: dict[int, Encoding] = {}
        self.objects: dict[int, Array] = {}
        self.numbers = ObjectNumbers()

    def predict(self, window: Window) -> Prediction:
        images = self.images(window)
        encoded = self.encode(window, images)
        others = range(1, len(encoded)) if len(encoded) > 1 else [0]
        pairs: list[Pair] = []
        semantics: list[Array] = []
        for t in others:
            both = torch.stack([images[0], images[t]])[None]
            out = self.model.net.pair(both, encoded[0], encoded[t])
            scene = self.model.understood(out, self.fit.size)
            opacity = numpy(scene.gaussians.opacities)
            points = numpy(scene.gaussians.means)
            # A Gaussian that is hardly there is a point that is hardly known.
            pairs.append(Pair(points[0], 1 + opacity[0], points[1], 1 + opacity[1]))
            labels = self.label(scene.panoptic, window.frames[0].index, window.frames[t].index)
            semantics = (semantics or [labels[0]]) + [labels[1]]
        kept = {frame.index for frame in window.frames}
        self.objects = {index: ids for index, ids in self.objects.items() if index in kept}
        prediction = anchored_prediction(self.fit, pairs, self.given_K(window))
        shown = semantics[: len(encoded)]
        return replace(
            prediction, semantics=np.stack([self.fit.labels_to_frame(labels) for labels in shown])
        )

    def encode(self, window: Window, images: Tensor) -> list[Encoding]:
        """Return the encoding of each frame, reusing those of the previous window."""
        kept = {}
        for frame, image, K in zip(window.frames, images, self.given_K(window), strict=True):
            known = self.encoded.get(frame.index)
            if known is None:
                lens = self.model.encoded_K(K, self.fit.size)
                known = self.model.net.encode(image[None], lens[None])
            kept[frame.index] = known
        self.encoded = kept
        return list(kept.values())

    def label(self, panoptic: Panoptic, first: int, second: int) -> Array:  # (2, h, w) int32
        """Return what is stored for the pixels of frames ``first`` and ``second``."""
        table = self.numbers.number(panoptic, 0, self.objects.get(first))
        objects = table[panoptic.numbers]
        self.objects.setdefault(first, objects[0])
        self.objects[second] = objects[1]
        classes = panoptic.labels()
        match self.model.config.semantics:
            case "classes":
                return classes
            case "instances":
                return objects
            case _:
                return np.where(classes == NOTHING, NOTHING, classes * 1000 + objects % 1000)

    def state(self) -> State:
        """Return the object numbers; encodings are made again."""
        fused = sorted(self.numbers.of_fused.items())
        return {
            "newest": np.array(self.numbers.newest),
            "fused": np.array(fused, np.int64).reshape(-1, 2),
            "frames": np.array(sorted(self.objects), np.int64),
            "objects": np.array([self.objects[i] for i in sorted(self.objects)], np.int32),
        }

    def restore(self, state: State) -> None:
        """Go on numbering objects."""
        self.numbers.newest = int(state["newest"])
        self.numbers.of_fused = {int(label): int(number) for label, number in state["fused"]}
        self.objects = {
            int(i): ids for i, ids in zip(state["frames"], state["objects"], strict=True)
        }

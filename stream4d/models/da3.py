"""Depth Anything 3: depth and cameras of any number of views from one plain ViT.

Lin, Chen, Liew, Chen, Li, Shi, Feng, Kang, "Depth Anything 3: Recovering the Visual Space from Any Views", 2025. Our
own implementation, compatible with the public checkpoints (weights: Apache-2.0 for small, base and metric; CC BY-NC
4.0 for large, giant and nested). Unusual: the later blocks of a single DINOv2 look at one view and at all views in
turn, with no blocks added; in the global ones a patch has no position. One view, picked by its class token, serves as
reference. Cameras come out camera-to-world, from a token that takes the place of the class token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stream4d.geometry.transforms import invert, rigid
from stream4d.models.base import ModelCard
from stream4d.models.checkpoint import Checkpoint
from stream4d.models.da3_config import SIZES, Da3Config
from stream4d.models.da3_metric import to_metric
from stream4d.models.da3_net import Da3Net, Da3Output, MonoOutput, NestedNet
from stream4d.models.da3_rays import camera_from_rays
from stream4d.models.da3_resize import fit_image
from stream4d.models.encoders import normalise_imagenet
from stream4d.models.family import (
    ForeignModel,
    ForeignSession,
    check_options,
    numpy,
    to_prediction,
)
from stream4d.models.pose_encoding import decode_cameras, encode_cameras
from stream4d.models.resize import Fit
from stream4d.models.weights import KeyMap
from stream4d.packets import Array, Prediction, VideoInfo, Window

FOV_RANGE_RAD = (0.05, 3.0)


def key_map(config: Da3Config) -> KeyMap:
    """Return the key map: ``model.`` and ``pretrained.`` go, parts that are not built are left out."""
    ignored = [r"(da3\.)?gs_(head|adapter)\.", r".*mask_token$"]
    if not config.ray_head:
        ignored.append(r".*_aux\.")
    return KeyMap(
        prefixes=("model.",),
        renames=(
            (r"backbone\.pretrained\.", "backbone."),
            # Of the four auxiliary levels only the finest is ever read.
            (r"(output_conv[12]_aux)\.3\.", r"\1."),
            (r"(output_conv[12]_aux)\.([012])\.(\d+\.)", r"unused_\1.\2.\3"),
        ),
        ignored=(*ignored, r".*unused_output_conv"),
    )


_PAPER = "Depth Anything 3: Recovering the Visual Space from Any Views, Lin, Chen, Liew, Chen et al., 2025"


def _card(name: str, summary: str, parameters_m: float, hub_id: str, is_free: bool) -> ModelCard:
    return ModelCard(
        name=name,
        summary=summary,
        paper=_PAPER,
        weights_licence="Apache-2.0" if is_free else "CC BY-NC 4.0",
        is_commercial_ok=is_free,
        resolution="long side 504, multiples of 14",
        is_metric=name == "da3-nested",
        streaming="windows",
        window=16,
        overlap=4,
        parameters_m=parameters_m,
        hub_id=hub_id,
    )


class Da3Model(ForeignModel):
    """Depth Anything 3 in chunks: all frames of a window in one pass."""

    cards: ClassVar[dict[str, ModelCard]] = {
        card.name: card
        for card in (
            _card("da3-small", "depth and cameras, fit for a CPU", 34.3, "depth-anything/DA3-SMALL", True),
            _card("da3-base", "depth and cameras, free weights", 135.4, "depth-anything/DA3-BASE", True),
            _card("da3-large", "depth and cameras", 410.9, "depth-anything/DA3-LARGE-1.1", False),
            _card("da3-giant", "depth and cameras, most accurate", 1355.7, "depth-anything/DA3-GIANT-1.1", False),
            _card("da3-nested", "da3-giant in metres", 1689.8, "depth-anything/DA3NESTED-GIANT-LARGE-1.1", False),
        )
    }  # fmt: skip

    @classmethod
    def configure(
        cls, name: str, checkpoint: Checkpoint | None, options: dict[str, Any]
    ) -> Da3Config:
        check_options(Da3Config, options, name)
        if options.get("pose_from") == "rays":
            options = {"ray_head": True} | options
        return replace(SIZES[name], **options)

    @classmethod
    def build(cls, config: Da3Config) -> nn.Module:
        return NestedNet(config) if config.metric else Da3Net(config)

    @classmethod
    def key_map(cls, config: Da3Config) -> KeyMap:
        return key_map(config)

    def session(self, info: VideoInfo) -> Da3Session:
        config = self.config
        fitted = fit_image(info.width, info.height, config.resolution, config.resize)
        return Da3Session(self, info, fitted)


class Da3Session(ForeignSession):
    """One window, one pass; nothing is remembered."""

    def predict(self, window: Window) -> Prediction:
        net = self.model.net
        images = normalise_imagenet(self.images(window))[None]
        given = self.given_cameras(window)
        main = net.da3 if isinstance(net, NestedNet) else net
        out: Da3Output = main(images, None if given is None else self.encode(given))
        maps = Views.of(out, self.fit, self.given_K(window), self.model.config.pose_from)
        if isinstance(net, NestedNet):
            maps = maps.in_metres(net.da3_metric.mono(images), self.model.config.sky)
        if given is not None:
            maps = maps.at_poses(given.window_from_cam)
        return to_prediction(
            self.fit,
            depth=maps.depth,
            confidence=maps.confidence,
            K=maps.K,
            window_from_cam=maps.window_from_cam,
            is_metric=self.model.card.is_metric,
        )

    def given_cameras(self, window: Window) -> GivenCameras | None:
        """Return the cameras of a window whose every frame has K and a pose."""
        poses = [f.world_from_cam for f in window.frames]
        Ks = self.given_K(window)
        if any(p is None for p in poses) or any(K is None for K in Ks):
            return None
        world_from_cam = np.stack(poses)  # type: ignore[arg-type]
        return GivenCameras(invert(world_from_cam[0]) @ world_from_cam, np.stack(Ks))  # type: ignore[arg-type]

    def encode(self, given: GivenCameras) -> Tensor:  # (1, T, 9)
        """Encode cameras as the network was trained: the first at the origin, the median distance from it 1."""
        poses = given.window_from_cam.copy()
        poses[:, :3, 3] /= max(spread(poses), 1e-6)
        encoding = encode_cameras(
            torch.from_numpy(poses[None]), torch.from_numpy(given.K[None]), self.fit.size[::-1]
        )
        return encoding.float().to(self.model.device)


class GivenCameras(NamedTuple):
    """Cameras that came with the frames."""

    window_from_cam: Array
    """(T, 4, 4)."""
    K: Array
    """(T, 3, 3) of the network's image."""


def spread(window_from_cam: Array) -> float:  # (T, 4, 4)
    """Return the median distance of the cameras from the first one, that one left out."""
    away = window_from_cam[1:, :3, 3] - window_from_cam[0, :3, 3]
    return float(np.median(np.linalg.norm(away, axis=1))) if len(away) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Views:
    """Depth and cameras of one window in numpy, at the network's size."""

    depth: Array
    """(T, h, w)."""
    confidence: Array
    """(T, h, w)."""
    K: Array
    """(T, 3, 3)."""
    window_from_cam: Array
    """(T, 4, 4)."""

    @classmethod
    def of(
        cls,
        out: Da3Output,
        fitted: Fit,
        given_K: Sequence[Array | None],
        pose_from: Literal["token", "rays"],
    ) -> Views:
        """Decode the network's output; given intrinsics stand in for predicted ones."""
        encoding = out.pose_encoding[0].double()
        # A field of view of nothing (an untrained or confused head) would make an infinite focal length.
        encoding[..., 7:] = encoding[..., 7:].clamp(*FOV_RANGE_RAD)
        scene_from_cam, predicted_K = decode_cameras(encoding, fitted.size[::-1])
        matrix, K = numpy(scene_from_cam), numpy(predicted_K)
        poses = rigid(matrix[..., :3], matrix[..., 3])
        if pose_from == "rays" and out.rays is not None and out.rays_confidence is not None:
            rays, confidence = numpy(out.rays[0]), numpy(out.rays_confidence[0])
            found = [
                camera_from_rays(r, c, fitted.size[::-1])
                for r, c in zip(rays, confidence, strict=True)
            ]
            # Both heads have scales of their own: all views come from rays, or none.
            if all(camera is not None for camera in found):
                poses = np.stack([camera.scene_from_cam for camera in found if camera is not None])
                K = np.stack([camera.K for camera in found if camera is not None])
        return cls(
            depth=numpy(out.depth[0]),
            confidence=numpy(out.depth_confidence[0]),
            K=np.stack([own if k is None else k for own, k in zip(K, given_K, strict=True)]),
            window_from_cam=invert(poses[0]) @ poses,
        )

    def in_metres(self, mono: MonoOutput, sky: Literal["unknown", "far"]) -> Views:
        """Apply the metric network's scale, and mark the sky."""
        device = mono.depth.device
        depth, confidence, K = (
            torch.from_numpy(a).float().to(device)[None]
            for a in (self.depth, self.confidence, self.K)
        )
        found = to_metric(depth, confidence, mono, K)
        is_sky = numpy(found.is_sky[0])
        metres = numpy(found.depth[0])
        return replace(
            self,
            depth=np.where(is_sky, np.nan, metres) if sky == "unknown" else metres,
            confidence=np.where(is_sky, 1.0, self.confidence),
            window_from_cam=moved(self.window_from_cam, float(found.scale)),
        )

    def at_poses(self, given: Array) -> Views:  # (T, 4, 4)
        """Take given poses in place of predicted ones, and bring depth to their scale."""
        own, wanted = spread(self.window_from_cam), spread(given)
        # Cameras that stand still say nothing about scale.
        scale = wanted / own if own > 1e-6 and wanted > 1e-6 else 1.0
        return replace(self, depth=self.depth * scale, window_from_cam=given)


def moved(window_from_cam: Array, scale: float) -> Array:
    """Multiply the translations of poses."""
    out = window_from_cam.copy()
    out[:, :3, 3] *= scale
    return out

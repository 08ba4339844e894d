"""MapAnything: metric geometry of many views, with any mix of known intrinsics, poses and depth.

Keetha, Müller, Schönberger et al., "MapAnything: Universal Feed-Forward Metric 3D Reconstruction", 2025. Our own
implementation, compatible with the public checkpoints (weights: Apache-2.0 for ``map-anything-apache``, CC BY-NC 4.0
for ``map-anything``, which saw more data). Unusual: the answer is factored into unit rays, distance along them, poses
and one scale in metres for the scene; attention over all views comes before attention within each; the trunk has no
code of place at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from PIL import Image
from torch import nn

from stream4d.errors import ModelError
from stream4d.geometry.camera import centred_K, default_focal, make_K
from stream4d.geometry.transforms import invert, rigid, transform_points
from stream4d.models.base import ModelCard
from stream4d.models.checkpoint import Checkpoint
from stream4d.models.encoders import normalise_imagenet
from stream4d.models.family import (
    ForeignModel,
    ForeignSession,
    check_options,
    numpy,
    to_prediction,
)
from stream4d.models.mapanything_inputs import Geometry, GivenView, collect, unit_rays
from stream4d.models.mapanything_masks import multiview_confidence, on_edge
from stream4d.models.mapanything_net import (
    V1,
    MapAnythingConfig,
    MapAnythingNet,
    MapAnythingOutput,
    ResizeRule,
)
from stream4d.models.pose_encoding import matrix_from_quat_xyzw
from stream4d.models.resize import Fit
from stream4d.models.weights import KeyMap
from stream4d.packets import Array, Prediction, VideoInfo, Window

FOCAL_RANGE = (0.1, 20.0)
"""Focal lengths that are believed, over the longer side."""
KEY_MAP = KeyMap(
    prefixes=("module.",),
    renames=(
        (r"^encoder\.model\.", "encoder."),
        (r"^(ray_dirs|depth|depth_scale|cam_\w+)_encoder\.", r"geometry.\1_encoder."),
        # Nested sequentials of the vector encoders: the deeper, the earlier.
        (r"(_(scale|rot|trans)_encoder\.encoder)\.0\.0\.0\.0\.", r"\1.layer0."),
        (r"(_(scale|rot|trans)_encoder\.encoder)\.0\.0\.1\.", r"\1.layer1."),
        (r"(_(scale|rot|trans)_encoder\.encoder)\.0\.1\.", r"\1.layer2."),
        (r"(_(scale|rot|trans)_encoder\.encoder)\.1\.", r"\1.layer3."),
        (r"\.encoder\.layer(\d)\.", r".encoder.\1."),
        # The dense head stands in files under up to two names.
        (r"^(dense_head\.0|dpt_feature_head)\.", "dense_head.dpt."),
        (r"^(dense_head\.1|dpt_regressor_head)\.", "dense_head."),
        (r"\.input_process\.(\d)\.0\.0\.", r".projects.\1."),
        (r"\.input_process\.(\d)\.0\.1\.", r".resize_layers.\1."),
        *((rf"\.input_process\.{i}\.1\.", f".scratch.layer{i + 1}_rn.") for i in range(4)),
        *((rf"\.scratch\.layer_rn\.{i}\.", f".scratch.layer{i + 1}_rn.") for i in range(4)),
    ),
    ignored=(r".*mask_token$",),
)

SIZES_BY_ASPECT = {
    518: {
        0.486: (252, 518),
        0.567: (294, 518),
        0.649: (336, 518),
        0.757: (392, 518),
        1.0: (518, 518),
        1.321: (518, 392),
        1.542: (518, 336),
        1.762: (518, 294),
        2.056: (518, 252),
        3.083: (518, 168),
    },
    504: {
        0.472: (238, 504),
        0.556: (280, 504),
        0.639: (322, 504),
        0.75: (378, 504),
        1.0: (504, 504),
        1.333: (504, 378),
        1.565: (504, 322),
        1.8: (504, 280),
        2.118: (504, 238),
        3.273: (504, 154),
    },
}
"""Resolution → width / height → (width, height) of the network's image."""


def fit_image(
    width: int,
    height: int,
    size: tuple[int, int] | None = None,
    rule: ResizeRule = "fixed_mapping",
    resolution: int = 518,
) -> Fit:
    """Apply one of MapAnything's rules for the size, which the image then fills and is cut to around its centre.

    Args:
        size: (width, height) in place of a rule.
        rule: the listed size of nearest aspect ratio, the frame's own aspect ratio, or a square.

    Raises:
        ModelError: no such rule, or no list of sizes for the resolution.
    """
    w, h = size or _network_size(width, height, rule, resolution)
    w, h = max(14, w // 14 * 14), max(14, h // 14 * 14)
    factor = max(w / width, h / height) + 1e-8
    resized = (int(width * factor), int(height * factor))
    return Fit(
        source=(width, height),
        resized=resized,
        left=(resized[0] - w) // 2,
        top=(resized[1] - h) // 2,
        size=(w, h),
        filter=Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC,
    )


def _network_size(width: int, height: int, rule: str, resolution: int) -> tuple[int, int]:
    match rule:
        case "fixed_mapping" if resolution in SIZES_BY_ASPECT:
            listed = SIZES_BY_ASPECT[resolution]
            return listed[min(listed, key=lambda key: abs(key - width / height))]
        case "fixed_mapping":
            raise ModelError(
                f"no list of sizes for resolution {resolution}: take {_or(SIZES_BY_ASPECT)}, "
                "or resize: longest_side"
            )
        case "longest_side":
            factor = resolution / max(width, height) / 14
            return round(width * factor) * 14, round(height * factor) * 14
        case "square":
            return resolution, resolution
    raise ModelError(f"resize must be {_or(get_args(ResizeRule))}, got {rule!r}")


def _or(names: Iterable[object]) -> str:
    return " or ".join(str(name) for name in names)


def _card(name: str, licence: str, parameters_m: float, hub_id: str) -> ModelCard:
    return ModelCard(
        name=name,
        summary="metric depth and cameras; uses known intrinsics, poses and depth",
        paper="MapAnything: Universal Feed-Forward Metric 3D Reconstruction, Keetha et al., 2025",
        weights_licence=licence,
        is_commercial_ok=licence == "Apache-2.0",
        resolution="518 wide, height by aspect ratio, multiples of 14",
        is_metric=True,
        streaming="windows",
        window=16,
        overlap=4,
        parameters_m=parameters_m,
        hub_id=hub_id,
    )


class MapAnythingModel(ForeignModel):
    """MapAnything in chunks: all frames of a window in one pass."""

    cards: ClassVar[dict[str, ModelCard]] = {
        card.name: card
        for card in (
            _card("mapanything", "CC BY-NC 4.0", 1228.5, "facebook/map-anything"),
            _card("mapanything-apache", "Apache-2.0", 1228.5, "facebook/map-anything-apache"),
        )
    }

    @classmethod
    def configure(
        cls, name: str, checkpoint: Checkpoint | None, options: dict[str, Any]
    ) -> MapAnythingConfig:
        check_options(MapAnythingConfig, options, name)
        # The first release (v1) has a narrower trunk.
        is_v1 = checkpoint is not None and any("proj_embed" in key for key in checkpoint.tensors)
        return replace(V1 if is_v1 else MapAnythingConfig(), **options)

    @classmethod
    def build(cls, config: MapAnythingConfig) -> nn.Module:
        return MapAnythingNet(config)

    @classmethod
    def key_map(cls, config: MapAnythingConfig) -> KeyMap:
        return KEY_MAP

    def session(self, info: VideoInfo) -> MapAnythingSession:
        config = self.config
        fitted = fit_image(info.width, info.height, config.size, config.resize, config.resolution)
        return MapAnythingSession(self, info, fitted)


class MapAnythingSession(ForeignSession):
    """One window, one pass; nothing is remembered."""

    def predict(self, window: Window) -> Prediction:
        images = normalise_imagenet(self.images(window))[None]
        out = self.model.net(images, self.given(window))
        config = self.model.config
        return mapanything_prediction(
            self.fit,
            out,
            self.given_K(window),
            mask_edges=config.mask_edges,
            confidence_from=config.confidence_from,
        )

    def given(self, window: Window) -> Geometry | None:
        """Gather what the frames bring with them."""
        size = self.fit.size[::-1]
        views = [
            GivenView(
                rays=None if K is None else unit_rays(K, size),
                depth=None if frame.depth is None else self.fit.depth_to_network(frame.depth),
                world_from_cam=frame.world_from_cam,
                is_metric=self.model.config.inputs_are_metric,
            )
            for frame, K in zip(window.frames, self.given_K(window), strict=True)
        ]
        known = collect(views, size)
        return None if known is None else known.to(self.model.device)


def mapanything_prediction(
    fitted: Fit,
    out: MapAnythingOutput,
    given_K: list[Array | None],
    *,
    mask_edges: bool,
    confidence_from: Literal["network", "views"] = "network",
) -> Prediction:
    """Turn the network's factors for one window into our frames, in metres."""
    scale = float(out.scale[0])
    R = numpy(matrix_from_quat_xyzw(out.quat_xyzw[0].double()))
    scene_from_cam = rigid(R, numpy(out.translation[0]).astype(np.float64) * scale)
    rays = numpy(out.rays[0])
    in_cam = rays * (numpy(out.ray_distance[0]) * scale)[..., None]
    valid = (numpy(out.mask_logits[0]) > 0) & (in_cam[..., 2] > 0)
    if mask_edges:
        valid &= ~np.stack([on_edge(p, v) for p, v in zip(in_cam, valid, strict=True)])
    window_from_cam = invert(scene_from_cam[0]) @ scene_from_cam
    own_K = np.stack([K_from_rays(r) for r in rays])
    confidence = numpy(out.confidence[0])
    if confidence_from == "views":
        confidence = multiview_confidence(in_cam[..., 2], valid, own_K, window_from_cam)
    return to_prediction(
        fitted,
        depth=np.where(valid, in_cam[..., 2], np.nan),
        confidence=confidence,
        K=np.stack([own if K is None else K for own, K in zip(own_K, given_K, strict=True)]),
        window_from_cam=window_from_cam,
        points_in_window=np.stack(
            [transform_points(T, p) for T, p in zip(window_from_cam, in_cam, strict=True)]
        ),
        is_metric=True,
    )


def K_from_rays(rays: Array) -> Array:  # (H, W, 3) -> (3, 3)
    """Fit a pinhole camera to rays; those that fit none (an untrained network) give the lens of a usual camera."""
    H, W = rays.shape[:2]
    K = fit_pinhole(rays)
    low, high = (factor * max(H, W) for factor in FOCAL_RANGE)
    if low < K[0, 0] < high and low < K[1, 1] < high:
        return K
    return centred_K(default_focal(W, H), W, H)


def fit_pinhole(rays: Array, samples: int = 50) -> Array:  # (H, W, 3) -> (3, 3)
    """Fit K by least squares of pixel over x / z and y / z, on a grid of about ``samples``² pixels."""
    H, W = rays.shape[:2]
    step_y, step_x = max(1, H // samples), max(1, W // samples)
    part = rays[::step_y, ::step_x].astype(np.float64)
    v, u = np.mgrid[:H:step_y, :W:step_x].astype(np.float64)
    known = np.abs(part[..., 2]) > 1e-6
    slopes = part[known][:, :2] / part[known][:, 2:]
    fx, cx = _line(slopes[:, 0], u[known])
    fy, cy = _line(slopes[:, 1], v[known])
    return make_K(fx, fy, cx, cy)


def _line(x: Array, y: Array) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line y = a·x + b; zeros where there are no points."""
    if len(x) == 0:
        return 0.0, 0.0
    middle = x.mean()
    slope = ((x - middle) * y).sum() / max(((x - middle) ** 2).sum(), 1e-12)
    return float(slope), float(y.mean() - slope * middle)

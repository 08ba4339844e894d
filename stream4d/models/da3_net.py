"""The networks of Depth Anything 3: the backbone that alternates views, and what is built on it.

See ``da3.py`` for the paper and what is made of the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream4d.models.blocks import image_size
from stream4d.models.da3_config import Da3Config, Reference
from stream4d.models.da3_heads import CameraDecoder, CameraEncoder, DenseHead, RayHead
from stream4d.models.encoders import DinoEncoder, special_token_rope
from stream4d.models.rope import Rope, rope_2d


class Da3Tokens(NamedTuple):
    """What the backbone keeps."""

    features: list[Tensor]
    """4 × (B·T, N, C or 2C): patch tokens of the tapped blocks, normed as the dense head wants them."""
    camera: Tensor
    """(B, T, C or 2C): first token of the last tapped block."""
    reference: Tensor | None
    """(B,) index of the reference view, None where none was picked."""


class Da3Output(NamedTuple):
    """Raw predictions, up to scale. B is kept."""

    depth: Tensor
    """(B, T, H, W) z-depth."""
    depth_confidence: Tensor
    """(B, T, H, W) > 1."""
    pose_encoding: Tensor
    """(B, T, 9) camera-to-world."""
    rays: Tensor | None
    """(B, T, h, w, 6): direction and origin on a coarser grid, not normalised."""
    rays_confidence: Tensor | None
    """(B, T, h, w) > 1."""
    reference: Tensor | None


class MonoOutput(NamedTuple):
    """What the metric network says of each view alone."""

    depth: Tensor
    """(B, T, H, W) depth over focal length in units of `METRIC_FOCAL_PX`."""
    sky: Tensor
    """(B, T, H, W) score, see `SKY_FROM`."""


class Backbone(DinoEncoder):
    """DINOv2 whose later odd blocks attend over all views."""

    def __init__(self, config: Da3Config) -> None:
        start = config.alternate_from
        super().__init__(
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            grid=config.patch_grid,
            swiglu=config.swiglu,
            norm_eps=1e-5,
            qk_norm_from=start,
        )
        self.config = config
        if start is not None:
            # Slot 0 for the reference view, slot 1 for the others.
            self.camera_token = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(  # type: ignore[override]
        self,
        images: Tensor,  # (B, T, 3, H, W), ImageNet-normalised
        given_cameras: Tensor | None = None,  # (B, T, C) from the camera encoder
    ) -> Da3Tokens:
        B, T = images.shape[:2]
        start = self.config.alternate_from
        rows, columns = (side // self.patch_embed.patch for side in image_size(images))
        local_rope, wide_rope = self._ropes(rows, columns, T, images.device)
        x = self.embed(images.flatten(0, 1)).unflatten(0, (B, T))
        local = x
        features, order, reference = [], None, None
        camera = x[:, :, 0]
        for index, block in enumerate(self.blocks):
            if start is not None and index == start - 1 and T >= 3 and given_cameras is None:
                reference = reference_view(x[:, :, 0], self.config.reference)
                order = reference_first(reference, T)
                x, local = take_views(x, order), take_views(local, order)
            if index == start:
                # The class token gives way to the camera token, in the state within views too.
                x = local = torch.cat(
                    [self._camera_tokens(x, given_cameras)[:, :, None], x[:, :, 1:]], 2
                )
            rotates = start is not None and index >= start
            if rotates and index % 2 == 1:
                x = block(x.flatten(1, 2), wide_rope).unflatten(1, (T, -1))
            else:
                flat = block(x.flatten(0, 1), local_rope if rotates else None)
                local = x = flat.unflatten(0, (B, T))
            if index in self.config.taps:
                tapped, camera = self._tap(local, x)
                if order is not None:
                    back = order.argsort(dim=1)
                    tapped, camera = take_views(tapped, back), take_views(camera, back)
                features.append(tapped.flatten(0, 1))
        return Da3Tokens(features, camera, reference)

    def _tap(self, local: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return patch tokens (B, T, N, ·) for the dense head and first tokens (B, T, ·) for the camera."""
        normed = self.norm(x)
        if self.config.is_mono:
            return normed[:, :, 1:], x[:, :, 0]
        features = torch.cat([local, normed], dim=-1)[:, :, 1:]
        return features, torch.cat([local[:, :, 0], x[:, :, 0]], dim=-1)

    def _camera_tokens(self, x: Tensor, given: Tensor | None) -> Tensor:  # (B, T, C)
        if given is not None:
            return given.to(x.dtype)
        others = self.camera_token[:, 1:].expand(len(x), x.shape[1] - 1, -1)
        return torch.cat([self.camera_token[:, :1].expand(len(x), -1, -1), others], 1).to(x.dtype)

    def _ropes(
        self, rows: int, columns: int, views: int, device: torch.device
    ) -> tuple[Rope, Rope]:
        head_dim = self.config.dim // self.config.heads
        local = special_token_rope(rows, columns, 1, head_dim, device)
        # Between views a patch has no place: all sit at (1, 1), the camera token at (0, 0).
        places = torch.ones(1 + rows * columns, 2, device=device)
        places[0] = 0
        return local, rope_2d(places.repeat(views, 1), head_dim)


def reference_view(class_tokens: Tensor, how: Reference) -> Tensor:  # (B, T, C) -> (B,)
    """Pick the reference view of each batch entry.

    ``saddle_balanced`` takes the view that is most middling: mean similarity to the others, length and variance of
    its class token, each scaled to [0, 1], are nearest to 0.5. ``saddle_sim_range`` takes the one whose similarities
    to the others range widest.
    """
    B, T = class_tokens.shape[:2]
    if how in ("first", "middle"):
        fixed = 0 if how == "first" else T // 2
        return torch.full((B,), fixed, dtype=torch.long, device=class_tokens.device)
    unit = F.normalize(class_tokens.float(), dim=-1)
    similarity = unit @ unit.transpose(1, 2)
    similarity = similarity - torch.eye(T, device=similarity.device)
    if how == "saddle_sim_range":
        return (similarity.amax(-1) - similarity.amin(-1)).argmax(dim=1)
    mean = similarity.sum(-1) / (T - 1)
    length = class_tokens.float().norm(dim=-1)
    variance = unit.var(dim=-1)
    distance = sum((scaled_to_unit(m) - 0.5).abs() for m in (mean, length, variance))
    return torch.as_tensor(distance).argmin(dim=1)


def scaled_to_unit(values: Tensor) -> Tensor:  # (B, T)
    """Scale each row to [0, 1]."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return (values - low) / (high - low + 1e-8)


def reference_first(reference: Tensor, views: int) -> Tensor:  # (B,) -> (B, T)
    """Order the views with the reference in front and the others as they are."""
    index = torch.arange(views, device=reference.device).expand(len(reference), -1)
    return torch.where(index == reference[:, None], -1, index).argsort(dim=1)


def take_views(x: Tensor, order: Tensor) -> Tensor:  # (B, T, ...), (B, T)
    """Reorder views."""
    return x[torch.arange(len(x), device=x.device)[:, None], order]


class Da3Net(nn.Module):
    """Backbone, dense head and camera modules of one network."""

    def __init__(self, config: Da3Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head: DenseHead = RayHead(config) if config.ray_head else DenseHead(config)
        if not config.is_mono:
            self.cam_dec = CameraDecoder(2 * config.dim)
            self.cam_enc = CameraEncoder(config)

    def forward(
        self,
        images: Tensor,  # (B, T, 3, H, W), ImageNet-normalised
        cameras: Tensor | None = None,  # (B, T, 9) given camera-to-world encodings
    ) -> Da3Output:
        given = None if cameras is None else self.cam_enc(cameras)
        tokens = self.backbone(images, given)
        with torch.autocast(images.device.type, enabled=False):
            dense, rays = self._dense(tokens, image_size(images), images.shape[:2])
            encoding = self.cam_dec(tokens.camera.float())
        return Da3Output(
            depth=dense[:, :, 0].exp(),
            depth_confidence=1 + dense[:, :, 1].exp(),
            pose_encoding=encoding,
            rays=None if rays is None else rays[:, :, :6].movedim(2, -1),
            rays_confidence=None if rays is None else 1 + rays[:, :, 6].exp(),
            reference=tokens.reference,
        )

    def mono(self, images: Tensor) -> MonoOutput:  # (B, T, 3, H, W)
        """Run the metric network."""
        tokens = self.backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            dense, _ = self._dense(tokens, image_size(images), images.shape[:2])
        return MonoOutput(dense[:, :, 0].exp(), dense[:, :, 1].relu())

    def _dense(
        self, tokens: Da3Tokens, size: tuple[int, int], views: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        patch = self.backbone.patch_embed.patch
        grid = (size[0] // patch, size[1] // patch)
        step = self.config.head_chunk

        def chunks() -> Iterator[tuple[Tensor, Tensor | None]]:
            for start in range(0, views[0] * views[1], step):
                part = [f[start : start + step].float() for f in tokens.features]
                if isinstance(self.head, RayHead):
                    yield self.head.with_rays(part, grid, size)
                else:
                    yield self.head(part, grid, size), None

        dense, rays = zip(*chunks(), strict=True)
        shape = tuple(views)
        joined = None if rays[0] is None else torch.cat(rays).unflatten(0, shape)
        return torch.cat(dense).unflatten(0, shape), joined


class NestedNet(nn.Module):
    """The relative network and the metric one that gives it scale and sky."""

    def __init__(self, config: Da3Config) -> None:
        super().__init__()
        assert config.metric is not None
        self.da3 = Da3Net(config)
        self.da3_metric = Da3Net(config.metric)

"""Crops of clips at any magnification, with labels that stay exact: ``K``, flow, depth and masks follow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from stream4d.train.clip import ClipBatch

LABELS = ("scene_flow", "occluded", "occluded_backward", "motion_mask", "valid_depth",
            "valid_flow", "valid_flow_backward", "valid_motion")  # fmt: skip
"""Maps that are never interpolated."""
_FLOW_SPREAD_PX = 1.0
"""Flow is interpolated where its four neighbours agree to this, else taken from the nearest pixel."""
_DEPTH_SPREAD = 0.05
"""Likewise for inverse depth, relative."""


def crop_and_zoom(
    batch: ClipBatch,
    zoom: float,
    corner: tuple[float, float],
    size: tuple[int, int],
) -> ClipBatch:
    """Magnify by ``zoom`` and cut out ``size`` = (H, W).

    Masks are taken from the nearest pixel. Flow and inverse depth are interpolated inside surfaces (exact on planes
    for inverse depth) and taken from the nearest pixel at outlines and beside unknown pixels; flow is scaled.
    ``K`` follows. Points that leave the crop count as occluded.

    Args:
        batch: any clips.
        zoom: pixels of the result per pixel of the input.
        corner: (u, v) of the crop's first pixel centre in the magnified picture, where u = zoom · (u_in + ½) - ½.
        size: (H, W) of the result.

    Raises:
        ValueError: the crop does not lie inside the magnified picture.
    """
    H, W = batch.size
    h, w = size
    if (
        corner[0] < -0.5
        or corner[1] < -0.5
        or corner[0] + w > zoom * W + 0.01
        or corner[1] + h > zoom * H + 0.01
    ):
        raise ValueError(
            f"a crop of {w}x{h} at {corner} does not lie in a picture of {zoom * W:.1f}x{zoom * H:.1f}"
        )
    device = batch.rgb.device
    u = (torch.arange(w, device=device) + corner[0] + 0.5) / zoom - 0.5
    v = (torch.arange(h, device=device) + corner[1] + 0.5) / zoom - 0.5
    grid = _Grid.at(u, v, (H, W))
    changed = {name: grid.nearest(getattr(batch, name)) for name in LABELS}
    for name in ("flow", "flow_backward"):
        changed[name] = zoom * grid.inside_surfaces(
            getattr(batch, name), getattr(batch, f"valid_{name}"), _FLOW_SPREAD_PX, relative=False
        )
    inverse = batch.depth.clamp(min=1e-9).reciprocal()
    near = grid.inside_surfaces(inverse[..., None], batch.valid_depth, _DEPTH_SPREAD, relative=True)
    known = changed["valid_depth"]
    changed["depth"] = torch.where(known, near[..., 0].reciprocal(), grid.nearest(batch.depth))
    changed["rgb"] = _resample(batch.rgb, u, v, zoom)
    K = batch.K.clone()
    K[..., :2, :2] *= zoom
    K[..., 0, 2] = zoom * (K[..., 0, 2] + 0.5) - 0.5 - corner[0]
    K[..., 1, 2] = zoom * (K[..., 1, 2] + 0.5) - 0.5 - corner[1]
    cropped = replace(batch, K=K, **changed)
    return _mark_outside(cropped)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where the rows and columns of a result lie in the input."""

    near: tuple[Tensor, Tensor]
    """Nearest row (h,) and column (w,)."""
    corner: tuple[Tensor, Tensor]
    """Row above and column to the left."""
    part: tuple[Tensor, Tensor]
    """How far beyond them, in [0, 1]."""

    @classmethod
    def at(cls, u: Tensor, v: Tensor, size: tuple[int, int]) -> _Grid:
        H, W = size
        top, left = v.floor().long().clamp(0, H - 2), u.floor().long().clamp(0, W - 2)
        near = v.round().long().clamp(0, H - 1), u.round().long().clamp(0, W - 1)
        return cls(near, (top, left), ((v - top).clamp(0, 1), (u - left).clamp(0, 1)))

    def nearest(self, values: Tensor) -> Tensor:  # (B, T, H, W, …) -> (B, T, h, w, …)
        return values.index_select(2, self.near[0]).index_select(3, self.near[1])

    def inside_surfaces(
        self,
        values: Tensor,  # (B, T, H, W, C)
        valid: Tensor,  # (B, T, H, W)
        spread: float,
        *,
        relative: bool,
    ) -> Tensor:
        """Interpolate where the four neighbours are known and close; elsewhere take the nearest."""
        known = torch.where(valid[..., None], values, torch.nan)  # NaN fails every comparison
        (top, left), (b, a) = self.corner, self.part
        rows = [known.index_select(2, top), known.index_select(2, top + 1)]
        corners = torch.stack([r.index_select(3, c) for r in rows for c in (left, left + 1)])
        low, high = corners.amin(0), corners.amax(0)
        limit = spread * high.abs() if relative else spread
        smooth = ((high - low) <= limit).all(-1, keepdim=True)
        a, b = a.to(values)[:, None], b.to(values)[:, None, None]
        upper, lower = torch.lerp(corners[0], corners[1], a), torch.lerp(corners[2], corners[3], a)
        return torch.where(smooth, torch.lerp(upper, lower, b), self.nearest(values))


def _resample(rgb: Tensor, u: Tensor, v: Tensor, zoom: float) -> Tensor:
    """Sample (B, T, 3, H, W) at columns u and rows v, bilinear; averaged first when the picture shrinks."""
    B, T, C, H, W = rgb.shape
    flat = rgb.reshape(B * T, C, H, W)
    if zoom < 1:
        small = (max(1, round(H * zoom)), max(1, round(W * zoom)))
        flat = F.interpolate(flat, small, mode="bilinear", antialias=True, align_corners=False)
    grid = torch.stack(
        torch.meshgrid((v + 0.5) * 2 / H - 1, (u + 0.5) * 2 / W - 1, indexing="ij")[::-1], -1
    )
    grid = grid.to(flat).expand(B * T, *grid.shape)
    out = F.grid_sample(flat, grid, align_corners=False, padding_mode="border")
    return out.view(B, T, C, len(v), len(u))


def _mark_outside(batch: ClipBatch) -> ClipBatch:
    """Add to the occlusion masks what the flow takes out of the picture."""
    H, W = batch.size
    device = batch.rgb.device
    u = torch.arange(W, device=device)
    v = torch.arange(H, device=device)[:, None]

    def leaves(flow: Tensor) -> Tensor:
        x, y = flow[..., 0] + u, flow[..., 1] + v
        return (x < -0.5) | (x > W - 0.5) | (y < -0.5) | (y > H - 0.5)

    return replace(
        batch,
        occluded=batch.occluded | (leaves(batch.flow) & batch.valid_flow),
        occluded_backward=batch.occluded_backward
        | (leaves(batch.flow_backward) & batch.valid_flow_backward),
    )

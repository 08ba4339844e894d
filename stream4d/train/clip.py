"""The one sample type of training: a batch of short clips with everything that is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ClipBatch:
    """B clips of T frames, with ground truth. All tensors lie on one device.

    Rendered clips know everything; real data is sparse: ``valid_depth`` and ``valid_flow`` say where a label
    means something, and labels are zero (never NaN) elsewhere. Conventions as in the packets: OpenCV camera
    axes, integer coordinates are pixel centres, ``world_from_cam`` takes camera points to the world.
    """

    rgb: Tensor
    """(B, T, 3, H, W) float32 in [0, 1], sRGB."""
    depth: Tensor
    """(B, T, H, W) float32 z-depth in world units."""
    K: Tensor
    """(B, T, 3, 3) float32 intrinsics in pixels of ``rgb``."""
    world_from_cam: Tensor
    """(B, T, 4, 4) float32; rendered clips have the first camera at the origin."""
    flow: Tensor
    """(B, T-1, H, W, 2) float32 pixels, frame t → t+1."""
    flow_backward: Tensor
    """(B, T-1, H, W, 2) float32 pixels, frame t+1 → t, on the pixels of frame t+1."""
    occluded: Tensor
    """(B, T-1, H, W) bool: the surface point of this pixel of t is hidden or outside in t+1."""
    occluded_backward: Tensor
    """(B, T-1, H, W) bool: the surface point of this pixel of t+1 is hidden or outside in t."""
    scene_flow: Tensor
    """(B, T-1, H, W, 3) float32 displacement of the surface point in the world, t → t+1; exact for rendered clips,
    zero where it is not known (real data; surfaces hidden before time was reversed)."""
    motion_mask: Tensor
    """(B, T, H, W) bool: the surface moves in the world (the last frame: it has just moved)."""
    valid_depth: Tensor
    """(B, T, H, W) bool: ``depth`` is known (False for sky)."""
    valid_flow: Tensor
    """(B, T-1, H, W) bool: ``flow`` is known."""
    valid_flow_backward: Tensor
    """(B, T-1, H, W) bool: ``flow_backward`` is known."""
    valid_motion: Tensor
    """(B, T, H, W) bool: ``motion_mask`` is known."""
    has_pose: Tensor
    """(B,) bool: ``world_from_cam`` is known; False for unlabelled video."""
    has_intrinsics: Tensor
    """(B,) bool: ``K`` is known; False where it is a guess (unlabelled video)."""
    is_metric: Tensor
    """(B,) bool: lengths are metres."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frames."""
        return self.rgb.shape[-2], self.rgb.shape[-1]

    @property
    def pointmap_in_cam(self) -> Tensor:
        """(B, T, H, W, 3) points seen at each pixel, in the frame's own camera."""
        H, W = self.size
        v, u = torch.meshgrid(
            torch.arange(H, device=self.K.device, dtype=self.depth.dtype),
            torch.arange(W, device=self.K.device, dtype=self.depth.dtype),
            indexing="ij",
        )
        pixels = torch.stack((u, v, torch.ones_like(u)), -1)  # (H, W, 3)
        rays = torch.einsum("btij,hwj->bthwi", torch.linalg.inv(self.K).to(pixels), pixels)
        return rays * self.depth[..., None]

    @property
    def pointmap_in_world(self) -> Tensor:
        """(B, T, H, W, 3) points seen at each pixel, in the world."""
        pose = self.world_from_cam.to(self.depth)
        turned = torch.einsum("btij,bthwj->bthwi", pose[..., :3, :3], self.pointmap_in_cam)
        return turned + pose[..., None, None, :3, 3]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{k: v.to(device, non_blocking=non_blocking) for k, v in moved.items()}
        )

    def clip(self, index: int | slice) -> Self:
        """Return some of the clips, as a batch."""
        part = slice(index, index + 1) if isinstance(index, int) else index
        return replace(self, **{f.name: getattr(self, f.name)[part] for f in fields(self)})

    def frames(self, start: int, stop: int) -> Self:
        """Return frames ``start`` … ``stop - 1`` of every clip."""
        count = self.rgb.shape[1]
        if not 0 <= start < stop <= count:
            raise ValueError(f"frames {start}:{stop} do not lie in a clip of {count} frames")
        changed: dict[str, Tensor] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in _PER_PAIR:
                changed[f.name] = value[:, start : stop - 1]
            elif f.name not in _PER_CLIP:
                changed[f.name] = value[:, start:stop]
        return replace(self, **changed)

    def __repr__(self) -> str:
        B, T, _, H, W = self.rgb.shape
        return f"ClipBatch({B} clips of {T} frames, {W}x{H}, on {self.rgb.device})"


_PER_PAIR = frozenset(
    [
        "flow",
        "flow_backward",
        "occluded",
        "occluded_backward",
        "scene_flow",
        "valid_flow",
        "valid_flow_backward",
    ]
)
_PER_CLIP = frozenset(("has_pose", "has_intrinsics", "is_metric"))


def concatenate(batches: Sequence[ClipBatch]) -> ClipBatch:
    """Join batches of equal frame count and size into one."""
    shapes = {batch.rgb.shape[1:] for batch in batches}
    if len(shapes) != 1:
        raise ValueError(f"batches differ in frames or size: {sorted(map(tuple, shapes))}")
    return ClipBatch(
        **{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(ClipBatch)}
    )

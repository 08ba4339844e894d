"""What exporters read: a store or any sequence of posed frames, one segment of it, one frame at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from stream4d.errors import ExportError
from stream4d.packets import PosedFrame
from stream4d.viz.cloud import PointFilter, StaticCloud, frame_points, voxel_for

logger = logging.getLogger(__name__)


class FrameSource(Protocol):
    """A store, or a list of frames."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PosedFrame: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which part of a run is exported, and how dense."""

    segment: int | None = None
    """Part between two cuts; segments share neither scale nor origin. None: the one with most frames."""
    stride: int = 1
    """Take every n-th frame."""
    max_points: int = 1_000_000
    """Bound of the static cloud; voxels grow until it fits."""
    voxel: float | None = None
    """Edge of a voxel in world units. None: what one sample covers at the first frame's median depth."""
    keep: PointFilter = field(default_factory=lambda: PointFilter(samples=40_000))
    """Which pixels become points."""

    def __post_init__(self) -> None:
        """Raise ``ExportError`` where a number makes no sense."""
        if self.stride < 1:
            raise ExportError(f"stride must be 1 or more, got {self.stride}")
        if self.max_points < 1:
            raise ExportError(f"max_points must be 1 or more, got {self.max_points}")
        if self.voxel is not None and not 0 < self.voxel < float("inf"):
            raise ExportError(f"voxel must be above 0, got {self.voxel}")


def pick_segment(source: FrameSource, wanted: int | None) -> tuple[int, range]:
    """Return a segment's number and its frames' positions.

    Raises:
        ExportError: there are no frames, or no such segment.
    """
    if len(source) == 0:
        raise ExportError("there are no frames to export")
    stored = getattr(source, "segment", None)
    segments = (
        np.asarray(stored)
        if stored is not None
        else np.array([source[i].segment for i in range(len(source))])
    )
    counts = np.bincount(segments)
    chosen = int(counts.argmax()) if wanted is None else wanted
    if not 0 <= chosen < len(counts) or counts[chosen] == 0:
        raise ExportError(f"there is no segment {chosen}; segments are 0 to {len(counts) - 1}")
    if wanted is None and counts[chosen] < len(source):
        logger.warning(
            "the video has %d cuts; exporting segment %d (%d of %d frames). "
            "Segments share neither scale nor origin: export others with --segment",
            np.count_nonzero(counts) - 1,
            chosen,
            counts[chosen],
            len(source),
        )
    # Segments are runs: they count up at each cut.
    first = int(np.flatnonzero(segments == chosen)[0])
    return chosen, range(first, first + int(counts[chosen]))


def select_frames(source: FrameSource, selection: Selection) -> Iterator[PosedFrame]:
    """Yield the selected frames in order; holds one at a time."""
    _, positions = pick_segment(source, selection.segment)
    for position in positions[:: selection.stride]:
        yield source[position]


def static_cloud(source: FrameSource, selection: Selection) -> StaticCloud:
    """Gather the static points of the selected frames.

    A point needs two frames that see it, except where there is only one frame.

    Raises:
        ExportError: no frame has a trusted static point.
    """
    _, positions = pick_segment(source, selection.segment)
    taken = len(positions[:: selection.stride])
    cloud = StaticCloud(
        max_points=selection.max_points, voxel=selection.voxel, min_hits=min(2, taken)
    )
    for frame in select_frames(source, selection):
        if cloud.voxel is None:
            cloud.voxel = voxel_for(frame, selection.keep)
        if cloud.voxel is None:
            continue
        points = frame_points(frame, selection.keep)
        cloud.add(points.static_in_world, points.static_rgb, frame.index)
    if len(cloud) == 0:
        raise ExportError(
            "no static points: no depth reaches the confidence "
            f"{selection.keep.min_confidence} in two frames (try a lower --min-confidence)"
        )
    return cloud

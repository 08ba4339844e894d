"""What exporters read: a store or any sequence of posed frames, one segment of it, one frame at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np

from stream4d.errors import ExportError
from stream4d.packets import Array, PosedFrame
from stream4d.store.reader import Store
from stream4d.viz.cloud import PointFilter, StaticCloud, frame_points, voxel_for
from stream4d.viz.contact_sheet import FrameSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Camera:
    """What a posed frame says of its camera. Fields as in ``PosedFrame``."""

    index: int
    timestamp_ns: int
    segment: int
    width: int
    height: int
    K: Array
    world_from_cam: Array
    pose_covariance: Array
    is_keyframe: bool
    is_tracked: bool
    is_metric: bool


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
        if not 0 <= self.keep.min_confidence <= 1:
            raise ExportError(
                f"min_confidence must be between 0 and 1, got {self.keep.min_confidence}"
            )


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


def select_cameras(source: FrameSource, selection: Selection) -> Iterator[Camera]:
    """Yield the cameras of the selected frames; a store is not asked for its maps, which it may lack."""
    _, positions = pick_segment(source, selection.segment)
    for position in positions[:: selection.stride]:
        yield _stored(source, position) if isinstance(source, Store) else _seen_by(source[position])


def _stored(store: Store, index: int) -> Camera:
    return Camera(
        index=index,
        timestamp_ns=int(store.timestamp_ns[index]),
        segment=int(store.segment[index]),
        width=store.info.width,
        height=store.info.height,
        K=store.K[index],
        world_from_cam=store.world_from_cam[index],
        pose_covariance=store.pose_covariance[index],
        is_keyframe=bool(store.keyframe[index]),
        is_tracked=bool(store.is_tracked[index]),
        is_metric=store.is_metric,
    )


def _seen_by(frame: PosedFrame) -> Camera:
    shared = {f.name for f in fields(PosedFrame)} & {f.name for f in fields(Camera)}
    height, width = frame.rgb.shape[:2]
    values = {name: getattr(frame, name) for name in shared}
    return Camera(**values, width=width, height=height)


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
            f"{selection.keep.min_confidence} in two frames (a camera that stays in its place sees none; "
            "otherwise try a lower --min-confidence)"
        )
    return cloud

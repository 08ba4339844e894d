"""One picture of a whole run, for people without a viewer: some frames with their maps, and the path from above.

OpenCV and numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from stream4d.errors import ExportError
from stream4d.packets import Array, PosedFrame
from stream4d.replacement import replacing
from stream4d.viz import colors
from stream4d.viz.cloud import frame_points

TILE = 240
"""Width of one picture in pixels."""
GAP = 6
HEADER = 26
BACKGROUND = (18, 18, 22)
TEXT = (225, 225, 230)
FAINT = (120, 120, 128)
COLUMNS = ("video", "depth", "motion", "flow")
MAX_POSES = 1000
"""Poses read from a source that holds only whole frames."""


class FrameSource(Protocol):
    """A store, or a list of frames."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PosedFrame: ...


def contact_sheet(
    source: FrameSource,
    *,
    world_from_cam: Array | None = None,  # (T, 4, 4)
    segment: Array | None = None,  # (T,)
    rows: int = 5,
    title: str = "",
) -> Array:  # (H, W, 3) uint8 RGB
    """Draw ``rows`` frames, spread over the run, as video | depth | motion | flow, beside the path from above.

    Args:
        source: gives frames by position.
        world_from_cam: all poses; default: read from the frames, which a store would have to decode.
        segment: number of the segment of each pose. Only the longest is drawn: others share no origin with it.
        rows: how many frames.
        title: first line of the picture.

    Raises:
        ExportError: there are no frames.
    """
    if len(source) == 0:
        raise ExportError("there are no frames to draw")
    # The last frame has no flow; end one before it where possible.
    last = max(len(source) - 2, 0)
    picks = np.unique(np.linspace(0, last, rows).round().astype(int))
    frames = [source[int(i)] for i in picks]
    if world_from_cam is None or segment is None:
        read = [source[i] for i in range(0, len(source), max(1, len(source) // MAX_POSES))]
        world_from_cam = np.stack([frame.world_from_cam for frame in read])
        segment = np.array([frame.segment for frame in read])
    longest = int(np.bincount(segment).argmax())
    table = _table(frames)
    mine = [frame for frame in frames if frame.segment == longest]
    above = _from_above(mine, world_from_cam[segment == longest], table.shape[0])
    if frames[0].is_metric:
        _note_length(above, world_from_cam, segment, "m")
    else:
        _note_length(above, world_from_cam, segment, "units (scale unknown)")
    picture = np.hstack([table, _gap(table.shape[0]), above])
    framed = cv2.copyMakeBorder(
        picture, HEADER, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=BACKGROUND
    )
    return _write(framed, title, (GAP, HEADER - 9))


def write_contact_sheet(source: FrameSource, path: str | Path, *, title: str = "") -> None:
    """Write the contact sheet of a store, or of a list of frames, to an image file.

    A ``source`` that has the arrays ``world_from_cam`` and ``segment`` (a store) saves reading all frames.

    Raises:
        ExportError: no frames, unknown suffix, or not writable.
    """
    path = Path(path)
    picture = contact_sheet(
        source,
        world_from_cam=getattr(source, "world_from_cam", None),
        segment=getattr(source, "segment", None),
        title=title,
    )
    try:
        done, data = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        raise ExportError(f"cannot write a picture as {path.suffix!r}: use .png or .jpg")
    try:
        with replacing(path) as partial:
            partial.write_bytes(data.tobytes())
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from None


def _table(frames: Sequence[PosedFrame]) -> Array:
    bounds = _shared_depth_bounds(frames)
    flows = [frame.flow for frame in frames if frame.flow is not None]
    longest = float(np.median([colors.flow_range(flow) for flow in flows] or [1.0]))
    lines = [_line(frame, bounds, longest) for frame in frames]
    names = np.full((HEADER, lines[0].shape[1], 3), BACKGROUND, np.uint8)
    for column, name in enumerate(COLUMNS):
        _write(names, name, (column * (TILE + GAP), HEADER - 9), FAINT)
    return np.vstack([names, *_between(lines, axis=0)])


def _line(frame: PosedFrame, bounds: tuple[float, float] | None, longest: float) -> Array:
    flow = frame.flow
    if flow is None:
        flow = np.full((*frame.depth.shape, 2), np.nan, np.float32)
    tiles = [
        _tile(frame.rgb),
        _tile(colors.color_depth(_depth(frame), bounds)),
        _tile(colors.overlay_motion(frame.rgb, frame.motion_prob)),
        _tile(colors.color_flow(flow, longest)),
    ]
    seconds = frame.timestamp_ns / 1e9
    _write(tiles[0], f"#{frame.index}  {seconds:.2f} s", (6, 16))
    return np.hstack(list(_between(tiles, axis=1)))


def _depth(frame: PosedFrame) -> Array:
    return colors.known_depth(frame.depth, frame.confidence)


def _tile(rgb: Array) -> Array:
    height = round(rgb.shape[0] * TILE / rgb.shape[1])
    shrinks = rgb.shape[1] > TILE
    tile: Array = cv2.resize(
        rgb, (TILE, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return tile


def _between(pictures: Sequence[Array], axis: int) -> Iterable[Array]:
    """Put gaps between pictures that will be stacked along ``axis``."""
    for i, picture in enumerate(pictures):
        if i:
            size = picture.shape[1 - axis]
            yield _gap(size) if axis == 1 else _gap(size).transpose(1, 0, 2)
        yield picture


def _gap(size: int) -> Array:
    return np.full((size, GAP, 3), BACKGROUND, np.uint8)


def _shared_depth_bounds(frames: Sequence[PosedFrame]) -> tuple[float, float] | None:
    ranges = [r for frame in frames if (r := colors.depth_range(_depth(frame)))]
    return (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None


def _from_above(frames: Sequence[PosedFrame], world_from_cam: Array, side: int) -> Array:
    """Draw x to the right and z (forward at the start) upwards: static points, path, cameras."""
    panel = np.full((side, side, 3), BACKGROUND, np.uint8)
    path = world_from_cam[:, (0, 2), 3]
    points, rgb = _ground_points(frames)
    scale, offset = _fit(path, points, side)

    def to_pixel(xz: Array) -> Array:
        return np.stack([xz[:, 0], -xz[:, 1]], axis=1) * scale + offset

    at = to_pixel(points).round().astype(int)
    inside = ((at >= 1) & (at < side)).all(axis=1)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        panel[at[inside, 1] - dy, at[inside, 0] - dx] = (rgb[inside] * 0.7).astype(np.uint8)
    line = (to_pixel(path) * 8).round().astype(np.int32)
    cv2.polylines(panel, [line], False, colors.PATH, 2, cv2.LINE_AA, shift=3)
    for frame in frames:
        at_px = to_pixel(frame.world_from_cam[None, (0, 2), 3])[0]
        _draw_camera(panel, frame, at_px, size_px=side / 28)
    return _write(panel, "from above: x right, z up", (10, 20), FAINT)


def _note_length(panel: Array, world_from_cam: Array, segment: Array, unit: str) -> None:
    steps = np.linalg.norm(np.diff(world_from_cam[:, :3, 3], axis=0), axis=1)
    length = float(steps[segment[1:] == segment[:-1]].sum())
    _write(panel, f"path {length:.3g} {unit}", (10, panel.shape[0] - 12), FAINT)


def _ground_points(frames: Sequence[PosedFrame]) -> tuple[Array, Array]:  # (N, 2), (N, 3)
    if not frames:
        return np.empty((0, 2), np.float32), np.empty((0, 3), np.uint8)
    lifted = [frame_points(frame) for frame in frames]
    points = np.concatenate([each.static_in_world for each in lifted])[:, (0, 2)]
    return points, np.concatenate([each.static_rgb for each in lifted])


def _fit(path: Array, points: Array, side: int) -> tuple[float, Array]:
    """Return pixels per unit and offset that show the path and nine tenths of the points."""
    low, high = path.min(axis=0), path.max(axis=0)
    if len(points):
        near, far = np.percentile(points, (5, 95), axis=0)
        low, high = np.minimum(low, near), np.maximum(high, far)
    scale = 0.84 * side / max(float((high - low).max()), 1e-9)
    center = (low + high) / 2
    return scale, side / 2 - np.array([center[0], -center[1]]) * scale


def _draw_camera(panel: Array, frame: PosedFrame, at_px: Array, size_px: float) -> None:
    """Draw the camera as a triangle that opens in viewing direction."""
    half_width = frame.rgb.shape[1] / 2 / frame.K[0, 0]
    corners = np.array([[0, 0, 0], [-half_width, 0, 1], [half_width, 0, 1]])
    corners = corners @ frame.world_from_cam[:3, :3].T
    shape = at_px + np.stack([corners[:, 0], -corners[:, 2]], axis=1) * size_px
    line = (shape * 8).round().astype(np.int32)
    cv2.polylines(panel, [line], True, TEXT, 1, cv2.LINE_AA, shift=3)


def _write(
    picture: Array, text: str, at: tuple[int, int], color: tuple[int, int, int] = TEXT
) -> Array:
    """Write on the picture, in place, on a dark ground that keeps it readable over a video."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    (width, height), below = cv2.getTextSize(text, font, size, 1)
    if text:
        x, y = at
        cv2.rectangle(picture, (x - 3, y - height - 3), (x + width + 3, y + below), BACKGROUND, -1)
    cv2.putText(picture, text, at, font, size, color, 1, cv2.LINE_AA)
    return picture

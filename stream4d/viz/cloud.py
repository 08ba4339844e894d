"""The static cloud: points of all frames, one per voxel, bounded in number, revisable.

Used by the viewer (which shows what changed since it last looked) and by the exporters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.packets import Array, PosedFrame, PoseRevision
from stream4d.viz.voxel_table import VoxelTable

MOVING_FROM = 0.5
"""A pixel counts as moving from this probability on."""
GROWTH = 2**0.5
"""Factor of the voxel when the room runs out: points lie on surfaces, so this halves their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFilter:
    """Which pixels of a frame become points."""

    min_confidence: float = 0.2
    """Below this the depth is not trusted (a probability: see ``PosedFrame.confidence``)."""
    min_moving_confidence: float = 0.0
    """The same for what moves. One camera cannot triangulate it: its depth is a guess, and shown as that."""
    max_slope: float = 0.2
    """Relative depth step to a neighbouring sample above which the farther one lies on an edge."""
    max_bend: float = 0.08
    """Relative second difference of inverse depth likewise; it is zero on any plane, however steep."""
    max_depth_ratio: float = 8.0
    """Points beyond this many median depths are dropped: their position is mostly noise."""
    samples: int = 12_000
    """About how many pixels of a frame are looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class FramePoints:
    """Points of one frame in the world."""

    static_in_world: Array
    """(N, 3) float32."""
    static_rgb: Array
    """(N, 3) uint8."""
    moving_in_world: Array
    """(M, 3) float32."""
    moving_rgb: Array
    """(M, 3) uint8."""


def frame_points(frame: PosedFrame, keep: PointFilter | None = None) -> FramePoints:
    """Lift a regular grid of trusted pixels into the world, static and moving apart."""
    keep = keep or PointFilter()
    H, W = frame.depth.shape
    step = max(1, round(float(np.sqrt(H * W / keep.samples))))
    rows, cols = np.mgrid[step // 2 : H : step, step // 2 : W : step]
    depth = frame.depth[rows, cols].astype(np.float64)
    moves = frame.motion_prob[rows, cols] >= MOVING_FROM
    confident = frame.confidence[rows, cols] >= np.where(
        moves, keep.min_moving_confidence, keep.min_confidence
    )
    trusted = confident & _is_surface(depth, keep)
    rows, cols, z, moves = rows[trusted], cols[trusted], depth[trusted], moves[trusted]
    pixels = np.stack([cols, rows, np.ones_like(cols)]).astype(np.float64)
    points_in_cam = (np.linalg.inv(frame.K) @ pixels) * z  # (3, N)
    R, t = frame.world_from_cam[:3, :3], frame.world_from_cam[:3, 3:]
    points = (R @ points_in_cam + t).T.astype(np.float32)
    rgb = frame.rgb[rows, cols]
    return FramePoints(points[~moves], rgb[~moves], points[moves], rgb[moves])


def _is_surface(depth: Array, keep: PointFilter) -> Array:  # (h, w) → (h, w) bool
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        return known
    near_enough = depth <= keep.max_depth_ratio * np.median(depth[known])
    smooth = _is_smooth(np.where(known, 1.0 / np.where(known, depth, 1.0), np.nan), keep)
    surface: Array = known & near_enough & smooth
    return surface


def _is_smooth(
    inverse: Array, keep: PointFilter
) -> Array:  # (h, w) inverse depth, NaN where unknown
    """Condemn the farther side of depth edges: that is where they bleed ("flying" pixels)."""
    smooth = np.ones(inverse.shape, bool)
    with np.errstate(invalid="ignore"):  # comparisons with NaN are False: unknown condemns nobody
        for view, w in ((smooth, inverse), (smooth.T, inverse.T)):
            nearer_by = w[:-1] / w[1:]  # above 1: the first of the two is nearer
            view[1:] &= ~(nearer_by > 1 + keep.max_slope)
            view[:-1] &= ~(nearer_by < 1 / (1 + keep.max_slope))
            bend = w[:-2] - 2 * w[1:-1] + w[2:]
            view[1:-1] &= ~(bend > keep.max_bend * w[1:-1])
    return smooth


class StaticCloud:
    """At most ``max_points`` points, one per voxel; the voxel grows when the room runs out.

    A point counts (is *confirmed*) once ``min_hits`` frames have seen its voxel: noise and passers-by are
    mostly seen once. Confirmed points keep their order, so that a viewer can send them in blocks.
    """

    def __init__(self, *, max_points: int, voxel: float | None = None, min_hits: int = 2) -> None:
        self.voxel = voxel
        """Edge of a voxel in world units; None until the first frame tells the scale."""
        self._min_hits = min_hits
        self._slot_of = VoxelTable(max_points)
        self._count = 0
        self._points = np.empty((max_points, 3), np.float32)
        self._rgb = np.empty((max_points, 3), np.uint8)
        self._hits = np.zeros(max_points, np.uint16)
        self._frame = np.empty(max_points, np.int64)
        self._order = np.empty(max_points, np.int64)  # confirmed slots, oldest first
        self._confirmed = 0

    def __len__(self) -> int:
        return self._confirmed

    @property
    def points(self) -> Array:
        """(N, 3) float32 confirmed points in the world, in the order of confirmation."""
        return self._points[self._order[: self._confirmed]]

    @property
    def rgb(self) -> Array:
        """(N, 3) uint8 colours of ``points``."""
        return self._rgb[self._order[: self._confirmed]]

    def part(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return ``points[start:stop]`` and ``rgb[start:stop]`` without gathering the rest."""
        slots = self._order[start : min(stop, self._confirmed)]
        return self._points[slots], self._rgb[slots]

    def add(self, points: Array, rgb: Array, frame_index: int) -> bool:
        """Take the static points of a frame: (N, 3) and (N, 3).

        Returns:
            True if the cloud was rebuilt with larger voxels, so that blocks sent before are void.
        """
        if len(points) == 0:
            return False
        if self.voxel is None:
            raise ValueError("StaticCloud.voxel must be set before points are added")
        rebuilt = False
        keys, first = np.unique(self._keys(points), return_index=True)
        while not self._has_room(keys) and not self._forget_unconfirmed(
            older_than=frame_index - 30, need=len(keys)
        ):
            self._coarsen()
            rebuilt = True
            keys, first = np.unique(self._keys(points), return_index=True)
        self._insert(keys, points[first], rgb[first], frame_index)
        return rebuilt

    def _has_room(self, keys: Array) -> bool:
        room = len(self._points) - self._count
        return len(keys) <= room or int((self._slot_of.find(keys) < 0).sum()) <= room

    def widen(self, voxel: float) -> bool:
        """Make voxels at least this large; returns True if that rebuilt the cloud (see ``add``)."""
        if self.voxel is not None and voxel <= self.voxel:
            return False
        self.voxel = voxel
        rebuilt = self._count > 0
        self._merge()
        return rebuilt

    def revise(
        self, revision: PoseRevision, old_world_from_cam: Array, old_K: Array | None = None
    ) -> Array:  # (N, 4, 4) poses before, (N, 3, 3) → (k,) positions in ``points``
        """Move the points of revised frames along; returns which confirmed points moved visibly.

        ``old_K`` is needed where the revision holds a new one.
        """
        if len(revision.indices) == 0:
            return np.empty(0, np.int64)
        where = np.searchsorted(revision.indices, self._frame[: self._count])
        where = np.minimum(where, len(revision.indices) - 1)
        mine = revision.indices[where] == self._frame[: self._count]
        slots = np.flatnonzero(mine)
        which = where[slots]
        cam_from_old = np.linalg.inv(old_world_from_cam)[which]  # (n, 4, 4)
        new = revision.world_from_cam[which]
        old_points = self._points[slots].astype(np.float64)
        in_cam = np.einsum("nij,nj->ni", cam_from_old[:, :3, :3], old_points)
        in_cam = (in_cam + cam_from_old[:, :3, 3]) * revision.scale[which, None]
        if revision.K is not None and old_K is not None:
            old, K = old_K[which], revision.K[which]
            for axis in range(2):  # rays of the same pixels
                pixel = old[:, axis, axis] * in_cam[:, axis] + old[:, axis, 2] * in_cam[:, 2]
                in_cam[:, axis] = (pixel - K[:, axis, 2] * in_cam[:, 2]) / K[:, axis, axis]
        moved = np.einsum("nij,nj->ni", new[:, :3, :3], in_cam) + new[:, :3, 3]
        shift = np.zeros(self._count, np.float64)
        shift[slots] = np.linalg.norm(moved - old_points, axis=1)
        self._points[slots] = moved
        # Voxel keys stay those of the first sighting: a revision moves neighbours together, and the next
        # rebuild sorts out the rest.
        order = self._order[: self._confirmed]
        return np.flatnonzero(shift[order] > 0.5 * (self.voxel or 0.0))

    def _keys(self, points: Array) -> Array:  # (N, 3) → (N,)
        """Pack voxel coordinates into one integer, 21 bits each."""
        cells = np.floor(points / self.voxel).astype(np.int64)
        cells = np.clip(cells + (1 << 20), 0, (1 << 21) - 1)
        packed: Array = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
        return packed

    def _insert(self, keys: Array, points: Array, rgb: Array, frame_index: int) -> None:
        count = self._count
        slots = self._slot_of.find(keys)
        is_new = slots < 0
        slots[is_new] = count + np.arange(is_new.sum())
        self._slot_of.insert(keys[is_new], slots[is_new])
        self._count = count + int(is_new.sum())
        fresh = slots[is_new]
        self._points[fresh], self._rgb[fresh] = points[is_new], rgb[is_new]
        self._hits[fresh], self._frame[fresh] = 0, frame_index
        self._average(slots[~is_new], points[~is_new], rgb[~is_new])
        self._hits[slots] = np.minimum(self._hits[slots] + 1, 60_000)
        confirmed = slots[self._hits[slots] == self._min_hits]
        self._order[self._confirmed : self._confirmed + len(confirmed)] = confirmed
        self._confirmed += len(confirmed)

    def _average(self, slots: Array, points: Array, rgb: Array) -> None:
        """Improve points that are not confirmed yet; later ones stay where the viewer has them."""
        open_ = self._hits[slots] < self._min_hits
        slots, points, rgb = slots[open_], points[open_], rgb[open_]
        n = self._hits[slots, None].astype(np.float32)
        self._points[slots] = (self._points[slots] * n + points) / (n + 1)
        self._rgb[slots] = (self._rgb[slots] * n + rgb) / (n + 1)

    def _forget_unconfirmed(self, *, older_than: int, need: int) -> bool:
        """Drop points that were seen too seldom and long ago, if that makes the room needed."""
        count = self._count
        keep = (self._hits[:count] >= self._min_hits) | (self._frame[:count] >= older_than)
        if keep.sum() + need > len(self._points):
            return False
        self._keep(np.flatnonzero(keep))
        return True

    def _coarsen(self) -> None:
        assert self.voxel is not None
        self.voxel *= GROWTH
        self._merge()

    def _merge(self) -> None:
        """Keep one point per voxel, after voxels grew."""
        count = self._count
        # The most seen point of each larger voxel stays.
        by_hits = np.argsort(-self._hits[:count].astype(np.int64), kind="stable")
        _, first = np.unique(self._keys(self._points[:count][by_hits]), return_index=True)
        self._keep(np.sort(by_hits[first]))

    def _keep(self, slots: Array) -> None:
        """Keep these slots (increasing) only, and number them anew."""
        new_slot = np.full(self._count, -1, np.int64)
        new_slot[slots] = np.arange(len(slots))
        order = new_slot[self._order[: self._confirmed]]
        order = order[order >= 0]
        for array in (self._points, self._rgb, self._hits, self._frame):
            array[: len(slots)] = array[slots]
        self._order[: len(order)] = order
        self._count, self._confirmed = len(slots), len(order)
        # Averaged or revised points may share a voxel now: the first stands for it.
        keys, first = np.unique(self._keys(self._points[: self._count]), return_index=True)
        self._slot_of.clear()
        self._slot_of.insert(keys, first)


def voxel_for(frame: PosedFrame, keep: PointFilter | None = None) -> float | None:
    """Return one and a half times the width of a sample at the frame's median depth; None without depth.

    Neighbouring samples of a surface so fall into one voxel or the next, and frames meet in the same ones.
    """
    keep = keep or PointFilter()
    known = frame.depth[np.isfinite(frame.depth) & (frame.depth > 0)]
    if known.size == 0:
        return None
    step = max(1.0, float(np.sqrt(frame.depth.size / keep.samples)))
    return float(1.5 * np.median(known) * step / frame.K[0, 0])

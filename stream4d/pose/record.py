"""What the chain holds of a frame until it leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.geometry.transforms import project_to_so3, rigid
from stream4d.packets import Array, Frame, State
from stream4d.pose import dense, patches, track
from stream4d.pose.dense import Link, Maps
from stream4d.pose.map import LocalMap
from stream4d.pose.state import pack, unpack

FLOATING = np.diag([1.0, 1.0, 1.0, 0.1, 0.1, 0.1])
"""Covariance of a pose that was only predicted: a scene's depth, 18°."""


@dataclass(slots=True, eq=False)
class Record:
    """A frame on its way: its view of the patches, its pose so far, its maps."""

    index: int
    timestamp_ns: int
    rgb: Array
    pyramid: tuple[Array, ...]
    uv: Array
    """(N, 2) where it sees each patch of the map."""
    var: Array
    """(N,) px², inf where not seen."""
    info: Array
    """(N, 3) inverse covariance of ``uv`` (xx, xy, yy)."""
    pose: Array
    """(3, 4) camera-from-world when it was last fitted."""
    reference: int
    """Index of the keyframe that the pose was fitted against."""
    from_reference: Array
    """(4, 4) camera-from-reference at that time."""
    rows: Array
    errors: Array
    information: Array
    is_tracked: bool = True
    keyframe: bool = False
    segment: int = 0
    flow_here: Array | None = None
    """(H, W, 2) previous frame → this one."""
    back_here: Array | None = None
    """(H, W, 2) this frame → previous."""
    sigma_here: Array | None = None
    """(H, W) of ``flow_here``."""
    way_here: tuple[Array, Array] | None = None
    """``flow_here`` on the grid, (h, w, 2), and its doubts, (h, w), see ``dense.Link``; None until asked for."""
    motion: Array | None = None
    """(H, W) probability so far."""
    prior_depth: Array | None = None
    """(H, W) depth as the model sees it, its own scale."""

    @classmethod
    def of(cls, frame: Frame, pyramid: tuple[Array, ...], local_map: LocalMap) -> Record:
        """Begin a record for a frame."""
        N = len(local_map.host)
        return cls(
            frame.index, frame.timestamp_ns, frame.rgb, pyramid, np.zeros((N, 2)), np.full(N, np.inf), np.zeros((N, 3)),
            np.eye(3, 4), -1, np.eye(4), np.zeros(0, np.int64), np.zeros(0), np.zeros((6, 6)),
        )  # fmt: skip

    def state(self, prefix: str) -> State:
        """Return what ``restore`` needs; the pyramid is made of the image again."""
        whole = pack(prefix, self)
        return {name: a for name, a in whole.items() if not name.startswith(f"{prefix}.pyramid")}

    @classmethod
    def restore(cls, prefix: str, state: State) -> Record:
        """Return the record that gave ``state``."""
        none = np.zeros(0)
        empty = cls(0, 0, none, (), none, none, none, none, -1, none, none, none, none)
        record = unpack(prefix, state, empty)
        record.pyramid = patches.pyramid(record.rgb)
        return record

    def take(self, maps: Maps, previous: Record | None) -> None:
        """Keep what the model predicted of this frame."""
        self.flow_here, self.back_here, self.sigma_here = maps.flow, maps.flow_backward, maps.sigma
        self.motion, self.prior_depth = maps.motion, maps.depth
        self.segment = previous.segment if previous is not None else 0

    def link_here(self, pose: Array | None) -> Link | None:
        """Return the way from the previous frame to this one, of the given pose; None without flow."""
        flow, back = self.flow_here, self.back_here
        if flow is None or back is None:
            return None
        if self.way_here is None:
            self.way_here = dense.way_of(flow, back, self.sigma_here)
        return Link(*self.way_here, pose)

    def set_pose(self, pose: Array, local_map: LocalMap, *, tracked: bool) -> None:
        """Place the frame, remembering where it stands relative to the newest keyframe."""
        self.pose, self.is_tracked = np.array(pose[:3]), tracked
        slot = local_map.newest
        self.reference = int(local_map.frame_index[slot])
        self.from_reference[:3] = track.relative_pose(self.pose, local_map.poses[slot])

    def see(self, rows: Array, uv: Array, info: Array) -> None:
        """See patches where alignment found them; ``info`` (n, 3) as in ``patches.align``."""
        self.uv[rows], self.var[rows], self.info[rows] = uv, patches.ALIGN_FLOOR_VAR, info

    def see_own(self, rows: Array, uv: Array) -> None:
        """See patches where they were just chosen in this very frame."""
        self.see(rows, uv, patches.isotropic(np.full(len(rows), patches.ALIGN_FLOOR_VAR)))

    def usable(self) -> Array | None:
        """Return where patches may be chosen: not on movers."""
        return None if self.motion is None else np.nan_to_num(self.motion, nan=1.0) < 0.3


def relative(record: Record, local_map: LocalMap) -> Array:
    """Return the record's pose, carried along with whatever happened to its reference keyframe."""
    slot = local_map.slot_of(record.reference)
    if slot < 0:
        return record.pose
    out = record.from_reference[:3, :3] @ local_map.poses[slot]
    out[:, 3] += record.from_reference[:3, 3]
    return np.asarray(out)


def to_world_from_cam(pose: Array) -> Array:
    """Invert camera-from-world (..., 3, 4) into rigid (..., 4, 4)."""
    turned_back = np.swapaxes(project_to_so3(pose[..., :3]), -1, -2)
    return rigid(turned_back, -(turned_back @ pose[..., 3:])[..., 0])

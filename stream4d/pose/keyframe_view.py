"""What a listener sees of a keyframe, and how it answers: the door through which loop closure acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from stream4d.packets import Array, State
from stream4d.pose import track
from stream4d.pose.map import LocalMap
from stream4d.pose.record import to_world_from_cam

Correction = Mapping[int, Array]
"""Frame index → Sim(3) (4, 4), new world from old world, at that frame; frames in between are interpolated."""


@dataclass(frozen=True, slots=True, eq=False)
class KeyframeView:
    """One keyframe as it stands now; arrays are copies."""

    index: int
    """Frame index."""
    segment: int
    """As in ``PosedFrame``: views of different segments share no scale or origin."""
    grey: Array
    """(H, W) uint8, lightly smoothed."""
    uv: Array
    """(n, 2) pixels of the patches it sees, its own and others'."""
    inverse_depth: Array
    """(n,) of those patches in this camera, world units."""
    inverse_depth_info: Array
    """(n,) 1/variance of ``inverse_depth``; a fresh patch has only what it inherited (about 50 % off)."""
    world_from_cam: Array
    """(4, 4) rigid."""
    K: Array
    """(3, 3)."""
    drift: Array = field(default_factory=lambda: np.zeros((7, 7)))
    """(7, 7) covariance of the drift since the keyframe before it in the map: left tangent of Sim(3), world."""
    focal_bias: Array = field(default_factory=lambda: np.zeros(7))
    """(7,) drift since then by a focal length that is wrong by its 1σ."""


class KeyframeListener(Protocol):
    """Anything that wants to see keyframes come and go, and may bend the path."""

    def enters(self, keyframe: KeyframeView) -> Correction | None:
        """See a keyframe that has just been adjusted for the first time; a correction is applied at once."""

    def leaves(self, keyframe: KeyframeView) -> None:
        """See a keyframe for the last time: its pose and depths are final, but for later corrections."""

    def take_drift(self) -> dict[int, Array]:
        """Return what a loop that has just been closed leaves of the drift, frame index → (7, 7); empty: no news."""

    def state(self) -> State:
        """Return what ``restore`` needs."""

    def restore(self, state: State) -> None:
        """Go on from an earlier ``state``."""


class NullListener:
    """Sees keyframes and says nothing."""

    def enters(self, keyframe: KeyframeView) -> Correction | None:
        """Ask for no correction."""
        return None

    def leaves(self, keyframe: KeyframeView) -> None:
        """Forget it."""

    def take_drift(self) -> dict[int, Array]:
        """Know of none."""
        return {}

    def state(self) -> State:
        """Return nothing."""
        return {}

    def restore(self, state: State) -> None:
        """Need nothing."""


def view_of(local_map: LocalMap, slot: int, segment: int) -> KeyframeView:
    """Return what a keyframe of the map looks like from outside."""
    own = local_map.host == slot
    seen = np.flatnonzero(
        (local_map.host >= 0) & (own | np.isfinite(local_map.var[slot])) & (local_map.rho > 0)
    )
    _, z = track.project_rows(local_map, seen, local_map.poses[slot])
    seen, z = seen[z > 1e-6], z[z > 1e-6]
    uv = np.where(own[seen, None], local_map.uv0[seen], local_map.uv[slot, seen])
    return KeyframeView(
        index=int(local_map.frame_index[slot]), segment=segment, grey=local_map.images[0][slot].copy(),
        uv=uv, inverse_depth=local_map.rho[seen] / z, inverse_depth_info=local_map.rho_info[seen] * z**2,
        world_from_cam=to_world_from_cam(local_map.poses[slot]), K=local_map.K.copy(),
        **_drift_since(local_map, slot),
    )  # fmt: skip


def _drift_since(local_map: LocalMap, slot: int) -> dict[str, Array]:
    """Return the drift since the keyframe before; of the oldest one, since the first frame."""
    order = local_map.order
    at = int(np.flatnonzero(order == slot)[0])
    drift, bias = local_map.covariance[slot].copy(), local_map.focal_bias[slot].copy()
    if at > 0:
        drift -= local_map.covariance[order[at - 1]]
        bias -= local_map.focal_bias[order[at - 1]]
    return {"drift": drift, "focal_bias": bias}

"""Frames that have left the chain, kept so that they can still be revised; bounded."""

from __future__ import annotations

import numpy as np

from stream4d.packets import Array, State
from stream4d.pose.record import FLOATING

MAX_DEPARTED = 2**15
"""Frames remembered (about 300 bytes each); of a longer video the oldest can no longer be revised."""
NO_KEYFRAME = -1
UPPER = np.triu_indices(6)


class Departed:
    """Poses of frames that have left, in order of index."""

    def __init__(self) -> None:
        self._count = 0
        self._ids = np.zeros((64, 2), np.int64)
        self._poses = np.zeros((64, 2, 3, 4))
        self._own = np.zeros((64, len(UPPER[0])), np.float32)
        self._views = np.zeros((64, 2))

    @property
    def index(self) -> Array:
        """(n,) frame index."""
        return self._ids[: self._count, 0]

    @property
    def reference(self) -> Array:
        """(n,) index of the keyframe that the frame hangs on, ``NO_KEYFRAME`` where that one is done with."""
        return self._ids[: self._count, 1]

    @property
    def from_reference(self) -> Array:
        """(n, 3, 4) camera-from-reference."""
        return self._poses[: self._count, 0]

    @property
    def pose(self) -> Array:
        """(n, 3, 4) camera-from-world as last told."""
        return self._poses[: self._count, 1]

    @property
    def focal(self) -> Array:
        """(n,) fx in pixels under which the frame hangs on its keyframe."""
        return self._views[: self._count, 0]

    @property
    def stretch(self) -> Array:
        """(n,) factor of its depth since it was last told."""
        return self._views[: self._count, 1]

    @property
    def own(self) -> Array:
        """(n, 6, 6) the part of its covariance that is not drift."""
        out = np.zeros((self._count, 6, 6))
        out[:, UPPER[0], UPPER[1]] = out[:, UPPER[1], UPPER[0]] = self._own[: self._count]
        return out

    @property
    def is_lost(self) -> Array:
        """(n,) bool: its pose was only predicted, so that all of its covariance is its own."""
        return np.asarray(self._own[: self._count, 0] >= FLOATING[0, 0])

    def add(
        self, index: int, reference: int, from_reference: Array, pose: Array, own: Array, focal: float
    ) -> None:  # fmt: skip
        """Remember one more frame."""
        if self._count == len(self._ids):
            self._make_room()
        self._ids[self._count] = index, reference
        self._poses[self._count] = from_reference, pose
        self._own[self._count] = own[UPPER]
        self._views[self._count] = focal, 1.0
        self._count += 1

    def _make_room(self) -> None:
        """Double the room; at the most there may be, forget the older half: each copy pays for many frames."""
        forgets = self._count >= MAX_DEPARTED
        kept = slice(self._count - self._count // 2 if forgets else 0, self._count)
        self._count = kept.stop - kept.start
        for name in ("_ids", "_poses", "_own", "_views"):
            held = getattr(self, name)
            room = held if forgets else np.concatenate([held, np.zeros_like(held)])
            room[: self._count] = held[kept].copy()
            setattr(self, name, room)

    def settle(self, reference: int | None = None) -> None:
        """Take the frames that hang on a keyframe (or on any) off it: its pose is final."""
        on_it = slice(None) if reference is None else self.reference == reference
        self.reference[on_it] = NO_KEYFRAME

    def forget(self) -> None:
        """Forget all frames: a new segment begins."""
        self._count = 0

    def state(self) -> State:
        """Return what ``restore`` needs."""
        known = slice(0, self._count)
        return {
            "ids": self._ids[known].copy(), "poses": self._poses[known].copy(), "own": self._own[known].copy(),
            "views": self._views[known].copy(),
        }  # fmt: skip

    @classmethod
    def restore(cls, state: State) -> Departed:
        """Return the frames that gave ``state``."""
        out = cls()
        whole = np.zeros((6, 6))
        arrays = (state[name] for name in ("ids", "poses", "own", "views"))
        for ids, poses, own, (focal, stretch) in zip(*arrays, strict=True):
            whole[UPPER] = own
            out.add(int(ids[0]), int(ids[1]), poses[0], poses[1], whole, focal)
            out.stretch[-1] = stretch
        return out

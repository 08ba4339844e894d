"""What the chain knows while it runs: the map, the frames in hand, those that have left, and how things stand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stream4d.config import ChainConfig
from stream4d.geometry import camera
from stream4d.packets import Array, Frame, PoseRevision, State
from stream4d.pose.candidates import Candidates
from stream4d.pose.dense import DenseState
from stream4d.pose.densify import Densifier
from stream4d.pose.departed import Departed
from stream4d.pose.focal import Focal
from stream4d.pose.keyframe_view import KeyframeListener, NullListener
from stream4d.pose.map import LocalMap
from stream4d.pose.record import Record
from stream4d.pose.state import nested, pack, part, unpack

_SCALARS = (
    "started",
    "focal_known",
    "segment",
    "lost",
    "tracked_before",
)
"""Fields that the state holds as numbers."""


@dataclass(slots=True, eq=False)
class Progress:
    """The state of one run; the chain's modules change it in turn."""

    config: ChainConfig
    map: LocalMap
    listener: KeyframeListener = field(default_factory=NullListener)
    records: list[Record] = field(default_factory=list)
    """Frames in hand, oldest first."""
    started: bool = False
    """True while the map has depth."""
    focal_known: bool = False
    focal: Focal = field(default_factory=Focal)
    """What is known of it besides what the map shows."""
    candidates: Candidates = field(default_factory=Candidates)
    """Motions found in the anchor's tracks, while there is no map."""
    segment: int = 0
    lost: int = 0
    """Frames since a pose was last measured."""
    tracked_before: int = 0
    """Patches that the previous frame saw."""
    velocity: Array = field(default_factory=lambda: np.eye(4))
    """(4, 4) camera-from-previous-camera of the last two measured frames."""
    densifier: Densifier = field(default_factory=Densifier)
    """Depth and motion of the frames that leave."""
    departed: Departed = field(default_factory=Departed)
    revisions: list[PoseRevision] = field(default_factory=list)
    """Corrections of departed frames that nobody has fetched yet."""
    entered: list[int] = field(default_factory=list)
    """Indices of the keyframes made in this step, which the listener has not seen yet."""

    @classmethod
    def begin(cls, frame: Frame, config: ChainConfig, listener: KeyframeListener) -> Progress:
        """Return what is known before the first frame: its size, perhaps its intrinsics."""
        H, W = frame.rgb.shape[:2]
        guess = camera.centred_K(camera.default_focal(W, H), W, H)
        K = np.array(guess if frame.K is None else frame.K, np.float64)
        return cls(
            config, _empty_map(H, W, config, K), listener, focal_known=frame.K is not None,
            focal=Focal.usual(max(H, W)),
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int]:
        """H, W of the frames."""
        return self.map.height, self.map.width

    @property
    def size(self) -> int:
        """The frames' long side in pixels."""
        return max(self.shape)

    @property
    def is_focal_sure(self) -> bool:
        """The focal length was given, or is known as well as it will be."""
        return self.focal_known or self.focal.settled

    def state(self) -> State:
        """Return everything that ``restore`` needs; bounded by the lag and the keyframes."""
        out: State = {"scalars": np.array([getattr(self, name) for name in _SCALARS], np.float64)}
        out["velocity"] = self.velocity.copy()
        out["shape"] = np.array(self.shape)
        out["count"] = np.array(len(self.records))
        out |= pack("map", self.map) | pack("focal", self.focal)
        out |= pack("candidates", self.candidates)
        if (known := self.densifier.state()) is not None:
            out |= pack("dense", known)
        for i, record in enumerate(self.records):
            out |= record.state(f"record{i:03d}")
        return (
            out
            | nested("departed", self.departed.state())
            | nested("listener", self.listener.state())
        )

    @classmethod
    def restore(cls, state: State, config: ChainConfig, listener: KeyframeListener) -> Progress:
        """Return the progress that gave ``state``."""
        H, W = (int(n) for n in state["shape"])
        out = cls(
            config, unpack("map", state, _empty_map(H, W, config, np.eye(3))), listener,
            velocity=np.array(state["velocity"]), departed=Departed.restore(part("departed", state)),
            focal=unpack("focal", state, Focal()),
        )  # fmt: skip
        for name, value in zip(_SCALARS, state["scalars"], strict=True):
            setattr(out, name, type(getattr(out, name))(value))
        for i in range(int(state["count"])):
            out.records.append(Record.restore(f"record{i:03d}", state))
        if "candidates.rho" in state:
            out.candidates = unpack("candidates", state, Candidates())
        if "dense.rho" in state:
            out.densifier = Densifier(unpack("dense", state, DenseState()))
        listener.restore(part("listener", state))
        return out


def _empty_map(H: int, W: int, config: ChainConfig, K: Array) -> LocalMap:
    return LocalMap(H, W, 2 * config.keyframes, 2 * config.patches, K)

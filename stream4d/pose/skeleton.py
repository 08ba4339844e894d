"""The path's skeleton: keyframes joined by odometry, and the loops found over them. Bounded however long the path.

Each keyframe is a node of the Sim(3) graph with a unit of its own: that of the map when it was made. Steps between
neighbours are measured when the later one leaves the map.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array, State
from stream4d.pose import graph, loop_drift

MAX_NODES = 640
"""Keyframes kept; of a longer path the most crowded ones are merged with their neighbours."""
MAX_LOOPS = 32
"""Loops kept; the most crowded in time go first."""
STEP_SIGMA = np.array([0.003, 0.003, 0.003, 0.002, 0.002, 0.002, 0.003])
"""1σ of a step between keyframes: translation over the depth, radians, log scale."""
LIVE_SHARE = 1 / 9
"""Variance of steps inside the map against others: its keyframes still hold each other."""
MAX_COST = 50.0
"""What a loop may add to the graph's cost: chance gives 24 in one of a thousand, steps are not all alike."""


@dataclass(slots=True, eq=False)
class Skeleton:
    """n nodes in order of time and m loops."""

    index: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """(n,) frame index."""
    pose: Array = field(default_factory=lambda: np.zeros((0, 4, 4)))
    """(n, 4, 4) similarity, world-from-node."""
    unit: Array = field(default_factory=lambda: np.zeros(0))
    """(n,) the map's unit over the node's, as corrections changed it while the node was in the map."""
    is_live: Array = field(default_factory=lambda: np.zeros(0, bool))
    """(n,) True while in the map."""
    depth: Array = field(default_factory=lambda: np.zeros(0))
    """(n,) median depth, the node's unit."""
    step: Array = field(default_factory=lambda: np.zeros((0, 4, 4)))
    """(n, 4, 4) previous-from-node."""
    step_covariance: Array = field(default_factory=lambda: np.zeros((0, 7, 7)))
    """(n, 7, 7) of its right tangent."""
    drift: Array = field(default_factory=lambda: np.zeros((0, 7, 7)))
    """(n, 7, 7) covariance of the drift since the node before, as stated: right tangent, in the node's unit."""
    focal_bias: Array = field(default_factory=lambda: np.zeros((0, 7)))
    """(n, 7) drift since the node before by a focal length wrong by its 1σ: right tangent."""
    loops: Array = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """(m, 2) frame indices: of the place, and of the keyframe that came back."""
    loop: Array = field(default_factory=lambda: np.zeros((0, 4, 4)))
    """(m, 4, 4) place-from-keyframe."""
    loop_covariance: Array = field(default_factory=lambda: np.zeros((0, 7, 7)))
    """(m, 7, 7) of its right tangent."""
    cost: Array = field(default_factory=lambda: np.zeros(()))
    """() of the graph when it was last solved."""

    def __len__(self) -> int:
        return len(self.index)

    def at(self, index: int) -> int:
        """Return the node of a frame, −1 where there is none."""
        found = np.flatnonzero(self.index == index)
        return int(found[0]) if len(found) else -1

    def between(self, a: int, b: int) -> Array:
        """Return a-from-b of two nodes along the steps as measured, whatever loops did since."""
        if a > b:
            return transforms.invert(self.between(b, a))
        out = np.eye(4)
        for k in range(a + 1, b + 1):
            out = out @ self.step[k]
        return out

    def enter(
        self, index: int, world_from_cam: Array, depth: float, drift: Array, focal_bias: Array
    ) -> None:
        """Add the newest keyframe; ``drift`` and ``focal_bias`` since the one before are in the world."""
        before = self.pose[-1] if len(self) else world_from_cam
        sigma = STEP_SIGMA * [depth, depth, depth, 1, 1, 1, 1]
        self._append(
            index=index, pose=world_from_cam, unit=1.0, is_live=True, depth=depth,
            step=transforms.invert(before) @ world_from_cam, step_covariance=np.diag(sigma**2),
            **loop_drift.in_node(world_from_cam, drift, focal_bias),
        )  # fmt: skip

    def remaining_drift(self) -> dict[int, Array]:
        """Return frame index → (7, 7) drift in the world since the first node, as the loops leave it."""
        ends = np.searchsorted(self.index, self.loops)
        left = loop_drift.remaining(
            self.pose, self.drift, self.focal_bias, ends, self.loop_covariance
        )
        return dict(zip(self.index.tolist(), left, strict=True))

    def leave(self, index: int, world_from_cam: Array) -> float:
        """Settle a keyframe with its final pose; returns the map's unit over the node's."""
        k = self.at(index)
        c = float(self.unit[k])
        self.pose[k] = world_from_cam @ np.diag([c, c, c, 1.0])
        self.is_live[k] = False
        for i in (k, k + 1):
            if 0 < i < len(self):
                self.step[i] = transforms.invert(self.pose[i - 1]) @ self.pose[i]
        return c

    def close(
        self, place: int, here: int, relative: Array, covariance: Array, free: Array
    ) -> Array | None:
        """Add a loop, if the path can bear it; returns better poses (n, 4, 4), or None."""
        kept = self.loops, self.loop, self.loop_covariance
        self.loops = np.concatenate([self.loops, [[place, here]]])
        self.loop = np.concatenate([self.loop, relative[None]])
        self.loop_covariance = np.concatenate([self.loop_covariance, covariance[None]])
        solution = self._solve(free)
        if not solution.ok or solution.cost - self.cost > MAX_COST:
            self.loops, self.loop, self.loop_covariance = kept
            return None
        self.cost = np.array(solution.cost)
        if len(self.loops) > MAX_LOOPS:
            self._drop_loop(_most_crowded(self.loops[:, 1]))
        return solution.poses

    def move(self, moves: Array) -> None:
        """Apply (n, 4, 4) similarities, new-world-from-old."""
        self.pose = moves @ self.pose
        self.unit = np.where(self.is_live, self.unit * transforms.scale_of(moves), self.unit)

    def thin(self, keep: Array) -> None:
        """Merge nodes until there are few enough; those in ``keep`` (frame indices), loops' and live ones stay."""
        while len(self) > MAX_NODES:
            stays = self.is_live | np.isin(self.index, keep) | np.isin(self.index, self.loops)
            stays[[0, -1]] = True
            gap = np.where(stays[1:-1], np.inf, self.index[2:] - self.index[:-2])
            if not np.isfinite(gap).any():
                return
            self._merge(1 + int(np.argmin(gap)))

    def state(self) -> State:
        """Return what ``restore`` needs."""
        return {f.name: getattr(self, f.name).copy() for f in dataclasses.fields(self)}

    @classmethod
    def restore(cls, state: State) -> Skeleton:
        """Return the skeleton that gave ``state``."""
        return cls(**{f.name: np.array(state[f.name]) for f in dataclasses.fields(cls)})

    def _append(self, **row: object) -> None:
        for name, value in row.items():
            column = getattr(self, name)
            added = np.asarray(value, column.dtype)[None]
            setattr(self, name, np.concatenate([column, added]))

    def _solve(self, free: Array) -> graph.GraphSolution:
        n = len(self)
        both_live = self.is_live[1:] & self.is_live[:-1]
        steps = self.step_covariance[1:] * np.where(both_live, LIVE_SHARE, 1.0)[:, None, None]
        ends = np.searchsorted(self.index, self.loops)
        chain = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
        edges = graph.Edges(
            nodes=np.concatenate([chain, ends]),
            measured=np.concatenate([self.step[1:], self.loop]),
            covariance=np.concatenate([steps, self.loop_covariance]),
            is_loop=np.arange(n - 1 + len(ends)) >= n - 1,
        )
        return graph.optimise(self.pose, edges, free)

    def _merge(self, k: int) -> None:
        """Take out a node; the step over it is composed of the two around it."""
        self.step[k + 1], self.step_covariance[k + 1] = graph.chained(
            self.step[k], self.step_covariance[k], self.step[k + 1], self.step_covariance[k + 1]
        )
        self.drift[k + 1], self.focal_bias[k + 1] = loop_drift.chained(
            self.pose[k : k + 2], self.drift[k : k + 2], self.focal_bias[k : k + 2]
        )
        for name in _OF_NODES:
            setattr(self, name, np.delete(getattr(self, name), k, axis=0))

    def _drop_loop(self, i: int) -> None:
        for name in ("loops", "loop", "loop_covariance"):
            setattr(self, name, np.delete(getattr(self, name), i, axis=0))


_OF_NODES = (
    "index", "pose", "unit", "is_live", "depth", "step", "step_covariance", "drift", "focal_bias",
)  # fmt: skip


def _most_crowded(times: Array) -> int:
    """Return which of the times, neither the first nor the last, has the nearest neighbours."""
    order = np.argsort(times, kind="stable")
    gap = times[order][2:] - times[order][:-2]
    return int(order[1 + int(np.argmin(gap))])

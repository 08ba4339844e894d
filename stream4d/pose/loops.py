"""Loop closure: sees keyframes come and go, knows a place again, and bends the path so that it meets itself.

A keyframe that has just been made is compared with places that left the map (``places``), the likeliest are measured
(``recognise``), and what is found joins the Sim(3) graph of the path (``skeleton``). The correction goes back to the
chain, which moves the map, the frames in hand and those that have left. Work per keyframe and memory are bounded.
"""

from __future__ import annotations

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array, State
from stream4d.pose import descriptors, patches, recognise
from stream4d.pose.departed import MAX_DEPARTED
from stream4d.pose.keyframe_view import Correction, KeyframeView
from stream4d.pose.places import MAX_PLACES, Place, PlaceMemory
from stream4d.pose.skeleton import Skeleton
from stream4d.pose.state import nested, part

KNOWN_DEPTH = 400.0
"""Information of the log of a depth (5 %) from which a patch may speak for its keyframe."""
LOOK_EVERY = 2
"""Keyframes from one that is described and searched for to the next. Neighbours show nearly the same."""
PAUSE = 4
"""Keyframes at least from a measured loop to the next search: what the path gains from more is little."""
PAUSE_SHARE = 1 / 20
"""The same as a share of the path's keyframes: a longer path costs more to bend, so it is bent less often."""
MAX_TRIES = 2
"""Places measured per keyframe."""
NEIGHBOURS = 3
"""Other places around a candidate that must confirm it and show the scale."""
NEIGHBOUR_STEPS = 2
"""Steps between the place and such a neighbour at most: enough for a baseline, near enough to be exact."""
THINNED_SHARE = 1 / 12
"""Share of the places forgotten when there are too many: to find the most crowded costs more than to forget it."""
WORTH_IT = 0.002
"""Bend of the path, over the depth or in radians, below which the world is left in peace."""
RADIANS = 1.0
"""A turn by this counts as a way of one depth, where nearness is asked for."""


class LoopCloser:
    """A ``KeyframeListener`` that closes loops within a segment."""

    def __init__(self) -> None:
        self._memory = PlaceMemory()
        self._skeleton = Skeleton()
        self._segment = 0
        self._wait = 0
        self.closed = 0
        """Loops found so far."""
        self._has_news = False

    def enters(self, keyframe: KeyframeView) -> Correction | None:
        """Look for where the keyframe has been before; returns how the path bends, if it does."""
        if keyframe.segment != self._segment:
            self._begin(keyframe.segment)
        depth = 1 / np.median(keyframe.inverse_depth) if len(keyframe.inverse_depth) else 1.0
        self._skeleton.enter(
            keyframe.index,
            keyframe.world_from_cam,
            float(depth),
            keyframe.drift,
            keyframe.focal_bias,
        )
        self._wait -= 1
        looks = self._wait <= 0
        here = self._memory.enter(keyframe.index, keyframe.grey, keyframe.uv, described=looks)
        if not looks:
            return None
        self._wait = LOOK_EVERY
        candidates = self._memory.search(here, MAX_TRIES)
        if not candidates:
            return None
        sighting = _sighting(keyframe)
        for place in candidates:
            found = recognise.recognise(sighting, place, self._neighbours(place))
            if found is not None:
                return self._close(place, keyframe, found)
        return None

    def leaves(self, keyframe: KeyframeView) -> None:
        """Remember the keyframe as a place."""
        place = self._memory.of(keyframe.index)
        if place is None or self._skeleton.at(keyframe.index) < 0:
            return  # of an earlier segment
        unit = self._skeleton.leave(keyframe.index, keyframe.world_from_cam)
        known = keyframe.inverse_depth_info * keyframe.inverse_depth**2 > KNOWN_DEPTH
        place.uv = keyframe.uv[known].astype(np.float32)
        place.rho = keyframe.inverse_depth[known] * unit
        place.is_live = False
        settled = [p for p in self._memory.places if not p.is_live]
        if len(settled) > MAX_PLACES:
            self._thin_places(settled)
        self._skeleton.thin(np.array([p.index for p in self._memory.places]))

    def take_drift(self) -> dict[int, Array]:
        """Return what the loops leave of the drift, once after each loop: frame index → (7, 7) in the world."""
        news, self._has_news = self._has_news, False
        return self._skeleton.remaining_drift() if news else {}

    def state(self) -> State:
        """Return what ``restore`` needs; bounded."""
        out: State = {"counts": np.array([self._segment, self.closed, self._wait])}
        out |= nested("memory", self._memory.state())
        return out | nested("skeleton", self._skeleton.state())

    def restore(self, state: State) -> None:
        """Go on from an earlier ``state``."""
        self._segment, self.closed, self._wait = (int(n) for n in state["counts"])
        self._memory = PlaceMemory.restore(part("memory", state))
        self._skeleton = Skeleton.restore(part("skeleton", state))

    def _begin(self, segment: int) -> None:
        """Forget all places: they share no scale or origin with what comes."""
        self._segment = segment
        self._memory = PlaceMemory(vocabulary=self._memory.vocabulary)
        self._skeleton = Skeleton()

    def _close(
        self, place: Place, keyframe: KeyframeView, found: recognise.Recognition
    ) -> Correction | None:
        skeleton = self._skeleton
        # what can no longer be revised stays, and later frames come back to it
        free = skeleton.index > keyframe.index - MAX_DEPARTED // 2
        free[0] = False
        poses = skeleton.close(
            place.index, keyframe.index, found.place_from_here, found.covariance, free
        )
        self._wait = max(PAUSE, round(PAUSE_SHARE * len(skeleton)))  # refused ones cost as much
        if poses is None:
            return None
        self.closed += 1
        self._has_news = True
        moves = poses @ transforms.invert(skeleton.pose)
        bend = _bend(moves, skeleton)
        if bend[-1] < WORTH_IT:
            return None
        moves[bend < 0.1 * WORTH_IT] = np.eye(4)
        skeleton.move(moves)
        return dict(zip(skeleton.index.tolist(), moves, strict=True))

    def _neighbours(self, place: Place) -> list[tuple[Place, Array]]:
        """Return places made shortly before and after, with other-from-place similarities along the steps."""
        own = self._skeleton.at(place.index)
        others = []
        for other in self._memory.places:
            k = self._skeleton.at(other.index)
            if not other.is_live and 0 < abs(k - own) <= NEIGHBOUR_STEPS:
                others.append((abs(k - own), other, self._skeleton.between(k, own)))
        others.sort(key=lambda item: (-item[0], item[1].index))
        return [(other, relative) for _, other, relative in others[:NEIGHBOURS]]

    def _thin_places(self, settled: list[Place]) -> None:
        """Forget, several at once, the places that are nearest to one before them."""
        nodes = np.array([self._skeleton.at(p.index) for p in settled])
        distance = _apart(self._skeleton, nodes)
        distance[np.triu_indices(len(nodes))] = np.inf
        for _ in range(max(round(THINNED_SHARE * MAX_PLACES), 1)):
            crowded = int(distance.min(axis=1).argmin())
            distance[crowded], distance[:, crowded] = np.inf, np.inf
            self._memory.drop(settled[crowded].index)


def _sighting(keyframe: KeyframeView) -> recognise.Sighting:
    information = keyframe.inverse_depth_info * keyframe.inverse_depth**2
    rows = np.flatnonzero(information > KNOWN_DEPTH)
    rows = rows[np.argsort(-information[rows], kind="stable")[: recognise.MAX_PATCHES]]
    described, bits = descriptors.describe_at(keyframe.grey, keyframe.uv[rows])
    rows = rows[described]
    return recognise.Sighting(
        pyramid=tuple(level[None] for level in patches.levels_of(keyframe.grey)), K=keyframe.K, uv=keyframe.uv[rows],
        rho=keyframe.inverse_depth[rows], rho_var=1 / keyframe.inverse_depth_info[rows],
        descriptors=bits,
    )  # fmt: skip


def _bend(moves: Array, skeleton: Skeleton) -> Array:
    """Return how much each node moves: of its depth, in radians or in log scale, whichever is most."""
    scale, R, _ = transforms.decompose(moves)
    moved = transforms.transform_points(moves, skeleton.pose[:, None, :3, 3])[:, 0]
    depth = skeleton.depth * transforms.scale_of(skeleton.pose)
    way = np.linalg.norm(moved - skeleton.pose[:, :3, 3], axis=1) / depth
    turn = np.linalg.norm(transforms.so3_log(R), axis=1)
    return np.maximum(np.maximum(way, turn), np.abs(np.log(scale)))


def _apart(skeleton: Skeleton, nodes: Array) -> Array:  # (n,) -> (n, n)
    """Return how far nodes stand from each other: way over the column's depth, plus turn."""
    scale, R, centre = transforms.decompose(skeleton.pose[nodes])
    way = np.linalg.norm(centre[:, None] - centre[None], axis=-1) / (skeleton.depth[nodes] * scale)
    flat = R.reshape(-1, 9)
    turn = np.arccos(np.clip((flat @ flat.T - 1) / 2, -1, 1))
    return np.asarray(way + turn / RADIANS)

"""Points followed through the video: chosen for texture and spread, on what stands still and on what moves.

A point follows the optical flow to the next frame, where going there and back must end where it began; its place is
then sharpened against the patch around it, so that chained flow does not drift. A point that is lost is carried on
with its neighbours for a while and looked for; if it does not come back, its number ends and its slot takes a new
point. Depth is read from the frame's map when the frame leaves the pose chain, so that 3D follows from pose and depth.
"""

from __future__ import annotations

import dataclasses
import itertools

import cv2
import numpy as np

from stream4d.geometry import camera
from stream4d.geometry.flow import sample
from stream4d.packets import Array, FrameTracks, PosedFrame, Prediction, State, VideoInfo, Window
from stream4d.pose import _kernels_align, patches

RETURN_PX, RETURN_SHARE = 1.0, 0.05
"""Going there and back may miss by this, and by this share of the way."""
SURE = 0.9
"""Correlation with the patch from which it is believed even against the flow …"""
ALIKE = 0.75
"""… and below which the patch has changed and is taken anew."""
ROOM_PX = 1.5
"""How far the patch may move a point from where flow has brought it; four times that where it was lost."""
HIDDEN_FRAMES = 12
"""Frames that a lost point is looked for."""
NEIGHBOURS = 5
"""Visible points whose mean motion carries a hidden one."""
MOVING_SHARE = 0.25
"""Share of the points that may be put on movers beyond their share of the image."""
MOVING_FROM = 0.5
SIDE = _kernels_align.SIDE + 2
_STEPS = 12
_NEAR = np.ones((_kernels_align.SIDE, _kernels_align.SIDE), np.uint8)


class PointTracker:
    """Follows ``count`` points at a time. Memory: their patches, and the rows of frames that are held back."""

    def __init__(self, count: int, info: VideoInfo) -> None:
        self._count = count
        self._size = max(info.height, info.width)
        self._next_id = 0
        self._id = np.full(count, -1, np.int32)
        self._uv = np.full((count, 2), np.nan)
        self._hidden = np.zeros(count, np.int64)
        self._patch = np.zeros((count, SIDE, SIDE))
        self._grey = np.zeros((0, 0), np.uint8)
        self._moving = np.zeros((info.height, info.width), bool)
        self._rows: dict[int, tuple[Array, Array, Array]] = {}
        self._dis: cv2.DISOpticalFlow | None = None

    def follow(self, window: Window, prediction: Prediction) -> None:
        """Carry the points into the window's new frames."""
        if not self._count:
            return
        for k in range(window.overlap, len(window.frames)):
            grey = patches.pyramid(window.frames[k].rgb)[0]
            if prediction.motion_prob is not None:
                self._moving = np.nan_to_num(prediction.motion_prob[k]) > MOVING_FROM
            if self._grey.size:
                self._advance(grey, *self._flows(prediction, k - 1, grey))
            self._grey = grey
            self._seed(grey)
            visible = (self._id >= 0) & (self._hidden == 0)
            row = self._id.copy(), self._uv.astype(np.float32), visible
            self._rows[window.frames[k].index] = row

    def attach(self, frame: PosedFrame) -> PosedFrame:
        """Return the frame with its points, their depth read from its map."""
        if not self._count:
            return frame
        self._moving = frame.motion_prob > MOVING_FROM
        number, uv, visible = self._rows.pop(frame.index)
        depth = np.full(len(number), np.nan, np.float32)
        depth[visible] = _depth_at(frame.depth, uv[visible])
        tracks = FrameTracks(id=number, uv=uv, visible=visible, depth=depth)
        return dataclasses.replace(frame, tracks=tracks)

    def state(self) -> State:
        """Return what ``restore`` needs."""
        if not self._count:
            return {}
        indices = sorted(self._rows)
        rows = [self._rows[i] for i in indices]
        held = {
            name: np.array([row[i] for row in rows]).reshape(len(rows), self._count, *shape)
            for i, (name, shape) in enumerate((("id", ()), ("uv", (2,)), ("visible", ())))
        }
        return {
            "next_id": np.array(self._next_id), "id": self._id.copy(), "uv": self._uv.copy(),
            "hidden": self._hidden.copy(), "patch": self._patch.copy(), "grey": self._grey,
            "moving": np.packbits(self._moving, axis=1), "rows.index": np.array(indices, np.int64),
            **{f"rows.{name}": value for name, value in held.items()},
        }  # fmt: skip

    def restore(self, state: State) -> None:
        """Go on from an earlier ``state``."""
        if not self._count:
            return
        self._next_id = int(state["next_id"])
        self._id, self._uv = np.array(state["id"]), np.array(state["uv"])
        self._hidden, self._patch = np.array(state["hidden"]), np.array(state["patch"])
        self._grey = np.array(state["grey"])
        width = self._moving.shape[1]
        self._moving = np.unpackbits(state["moving"], axis=1, count=width).astype(bool)
        parts = (state["rows.id"], state["rows.uv"], state["rows.visible"])
        self._rows = {
            int(index): (id_, uv, visible.astype(bool))
            for index, id_, uv, visible in zip(state["rows.index"], *parts, strict=True)
        }

    # -- one step ------------------------------------------------------------------------------------------

    def _flows(self, prediction: Prediction, k: int, grey: Array) -> tuple[Array, Array]:
        """Return the flow from the frame before and back: the model's, or DIS where it gives none."""
        if prediction.flow is not None and prediction.flow_backward is not None:
            return prediction.flow[k], prediction.flow_backward[k]
        if self._dis is None:
            self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        pairs = ((self._grey, grey), (grey, self._grey))
        there, back = (self._dis.calc(a, b, np.zeros((*a.shape, 2), np.float32)) for a, b in pairs)
        return there, back

    def _advance(self, grey: Array, there: Array, back: Array) -> None:
        live = np.flatnonzero((self._id >= 0) & (self._hidden == 0))
        lost = np.flatnonzero((self._id >= 0) & (self._hidden > 0))
        before = self._uv.copy()
        step = sample(there, before[live])
        missed = np.hypot(*(step + sample(back, before[live] + step)).T)
        returns = missed < RETURN_PX + RETURN_SHARE * np.hypot(*step.T)
        self._uv[live] += np.where(np.isfinite(step), step, 0.0)
        for slot, ok in zip(live.tolist(), returns.tolist(), strict=True):
            if not self._settle(grey, slot, ok):
                self._hidden[slot] = 1
        seen = live[self._hidden[live] == 0]
        for slot in lost.tolist():
            self._uv[slot] += _mean_motion(before, self._uv, slot, seen)
            found, uv, _ = self._match(grey, slot, 4 * ROOM_PX, SURE)
            self._hidden[slot] = 0 if found else self._hidden[slot] + 1
            if found:
                self._uv[slot] = uv
        H, W = grey.shape
        gone = (self._hidden > HIDDEN_FRAMES) | ~camera.inside(self._uv, H, W)
        self._id[gone], self._uv[gone], self._hidden[gone] = -1, np.nan, 0

    def _settle(self, grey: Array, slot: int, returns: bool) -> bool:
        """Sharpen a point that flow has moved; False where it is lost."""
        found, uv, correlation = self._match(grey, slot, ROOM_PX, ALIKE if returns else SURE)
        if found:
            self._uv[slot] = uv
            return True
        if returns and correlation < ALIKE:
            self._take_patch(grey, slot)
        return returns

    def _match(
        self, grey: Array, slot: int, room_px: float, least: float
    ) -> tuple[bool, Array, float]:
        """Align the point's patch near where it is believed; returns whether, where, and how alike."""
        start = self._uv[slot]
        u, v, correlation, _ = _kernels_align.align_patch(
            self._patch[slot], grey, start[0], start[1], _STEPS, np.empty(3)
        )
        uv = np.array([u, v])
        near = np.hypot(*(uv - start)) < room_px
        return bool(near and correlation > least), uv, float(correlation)

    def _take_patch(self, grey: Array, slot: int) -> None:
        u, v = self._uv[slot]
        if not _kernels_align.sample_template(grey, u, v, np.eye(2), self._patch[slot]):
            self._patch[slot] = 0.0  # too near the border: flow alone carries it

    # -- choosing ------------------------------------------------------------------------------------------

    def _seed(self, grey: Array) -> None:
        """Fill free slots: a share on movers, where they have fewer, the rest anywhere."""
        taken = self._uv[self._id >= 0]
        wanted = int(MOVING_SHARE * self._count) if self._moving.any() else 0
        on_movers = int(np.nansum(_at(self._moving, taken))) if len(taken) else 0
        # A patch across an outline belongs to neither side.
        moving = self._moving.astype(np.uint8)
        inner, outer = (change(moving, _NEAR) > 0 for change in (cv2.erode, cv2.dilate))
        for allowed, most in ((inner, wanted - on_movers), (inner | ~outer, self._count)):
            free = np.flatnonzero(self._id < 0)
            if most <= 0 or not len(free):
                continue
            spacing = 0.5 * np.sqrt(grey.size / self._count)
            uv = patches.choose(
                grey, min(most, len(free)), avoid=self._uv[self._id >= 0], allowed=allowed,
                spacing=max(spacing, 2.0),
            )  # fmt: skip
            for slot, place in zip(free.tolist(), uv, strict=False):
                self._id[slot], self._uv[slot], self._hidden[slot] = self._next_id, place, 0
                self._next_id += 1
                self._take_patch(grey, slot)


def _mean_motion(before: Array, after: Array, slot: int, seen: Array) -> Array:
    """Return how the nearest visible points have moved."""
    if not len(seen):
        return np.zeros(2)
    distance = np.hypot(*(before[seen] - before[slot]).T)
    nearest = seen[np.argsort(distance, kind="stable")[:NEIGHBOURS]]
    return np.asarray(np.median(after[nearest] - before[nearest], axis=0))


def _at(image: Array, uv: Array) -> Array:
    H, W = image.shape[:2]
    at = np.clip(np.rint(uv).astype(int), 0, [W - 1, H - 1])
    return np.asarray(image[at[:, 1], at[:, 0]])


def _depth_at(depth: Array, uv: Array) -> Array:
    """Return the median of the nearest pixel's known neighbourhood: near an edge, that of the nearer majority."""
    offsets = itertools.product((-1.0, 0.0, 1.0), repeat=2)
    around = np.stack([_at(depth, uv + np.array(offset)) for offset in offsets])
    known = np.isfinite(around)
    out = np.full(len(uv), np.nan, np.float32)
    some = known.any(axis=0)
    out[some] = np.nanmedian(around[:, some], axis=0)
    return out

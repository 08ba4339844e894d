"""The pose chain: predictions in, posed frames out, a few frames later.

Each frame is followed by flow, its patches aligned against their keyframes, its pose fitted to the map. Now and then
a frame becomes a keyframe; the window of keyframes is then adjusted as a whole. Frames leave after ``lag`` frames,
with a pose fitted once more to the adjusted map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from stream4d.config import ChainConfig
from stream4d.geometry import camera
from stream4d.packets import (
    Array,
    Frame,
    PosedFrame,
    PoseRevision,
    Prediction,
    State,
    VideoInfo,
    Window,
)
from stream4d.pose import dense, keyframes, patches, refine, relocalise, start, track, uncertainty
from stream4d.pose.map import LocalMap
from stream4d.pose.record import FLOATING, Record, relative, to_world_from_cam
from stream4d.pose.state import pack, unpack
from stream4d.pose.windows import WindowPlacer

MAX_HELD = 40
"""Frames held back while nothing has moved enough to start; then they leave with rotation only."""
START_PARALLAX = 0.015
"""Median flow left after rotation, over the long side, at which a start is tried."""
START_QUALITY = 6.0
START_SHARE = (0.85, 0.5)
"""Share of tracks that must agree with a start, at most and at least. Over a short baseline and few frames movers
can pass for the scene; over a long one they cannot."""
START_STILL_PX = 0.5
START_EXPLAINED = 0.2
"""Share of tracks that rotation alone may explain exactly at a start: a camera that stands still before movers
shows a peak at zero, while a scene's depth leaves a range of parallax."""
RECOGNISED = 0.1
"""Share of the patches tracked before that must be recognised for the frame to count as seen."""
MIN_FOUND = 15
"""Patches that must be found again, and agree, for a lost camera to be found."""
MAX_LEFT = 2000
"""Frames that have left and can still be revised: a camera that stands still must not fill the memory."""
MIN_SEEN = 8
"""Patches below which a frame that nothing was fitted to counts as not tracked."""
LOST_AFTER = 12
"""Frames without a measured pose after which a new segment begins."""
_SCALARS = ("_started", "_focal_known", "_focal_info", "_segment", "_lost", "_tracked_before")
"""Attributes that the state holds as numbers."""


class PoseChain:
    """Poses, depth and motion of one video, frame by frame, in bounded memory."""

    def __init__(self, config: ChainConfig, info: VideoInfo) -> None:
        self._config = config
        self._size = max(info.height, info.width)
        self._shape = (info.height, info.width)
        self._slots = 2 * config.keyframes
        self._per_frame = 2 * config.patches
        self._map: LocalMap | None = None
        self._records: list[Record] = []
        self._started = False
        self._focal_known = False
        self._focal_info = 0.0
        self._segment = 0
        self._lost = 0
        self._tracked_before = 0
        self._velocity = np.eye(4)
        self._by_windows: bool | None = None
        self._placer = WindowPlacer()
        self._left: list[tuple[int, int, Array]] = []
        self._revisions: list[PoseRevision] = []

    # -- the interface -------------------------------------------------------------------------------------

    def extend(self, window: Window, prediction: Prediction) -> Iterator[PosedFrame]:
        """Place the window's new frames; yields the frames that are ready to leave."""
        if self._by_windows is None:
            self._by_windows = _has_geometry_only(prediction)
        if self._by_windows:
            yield from self._placer.place(window, prediction, keep=len(window.frames) - 1)
            return
        for k in range(window.overlap, len(window.frames)):
            self._step(window.frames[k], _slice(prediction, k))
            yield from self._emit(self._ready())

    def finish(self) -> Iterator[PosedFrame]:
        """Yield all frames still held."""
        yield from self._emit(len(self._records))
        if self._map is not None and self._started:
            for slot in self._map.order:
                self._revise(int(slot))

    def revisions(self) -> list[PoseRevision]:
        """Return and forget the corrections of frames that have already left."""
        out, self._revisions = self._revisions, []
        return out

    def state(self) -> State:
        """Return everything that ``restore`` needs; bounded by the lag and the keyframes."""
        out: State = {"scalars": np.array([getattr(self, name) for name in _SCALARS], np.float64)}
        out["velocity"] = self._velocity.copy()
        if self._by_windows is not None:
            out["by_windows"] = np.array(self._by_windows)
        if self._by_windows:
            out |= {f"placer.{name}": value for name, value in self._placer.state().items()}
        if self._map is not None:
            out |= pack("map", self._map)
        out["left.frames"] = np.array([item[:2] for item in self._left], np.int64).reshape(-1, 2)
        out["left.poses"] = np.array([item[2] for item in self._left]).reshape(-1, 3, 4)
        out["count"] = np.array(len(self._records))
        for i, record in enumerate(self._records):
            out |= pack(f"record{i:03d}", record)
        return out

    def restore(self, state: State) -> None:
        """Go on from ``state``, exactly as the chain that gave it would have."""
        for name, value in zip(_SCALARS, state["scalars"], strict=True):
            setattr(self, name, type(getattr(self, name))(value))
        self._velocity = np.array(state["velocity"])
        self._by_windows = bool(state["by_windows"]) if "by_windows" in state else None
        if self._by_windows:
            self._placer.restore(
                {name[7:]: value for name, value in state.items() if name.startswith("placer.")}
            )
        self._map, self._records, self._revisions = None, [], []
        if "map.K" in state:
            H, W = self._shape
            self._map = unpack(
                "map", state, LocalMap(H, W, self._slots, self._per_frame, np.eye(3))
            )
        pairs = zip(state["left.frames"], state["left.poses"], strict=True)
        self._left = [(int(a), int(b), np.array(pose)) for (a, b), pose in pairs]
        for i in range(int(state["count"])):
            self._records.append(unpack(f"record{i:03d}", state, Record.empty()))

    # -- one frame -----------------------------------------------------------------------------------------

    def _step(self, frame: Frame, new: dense.Maps) -> None:
        pyramid = patches.pyramid(frame.rgb)
        if self._map is None:
            self._map = self._new_map(frame)
        record = Record.of(frame, pyramid, self._map)
        previous = self._records[-1] if self._records else None
        record.take(new, previous)
        if previous is None or self._map.newest < 0 or self._map.frame_index.max() < 0:
            self._anchor(record, np.eye(3, 4))
        else:
            self._follow(record, previous)
            if self._started:
                self._track(record, previous)
            else:
                self._try_start(record)
        self._densify(record, previous)
        self._records.append(record)

    def _densify(self, record: Record, previous: Record | None) -> None:
        """Carry depth and motion to this frame."""
        local_map = self._map
        assert local_map is not None
        guess = dense.spread_patches(local_map, record.pose)
        if previous is None or previous.segment != record.segment or not previous.rho.size:
            state = dense.first(guess)
        else:
            before = dense.DenseState(previous.rho, previous.rho_info, previous.logit)
            state = dense.step(
                before, dense.Maps(record.flow_here, record.back_here, record.sigma_here, record.motion),
                local_map.cam, track.relative_pose(record.pose, previous.pose), guess, has_scale=self._started,
            )  # fmt: skip
        record.rho, record.rho_info, record.logit = state.rho, state.info, state.logit

    def _new_map(self, frame: Frame) -> LocalMap:
        H, W = frame.rgb.shape[:2]
        self._focal_known = frame.K is not None
        K = frame.K if frame.K is not None else camera.centred_K(camera.default_focal(W, H), W, H)
        return LocalMap(H, W, self._slots, self._per_frame, np.array(K, np.float64))

    def _follow(self, record: Record, previous: Record) -> None:
        """Carry the previous frame's tracks into this one by flow."""
        assert self._map is not None
        self._tracked_before = int((np.isfinite(previous.var) & (self._map.host >= 0)).sum())
        if record.flow_here is None:
            record.uv, record.var = (
                previous.uv.copy(),
                np.where(np.isfinite(previous.var), patches.CHAINED_MAX_VAR, np.inf),
            )
        else:
            record.uv, record.var = patches.follow_flow(
                previous.uv, previous.var, record.flow_here, record.sigma_here
            )
        record.var[self._map.host < 0] = np.inf
        record.info = patches.isotropic(record.var)

    # -- starting ------------------------------------------------------------------------------------------

    def _anchor(self, record: Record, pose: Array) -> None:
        """Begin (again) from this frame: it becomes the only keyframe, its patches at infinity."""
        assert self._map is not None
        for slot in self._map.order:
            if self._started or self._lost:
                self._revise(int(slot))
            self._map.drop(int(slot))
        self._left = []
        for held in self._records:
            held.var[:] = np.inf
        n = self._map.per_frame
        self._map.add_keyframe(
            0,
            record.index,
            pose,
            record.pyramid,
            np.zeros_like(record.uv),
            np.full(len(record.var), np.inf),
            np.zeros_like(record.info),
        )
        uv = patches.choose(
            record.pyramid[0],
            n,
            avoid=np.zeros((0, 2)),
            allowed=record.usable(),
            spacing=self._size / 60,
        )
        rows = self._map.add_patches(0, uv, np.ones(len(uv)), np.full(len(uv), 1e-6))
        record.uv[rows], record.var[:] = uv, np.inf
        record.var[rows] = patches.ALIGN_FLOOR_VAR
        record.info[rows] = patches.isotropic(record.var[rows])
        # A view with nothing to hold on to (black, blank, too small) says nothing of its pose.
        record.set_pose(pose, self._map, tracked=len(uv) >= MIN_SEEN)
        record.keyframe = True

    def _try_start(self, record: Record) -> None:
        """Follow the anchor's patches; start the map once they show enough parallax."""
        local_map = self._map
        assert local_map is not None
        anchor = local_map.poses[0]
        last = self._records[-1].pose
        share = self._refine_positions(record, last)
        if share < RECOGNISED and self._is_cut(record):
            self._segment += 1
            record.segment = self._segment
            self._anchor(record, np.eye(3, 4))
            return
        rows = np.flatnonzero(np.isfinite(record.var))
        total = int((local_map.host >= 0).sum())
        relative_start = track.relative_pose(last, anchor)
        rotation, residual = track.rotation_between(
            local_map.cam, local_map.rays[rows], record.uv[rows], record.info[rows], relative_start
        )
        pose = rotation @ np.vstack([anchor, [0, 0, 0, 1]])
        pose[:, 3] = -pose[:, :3] @ (-anchor[:, :3].T @ anchor[:, 3])
        record.set_pose(pose, local_map, tracked=len(rows) >= MIN_SEEN)
        if len(rows) < 0.4 * total or len(rows) < start.MIN_TRACKS:
            self._anchor(record, pose)
            return
        parallax = float(np.nanmedian(residual)) if len(rows) else 0.0
        explained = float((residual < START_STILL_PX).mean()) if len(rows) else 1.0
        if parallax > START_PARALLAX * self._size and explained < START_EXPLAINED:
            self._start(record, parallax)

    def _start(self, record: Record, parallax: float) -> None:
        local_map = self._map
        assert local_map is not None
        first = int(local_map.frame_index[0])
        held = [r for r in self._records if r.index > first] + [record]
        picks = np.unique(np.linspace(0, len(held) - 1, 6).round().astype(int))
        chosen = [held[i] for i in picks]
        rows = np.flatnonzero(local_map.host == 0)
        begun = start.start_map(
            local_map.K, local_map.uv0[rows], np.stack([r.uv[rows] for r in chosen]),
            np.stack([r.info[rows] for r in chosen]), size=self._size, focal_known=self._focal_known,
        )  # fmt: skip
        if begun is None or begun.quality < START_QUALITY:
            return
        if begun.share < _needed_share(len(held), parallax / self._size):
            return
        if not self._focal_known:
            local_map.set_focal(begun.focal / local_map.K[0, 0])
            self._focal_info = begun.focal_information
        anchor = np.vstack([local_map.poses[0], [0, 0, 0, 1]])
        local_map.rho[rows], local_map.rho_info[rows] = begun.rho, begun.rho_info
        local_map.prior[rows], local_map.prior_info[rows] = begun.rho, 1e-6
        local_map.drop_patches(rows[~begun.inlier])
        for k, r in enumerate(chosen):
            r.set_pose(begun.poses[k + 1] @ anchor, local_map, tracked=True)
            slot = k + 1
            r.keyframe = True
            local_map.add_keyframe(slot, r.index, r.pose, r.pyramid, r.uv, r.var, r.info)
        self._started, self._lost = True, 0
        for r in held:
            if not r.keyframe:
                self._fit(r, r.pose, track.COLD)
        self._fill(record)
        self._velocity = np.eye(4)
        held = [r for r in self._records if r.index >= first]
        for before, r in zip([None, *held], held, strict=False):
            self._densify(r, before)

    # -- tracking ------------------------------------------------------------------------------------------

    def _fit(self, record: Record, pose: Array, schedule: Array) -> track.Fit:
        assert self._map is not None
        rows = np.flatnonzero(np.isfinite(record.var) & (self._map.host >= 0))
        fit = track.fit_pose(
            self._map, rows, record.uv[rows], record.info[rows], pose, schedule=schedule
        )
        record.rows, record.errors = rows, fit.errors
        record.set_pose(fit.pose, self._map, tracked=True)
        record.information = fit.information
        return fit

    def _refine_positions(self, record: Record, pose: Array) -> float:
        """Align the tracked patches; the others stay where flow brought them. Returns the share aligned."""
        assert self._map is not None
        uv, var, info, found = patches.align(self._map, record.pyramid, pose, record.uv, record.var)
        record.uv[found], record.var[found], record.info[found] = uv[found], var[found], info[found]
        return float(found.sum() / max(self._tracked_before, 1))

    def _best_fit(self, record: Record, near: Array, other: Array) -> track.Fit:
        """Fit from two guesses, warm, and from one, cold; the lowest robust cost wins.

        Annealing from afar finds poses that were not guessed, but is drawn to movers that cover much of the view;
        warm starts stay with the surfaces that the map knows.
        """
        fits = [self._fit(record, near, track.WARM)]
        fits.append(self._fit(record, near, track.COLD))
        if fits[0].cost > 0.3 * len(fits[0].errors) * track.NORMAL_SCALE:
            fits.append(self._fit(record, other, track.WARM))
        best = min(fits, key=lambda fit: fit.cost)
        record.errors, record.information = best.errors, best.information
        assert self._map is not None
        record.set_pose(best.pose, self._map, tracked=True)
        return best

    def _track(self, record: Record, previous: Record) -> None:
        local_map = self._map
        assert local_map is not None
        predicted = (self._velocity @ np.vstack([previous.pose, [0, 0, 0, 1]]))[:3]
        fit = self._best_fit(record, predicted, previous.pose)
        share = self._refine_positions(record, fit.pose)
        if self._lost or share < RECOGNISED:
            # flow of a blank or foreign image looks consistent: only what was recognised counts
            record.var[:] = np.inf
            if not self._find_again(record, predicted):
                return
            fit = self._fit(record, record.pose, track.WARM)
        else:
            fit = self._best_fit(record, fit.pose, predicted)
        if fit.inliers.sum() < 0.5 * len(record.rows):
            fresh = track.fit_pose_from_nothing(
                local_map, record.rows, record.uv[record.rows], record.info[record.rows]
            )
            if fresh is not None and fresh.inliers.sum() > 1.2 * fit.inliers.sum():
                fit = self._fit(record, fresh.pose, track.WARM)
        self._look_again(record)
        fit = self._fit(record, fit.pose, track.WARM)
        inliers = fit.inliers
        if inliers.sum() < 12:
            self._lose(record, predicted)
            return
        self._lost = 0
        outliers = record.rows[~inliers]
        record.var[outliers] = np.inf
        local_map.misses[record.rows] = np.maximum(local_map.misses[record.rows] - 0.25, 0)
        local_map.misses[outliers] += 1
        before = np.vstack([previous.pose, [0, 0, 0, 1]])
        self._velocity = np.vstack([record.pose, [0, 0, 0, 1]]) @ np.linalg.inv(before)
        self._mature(record)
        if keyframes.is_needed(local_map, record, self._size):
            self._make_keyframe(record)

    def _find_again(self, record: Record, predicted: Array) -> bool:
        """Recover a lost camera: near where it was expected, else anywhere in the map; else it stays lost."""
        local_map = self._map
        assert local_map is not None
        for guess in (predicted, relocalise.find_pose(local_map, record.pyramid[0])):
            if guess is None:
                continue
            record.set_pose(guess, local_map, tracked=True)
            self._look_again(record)
            rows = np.flatnonzero(np.isfinite(record.var) & (local_map.host >= 0))
            if len(rows) >= MIN_FOUND:
                fit = self._fit(record, guess, track.COLD)
                if fit.inliers.sum() >= max(MIN_FOUND, 0.5 * len(rows)):
                    return True
            record.var[:] = np.inf
        self._lose(record, predicted)
        return False

    def _is_cut(self, record: Record) -> bool:
        """Tell whether the image shows another scene: it has texture, and the frame before had too."""
        before = self._records[-1]
        return relocalise.is_textured(record.pyramid[0]) and relocalise.is_textured(
            before.pyramid[0]
        )

    def _look_again(self, record: Record) -> None:
        """Search for patches that flow did not bring: project them, align, keep what looks right."""
        local_map = self._map
        assert local_map is not None
        rows = np.flatnonzero((local_map.host >= 0) & ~np.isfinite(record.var))
        rows = rows[local_map.rho_info[rows] * local_map.rho[rows] ** 2 > 100.0]
        uv, z = track.project_rows(local_map, rows, record.pose)
        H, W = self._shape
        rows, uv = rows[ok := camera.inside(uv, H, W, 8.0) & (z > 0)], uv[ok]
        want = np.full(len(record.var), np.inf)
        want[rows] = 1.0
        everything = record.uv.copy()
        everything[rows] = uv
        found_uv, found_var, found_info, found = patches.align(
            local_map, record.pyramid, record.pose, everything, want, min_correlation=0.85
        )
        record.uv[found] = found_uv[found]
        record.var[found], record.info[found] = found_var[found], found_info[found]

    def _lose(self, record: Record, predicted: Array) -> None:
        local_map = self._map
        assert local_map is not None
        self._lost += 1
        record.set_pose(predicted, local_map, tracked=False)
        self._velocity = np.eye(4)
        if self._lost > LOST_AFTER or (self._lost == 1 and self._is_cut(record)):
            self._segment += 1
            record.segment = self._segment
            self._anchor(record, record.pose)
            self._started, self._lost = False, 0

    def _mature(self, record: Record) -> None:
        """Sharpen the depths of patches from all that has been seen of them, poses held."""
        local_map = self._map
        assert local_map is not None
        newest = local_map.newest
        since = [r for r in self._records if r.index > local_map.frame_index[newest]] + [record]
        young = np.flatnonzero(local_map.host == newest)
        F = local_map.slots
        poses = np.concatenate([local_map.poses, np.stack([r.pose for r in since])])
        seen = np.concatenate([local_map.var[:, young], np.stack([r.var[young] for r in since])])
        where = np.concatenate([local_map.uv[:, young], np.stack([r.uv[young] for r in since])])
        how = np.concatenate([local_map.info[:, young], np.stack([r.info[young] for r in since])])
        seen[F:][:, local_map.host[young] < 0] = np.inf
        patch, frame = np.nonzero(np.isfinite(seen).T)
        from stream4d.pose import _kernels_bundle

        rho, info = local_map.rho[young], local_map.rho_info[young]
        _kernels_bundle.refine_depths(
            local_map.cam, local_map.rays[young], local_map.host[young], poses, patch, frame,
            where[frame, patch], how[frame, patch], rho, info, local_map.prior[young], local_map.prior_info[young],
        )  # fmt: skip
        local_map.rho[young], local_map.rho_info[young] = rho, info

    # -- keyframes -----------------------------------------------------------------------------------------

    def _make_keyframe(self, record: Record) -> None:
        local_map = self._map
        assert local_map is not None
        slot = self._free_slot()
        record.keyframe = True
        local_map.add_keyframe(
            slot, record.index, record.pose, record.pyramid, record.uv, record.var, record.info
        )
        local_map.drop_patches(local_map.misses > 3)
        record.var[local_map.host < 0] = np.inf
        self._fill(record)
        self._adjust()
        record.set_pose(local_map.poses[slot], local_map, tracked=True)

    def _free_slot(self) -> int:
        local_map = self._map
        assert local_map is not None
        free = np.flatnonzero(local_map.frame_index < 0)
        if len(free):
            return int(free[0])
        oldest = int(local_map.order[0])
        self._revise(oldest)
        local_map.drop(oldest)
        for r in self._records:
            r.var[local_map.rows(oldest)] = np.inf
        return oldest

    def _revise(self, slot: int) -> None:
        """Tell the final poses of frames that left before their keyframe was done with."""
        local_map = self._map
        assert local_map is not None
        index = int(local_map.frame_index[slot])
        mine = [item for item in self._left if item[1] == index]
        self._left = [item for item in self._left if item[1] > index]
        if not mine:
            return
        reference = np.vstack([local_map.poses[slot], [0, 0, 0, 1]])
        poses = [to_world_from_cam(from_reference @ reference) for _, _, from_reference in mine]
        self._revisions.append(
            PoseRevision(
                indices=np.array([item[0] for item in mine], np.int64),
                world_from_cam=np.stack(poses),
                scale=np.ones(len(mine)),
            )
        )

    def _fill(self, record: Record) -> None:
        """Host new patches in the newest keyframe where the image has none, at their neighbours' depth."""
        local_map = self._map
        assert local_map is not None
        slot = local_map.slot_of(record.index)
        seen = np.flatnonzero(np.isfinite(record.var))
        uv = patches.choose(
            record.pyramid[0], self._config.patches, avoid=record.uv[seen],
            allowed=record.usable(), spacing=self._size / 40,
        )  # fmt: skip
        rho, info = keyframes.inherit_depth(local_map, record, seen, uv)
        rows = local_map.add_patches(slot, uv, rho, info)
        record.uv[rows] = uv[: len(rows)]
        record.var[rows] = patches.ALIGN_FLOOR_VAR
        record.info[rows] = patches.isotropic(record.var[rows])

    def _adjust(self) -> None:
        local_map = self._map
        assert local_map is not None
        order = local_map.order
        free = order[-self._config.keyframes :]
        if len(free) == len(order):
            free = free[1:]
        obs = refine.map_observations(local_map)
        rows = np.unique(obs.patch)
        compacted = refine.Observations(
            refine.compact(rows, obs.patch), obs.frame, obs.uv, obs.info
        )
        cam, rays = local_map.cam, local_map.rays[rows]
        rho, info = local_map.rho[rows], np.zeros(len(rows))
        focal_info = np.inf
        if not self._focal_known and self._config.refine_focal:
            focal_info = max(self._focal_info, 1.0)
        result = refine.adjust(
            cam, rays, local_map.host[rows], local_map.poses, free, rho, local_map.prior[rows],
            local_map.prior_info[rows], compacted, iterations=5, focal_info=focal_info, rho_info=info,
        )  # fmt: skip
        if np.isfinite(focal_info):
            local_map.set_focal(result.focal_scale)
            # window after window sees the same scene: its information is counted once, not summed
            self._focal_info = max(self._focal_info, 0.5 * result.focal_information)
        local_map.rho[rows], local_map.rho_info[rows] = rho, info
        # the window is measured against its oldest keyframe, whose own uncertainty it inherits
        inherited = local_map.covariance[order[0]]
        for i, slot in enumerate(free):
            block = result.covariance[6 * i : 6 * i + 6, 6 * i : 6 * i + 6]
            world = uncertainty.to_world(block, local_map.poses[slot])
            local_map.covariance[slot] = inherited + world

    # -- leaving -------------------------------------------------------------------------------------------

    def _ready(self) -> int:
        if self._started:
            return max(len(self._records) - self._config.lag, 0)
        return max(len(self._records) - MAX_HELD, 0)

    def _emit(self, count: int) -> Iterable[PosedFrame]:
        for _ in range(count):
            yield self._finalise(
                self._records[0], self._records[1] if len(self._records) > 1 else None
            )
            self._records.pop(0)

    def _covariance(self, record: Record, pose: Array) -> Array:
        """Return the honest covariance of a pose: its own fit, its keyframe's drift, inflated as measured."""
        local_map = self._map
        assert local_map is not None
        if not record.is_tracked:
            return FLOATING
        slot = local_map.slot_of(record.reference)
        drift = local_map.covariance[slot] if slot >= 0 else np.zeros((6, 6))
        return uncertainty.of_pose(record.information, pose, drift, started=self._started)

    def _finalise(self, record: Record, following: Record | None) -> PosedFrame:
        local_map = self._map
        assert local_map is not None
        pose = relative(record, local_map)
        slot = local_map.slot_of(record.reference)
        reference = local_map.poses[slot] if slot >= 0 else np.eye(3, 4)
        if self._started and not record.keyframe and record.is_tracked:
            rows = np.flatnonzero(np.isfinite(record.var) & (local_map.host >= 0))
            if len(rows) >= 12:
                fit = track.fit_pose(
                    local_map, rows, record.uv[rows], record.info[rows], pose, schedule=track.WARM
                )
                pose = fit.pose
        state = dense.DenseState(record.rho, record.rho_info, record.logit)
        guess = dense.spread_patches(local_map, pose)
        maps = dense.depth_and_confidence(state, guess, record.rgb, has_scale=self._started)
        covariance = self._covariance(record, pose)
        self._left.append((record.index, record.reference, track.relative_pose(pose, reference)))
        del self._left[:-MAX_LEFT]
        return PosedFrame(
            index=record.index, timestamp_ns=record.timestamp_ns, rgb=record.rgb,
            K=local_map.K.copy(), world_from_cam=to_world_from_cam(pose), pose_covariance=covariance,
            depth=maps[0], confidence=maps[1], motion_prob=dense.motion_prob(state),
            flow=following.flow_here if following is not None else None,
            flow_uncertainty=following.sigma_here if following is not None else None,
            is_keyframe=record.keyframe, is_tracked=record.is_tracked, segment=record.segment,
        )  # fmt: skip


def _needed_share(frames: int, parallax: float) -> float:
    """Return the share of tracks that must agree after so many frames with so much parallax (of the long side)."""
    most, least = START_SHARE
    return max(most - 0.0125 * frames - 5.0 * max(parallax - START_PARALLAX, 0.0), least)


def _has_geometry_only(prediction: Prediction) -> bool:
    geometry = prediction.pointmap_in_window is not None or prediction.window_from_cam is not None
    return prediction.flow is None and geometry


def _slice(prediction: Prediction, k: int) -> dense.Maps:
    """Take what a window's prediction says of its k-th frame (flow is that from the frame before)."""

    def at(array: Array | None, i: int) -> Array | None:
        return None if array is None or i < 0 else array[i]

    return dense.Maps(
        flow=at(prediction.flow, k - 1), flow_backward=at(prediction.flow_backward, k - 1),
        sigma=at(prediction.flow_uncertainty, k - 1), motion=at(prediction.motion_prob, k),
        depth=at(prediction.depth, k),
    )  # fmt: skip

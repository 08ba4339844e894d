"""Sites: textured still patches of chosen keyframes, and where the frames paired with them see them.

What the offline refinement measures. A site is chosen in its host keyframe; its place in another frame starts from
what poses and depth predict and is sharpened by patch alignment, so that it does not drift however far apart the
two frames are. Beside it stands the log depth that the other frame's own map has there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stream4d.geometry import camera
from stream4d.geometry.transforms import invert
from stream4d.packets import Array, PosedFrame
from stream4d.pose import hosted, patches
from stream4d.pose._kernels_offline import MAX_SEEN

PER_KEY = 160
"""Sites of a keyframe."""
MIN_CORRELATION = 0.85
ROOM_PX = 6.0
"""How far from the prediction a site may be found."""
MOVING_FROM = 0.3
"""Motion probability from which no site is chosen."""
MAP_SIGMA = 0.3
"""1σ of the log of a stored depth, in a map of which nothing is known; a confident one has less."""
MAP_SHARE = 0.1
"""Errors of one depth map are alike: so much of each counts (about 30 independent ones of 300)."""
OFFSETS = (1, 2, 3, 5, 7, 9)
"""Keyframes apart that are paired, both ways, as MonST3R's stride graph does."""
REVISITS = 6
"""Pairs of a keyframe with others farther apart in time that see the same place."""
REVISIT_SHARE = 0.4
"""Share of a keyframe's view that a revisit must see."""


class Recorded(Protocol):
    """A finished reconstruction, read frame by frame: what a store offers."""

    @property
    def world_from_cam(self) -> Array:
        """(T, 4, 4)."""

    @property
    def K(self) -> Array:
        """(T, 3, 3)."""

    @property
    def keyframe(self) -> Array:
        """(T,) bool."""

    @property
    def is_tracked(self) -> Array:
        """(T,) bool."""

    @property
    def segment(self) -> Array:
        """(T,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PosedFrame: ...


@dataclass(slots=True, eq=False)
class Sites:
    """N sites of K keyframes."""

    images: tuple[Array, ...]
    """Pyramids of the keyframes: (K, H, W), (K, H/2, W/2), … uint8."""
    host: Array
    """(N,) number of the keyframe."""
    uv: Array
    """(N, 2) pixel in the host."""
    rho: Array
    """(N,) inverse depth in the host, from its depth map."""
    prior_info: Array
    """(N,) 1/variance of the log of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """M observations of sites, sorted by site."""

    site: Array
    frame: Array
    """(M,) number of the keyframe that sees it."""
    uv: Array
    """(M, 2)."""
    info: Array
    """(M, 3) inverse covariance (xx, xy, yy), px⁻²."""
    logd: Array
    """(M,) log of the depth stored there."""
    logd_info: Array
    """(M,) 1/variance; 0 where there is none."""

    @classmethod
    def gather(cls, parts: Sequence[Seen]) -> Seen:
        """Join and sort by site; at most ``MAX_SEEN`` of each."""
        names = ("site", "frame", "uv", "info", "logd", "logd_info")
        joined = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
        order = np.argsort(joined[0], kind="stable")
        joined = [array[order] for array in joined]
        rank = np.arange(len(order)) - np.searchsorted(joined[0], joined[0])
        return cls(*(array[rank < MAX_SEEN] for array in joined))

    def starts(self, count: int) -> Array:
        """Return (count + 1,): observations of site n are ``starts[n]`` … ``starts[n + 1] − 1``."""
        return np.searchsorted(self.site, np.arange(count + 1))

    def of(self, chosen: Array) -> Seen:
        """Return the observations of some sites (N,) bool, renumbered."""
        number = np.cumsum(chosen) - 1
        mine = chosen[self.site]
        return Seen(
            number[self.site[mine]], self.frame[mine], self.uv[mine], self.info[mine],
            self.logd[mine], self.logd_info[mine],
        )  # fmt: skip


def choose_sites(
    frames: Recorded, keys: Array, step: Callable[[], None], per_key: int = PER_KEY
) -> Sites:
    """Choose sites in all keyframes; ``step`` is called after each."""
    levels: list[list[Array]] = []
    host, where, rho, info = [], [], [], []
    for number, key in enumerate(keys.tolist()):
        frame = frames[key]
        pyramid = patches.pyramid(frame.rgb)
        levels.append(list(pyramid))
        usable = (frame.motion_prob < MOVING_FROM) & np.isfinite(frame.depth)
        size = max(frame.rgb.shape[:2])
        uv = patches.choose(
            pyramid[0], per_key, avoid=np.zeros((0, 2)), allowed=usable, spacing=size / 60
        )
        logd, logd_info = read_log_depth(frame, uv)
        host.append(np.full(len(uv), number))
        where.append(uv)
        rho.append(np.exp(-logd))
        info.append(logd_info)
        step()
    images = tuple(np.stack(level) for level in zip(*levels, strict=True))
    return Sites(
        images,
        np.concatenate(host),
        np.concatenate(where),
        np.concatenate(rho),
        np.concatenate(info),
    )


def read_log_depth(frame: PosedFrame, uv: Array) -> tuple[Array, Array]:  # (n,), (n,)
    """Return the log of the stored depth at pixels, and its information (0 where unknown)."""
    at = np.rint(uv).astype(int)
    depth = frame.depth[at[:, 1], at[:, 0]].astype(np.float64)
    sure = frame.confidence[at[:, 1], at[:, 0]].astype(np.float64)
    known = np.isfinite(depth) & (depth > 0)
    # 10 % is one σ at a confidence of 0.68
    sigma = np.minimum(0.068 / np.maximum(sure, 1e-3), MAP_SIGMA)
    return np.log(np.where(known, depth, 1.0)), np.where(known, MAP_SHARE / sigma**2, 0.0)


def find_sites(
    sites: Sites, rows: Array, rho: Array, poses: Array, cam: Array, frame: PosedFrame, pose: Array,
    room_px: float = ROOM_PX,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Find some sites in a frame whose pose (3, 4) is nearly known.

    Returns:
        rows found (m,), pixels (m, 2), inverse covariances (m, 3).
    """
    found, uv, info = hosted.find(
        sites.images, sites.host[rows], sites.uv[rows], rho[rows], poses, cam,
        patches.pyramid(frame.rgb), pose, room_px=room_px, min_correlation=MIN_CORRELATION,
    )  # fmt: skip
    return rows[found], uv, info


def pair_graph(sites: Sites, rho: Array, poses: Array, cam: Array) -> list[Array]:
    """List for each keyframe the hosts whose sites it looks for: near in time, and revisits."""
    K = len(poses)
    H, W = sites.images[0].shape[1:]
    rays = camera.rays(sites.uv, camera.make_K(*cam.tolist()))
    graph = []
    for f in range(K):
        near = {f + sign * o for o in OFFSETS for sign in (-1, 1)} & set(range(K))
        uv, z = hosted.project(rays, rho, poses[sites.host], poses[f], cam)
        seen = camera.inside(uv, H, W, hosted.BORDER_PX) & (z > 0)
        share = np.bincount(sites.host, seen, K) / np.maximum(
            np.bincount(sites.host, minlength=K), 1
        )
        share[max(f - OFFSETS[-1], 0) : f + OFFSETS[-1] + 1] = 0
        far = np.flatnonzero(share > REVISIT_SHARE)
        picks = far[np.linspace(0, len(far) - 1, min(REVISITS, len(far))).astype(int)]
        graph.append(np.array(sorted(near | set(picks.tolist())), np.int64))
    return graph


def cam_from_world(world_from_cam: Array) -> Array:  # (..., 4, 4) -> (..., 3, 4)
    """Invert poses into the form that the kernels take."""
    return np.ascontiguousarray(invert(world_from_cam)[..., :3, :])

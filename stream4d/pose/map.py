"""The local map: keyframes, the patches they host, and where each patch was seen. Arrays of fixed size.

A keyframe lives in a slot; its patches live in the slot's block of rows and die with it. Poses are camera-from-world
(3, 4). ``inf`` variance means "not seen".
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stream4d.geometry import camera
from stream4d.packets import Array
from stream4d.pose import _kernels_pose

LEVELS = 3
"""Pyramid levels kept of a keyframe: full, half and quarter size."""


@dataclass(slots=True, eq=False)
class LocalMap:
    """Keyframe slots (F), patch rows (N = F * per_frame) and observations (F, N)."""

    height: int
    width: int
    slots: int
    per_frame: int
    K: Array
    """(3, 3) intrinsics shared by all frames."""
    frame_index: Array = field(init=False)
    """(F,) index of the slot's frame, −1 where free."""
    poses: Array = field(init=False)
    """(F, 3, 4) camera-from-world."""
    covariance: Array = field(init=False)
    """(F, 7, 7) of the keyframes' drift since the first frame: left tangent of Sim(3) at the world's origin."""
    focal_bias: Array = field(init=False)
    """(F, 7) the drift that a focal length wrong by its 1σ has made so far."""
    images: tuple[Array, ...] = field(init=False)
    """Pyramids of all keyframes: (F, H, W), (F, H/2, W/2), … uint8."""
    host: Array = field(init=False)
    """(N,) slot of the patch's keyframe, −1 where the row is free."""
    uv0: Array = field(init=False)
    """(N, 2) the patch's pixel in its host."""
    rays: Array = field(init=False)
    """(N, 3) its ray, z = 1."""
    rho: Array = field(init=False)
    """(N,) its inverse depth."""
    rho_info: Array = field(init=False)
    """(N,) 1/variance of ``rho``, poses held."""
    prior: Array = field(init=False)
    """(N,) inverse depth expected when it was made."""
    prior_info: Array = field(init=False)
    """(N,) 1/variance of that expectation."""
    misses: Array = field(init=False)
    """(N,) frames in which it was an outlier, less those in which it fitted; large: dropped."""
    uv: Array = field(init=False)
    """(F, N, 2) where each keyframe sees each patch."""
    var: Array = field(init=False)
    """(F, N) its variance, px²; inf where not seen."""
    info: Array = field(init=False)
    """(F, N, 3) (xx, xy, yy) of the position's inverse covariance, px⁻²: along an edge little is known."""

    def __post_init__(self) -> None:
        F, N = self.slots, self.slots * self.per_frame
        self.frame_index = np.full(F, -1, np.int64)
        self.poses = np.tile(np.eye(3, 4), (F, 1, 1))
        self.covariance, self.focal_bias = np.zeros((F, 7, 7)), np.zeros((F, 7))
        sizes = [(self.height, self.width)]
        for _ in range(LEVELS - 1):
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        self.images = tuple(np.zeros((F, *size), np.uint8) for size in sizes)
        self.host = np.full(N, -1, np.int64)
        self.uv0, self.rays = np.zeros((N, 2)), np.zeros((N, 3))
        self.rho, self.rho_info = np.ones(N), np.zeros(N)
        self.prior, self.prior_info = np.ones(N), np.zeros(N)
        self.misses = np.zeros(N)
        self.uv, self.var = np.zeros((F, N, 2)), np.full((F, N), np.inf)
        self.info = np.zeros((F, N, 3))

    @property
    def cam(self) -> Array:
        """(4,) fx, fy, cx, cy."""
        return camera.split_K(self.K)

    @property
    def order(self) -> Array:
        """Used slots, oldest first."""
        used = np.flatnonzero(self.frame_index >= 0)
        return used[np.argsort(self.frame_index[used])]

    @property
    def newest(self) -> int:
        """Slot of the latest keyframe."""
        return int(np.argmax(self.frame_index))

    def rows(self, slot: int) -> slice:
        """Return the patch rows of a slot."""
        return slice(slot * self.per_frame, (slot + 1) * self.per_frame)

    def slot_of(self, index: int) -> int:
        """Return the slot of a frame, −1 where it is not a keyframe (any more)."""
        found = np.flatnonzero(self.frame_index == index)
        return int(found[0]) if len(found) and index >= 0 else -1

    def drop(self, slot: int) -> None:
        """Free a slot and its patches."""
        rows = self.rows(slot)
        self.frame_index[slot] = -1
        self.covariance[slot], self.focal_bias[slot] = 0, 0
        self.host[rows] = -1
        self.var[:, rows] = np.inf
        self.var[slot] = np.inf

    def drop_patches(self, rows: Array) -> None:
        """Free single patches (index or boolean array)."""
        self.host[rows] = -1
        self.var[:, rows] = np.inf

    def add_keyframe(
        self,
        slot: int,
        index: int,
        pose: Array,
        pyramid: tuple[Array, ...],
        uv: Array,
        var: Array,
        info: Array,
    ) -> None:
        """Put a frame into a free slot, with its view (N, 2), (N,), (N, 3) of the patches of the others."""
        self.frame_index[slot] = index
        self.poses[slot] = pose
        for level, image in zip(self.images, pyramid, strict=True):
            level[slot] = image
        self.uv[slot], self.var[slot], self.info[slot] = uv, var, info

    def add_patches(self, slot: int, uv: Array, rho: Array, rho_info: Array) -> Array:
        """Host new patches in a keyframe; returns their rows (as many as there is room for)."""
        free = np.flatnonzero(self.host[self.rows(slot)] < 0) + slot * self.per_frame
        rows = free[: len(uv)]
        n = len(rows)
        self.host[rows] = slot
        self.uv0[rows] = uv[:n]
        self.rays[rows] = camera.rays(uv[:n], self.K)
        self.rho[rows] = self.prior[rows] = rho[:n]
        self.rho_info[rows] = self.prior_info[rows] = rho_info[:n]
        self.misses[rows] = 0
        self.var[:, rows] = np.inf
        return rows

    def set_focal(self, scale: float) -> None:
        """Multiply the focal length, and follow with all rays."""
        self.K = self.K.copy()
        self.K[0, 0] *= scale
        self.K[1, 1] *= scale
        self.rays[:] = camera.rays(self.uv0, self.K)

    def rescale_patches(self, slot: int, scale: float) -> None:
        """Multiply the depths of the patches that a slot hosts."""
        rows = self.rows(slot)
        self.rho[rows] /= scale
        self.prior[rows] /= scale
        self.rho_info[rows] *= scale**2
        self.prior_info[rows] *= scale**2

    def way(self) -> float:
        """Return the length of the way through the older half of the keyframes."""
        poses = self.poses[self.order[: max(len(self.order) // 2, 2)]]
        centres = -(np.swapaxes(poses[:, :, :3], 1, 2) @ poses[:, :, 3:])[..., 0]
        return float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())

    def rescale(self, scale: float) -> None:
        """Scale the map about its oldest keyframe."""
        first = self.poses[self.order[0]]
        centre = -first[:, :3].T @ first[:, 3]
        for slot in self.order:
            pose = self.poses[slot]
            pose[:, 3] = scale * pose[:, 3] + (scale - 1) * pose[:, :3] @ centre
            self.rescale_patches(int(slot), scale)

    def world_rays(self, rows: Array) -> tuple[Array, Array]:
        """Return directions and host centres in the world of patches, each (n, 3)."""
        return world_rays(self.rays[rows], self.poses, self.host[rows])

    def world_points(self, rows: Array) -> Array:  # (n,) -> (n, 3)
        """Return where patches are in the world."""
        return world_points(self.rays[rows], self.poses, self.host[rows], self.rho[rows])


def world_rays(rays: Array, poses: Array, host: Array) -> tuple[Array, Array]:
    """Return directions and host centres in the world, each (n, 3).

    ``rays`` (n, 3) are of the cameras ``host`` (n,), whose camera-from-world ``poses`` are (F, 3, 4).
    """
    directions, centres = np.empty((2, len(rays), 3))
    _kernels_pose.world_rays(rays, poses, host, directions, centres)
    return directions, centres


def world_points(rays: Array, poses: Array, host: Array, rho: Array) -> Array:  # -> (n, 3)
    """Return the points at inverse depths ``rho`` (n,) along rays (see ``world_rays``)."""
    directions, centres = world_rays(rays, poses, host)
    return np.asarray(centres + directions / rho[:, None])

"""Placing all frames of a video by its refined keyframes: pose, focal length and scale of the depth map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stream4d.geometry import camera, transforms
from stream4d.packets import Array, PosedFrame
from stream4d.pose import track
from stream4d.pose.global_adjustment import MIN_SITES, Problem
from stream4d.pose.map import world_points, world_rays
from stream4d.pose.sites import Recorded, Sites, cam_from_world, find_sites, read_log_depth


@dataclass(frozen=True, slots=True, eq=False)
class Cameras:
    """What is known of all frames; filled in place."""

    world_from_cam: Array
    """(T, 4, 4)."""
    K: Array
    """(T, 3, 3)."""
    depth_scale: Array
    """(T,) multiply the stored depth by this."""


def place_frames(
    frames: Recorded, chosen: range, keys: Array, sites: Sites, solved: Problem, out: Cameras,
    step: Callable[[], None],
) -> None:  # fmt: skip
    """Give every frame its pose, focal length and depth scale: keyframes as solved, the others fitted to them."""
    new_keys = transforms.invert(transforms.square(solved.poses))
    corrections = new_keys @ transforms.invert(out.world_from_cam[keys])
    old = out.world_from_cam.copy()
    for t in chosen:
        at = int(np.searchsorted(keys, t))
        frame = frames[t]
        near = np.clip(np.arange(at - 2, at + 2), 0, len(keys) - 1)
        out.K[t, 0, 0], out.K[t, 1, 1] = solved.cam[:2]
        if at < len(keys) and keys[at] == t:
            pose = new_keys[at]
        else:
            pose = _carried(t, keys, corrections) @ old[t]
        rows = np.flatnonzero(np.isin(sites.host, near) & (solved.rho_info * solved.rho**2 > 25.0))
        rows, uv, info = find_sites(
            sites, rows, solved.rho, solved.poses, solved.cam, frame, cam_from_world(pose)
        )
        if t not in keys and len(rows) >= MIN_SITES:
            pose = _fitted(sites, solved, rows, uv, info, pose)
        out.world_from_cam[t] = pose
        out.depth_scale[t] = _map_scale(sites, solved, rows, uv, frame, pose)
        step()


def _carried(t: int, keys: Array, corrections: Array) -> Array:
    """Return the correction between those of the keyframes before and after."""
    after = int(np.searchsorted(keys, t))
    if after in (0, len(keys)):
        return corrections[min(after, len(keys) - 1)]
    share = (t - keys[after - 1]) / (keys[after] - keys[after - 1])
    return transforms.interpolate(corrections[after - 1], corrections[after], float(share))


def _fitted(
    sites: Sites, solved: Problem, rows: Array, uv: Array, info: Array, pose: Array
) -> Array:
    """Fit one frame to the sites that it sees; the given pose (4, 4) where they do not agree."""
    rays = camera.rays(sites.uv[rows], camera.make_K(*solved.cam.tolist()))
    seen = track.Sightings(
        solved.cam, *world_rays(rays, solved.poses, sites.host[rows]), solved.rho[rows],
        1 / np.maximum(solved.rho_info[rows], 1e-12), uv, info,
    )  # fmt: skip
    fit = seen.fit(cam_from_world(pose), track.WARM)
    if fit.inliers.sum() < max(MIN_SITES, len(rows) // 2):
        return pose
    return transforms.without_scale(transforms.invert(transforms.square(fit.pose)))


def _map_scale(
    sites: Sites, solved: Problem, rows: Array, uv: Array, frame: PosedFrame, pose: Array
) -> float:
    """Return what the stored depth must be multiplied by to fit the sites seen in the frame."""
    if len(rows) < MIN_SITES:
        return 1.0
    rays = camera.rays(sites.uv[rows], camera.make_K(*solved.cam.tolist()))
    points = world_points(rays, solved.poses, sites.host[rows], solved.rho[rows])
    z = transforms.transform_points(transforms.invert(pose), points)[:, 2]
    logd, known = read_log_depth(frame, uv)
    good = (known > 0) & (z > 0)
    if good.sum() < MIN_SITES:
        return 1.0
    return float(np.exp(np.median(np.log(z[good]) - logd[good])))

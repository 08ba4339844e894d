"""Other explanations of a map whose focal length is not known: other focal lengths, and the other reading of a plane.

The error of a map has several minima. Poses and depths that were found under a focal length far off hold it there. And
a view of little but one plane can be read in two ways, in which the normal and the direction of travel change places;
a long lens tells them apart late, and no small step leads from one to the other (``planes``). So the map is adjusted
from both, under several focal lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stream4d.geometry import camera
from stream4d.geometry.transforms import square
from stream4d.packets import Array
from stream4d.pose import planes, refine, track
from stream4d.pose.map import LocalMap

FOV_DEG = (26.0, 35.0, 46.0, 60.0, 78.0, 100.0)
"""Fields of view over the long side from which the map is adjusted: each the next one's by 1.3 in focal length."""
FIRST, THEN = (4, 100.0), (20, 9.0)
"""Iterations and robust scale, σ², for all, and for those that are left. Far from a minimum most fits badly."""
LEFT = 4
"""Explanations that are adjusted to the end, besides the present one."""
OBSERVATIONS = 1500
"""About so many are looked at; patches are left out for it."""
LEAST_SEEN = 3
"""Keyframes that see a patch that takes part: by two alone, depth explains most."""
FLAT = 0.12
"""Median distance from a plane, over its depth, up to which the map is read as one."""
RHO_RANGE = 0.05, 20.0
"""Inverse depths over the plane's at the middle of the view."""
SAME_FOCAL, SAME_COST = 0.01, 1.02
"""Difference of log focal, and ratio of costs, below which two explanations are one."""


@dataclass(slots=True, eq=False)
class Rival:
    """One explanation; its arrays are changed in place while it is adjusted."""

    cam: Array
    """(4,)."""
    rays: Array
    """(n, 3) of the evidence's patches."""
    poses: Array
    """(F, 3, 4) by slot."""
    rho: Array
    """(n,)."""
    prior: Array
    """(n,)."""
    cost: float = np.inf
    """Robust cost, σ², that of the focal length's prior in it."""

    @property
    def log_focal(self) -> float:
        """Log of fx in pixels."""
        return float(np.log(self.cam[0]))


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What all explanations are held against."""

    local_map: LocalMap
    rows: Array
    """(n,) patches that take part."""
    observations: refine.Observations
    prior_info: Array
    """(n,)."""
    focal_mean: float
    """Log focal as it is known already …"""
    focal_info: float
    """… and 1/variance of that."""

    @classmethod
    def of(cls, local_map: LocalMap, *, inherited: float, mean: float, info: float) -> Evidence:
        """Choose from the map; ``inherited`` is the share that counts of the information of depths' priors."""
        obs = refine.map_observations(local_map)
        rows, count = np.unique(obs.patch, return_counts=True)
        often = count >= LEAST_SEEN
        rows = rows[often][:: max(round(count[often].sum() / OBSERVATIONS), 1)]
        mine = np.isin(obs.patch, rows)
        numbered = refine.Observations(
            refine.compact(rows, obs.patch[mine]), obs.frame[mine], obs.uv[mine], obs.info[mine]
        )
        return cls(local_map, rows, numbered, inherited * local_map.prior_info[rows], mean, info)


def explain(evidence: Evidence) -> list[Rival]:
    """Return explanations, adjusted: the present one, then the best others."""
    present = _under(evidence, float(np.log(evidence.local_map.K[0, 0])))
    found: list[Rival] = []
    flat = _flat(evidence)
    size = max(evidence.local_map.height, evidence.local_map.width)
    for fov in FOV_DEG:
        log_focal = float(np.log(camera.focal_from_fov(fov, size)))
        found.append(_under(evidence, log_focal))
        if flat is not None:
            found += _readings(evidence, log_focal, *flat)
    for rival in (present, *found):
        _adjust(evidence, rival, *FIRST)
    found = _distinct(sorted(found, key=lambda r: r.cost))[:LEFT]
    for rival in (present, *found):
        _adjust(evidence, rival, *THEN)
    return [present, *found]


def _distinct(found: list[Rival]) -> list[Rival]:
    kept: list[Rival] = []
    for rival in found:
        if not any(
            abs(rival.log_focal - k.log_focal) < SAME_FOCAL and rival.cost < SAME_COST * k.cost
            for k in kept
        ):
            kept.append(rival)
    return kept


def _adjust(evidence: Evidence, rival: Rival, iterations: int, scale_sq: float) -> None:
    local_map = evidence.local_map
    result = refine.adjust(
        rival.cam, rival.rays, local_map.host[evidence.rows], rival.poses, local_map.order[1:], rival.rho,
        rival.prior, evidence.prior_info, evidence.observations, iterations=iterations, scales=(scale_sq,),
        focal_info=evidence.focal_info, focal_offset=evidence.focal_mean - rival.log_focal,
    )  # fmt: skip
    rival.cost = result.cost


def _under(evidence: Evidence, log_focal: float) -> Rival:
    """Return the map under another focal length, all else as it is."""
    local_map, rows = evidence.local_map, evidence.rows
    scale = float(np.exp(log_focal)) / local_map.K[0, 0]
    return Rival(
        local_map.cam * [scale, scale, 1.0, 1.0], local_map.rays[rows] / [scale, scale, 1.0],
        local_map.poses.copy(), local_map.rho[rows].copy(), local_map.prior[rows].copy(),
    )  # fmt: skip


def _flat(evidence: Evidence) -> tuple[Array, Array] | None:
    """Return the map's plane, seen from the oldest keyframe, and the homographies (k, 3, 3); None: it has relief."""
    local_map, rows = evidence.local_map, evidence.rows
    first, *_ = local_map.order
    points = local_map.world_points(rows)
    origin = local_map.poses[first]
    normal, off = planes.plane_of(points @ origin[:, :3].T + origin[:, 3])
    if off > FLAT:
        return None
    relative = [track.relative_pose(local_map.poses[slot], origin) for slot in local_map.order]
    return normal, np.stack([planes.homography(pose, normal) for pose in relative])


def _readings(
    evidence: Evidence, log_focal: float, normal: Array, homographies: Array
) -> Iterator[Rival]:
    """Yield the map as a plane in its two readings, under another focal length."""
    scale = float(np.exp(log_focal)) / evidence.local_map.K[0, 0]
    seen = [planes.rescaled(H, scale) for H in homographies]
    # the view that differs most tells the readings apart best
    farthest = max(seen, key=lambda H: float(np.ptp(np.linalg.svd(H, compute_uv=False))))
    distance = 1 / float(np.linalg.norm(normal * [scale, scale, 1.0]))
    for unit in planes.normals(farthest):
        rival = _under(evidence, log_focal)
        _lay_flat(evidence, rival, unit, distance, [planes.camera_before(H, unit) for H in seen])
        yield rival


def _lay_flat(
    evidence: Evidence, rival: Rival, unit: Array, distance: float, cameras: list[Array]
) -> None:
    """Put all patches on a plane, and the keyframes, given from the oldest one, before it."""
    order, host = evidence.local_map.order, evidence.local_map.host[evidence.rows]
    origin = evidence.local_map.poses[order[0]]
    for slot, pose in zip(order, cameras, strict=True):
        pose = np.column_stack([pose[:, :3], distance * pose[:, 3]])
        mine = host == slot
        rho = distance * planes.inverse_depths(rival.rays[mine], pose, unit / distance)
        rival.rho[mine] = np.clip(rho, *RHO_RANGE) / distance
        rival.poses[slot] = (square(pose) @ square(origin))[:3]
    rival.prior = rival.rho.copy()

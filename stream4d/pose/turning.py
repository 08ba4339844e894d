"""The focal length from a camera that turns on the spot: its view moves as K R K⁻¹, whatever the depth.

The same turn moves the middle of the view by f tan θ and its border by more, the more so the wider the lens. Szeliski
and Shum, "Creating full view panoramic image mosaics and environment maps", 1997.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose import track
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record

ITERATIONS = 8
SCALE_SQ = 9.0
"""Geman–McClure scale, σ²."""
MIN_EXPLAINED = 0.75
"""Share of positions that turning must explain; fewer, and there is parallax, or movers fill the view."""
SHARED_ERROR_PX = 0.15
"""1σ of what all patches of a frame may err alike: parallax too small to be noticed, a lens that is no pinhole."""
LOOKS = frozenset({3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 36})
"""Frames after the anchor at which the focal length is looked at."""
FRAMES = 6
"""Frames that take part."""


@dataclass(frozen=True, slots=True)
class Turning:
    """What turning says."""

    log_scale: float
    """Change of log focal."""
    information: float
    """1/variance of log focal as the positions state it, rotations free."""
    sensitivity_px: float
    """Root mean square change of position per unit of log focal that no rotation undoes."""
    explained: float
    """Share of positions within 3σ."""


def focal_from_turning(
    cam: Array,  # (4,)
    uv0: Array,  # (n, 2) pixels in the anchor
    uv: Array,  # (F, n, 2)
    info: Array,  # (F, n, 3) inverse covariances, zero where not seen
    rotations: Array,  # (F, 3, 3) camera-from-anchor under the focal length of ``cam``
) -> Turning:
    """Fit F rotations and one focal length to points at infinity, robustly."""
    cam, rotations, start = cam.copy(), rotations.copy(), float(np.log(cam[0]))
    uv = np.where(info[..., :1] > 0, uv, 0.0)
    information, squares = 0.0, np.zeros(1)
    for iteration in range(ITERATIONS):
        residual, J = _linearise(cam, uv0, uv, rotations)
        W = np.stack([info[..., :2], info[..., 1:]], axis=-2)  # (F, n, 2, 2)
        squares = np.einsum("fni,fnij,fnj->fn", residual, W, residual)
        scale_sq = SCALE_SQ * (100.0 if iteration < 2 else 10.0 if iteration < 4 else 1.0)
        W = W * ((scale_sq / (scale_sq + squares)) ** 2)[..., None, None]
        H = np.einsum("fnia,fnij,fnjb->fab", J, W, J)
        b = np.einsum("fnia,fnij,fnj->fa", J, W, residual)
        held = np.linalg.solve(H[:, :3, :3] + 1e-9 * np.eye(3), np.dstack([H[:, :3, 3], b[:, :3]]))
        information = float((H[:, 3, 3] - (H[:, 3, :3] * held[..., 0]).sum(1)).sum())
        pull = float((b[:, 3] - (H[:, 3, :3] * held[..., 1]).sum(1)).sum())
        step = float(np.clip(-pull / max(information, 1e-9), -0.2, 0.2))
        rotations = transforms.so3_exp(-held[..., 1] - step * held[..., 0]) @ rotations
        cam[:2] *= np.exp(step)
    seen = info[..., 0] > 0
    weight = 0.5 * float((info[..., 0] + info[..., 2])[seen].sum())
    return Turning(
        float(np.log(cam[0])) - start, max(information, 0.0),
        float(np.sqrt(max(information, 0.0) / max(weight, 1e-9))),
        float((squares[seen] < SCALE_SQ).mean()) if seen.any() else 0.0,
    )  # fmt: skip


def _linearise(cam: Array, uv0: Array, uv: Array, rotations: Array) -> tuple[Array, Array]:
    """Return residuals (F, n, 2) and their derivatives (F, n, 2, 4) by left rotation and log focal."""
    rays = np.column_stack([(uv0 - cam[2:]) / cam[:2], np.ones(len(uv0))])
    q = rays @ np.swapaxes(rotations, 1, 2)  # (F, n, 3)
    z = np.maximum(q[..., 2], 1e-3)
    x = q[..., :2] / z[..., None]
    D = np.zeros((*q.shape[:2], 2, 3))
    D[..., 0, 0], D[..., 1, 1] = cam[0] / z, cam[1] / z
    D[..., :, 2] = -cam[:2] * x / z[..., None]
    by_focal = rays * [-1.0, -1.0, 0.0] @ np.swapaxes(rotations, 1, 2)
    J = np.empty((*q.shape[:2], 2, 4))
    J[..., :3] = -D @ transforms.hat(q)
    J[..., 3] = cam[:2] * x + (D @ by_focal[..., None])[..., 0]
    return cam[:2] * x + cam[2:] - uv, J


def learn_focal(progress: Progress, record: Record) -> None:
    """Look at how far the camera has turned since the anchor, and turn all frames since anew if that tells the focal.

    Does nothing where K is given, where translation shows, or where the turn is too small to tell.
    """
    local_map = progress.map
    first = int(local_map.frame_index[0])
    since = [r for r in progress.records if r.index > first] + [record]
    if progress.focal_known or not progress.config.refine_focal or len(since) not in LOOKS:
        return
    rows = np.flatnonzero((local_map.host == 0) & np.isfinite(record.var))
    picks = np.unique(np.linspace(0, len(since) - 1, FRAMES).round().astype(int))
    chosen = [since[i] for i in picks]
    origin = local_map.poses[0]
    seen = np.stack([np.isfinite(r.var[rows]) for r in chosen])
    said = focal_from_turning(
        local_map.cam, local_map.uv0[rows], np.stack([r.uv[rows] for r in chosen]),
        np.stack([r.info[rows] for r in chosen]) * seen[..., None],
        np.stack([track.relative_pose(r.pose, origin)[:, :3] for r in chosen]),
    )  # fmt: skip
    known, now = progress.focal, float(np.log(local_map.K[0, 0]))
    if said.explained < MIN_EXPLAINED:
        known.forget()
        return
    shared = (SHARED_ERROR_PX / max(said.sensitivity_px, 1e-6)) ** 2
    known.see(now + said.log_scale, said.information, shared, progress.size)
    local_map.set_focal(float(np.exp(known.best - now)))
    for r in since:
        _turn_anew(progress, r, origin)


def _turn_anew(progress: Progress, record: Record, origin: Array) -> None:
    """Fit a frame's rotation since the anchor under the focal length as it is now."""
    local_map = progress.map
    rows = np.flatnonzero((local_map.host == 0) & np.isfinite(record.var))
    zero = np.zeros(len(rows))
    seen = track.Sightings(
        local_map.cam, local_map.rays[rows], np.zeros((len(rows), 3)), zero, zero, record.uv[rows], record.info[rows]
    )  # fmt: skip
    fit = seen.fit(track.relative_pose(record.pose, origin), track.WARM)
    R = transforms.project_to_so3(fit.pose[:, :3] @ origin[:, :3])
    there = np.column_stack([R, R @ origin[:, :3].T @ origin[:, 3]])  # at the anchor's centre
    record.set_pose(there, local_map, tracked=record.is_tracked)
    record.information = fit.information

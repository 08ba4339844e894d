"""Covariances of poses: drift along the keyframes, a focal length that may be wrong, and the frame's own fit.

Patches say how well they were seen, but not that their errors are alike: neighbours, and frames after each other, err
together, by blur, by the shutter, by what moves. How much larger errors are than patches say was measured on rendered
clips of random scenes (six kinds of camera motion, movers in most), and on no real one.
"""

from __future__ import annotations

import itertools

import numpy as np

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose import drift
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record

DRIFT_SIGMA = (3.0, 1.5)
"""1σ of drift over what the normal equations say, of translation and scale, and of rotation, where a keyframe sees
``TYPICAL_PATCHES``. Chosen on rendered clips, those that go wrong included, so that 1σ holds for 0.75 of errors:
the upper edge of what is asked, since real lenses and shutters err in ways that are not rendered."""
OWN_SIGMA = 2.0
"""The same of a frame's own fit, its map held."""
TURN_SIGMA = 0.8
"""The same of a turn before there is a map, however few patches: on rendered cameras that only turn."""
TYPICAL_PATCHES = 300.0
PATCHES_POWER = 1.25
"""How 1σ grows as patches get fewer, beyond what the normal equations say: slope over the rendered clips (1.24). With
few patches one that moves, or a blurred frame, bends what nothing else holds. How badly patches fit told nothing."""
FEWEST_PATCHES = 40.0
"""Patches with fewer of which 1σ grows no more."""
FLOOR = np.diag([1e-8, 1e-8, 1e-8, 4e-10, 4e-10, 4e-10])
"""Nothing is known better than a ten thousandth of the first median depth, or 0.001°."""
STILL = np.diag([2.5e-3, 2.5e-3, 2.5e-3, 0.0, 0.0, 0.0])
"""Before the first baseline the position is known only to have moved little against the depth."""


def sigma_factor(patches: float) -> float:
    """Return by how much 1σ is larger with so many patches than with ``TYPICAL_PATCHES``."""
    return float((TYPICAL_PATCHES / max(patches, FEWEST_PATCHES)) ** PATCHES_POWER)


def focal_sigma(progress: Progress) -> float:
    """Return 1σ of log focal, zero where the camera is given; the filter's information is inflated already."""
    if progress.focal_known:
        return 0.0
    return progress.focal.sigma


def spread(progress: Progress) -> None:
    """Let drift reach the keyframes that have none stated yet: each a step behind the one before it."""
    local_map = progress.map
    step = drift.step_of(local_map, focal_free=not progress.focal_known)
    if step is None:
        return
    way, turn = (sigma * sigma_factor(step.seen) for sigma in DRIFT_SIGMA)
    to_origin = drift.similarity_adjoint(transforms.rigid(np.eye(3), step.centre))
    grow = to_origin @ np.diag([way, way, way, turn, turn, turn, way])
    grown = grow @ step.covariance @ grow.T
    bias = focal_sigma(progress) * (to_origin @ step.focal)
    for before, slot in itertools.pairwise(local_map.order):
        if not local_map.covariance[slot].any():
            local_map.covariance[slot] = local_map.covariance[before] + grown
            local_map.focal_bias[slot] = local_map.focal_bias[before] + bias


def begin_anew(progress: Progress, record: Record) -> tuple[Array, Array]:
    """Return drift (7, 7) and focal bias (7,) of a frame that is about to follow the anchor as the next one."""
    covariance = progress.map.covariance[0].copy()
    covariance[3:6, 3:6] += own_part(progress, record, record.pose)[3:, 3:]
    return covariance, _turned_bias(progress, record, 0)


def own_part(progress: Progress, record: Record, pose: Array) -> Array:
    """Return the (6, 6) covariance of a fit alone, of the left twist of world-from-camera."""
    information = record.information
    if not information.any():
        return np.zeros((6, 6))
    seen = np.diagonal(information) > 0  # a pure rotation says nothing of the position
    ridge = 1e-9 * max(float(np.trace(information)) / 6, 1.0)
    own = np.linalg.inv(information + ridge * np.eye(6)) * np.outer(seen, seen)
    factor = OWN_SIGMA * sigma_factor(len(record.rows)) if progress.started else TURN_SIGMA
    return factor**2 * to_world(own, pose)


def to_world(covariance: Array, pose: Array) -> Array:
    """Turn the covariance of a camera-from-world's left twist into that of the world-from-camera's."""
    A = transforms.adjoint(transforms.invert(transforms.square(pose)))
    return np.asarray(A @ covariance @ A.T)


def of_frame(progress: Progress, record: Record, pose: Array) -> tuple[Array, Array]:
    """Return the (6, 6) covariance of a leaving frame, symmetric and positive, and the part that is its own."""
    own = own_part(progress, record, pose) + FLOOR
    if not progress.started:
        own = own + STILL
    slot = progress.map.slot_of(record.reference)
    slot = int(progress.map.order[0]) if slot < 0 else slot
    bias = progress.map.focal_bias[slot]
    if not progress.started:
        bias = _turned_bias(progress, record, slot)
    return of_drift(progress.map.covariance[slot] + np.outer(bias, bias)) + own, own


def of_drift(covariance: Array) -> Array:  # (..., 7, 7) -> (..., 6, 6)
    """Return what drift in Sim(3) leaves of rigid poses, in the unit of the map where they stand."""
    return np.asarray(covariance[..., :6, :6])


def _turned_bias(progress: Progress, record: Record, slot: int) -> Array:
    """Return the focal bias of a frame that only turned since its anchor: a longer focal length shortens the turn."""
    turn = record.pose[:, :3].T @ progress.map.poses[slot][:, :3]
    bias = progress.map.focal_bias[slot].copy()
    bias[3:6] -= focal_sigma(progress) * transforms.so3_log(turn)
    return bias

"""Where a scene's solids stand and how they move: alone, in rigid assemblies, or as walking figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stream4d.train.cameras import Floats, Lens, log_uniform, rotation_from_vector, smooth_noise
from stream4d.train.casting import BOX, CYLINDER, ELLIPSOID, ROOM, TERRAIN
from stream4d.train.options import SceneOptions

KINDS = (BOX,) * 10 + (ELLIPSOID,) * 9 + (CYLINDER,) * 9 + (TERRAIN, ROOM)
"""Kind of each of the S slots; the last is the room or open ground around everything."""
SLOTS = CONVEX_SLOTS = len(KINDS) - 2
"""The slots before the terrain and the room: convex solids."""
_GROUPS = 6
_ELLIPSOIDS = np.flatnonzero(np.array(KINDS) == ELLIPSOID)
_CYLINDERS = np.flatnonzero(np.array(KINDS) == CYLINDER)


@dataclass(slots=True)
class Layout:
    """Solids at rest in the gravity frame, and how they move; filled in step by step."""

    centre: Floats  # (B, P, 3)
    rotation: Floats  # (B, P, 3, 3)
    extents: Floats  # (B, P, 3)
    active: npt.NDArray[np.bool_]  # (B, P)
    depth: Floats  # (B, P) when placed
    grounded: npt.NDArray[np.bool_]  # (B, P) stands on the floor
    group: npt.NDArray[np.int64]  # (B, P) motion group or -1
    swing: Floats  # (B, P, 3) axis × amplitude about the solid's upper end
    swing_phase: Floats  # (B, P)
    breathe: Floats  # (B, P, 3) amplitude of periodic stretching


def _distance_to_wall(room: Floats, origin: Floats, direction: Floats) -> Floats:  # (B, P)
    """Return how often ``direction`` (B, P, 3) fits between ``origin`` (B, P, 3) and the walls of the room."""
    unit_from_world = np.linalg.inv(room)[:, None, :3]
    o = np.einsum("bpij,bpj->bpi", unit_from_world[..., :3], origin) + unit_from_world[..., 3]
    d = np.einsum("bpij,bpj->bpi", unit_from_world[..., :3], direction)
    return np.asarray(((np.sign(d) - o) / np.where(d == 0, 1e-9, d)).min(-1))


def place(
    rng: np.random.Generator, lens: Lens, size: tuple[int, int], cameras: Floats, scale: Floats, floor: Floats,
    room: Floats, options: SceneOptions,
) -> Layout:  # fmt: skip
    """Scatter solids in front of the cameras (B, T, 4, 4), at depths and apparent sizes of many octaves."""
    H, W = size
    B, T = cameras.shape[:2]
    shape = (B, SLOTS)
    frame = rng.integers(0, T, shape)
    depth = log_uniform(rng, 1.3, 11.0, shape) * scale[:, None]
    pixel = rng.uniform(-0.08, 1.08, (*shape, 2)) * [W, H]
    f = lens.focal[:, None, None]
    local = np.concatenate([(pixel - lens.centre[:, None]) / f, np.ones((*shape, 1))], -1)
    camera = np.take_along_axis(cameras, frame[:, :, None, None], 1)  # (B, P, 4, 4)
    direction = np.einsum("bpij,bpj->bpi", camera[..., :3, :3], local)
    wall = _distance_to_wall(room, camera[..., :3, 3], direction)
    depth = np.minimum(depth, wall * rng.uniform(0.6, 0.97, shape))
    centre = camera[..., :3, 3] + direction * depth[..., None]
    radius = log_uniform(rng, 0.02, 0.28, shape) * W / lens.focal[:, None] * depth
    radius = np.minimum(radius, 0.55 * depth)
    extents = radius[..., None] * np.exp(rng.normal(0, 0.45, (*shape, 3)))
    thin = (np.array(KINDS[:SLOTS]) == CYLINDER) & (rng.random(shape) < 0.25)  # poles, branches
    extents[thin] *= [0.12, 2.5, 0.12]
    on_floor = centre.copy()
    on_floor[..., 1] = floor[:, None] - extents[..., 1]
    seen = np.einsum("bpji,bpj->bpi", camera[..., :3, :3], on_floor - camera[..., :3, 3])
    height = lens.focal[:, None] * seen[..., 1] / np.maximum(seen[..., 2], 1e-3)
    stays_in_view = (np.abs(height) < 0.55 * H) & (seen[..., 2] > 0.3 * depth)
    grounded = (rng.random(shape) < 0.6) & stays_in_view
    centre = np.where(grounded[..., None], on_floor, centre)
    spin = rng.normal(size=(*shape, 3)) * 1.5
    spin[grounded] *= [0, 1, 0]
    count = np.asarray(rng.integers(options.solids[0], options.solids[1] + 1, B))
    active = rng.random(shape).argsort(-1) < count[:, None]
    return Layout(
        centre, rotation_from_vector(spin), extents, active, depth, grounded,
        np.full(shape, -1), np.zeros((*shape, 3)), rng.uniform(0, 2 * np.pi, shape), np.zeros((*shape, 3)),
    )  # fmt: skip


def form_groups(rng: np.random.Generator, layout: Layout, options: SceneOptions) -> None:
    """Let some solids move, alone or in rigid assemblies of two or three; some of them breathe or swing."""
    B = len(layout.centre)
    for b in range(B):
        if rng.random() < options.static_share:
            continue
        looks = layout.extents[b].max(-1) / layout.depth[b]
        candidates = np.flatnonzero(layout.active[b])
        draw = looks[candidates] ** 1.5  # what looks large moves more often
        candidates = rng.choice(candidates, len(candidates), replace=False, p=draw / draw.sum())
        wanted = int(rng.integers(options.movers[0], options.movers[1] + 1))
        for g in range(min(wanted, _GROUPS)):
            members, candidates = np.split(candidates, [int(rng.choice([1, 1, 2, 3]))])
            if not len(members):
                break
            anchor = members[0]
            layout.group[b, members] = g
            offset = rng.normal(0, 0.8, (len(members), 3)) * layout.extents[b, anchor]
            layout.centre[b, members[1:]] = layout.centre[b, anchor] + offset[1:]
            ratio = layout.extents[b, anchor].mean() / layout.extents[b, members].mean(-1)
            layout.extents[b, members] *= (ratio * rng.uniform(0.4, 1.0, len(members)))[:, None]
            if rng.random() < 0.25:
                layout.breathe[b, members] = rng.uniform(0, 0.3, (len(members), 3))
            if rng.random() < 0.3:
                layout.swing[b, members] = rng.normal(0, 0.35, (len(members), 3))


def add_figure(rng: np.random.Generator, layout: Layout, b: int, field: float) -> None:
    """Turn group 0 into a walking figure: torso, head, two arms and two legs that swing.

    ``field`` is the width of what the camera sees at unit distance.
    """
    torso, head = _ELLIPSOIDS[:2]
    limbs = _CYLINDERS[:4]
    members = np.array([torso, head, *limbs])
    height = float(layout.depth[b, torso] * field * rng.uniform(0.2, 0.7))
    foot = layout.centre[b, torso] + [0, 0.5 * height, 0]
    layout.group[b][layout.group[b] == 0] = -1
    layout.group[b, members] = 0
    layout.active[b, members] = True
    layout.breathe[b, members] = 0
    yaw = rotation_from_vector(np.array([0, rng.uniform(0, 6.3), 0]))
    side = np.array([0.0, 0.0, 0.22, -0.22, 0.1, -0.1]) * height
    rise = np.array([0.62, 0.92, 0.62, 0.62, 0.24, 0.24]) * height
    layout.centre[b, members] = foot + np.stack([side, -rise, 0 * side], -1) @ yaw.T
    layout.extents[b, members] = height * np.array(
        [[0.16, 0.22, 0.1], [0.08, 0.11, 0.09]] + [[0.04, 0.18, 0.04]] * 2 + [[0.055, 0.24, 0.055]] * 2
    )  # fmt: skip
    layout.rotation[b, members] = yaw
    layout.swing[b, members] = 0
    layout.swing[b, limbs] = yaw[:, 0] * rng.uniform(0.2, 0.8)
    phase = rng.uniform(0, 6.3)
    layout.swing_phase[b, limbs] = phase + np.array([0, np.pi, np.pi, 0])
    layout.grounded[b, members] = True


def _group_motion(
    rng: np.random.Generator,
    layout: Layout,
    lens: Lens,
    width: int,
    cameras: Floats,
    options: SceneOptions,
) -> tuple[Floats, Floats, Floats]:
    """Return offsets (B, T, G, 3), rotations (B, T, G, 3, 3) and pivots (B, G, 3) of the motion groups."""
    B, T = cameras.shape[:2]
    shape = (B, _GROUPS)
    first = np.stack([(layout.group == g).argmax(1) for g in range(_GROUPS)], 1)  # (B, G) a member
    depth = np.take_along_axis(layout.depth, first, 1)
    upright = np.take_along_axis(layout.grounded, first, 1)
    pivot = np.take_along_axis(layout.centre, first[..., None], 1)
    speed = log_uniform(rng, *options.mover_speed, shape) * width / lens.focal[:, None] * depth
    heading = rng.normal(size=(*shape, 3))
    heading[upright] *= [1, 0.02, 1]
    travelled = cameras[:, :, :3, 3] - cameras[:, :1, :3, 3]
    traffic = np.zeros(shape, bool)
    if options.traffic_share:
        traffic = (rng.random(shape) < options.traffic_share) & travelled[:, -1:].any(-1)
        heading[traffic] = (rng.choice([-1.0, 1.0], (*shape, 1)) * travelled[:, -1:])[traffic]
    heading /= np.linalg.norm(heading, axis=-1, keepdims=True)
    pace = 1 + 0.3 * smooth_noise(rng, (B, T, _GROUPS, 1), 0.9)
    step = heading[:, None] * speed[:, None, :, None] * pace
    sway = np.where(traffic, 0.01, 0.15) * speed
    step += sway[:, None, :, None] * smooth_noise(rng, (B, T, _GROUPS, 3), 0.8)
    step[:, 0] = 0
    offset = step.cumsum(1)
    offset -= np.take_along_axis(offset, rng.integers(0, T, (B, 1, _GROUPS, 1)), 1)
    escorts = rng.random(shape) < 0.2  # keep pace with the camera, like the car ahead
    offset += escorts[:, None, :, None] * travelled[:, :, None]
    rate = log_uniform(rng, 0.004, 0.2, shape)[..., None] * rng.normal(size=(*shape, 3))
    rate[upright] *= [0.05, 1, 0.05]
    rate *= ((rng.random(shape) < 0.65) & ~traffic)[..., None]
    angle = rate[:, None] * np.arange(T)[None, :, None, None]
    return offset, rotation_from_vector(angle), pivot


def animate(
    rng: np.random.Generator,
    layout: Layout,
    lens: Lens,
    width: int,
    cameras: Floats,
    options: SceneOptions,
) -> Floats:  # (B, T, P, 4, 4)
    """Compose each solid's affine pose over time in the gravity frame."""
    B, T = cameras.shape[:2]
    offset, turn, pivot = _group_motion(rng, layout, lens, width, cameras, options)
    omega = log_uniform(rng, 0.15, 0.9, (B, 1, 1))
    wave = np.sin(omega * np.arange(T)[None, :, None] + layout.swing_phase[:, None])  # (B, T, P)
    swing = rotation_from_vector(layout.swing[:, None] * wave[..., None])
    size = layout.extents[:, None] * (1 + layout.breathe[:, None] * wave[..., None])
    linear = swing @ layout.rotation[:, None]  # (B, T, P, 3, 3)
    arm = np.einsum("bpij,bpj->bpi", layout.rotation, layout.extents * [0, 1, 0])
    joint = layout.centre - arm  # the upper end
    centre = joint[:, None] + np.einsum("btpij,bpj->btpi", swing, arm)
    moving = layout.group >= 0
    group = np.maximum(layout.group, 0)
    rows = np.arange(B)[:, None]
    R = turn.swapaxes(1, 2)[rows, group].swapaxes(1, 2)  # (B, T, P, 3, 3)
    shift = offset.swapaxes(1, 2)[rows, group].swapaxes(1, 2)
    around = pivot[rows, group][:, None]
    moved = np.einsum("btpij,btpj->btpi", R, centre - around) + around + shift
    pose = np.zeros((B, T, SLOTS, 4, 4))
    is_moving = moving[:, None, :, None]
    pose[..., :3, :3] = np.where(is_moving[..., None], R @ linear, layout.rotation[:, None])
    pose[..., :3, :3] *= np.where(is_moving, size, layout.extents[:, None])[..., None, :]
    pose[..., :3, 3] = np.where(is_moving, moved, layout.centre[:, None])
    pose[..., 3, 3] = 1
    return pose

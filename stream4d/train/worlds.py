"""What a rendered clip contains: lens, camera path, solids with their poses over time, materials and light.

Everything is drawn with numpy in float64 for a whole batch at once; nothing here touches pixels. Scenes are built
in a gravity frame G (y down, the camera starts at its origin) and handed out with the first camera as the world.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stream4d.train.cameras import (
    STYLES,
    Floats,
    log_uniform,
    rotation_from_vector,
    sample_lens,
    sample_trajectories,
)
from stream4d.train.movers import add_figure, animate, form_groups, place
from stream4d.train.options import SceneOptions
from stream4d.train.textures import SKY_TILES

FLOOR_FACE = 3
"""Faces are numbered 2·axis + (1 where the local coordinate is positive); y points down."""
MATERIAL = ("tile", "density", "u0", "v0", "gain_r", "gain_g", "gain_b", "bias_r", "bias_g", "bias_b",
            "detail_tile", "detail_density", "detail", "specular", "is_sky")  # fmt: skip
"""Columns of ``World.materials``."""


@dataclass(frozen=True, slots=True)
class World:
    """B scenes over T frames (numpy float64)."""

    K: Floats
    """(B, 3, 3) pixels."""
    world_from_cam: Floats
    """(B, T, 4, 4); the first is the identity."""
    world_from_local: Floats
    """(B, T, S, 4, 4) affine: the unit frame of each solid → world."""
    is_active: npt.NDArray[np.bool_]
    """(B, S)."""
    extents: Floats
    """(B, S, 3) half sizes at rest, for texture coordinates."""
    materials: Floats
    """(B, S, 6, len(MATERIAL)) one row a face."""
    light: Floats
    """(B, 3) unit vector towards the light, in the world."""
    ambient: Floats
    """(B,) share of light that comes from everywhere."""
    waves: Floats
    """(B, 4, 4) height field of the terrain: rows of (kx, kz, phase, amplitude)."""
    world_from_light: Floats
    """(B, 4, 4) the light as a camera that looks at the scene."""
    light_reach: Floats
    """(B,) radius of what the light's camera covers; it stands four radii away."""
    has_shadow: npt.NDArray[np.bool_]
    """(B,) solids throw shadows."""
    fog: Floats
    """(B, 4) colour and density per world unit."""


def _tilt(rng: np.random.Generator, styles: npt.NDArray[np.int64]) -> Floats:
    """Draw how the first camera is held against gravity: gravity_from_cam (B, 3, 3)."""
    B = len(styles)
    drone = np.asarray(STYLES)[styles] == "drone"
    pitch = rng.normal(np.where(drone, -0.5, -0.1), 0.15)
    roll = rng.normal(0, 0.06, B)
    zero = np.zeros(B)
    turn_x = rotation_from_vector(np.stack([pitch, zero, zero], -1))
    return turn_x @ rotation_from_vector(np.stack([zero, zero, roll], -1))


def _room(
    rng: np.random.Generator,
    cameras: Floats,
    scale: Floats,
    floor: Floats,
    outdoors: npt.NDArray[np.bool_],
) -> tuple[Floats, Floats]:
    """Return the surrounding box: pose (B, 4, 4) and half sizes (B, 3); it contains the camera path."""
    B = len(scale)
    low = -np.stack([rng.uniform(2, 6, B), rng.uniform(0.8, 2.5, B), rng.uniform(1, 5, B)], -1)
    high = np.stack([rng.uniform(2, 6, B), np.ones(B), rng.uniform(4, 13, B)], -1)
    low, high = low * scale[:, None], high * scale[:, None]
    far = rng.uniform(60, 250, (B, 1)) * scale[:, None]
    low, high = np.where(outdoors[:, None], -far, low), np.where(outdoors[:, None], far, high)
    yaw = rotation_from_vector(np.stack([0 * scale, rng.normal(0, 0.6, B), 0 * scale], -1))
    path = np.einsum("bij,btj->bti", yaw.swapaxes(1, 2), cameras[:, :, :3, 3])
    margin = 0.4 * scale[:, None]
    low, high = np.minimum(low, path.min(1) - margin), np.maximum(high, path.max(1) + margin)
    high[:, 1] = np.maximum(floor, path[..., 1].max(1) + 0.25 * scale)
    pose = np.tile(np.eye(4), (B, 1, 1))
    half = (high - low) / 2
    pose[:, :3, :3] = yaw * half[:, None]
    pose[:, :3, 3] = np.einsum("bij,bj->bi", yaw, (high + low) / 2)
    return pose, half


def _materials(
    rng: np.random.Generator, extents: Floats, outdoors: npt.NDArray[np.bool_], tiles: int
) -> Floats:  # (B, S, 6, F)
    B, S = extents.shape[:2]
    shape = (B, S, 6)
    m = np.zeros((*shape, len(MATERIAL)))
    column = {name: i for i, name in enumerate(MATERIAL)}
    same = rng.random((B, S, 1)) < 0.7  # most solids wear one texture all round, most rooms do not
    same[:, -1] = rng.random((B, 1)) < 0.1

    def per_face(values: Floats) -> Floats:
        return np.where(same, values[..., :1], values)

    radius = np.exp(np.log(extents).mean(-1))[..., None]
    m[..., column["tile"]] = per_face(rng.integers(SKY_TILES, tiles, shape).astype(float))
    m[..., column["density"]] = per_face(log_uniform(rng, 0.15, 0.9, shape)) / radius
    m[..., column["u0"]], m[..., column["v0"]] = rng.random(shape), rng.random(shape)
    m[..., column["detail_tile"]] = per_face(rng.integers(SKY_TILES, tiles, shape).astype(float))
    m[..., column["detail_density"]] = m[..., column["density"]] * per_face(
        log_uniform(rng, 3, 9, shape)
    )
    m[..., column["detail"]] = per_face(rng.choice([0.0, 0.25, 0.5], shape))
    m[..., column["specular"]] = per_face(rng.choice([0.0, 0.1, 0.35], shape))
    brightness = per_face(rng.uniform(0.75, 1.25, shape))
    for c in "rgb":
        m[..., column[f"gain_{c}"]] = brightness * per_face(rng.uniform(0.85, 1.15, shape))
        m[..., column[f"bias_{c}"]] = per_face(rng.normal(0, 0.04, shape))
    room = m[:, -1]
    papered = np.asarray(rng.random(B) < 0.6)  # all four walls alike
    room[papered[:, None] & np.isin(np.arange(6), (1, 4, 5))] = room[papered, 0].repeat(3, 0)
    tile_m = log_uniform(rng, 0.8, 5.0, (B, 6)) * np.where(outdoors, 2.0, 1.0)[:, None]
    room[..., column["density"]] = 1 / tile_m
    room[..., column["detail_density"]] = log_uniform(rng, 3, 9, (B, 6)) / tile_m
    sky = outdoors[:, None] & (np.arange(6) != FLOOR_FACE)
    m[:, -2] = room[:, FLOOR_FACE, None]  # the terrain is the floor
    room[..., column["is_sky"]] = sky
    sky_tile = np.broadcast_to(rng.integers(0, SKY_TILES, (B, 1)), (B, 6))
    room[..., column["tile"]] = np.where(sky, sky_tile, room[..., column["tile"]])
    room[..., column["density"]] = np.where(
        sky, 0.5 / extents[:, -1, :1], room[..., column["density"]]
    )
    room[..., column["detail"]] = np.where(sky, 0, room[..., column["detail"]])
    return m


def _terrain(
    rng: np.random.Generator, scale: Floats, floor: Floats, present: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return pose (B, 4, 4) and waves (B, 4, 4) of hilly ground; the camera starts above it."""
    B = len(scale)
    length = log_uniform(rng, 1.5, 25.0, (B, 4)) * scale[:, None]
    k = 2 * np.pi / length
    direction = rng.uniform(0, 2 * np.pi, (B, 4))
    amplitude = rng.uniform(0.01, 0.05, (B, 4)) * length
    amplitude *= np.minimum(1, 0.7 * floor / amplitude.sum(1))[:, None] * present[:, None]
    pose = np.tile(np.eye(4), (B, 1, 1))
    pose[:, 1, 3] = floor
    phase = rng.uniform(0, 2 * np.pi, (B, 4))
    return pose, np.stack([k * np.cos(direction), k * np.sin(direction), phase, amplitude], -1)


def _light(
    rng: np.random.Generator, cameras: Floats, scale: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return the direction to the light (B, 3), its camera's pose (B, 4, 4) and the radius it covers (B,)."""
    B = len(scale)
    towards = np.stack(
        [rng.normal(0, 0.7, B), -np.abs(rng.normal(1, 0.3, B)) - 0.2, rng.normal(-0.3, 0.7, B)], -1
    )
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    reach = 8.0 * scale
    focus = cameras[:, :, :3, 3].mean(1) + cameras[:, :, :3, 2].mean(1) * 5.0 * scale[:, None]
    pose = np.tile(np.eye(4), (B, 1, 1))
    side = np.cross(towards, [0.3, 0.1, 1.0])
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    pose[:, :3, :3] = np.stack([side, np.cross(-towards, side), -towards], -1)
    pose[:, :3, 3] = focus + towards * 4 * reach[:, None]
    return towards, pose, reach


def _fog(rng: np.random.Generator, scale: Floats, share: float) -> Floats:
    B = len(scale)
    colour = rng.uniform(0.5, 0.9, (B, 1)) + rng.normal(0, 0.04, (B, 3))
    density = log_uniform(rng, 0.01, 0.2, (B,)) / scale * (rng.random(B) < share)
    return np.concatenate([colour, density[:, None]], 1)


def sample_world(
    rng: np.random.Generator, batch: int, frames: int, size: tuple[int, int], options: SceneOptions
) -> World:
    """Draw a batch of scenes."""
    B, W = batch, size[1]
    lens = sample_lens(rng, B, size, options.fov_deg)
    weights = np.asarray(options.camera_weights) / np.sum(options.camera_weights)
    styles = rng.choice(len(STYLES), B, p=weights)
    outdoors = rng.random(B) < options.outdoor_share
    scale = np.where(outdoors, log_uniform(rng, 1.0, 6.0, (B,)), log_uniform(rng, 0.6, 1.4, (B,)))
    turn = log_uniform(rng, *options.camera_turn, (B,)) * W / lens.focal
    typical = 4.0 * scale
    move = log_uniform(rng, *options.camera_move, (B,)) * W / lens.focal * typical
    gravity_from_world = np.tile(np.eye(4), (B, 1, 1))
    gravity_from_world[:, :3, :3] = _tilt(rng, styles)
    path = sample_trajectories(rng, styles, frames, turn, move, typical)
    cameras = gravity_from_world[:, None] @ path
    floor = rng.uniform(0.6, 1.8, B) * scale
    hilly = outdoors & (rng.random(B) < 0.5)
    ground, waves = _terrain(rng, scale, floor, hilly)
    lowest = floor + np.abs(waves[..., 3]).sum(1)  # no flat floor shows in the valleys
    room, half = _room(rng, cameras, scale, lowest, outdoors)
    layout = place(rng, lens, size, cameras, scale, floor, room, options)
    form_groups(rng, layout, options)
    for b in np.flatnonzero((layout.group == 0).any(1) & (rng.random(B) < options.figure_share)):
        add_figure(rng, layout, int(b), W / lens.focal[b])
    solids = animate(rng, layout, lens, W, cameras, options)
    extents = np.concatenate([layout.extents, np.ones((B, 1, 3)), half[:, None]], 1)
    still = np.stack([ground, room], 1)[:, None].repeat(frames, 1)  # (B, T, 2, 4, 4)
    world_from_gravity = gravity_from_world.swapaxes(-1, -2)  # a rotation about the origin
    towards, light_pose, reach = _light(rng, cameras, scale)
    return World(
        K=lens.K,
        world_from_cam=path,
        world_from_local=world_from_gravity[:, None, None] @ np.concatenate([solids, still], 2),
        is_active=np.concatenate([layout.active, hilly[:, None], np.ones((B, 1), bool)], 1),
        extents=extents,
        materials=_materials(rng, extents, outdoors, options.tiles),
        light=np.einsum("bij,bj->bi", world_from_gravity[:, :3, :3], towards),
        ambient=rng.uniform(0.35, 0.75, B),
        waves=waves,
        world_from_light=world_from_gravity @ light_pose,
        light_reach=reach,
        has_shadow=rng.random(B) < options.shadow_share,
        fog=_fog(rng, scale, options.fog_share),
    )

"""From ray hits to colour: the surface under each pixel, its texture, light, shadow and fog."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stream4d.train.casting import CYLINDER, ELLIPSOID, TERRAIN, Solids, cast, image_bounds
from stream4d.train.textures import TILE, sample_atlas
from stream4d.train.worlds import FLOOR_FACE, MATERIAL, World

_SHADOW_SIZE = 128
_LIGHT_K = np.array([[2.0 * _SHADOW_SIZE, 0, _SHADOW_SIZE / 2 - 0.5], [0, 2.0 * _SHADOW_SIZE, _SHADOW_SIZE / 2 - 0.5],
                     [0, 0, 1]])  # fmt: skip
"""The light's camera sees ±1/4 in normalised coordinates: it stands four radii away."""
_SHADOW_SHARPNESS = 70.0
"""Exponent of the exponential shadow map; exp(70) fits float32."""


def look_up(table: Tensor, index: Tensor) -> list[Tensor]:
    """Return the columns of ``table`` (R, F) at ``index`` (M,), one contiguous (M,) tensor each."""
    return [column.index_select(0, index) for column in table.t().contiguous()]


@dataclass(frozen=True, slots=True)
class Surfaces:
    """The surface point under each of M = n·H·W pixels of some frames, in the frame of its solid."""

    shape: tuple[int, int, int]
    """(n, H, W)."""
    frames: Tensor
    """(n,) int64 index among all N frames."""
    row: Tensor
    """(M,) int64: frame · S + slot."""
    slot: Tensor
    """(M,) int64."""
    depth: Tensor
    """(M,) z-depth."""
    ray: tuple[Tensor, Tensor]
    """x and y, (M,) each: the point is depth · (x, y, 1)."""
    q: tuple[Tensor, Tensor, Tensor]
    """The point in the solid's unit frame, (M,) each."""
    A: list[Tensor]
    """Rows of the linear part of local_from_cam, nine of (M,)."""

    @classmethod
    def at(
        cls, solids: Solids, frames: Tensor, x: Tensor, y: Tensor, depth: Tensor, slot: Tensor
    ) -> Surfaces:
        """Locate the points that ``cast`` has found in these frames, depth and slot (n, H, W)."""
        row = (frames[:, None, None] * len(solids.kinds) + slot).flatten()
        m = look_up(solids.local_from_cam.flatten(0, 1).flatten(1), row)
        x, y = x.expand_as(depth).flatten(), y.expand_as(depth).flatten()
        s = depth.flatten()
        q0, q1, q2 = (
            torch.addcmul(m[4 * i + 3], s, m[4 * i] * x + m[4 * i + 1] * y + m[4 * i + 2])
            for i in range(3)
        )
        linear = [m[4 * i + j] for i in range(3) for j in range(3)]
        shape = (depth.shape[0], depth.shape[1], depth.shape[2])
        return cls(shape, frames, row, slot.flatten(), s, (x, y), (q0, q1, q2), linear)

    def per_pixel(self, values: Tensor) -> list[Tensor]:
        """Spread per-frame values (N, F) over the pixels: F tensors that broadcast to (n, H·W), flattened."""
        n, H, W = self.shape
        picked = values[self.frames]
        return [column[:, None].expand(n, H * W).flatten() for column in picked.unbind(-1)]


@dataclass(frozen=True, slots=True)
class Look:
    """Appearance of B clips over N = B·T frames, as tensors on the rendering device."""

    kinds: tuple[int, ...]
    extents: Tensor
    """(B·S, 3)."""
    materials: Tensor
    """(B·S·6, F)."""
    clip: Tensor
    """(N,) int64 clip of each frame."""
    per_frame: Tensor
    """(N, 9): light direction in the camera, ambient, fog colour and density, focal length."""
    waves: Tensor
    """(N, 4, 4)."""
    shadow: Tensor
    """(N, 1, Hs, Ws) exponential shadow map; infinite light where there is no shadow."""
    light_from_cam: Tensor
    """(N, 12): camera point → light camera, scaled to shadow-map coordinates and depth in [0, 1]."""


def _light_rays(frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    pixel = torch.arange(_SHADOW_SIZE, device=device, dtype=torch.float32)
    edge = (pixel - float(_LIGHT_K[0, 2])) / float(_LIGHT_K[0, 0])
    return edge.expand(frames, 1, -1), edge[:, None].expand(frames, -1, 1)


def _shadow_map(world: World, solids: Solids, device: torch.device) -> Tensor:
    """Cast from the light; return exp(sharpness · depth) with depth from 3 radii (0) to 5 radii (1)."""
    T = world.world_from_local.shape[1]
    light_from_world = np.linalg.inv(world.world_from_light)[:, None, None]
    throws = world.is_active & world.has_shadow[:, None] & (np.array(solids.kinds) != TERRAIN)
    bounds = image_bounds(
        light_from_world @ world.world_from_local,
        _LIGHT_K,
        (_SHADOW_SIZE,) * 2,
        throws[:, None],
        solids.kinds,
    )
    local_from_light = np.linalg.inv(light_from_world @ world.world_from_local)[..., :3, :]
    lit = Solids(
        solids.kinds,
        torch.from_numpy(local_from_light).float().flatten(0, 1).to(device),
        bounds.reshape(-1, *bounds.shape[2:]),
        solids.waves,
    )
    depth, slot = cast(lit, *_light_rays(len(lit.bounds), device), bounded=True)
    reach = torch.from_numpy(world.light_reach).float().to(device).repeat_interleave(T)
    unit = ((depth / reach[:, None, None] - 3) / 2).clamp_(0, 1)
    unit[slot == len(solids.kinds) - 1] = 1.0  # walls and floor of the room throw none
    soft = F.avg_pool2d(
        (unit * _SHADOW_SHARPNESS).exp_()[:, None], 3, 1, 1, count_include_pad=False
    )
    return soft


def make_look(world: World, solids: Solids, device: torch.device) -> Look:
    """Gather what shading needs."""
    B, T = world.world_from_cam.shape[:2]

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).float().to(device)

    light = np.einsum("btji,bj->bti", world.world_from_cam[..., :3, :3], world.light)
    clip_values = np.concatenate([world.ambient[:, None], world.fog, world.K[:, 0, :1]], 1)
    spread = np.repeat(clip_values[:, None], T, 1)
    to_light = np.linalg.inv(world.world_from_light)[:, None] @ world.world_from_cam
    return Look(
        kinds=solids.kinds,
        extents=tensor(world.extents).flatten(0, 1),
        materials=tensor(world.materials).flatten(0, 2),
        clip=torch.arange(B, device=device).repeat_interleave(T),
        per_frame=tensor(np.concatenate([light, spread], -1)).flatten(0, 1),
        waves=solids.waves,
        shadow=_shadow_map(world, solids, device),
        light_from_cam=tensor(
            (to_light[..., :3, :] / world.light_reach[:, None, None, None]).reshape(B * T, 12)
        ),
    )


def _terrain_normal(waves: list[Tensor], q: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the x and z components of the ground's gradient (y - h) for waves as 16 per-pixel tensors."""
    gx, gz = torch.zeros_like(q[0]), torch.zeros_like(q[0])
    for kx, kz, phase, amplitude in zip(*[iter(waves)] * 4, strict=True):
        rate = (kx * q[0] + kz * q[2] + phase).cos_().mul_(amplitude)
        gx.addcmul_(rate, kx)
        gz.addcmul_(rate, kz)
    return gx, gz


def _face_and_normal(look: Look, surfaces: Surfaces) -> tuple[Tensor, list[Tensor]]:
    """Return the face (M,) that carries the texture and the normal towards the camera (3 × (M,))."""
    q0, q1, q2 = surfaces.q
    a0, a1, a2 = q0.abs(), q1.abs(), q2.abs()
    kind = torch.tensor(look.kinds, device=q0.device).index_select(0, surfaces.slot)
    is_round = kind == ELLIPSOID
    is_tube = kind == CYLINDER
    is_cap = is_tube & (a1 * a1 > q0 * q0 + q2 * q2)
    is_side = is_tube & ~is_cap
    is_ground = kind == TERRAIN
    on_y = torch.where(is_tube, is_cap, (a1 >= a0) & (a1 >= a2)) | is_ground
    on_x = ~on_y & (a0 >= a2)
    on_z = ~on_y & ~on_x
    flat = ~is_round & ~is_side
    # a flat face has one component, a tube's side two, an ellipsoid all three
    n0 = q0.masked_fill(flat & ~on_x, 0)
    n1 = q1.masked_fill((flat & ~on_y) | is_side, 0)
    n2 = q2.masked_fill(flat & ~on_z, 0)
    if bool(is_ground.any()):
        gx, gz = _terrain_normal(surfaces.per_pixel(look.waves.flatten(1)), surfaces.q)
        n0, n2 = torch.where(is_ground, gx, n0), torch.where(is_ground, gz, n2)
        n1 = n1.masked_fill(is_ground, -1)
    A = surfaces.A
    normal = [(n0 * A[j]).addcmul_(n1, A[3 + j]).addcmul_(n2, A[6 + j]) for j in range(3)]
    norm = (normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2).clamp_(min=1e-20).rsqrt_()
    x, y = surfaces.ray
    towards = normal[0] * x + normal[1] * y + normal[2]
    norm.mul_(torch.where(towards > 0, -1.0, 1.0))  # rooms are seen from inside
    along = torch.where(on_x, q0, torch.where(on_y, q1, q2))
    face = 2 * (on_y.long() + 2 * on_z.long()) + (along > 0)
    return face.masked_fill_(is_ground, FLOOR_FACE), [part.mul_(norm) for part in normal]


def _shadow(look: Look, surfaces: Surfaces) -> Tensor:
    """Return the share of the light's rays that arrive (M,)."""
    n, H, W = surfaces.shape
    x, y = (part.view(n, H, W) for part in surfaces.ray)
    s = surfaces.depth.view(n, H, W)
    m = look.light_from_cam[surfaces.frames][..., None, None].unbind(1)
    at = [s * (m[4 * i] * x + m[4 * i + 1] * y + m[4 * i + 2]) + m[4 * i + 3] for i in range(3)]
    distance = at[2].clamp(min=0.1)
    grid = torch.stack((at[0] / distance * 4, at[1] / distance * 4), -1)  # ±1/4 → ±1
    stored = F.grid_sample(
        look.shadow[surfaces.frames], grid, align_corners=False, padding_mode="border"
    )
    unit = (distance.sub_(3).div_(2)).clamp_(0, 1)
    lit = stored[:, 0] * (unit - 0.01).mul_(-_SHADOW_SHARPNESS).exp_()
    outside = (grid.abs() > 1).any(-1)
    return lit.clamp_(0, 1).masked_fill_(outside, 1).flatten()


def _texture(
    look: Look, surfaces: Surfaces, atlas: Tensor, tiles: int, face: Tensor, footprint: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the surface colour (3, M) and the material columns per pixel."""
    _, H, W = surfaces.shape
    clip = look.clip[surfaces.frames].repeat_interleave(H * W)
    solid = clip * len(look.kinds) + surfaces.slot
    h = look_up(look.extents, solid)
    m = dict(zip(MATERIAL, look_up(look.materials, solid * 6 + face), strict=True))
    metric = [q * half for q, half in zip(surfaces.q, h, strict=True)]
    axis = face >> 1
    u = torch.where(axis == 0, metric[2], metric[0])
    v = torch.where(axis == 1, metric[2], metric[1])

    def fetch(tile: str, density: str, u0: str, v0: str) -> Tensor:
        d = m[density]
        level = (footprint * d).clamp_(min=1e-6).log2_()
        return sample_atlas(
            atlas,
            tiles,
            m[tile].long(),
            torch.addcmul(m[u0], u, d),
            torch.addcmul(m[v0], v, d),
            level,
        )

    rgb = fetch("tile", "density", "u0", "v0")
    detail = fetch("detail_tile", "detail_density", "v0", "u0").mean(0)
    relief = detail.mul_(2).sub_(1).mul_(m["detail"]).add_(1)
    for c, name in enumerate("rgb"):
        rgb[c].mul_(m[f"gain_{name}"]).mul_(relief).add_(m[f"bias_{name}"])
    return rgb, m


def shade(look: Look, surfaces: Surfaces, atlas: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    """Return colour (3, M) in [0, 1] and where the pixel is sky (M,) bool."""
    face, normal = _face_and_normal(look, surfaces)
    l0, l1, l2, ambient, *fog, density, focal = surfaces.per_pixel(look.per_frame)
    x, y = surfaces.ray
    length = (x * x + y * y + 1).sqrt_()
    n_v = (normal[0] * x + normal[1] * y + normal[2]).neg_().div_(length)
    footprint = surfaces.depth / focal * n_v.clamp(0.03, 1).pow_(-0.6) * TILE
    rgb, m = _texture(look, surfaces, atlas, tiles, face, footprint)
    cosine = (normal[0] * l0).addcmul_(normal[1], l1).addcmul_(normal[2], l2)
    l_v = (l0 * x + l1 * y + l2).neg_().div_(length)
    mirror = (2 * cosine * n_v - l_v).clamp_(min=0)  # reflected light against the line of sight
    direct = cosine.clamp(min=0) * _shadow(look, surfaces)
    shine = m["specular"] * mirror.pow_(12) * (direct > 0.1)
    sky = m["is_sky"]
    diffuse = ambient + (1 - ambient) * direct * 1.3
    diffuse = torch.lerp(diffuse, torch.ones_like(diffuse), sky)
    rgb.mul_(diffuse).add_(shine * (1 - sky))
    haze = 1 - (surfaces.depth * length * -density).exp_()
    haze = torch.minimum(haze, 1 - 0.3 * sky)
    for c in range(3):
        rgb[c].lerp_(fog[c], haze)
    return rgb.clamp_(0, 1), sky > 0.5

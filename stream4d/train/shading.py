"""From ray hits to colour: the surface under each pixel, its texture and its light."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stream4d.train.casting import CYLINDER, ELLIPSOID, Solids
from stream4d.train.textures import TILE, sample_atlas
from stream4d.train.worlds import KINDS, MATERIAL, World


def look_up(table: Tensor, index: Tensor) -> list[Tensor]:
    """Return the columns of ``table`` (R, F) at ``index`` (M,), one contiguous (M,) tensor each."""
    return [column.index_select(0, index) for column in table.t().contiguous()]


@dataclass(frozen=True, slots=True)
class Surfaces:
    """The surface point under each of M = N·H·W pixels, in the frame of the solid that it belongs to."""

    row: Tensor
    """(M,) int64: frame · (P + 1) + slot."""
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
    def at(cls, solids: Solids, x: Tensor, y: Tensor, depth: Tensor, slot: Tensor) -> Surfaces:
        """Locate the points that ``cast`` has found, depth and slot (N, H, W)."""
        frames = torch.arange(len(depth), device=depth.device)[:, None, None]
        row = (frames * len(solids.kinds) + slot).flatten()
        m = look_up(solids.local_from_cam.flatten(0, 1).flatten(1), row)
        x, y = x.expand_as(depth).flatten(), y.expand_as(depth).flatten()
        s = depth.flatten()
        q = tuple(
            torch.addcmul(m[4 * i + 3], s, m[4 * i] * x + m[4 * i + 1] * y + m[4 * i + 2])
            for i in range(3)
        )
        linear = [m[4 * i + j] for i in range(3) for j in range(3)]
        return cls(row, slot.flatten(), s, (x, y), (q[0], q[1], q[2]), linear)


def _face_and_normal(surfaces: Surfaces, kinds: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """Return the face (M,) that carries the texture and the outward normal in the camera frame (3 × (M,))."""
    q0, q1, q2 = surfaces.q
    a0, a1, a2 = q0.abs(), q1.abs(), q2.abs()
    kind = torch.tensor(kinds, device=q0.device).index_select(0, surfaces.slot)
    is_round = kind == ELLIPSOID
    is_tube = kind == CYLINDER
    is_cap = is_tube & (a1 * a1 > q0 * q0 + q2 * q2)
    on_y = torch.where(is_tube, is_cap, (a1 >= a0) & (a1 >= a2))
    on_x = ~on_y & (a0 >= a2)
    on_z = ~on_y & ~on_x
    flat = ~is_round & ~(is_tube & ~is_cap)
    # a flat face has one component, a tube's side two, an ellipsoid all three
    n0 = torch.where(flat & ~on_x, 0.0, q0)
    n1 = torch.where((flat & ~on_y) | (is_tube & ~is_cap), 0.0, q1)
    n2 = torch.where(flat & ~on_z, 0.0, q2)
    A = surfaces.A
    normal = [n0 * A[j] + n1 * A[3 + j] + n2 * A[6 + j] for j in range(3)]
    norm = (normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2).clamp_(min=1e-20).rsqrt_()
    x, y = surfaces.ray
    towards = normal[0] * x + normal[1] * y + normal[2]
    norm = torch.where(towards > 0, -norm, norm)  # face the camera: rooms are seen from inside
    along = torch.where(on_x, q0, torch.where(on_y, q1, q2))
    face = 2 * (on_y.long() + 2 * on_z.long()) + (along > 0).long()
    return face, [component.mul_(norm) for component in normal]


def shade(
    world: World, surfaces: Surfaces, atlas: Tensor, tiles: int, K: Tensor
) -> tuple[Tensor, Tensor]:
    """Return colour (3, M) in [0, 1] and where the pixel is sky (M,)."""
    device = atlas.device
    B, T = world.world_from_cam.shape[:2]
    P1 = world.extents.shape[1]
    face, normal = _face_and_normal(surfaces, KINDS)
    per_clip = len(surfaces.row) // B
    clip = torch.arange(B, device=device).repeat_interleave(per_clip)
    solid = clip * P1 + surfaces.slot
    h = look_up(torch.from_numpy(world.extents).float().to(device).flatten(0, 1), solid)
    table = torch.from_numpy(world.materials).float().to(device).flatten(0, 2)
    m = dict(zip(MATERIAL, look_up(table, solid * 6 + face), strict=True))
    metric = [q * half for q, half in zip(surfaces.q, h, strict=True)]
    axis = face >> 1
    u = torch.where(axis == 0, metric[2], metric[0])
    v = torch.where(axis == 1, metric[2], metric[1])
    x, y = surfaces.ray
    length = (x * x + y * y + 1).sqrt_()
    facing = (normal[0] * x + normal[1] * y + normal[2]).neg_().div_(length).clamp_(0.03, 1)
    focal = K[:, 0, 0].index_select(0, clip)
    footprint = surfaces.depth / focal * facing.pow(-0.6) * TILE
    rgb = sample_atlas(
        atlas, tiles, m["tile"].long(), u * m["density"] + m["u0"], v * m["density"] + m["v0"],
        torch.log2((footprint * m["density"]).clamp_(min=1e-6)),
    )  # fmt: skip
    d = m["detail_density"]
    detail = sample_atlas(
        atlas, tiles, m["detail_tile"].long(), u * d + m["v0"], v * d + m["u0"],
        torch.log2((footprint * d).clamp_(min=1e-6)),
    )  # fmt: skip
    relief = 1 + m["detail"] * (detail.mean(0) * 2 - 1)
    for c, name in enumerate("rgb"):
        rgb[c].mul_(m[f"gain_{name}"] * relief).add_(m[f"bias_{name}"])
    return _light(world, surfaces, rgb, normal, m, clip, length), m["is_sky"] > 0.5


def _light(
    world: World, surfaces: Surfaces, rgb: Tensor, normal: list[Tensor], m: dict[str, Tensor], clip: Tensor,
    length: Tensor,
) -> Tensor:  # fmt: skip
    """Apply Lambert, ambient and a soft highlight, except to the sky."""
    B, T = world.world_from_cam.shape[:2]
    device = rgb.device
    R = torch.from_numpy(world.world_from_cam[..., :3, :3]).float()
    light = torch.einsum("btji,bj->bti", R, torch.from_numpy(world.light).float()).to(device)
    frame = torch.arange(B * T, device=device).repeat_interleave(len(surfaces.row) // (B * T))
    l0, l1, l2 = look_up(light.flatten(0, 1), frame)
    ambient = torch.from_numpy(world.ambient).float().to(device).index_select(0, clip)
    cosine = normal[0] * l0 + normal[1] * l1 + normal[2] * l2
    x, y = surfaces.ray
    # mirror direction of the view ray: r = 2 (n·v) n - v with v towards the camera
    n_v = -(normal[0] * x + normal[1] * y + normal[2]) / length
    l_v = -(l0 * x + l1 * y + l2) / length
    mirror = (2 * cosine * n_v - l_v).clamp_(min=0)
    diffuse = ambient + (1 - ambient) * cosine.clamp(min=0) * 1.3
    shine = m["specular"] * mirror.pow(12) * (cosine > 0)
    sky = m["is_sky"]
    diffuse = diffuse + sky * (1 - diffuse)
    return rgb.mul_(diffuse).add_(shine * (1 - sky)).clamp_(0, 1)

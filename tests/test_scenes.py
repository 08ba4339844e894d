"""Rendered clips: labels follow from the geometry to numeric precision, and the same seed gives the same clips."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stream4d.errors import ConfigError, TrainingError
from stream4d.train.casting import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    ROOM,
    TERRAIN,
    Solids,
    cast,
    terrain_height,
)
from stream4d.train.clip import ClipBatch, concatenate
from stream4d.train.contact_sheet import contact_sheet
from stream4d.train.effects import apply_effects, compress
from stream4d.train.scenes import SceneOptions, _gather_solids, _pixel_rays, render_clips
from stream4d.train.textures import LEVELS, TILE, build_atlas, make_atlas, photo_tile, sample_atlas
from stream4d.train.worlds import sample_world

SIZE = (72, 96)
CLEAN = SceneOptions(
    tiles=12, atlases=1, effects=False, static_share=0.0, shadow_share=0.0, fog_share=0.0,
    camera_move=(0.002, 0.03), camera_turn=(0.001, 0.02), mover_speed=(0.005, 0.04),
)  # fmt: skip


@pytest.fixture(scope="module")
def clips() -> ClipBatch:
    return render_clips(3, 6, 3, SIZE, "cpu", CLEAN)


def pixel_grid(size: tuple[int, int]) -> torch.Tensor:
    v, u = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack((u, v), -1).float()


def warp(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Sample (C, H, W) where flow (H, W, 2) points."""
    H, W = image.shape[-2:]
    at = (pixel_grid((H, W)) + flow + 0.5) * torch.tensor([2 / W, 2 / H]) - 1
    return F.grid_sample(image[None], at[None], align_corners=False, padding_mode="border")[0]


def test_shapes_and_ranges(clips: ClipBatch) -> None:
    B, T, (H, W) = 6, 3, SIZE
    assert clips.rgb.shape == (B, T, 3, H, W)
    assert clips.flow.shape == clips.flow_backward.shape == (B, T - 1, H, W, 2)
    assert clips.scene_flow.shape == (B, T - 1, H, W, 3)
    assert clips.occluded.dtype == clips.motion_mask.dtype == torch.bool
    assert clips.rgb.min() >= 0
    assert clips.rgb.max() <= 1
    assert clips.rgb.std() > 0.1
    for field in fields(ClipBatch):
        assert torch.isfinite(getattr(clips, field.name).double()).all(), field.name
    assert (clips.depth > 0).all()


def test_traffic_travels_along_the_camera_path() -> None:
    options = replace(
        CLEAN, traffic_share=1.0, figure_share=0.0, camera_weights=(0, 0, 0, 1, 0, 1, 0)
    )
    traffic = render_clips(5, 8, 3, SIZE, "cpu", options)
    ends = traffic.world_from_cam[:, [0, -1], :3, 3]
    path = F.normalize((ends[:, 1] - ends[:, 0]).float(), dim=-1)
    flow = traffic.scene_flow[:, 0]
    off_path = (
        flow - (flow * path[:, None, None]).sum(-1, keepdim=True) * path[:, None, None]
    ).norm(dim=-1)
    moving = traffic.motion_mask[:, 0]
    assert moving.any()
    assert (off_path / flow.norm(dim=-1).clamp_min(1e-9))[moving].median() < 0.1


def test_flow_agrees_with_depth_pose_and_scene_flow(clips: ClipBatch) -> None:
    moved = clips.pointmap_in_world[:, :-1] + clips.scene_flow
    cam_from_world = torch.linalg.inv(clips.world_from_cam[:, 1:].double()).float()
    local = torch.einsum("btij,bthwj->bthwi", cam_from_world[..., :3, :3], moved)
    local += cam_from_world[..., None, None, :3, 3]
    in_front = local[..., 2] > 0.1
    seen = torch.einsum("btij,bthwj->bthwi", clips.K[:, 1:], local)
    flow = seen[..., :2] / seen[..., 2:] - pixel_grid(SIZE)
    # float32 of world coordinates up to a thousand pixels away
    error = (flow - clips.flow).norm(dim=-1)[in_front] / (1 + flow.norm(dim=-1)[in_front])
    assert error.max() < 2e-3
    assert error.mean() < 2e-5


def test_flow_there_and_back_cancels(clips: ClipBatch) -> None:
    for b in range(len(clips.rgb)):
        flow, back = clips.flow[b, 0], clips.flow_backward[b, 0].permute(2, 0, 1)
        returned = flow + warp(back, flow).permute(1, 2, 0)
        visible = ~clips.occluded[b, 0]
        # interpolating the backward flow across outlines is wrong at a few pixels only
        assert returned.norm(dim=-1)[visible].median() < 0.02
        assert (returned.norm(dim=-1)[visible] < 0.5).float().mean() > 0.93


def test_warping_by_flow_reproduces_brightness(clips: ClipBatch) -> None:
    errors, misaligned = [], []
    for b in range(len(clips.rgb)):
        visible = ~clips.occluded[b, 0]
        first, second = clips.rgb[b, 0], clips.rgb[b, 1]
        errors.append((warp(second, clips.flow[b, 0]) - first).abs().mean(0)[visible].mean())
        misaligned.append((second - first).abs().mean(0)[visible].mean())
    assert torch.stack(errors).mean() < 0.035  # highlights, resampling and jagged outlines
    assert torch.stack(errors).mean() < 0.5 * torch.stack(misaligned).mean()


def test_occlusion_is_where_another_surface_is_nearer(clips: ClipBatch) -> None:
    for b in range(len(clips.rgb)):
        flow = clips.flow[b, 0]
        target = pixel_grid(SIZE) + flow
        H, W = SIZE
        outside = (target < -0.5).any(-1) | (target[..., 0] > W - 0.5) | (target[..., 1] > H - 0.5)
        assert clips.occluded[b, 0][outside].all()
        cam_from_world = torch.linalg.inv(clips.world_from_cam[b, 1].double()).float()
        point = clips.pointmap_in_world[b, 0] + clips.scene_flow[b, 0]
        z = point @ cam_from_world[2, :3] + cam_from_world[2, 3]
        near = F.max_pool2d(1 / clips.depth[b, 1][None, None], 3, 1, 1)
        far = -F.max_pool2d(-1 / clips.depth[b, 1][None, None], 5, 1, 2)
        nearest = 1 / warp(near[0], flow)[0]
        farthest = 1 / warp(far[0], flow)[0]
        inside = ~outside & (z > 0.1)
        surely_hidden = inside & (farthest < 0.97 * z)
        surely_seen = inside & (nearest > 0.9995 * z)
        assert clips.occluded[b, 0][surely_hidden].float().mean() > 0.999 or not surely_hidden.any()
        assert not clips.occluded[b, 0][surely_seen].any()
    assert clips.occluded.any()


def test_motion_mask_is_where_scene_flow_is_not_zero(clips: ClipBatch) -> None:
    moves = (clips.scene_flow != 0).any(-1)
    assert torch.equal(moves, clips.motion_mask[:, :-1])
    assert clips.motion_mask.any()


def test_flow_is_finite_and_valid_in_front_of_the_camera() -> None:
    fast = replace(CLEAN, camera_weights=(0, 0, 0, 1, 0, 0, 0), camera_move=(0.3, 0.4))
    clips = render_clips(9, 4, 3, SIZE, "cpu", fast)
    behind = ~clips.valid_flow | ~clips.valid_flow_backward
    assert behind.any()
    assert behind.float().mean() < 0.4
    assert torch.isfinite(clips.flow).all()
    assert clips.occluded[~clips.valid_flow].all()


def test_static_scene_has_no_scene_flow() -> None:
    clip = render_clips(1, 2, 3, SIZE, "cpu", replace(CLEAN, static_share=1.0))
    assert not clip.motion_mask.any()
    assert (clip.scene_flow == 0).all()


def test_static_camera_and_scene_have_no_flow() -> None:
    options = replace(CLEAN, static_share=1.0, camera_weights=(1, 0, 0, 0, 0, 0, 0))
    clip = render_clips(1, 2, 3, SIZE, "cpu", options)
    assert clip.flow.abs().max() < 1e-3  # float32 of coordinates up to 96 pixels
    assert not clip.occluded.any()
    assert torch.equal(clip.world_from_cam, torch.eye(4).expand(2, 3, 4, 4))
    assert torch.equal(clip.rgb[:, 0], clip.rgb[:, 2])


def test_pure_rotation_flow_is_a_homography() -> None:
    options = replace(CLEAN, static_share=1.0, camera_weights=(0, 1, 0, 0, 0, 0, 0))
    clip = render_clips(2, 1, 2, SIZE, "cpu", options)
    R = torch.linalg.inv(clip.world_from_cam[0, 1])[:3, :3] @ clip.world_from_cam[0, 0, :3, :3]
    mapping = clip.K[0, 1] @ R @ torch.linalg.inv(clip.K[0, 0])
    grid = pixel_grid(SIZE)
    ahead = torch.cat((grid, torch.ones(*SIZE, 1)), -1) @ mapping.T
    torch.testing.assert_close(
        ahead[..., :2] / ahead[..., 2:] - grid, clip.flow[0, 0], atol=1e-3, rtol=1e-4
    )


def test_the_seed_decides_everything() -> None:
    options = SceneOptions(tiles=12, atlases=1)
    first, again, other = (render_clips(seed, 2, 2, SIZE, "cpu", options) for seed in (7, 7, 8))
    for field in fields(ClipBatch):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name)), field.name
    assert not torch.equal(first.rgb, other.rgb)


def test_frames_rendered_together_or_singly_agree(
    clips: ClipBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream4d.train.scenes._PIXELS_IN_CACHE", 1)
    singly = render_clips(3, 6, 3, SIZE, "cpu", CLEAN)
    monkeypatch.setattr("stream4d.train.scenes._PIXELS_IN_CACHE", 1 << 30)
    together = render_clips(3, 6, 3, SIZE, "cpu", CLEAN)
    for field in fields(ClipBatch):
        one, all_at_once = getattr(singly, field.name), getattr(together, field.name)
        if one.dtype == torch.bool:
            assert (one != all_at_once).float().mean() < 1e-4, field.name
        else:
            torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-4, msg=field.name)


def test_effects_change_colour_only() -> None:
    plain = render_clips(7, 2, 3, SIZE, "cpu", SceneOptions(tiles=12, atlases=1, effects=False))
    dirty = render_clips(7, 2, 3, SIZE, "cpu", SceneOptions(tiles=12, atlases=1, effects=True))
    for field in fields(ClipBatch):
        same = torch.equal(getattr(plain, field.name), getattr(dirty, field.name))
        assert same == (field.name != "rgb"), field.name
    assert (plain.rgb - dirty.rgb).abs().mean() < 0.25


def test_flow_has_many_magnitudes() -> None:
    options = SceneOptions(tiles=12, atlases=1, effects=False)
    clips = render_clips(11, 24, 2, (36, 48), "cpu", options)
    share = clips.flow.norm(dim=-1).flatten() / 48
    low, high = share.quantile(0.1), share.quantile(0.9)
    assert low < 0.01
    assert 0.03 < high < 0.4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree() -> None:
    host = render_clips(3, 2, 2, SIZE, "cpu", CLEAN)
    device = render_clips(3, 2, 2, SIZE, "cuda", CLEAN).to("cpu")
    torch.testing.assert_close(host.depth, device.depth, rtol=1e-3, atol=1e-3)
    assert ((host.flow - device.flow).norm(dim=-1) < 0.05).float().mean() > 0.995


# --- casting against closed forms -----------------------------------------------------------------------


def single_solid(kind: int, local_from_cam: np.ndarray, waves: np.ndarray | None = None) -> Solids:
    room = np.linalg.inv(np.diag([50.0, 50.0, 50.0, 1.0]))
    maps = torch.from_numpy(np.stack([local_from_cam, room])[None, :, :3]).float()
    wave = torch.zeros(1, 4, 4) if waves is None else torch.from_numpy(waves[None]).float()
    everywhere = np.array([[[0, 10**6, 0, 10**6]] * 2], np.int32)
    return Solids((kind, ROOM), maps, everywhere, wave)


def cast_points(solids: Solids, x: float, y: float) -> tuple[float, int]:
    depth, slot = cast(solids, torch.full((1, 1, 1), x), torch.full((1, 1, 1), y))
    return float(depth), int(slot)


@pytest.mark.parametrize(("kind", "expected"), [(ELLIPSOID, 4.0), (BOX, 4.0), (CYLINDER, 4.0)])
def test_nearest_surface_ahead(kind: int, expected: float) -> None:
    local_from_cam = np.linalg.inv(
        np.array([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 5], [0, 0, 0, 1]])
    )
    solids = single_solid(kind, local_from_cam)
    depth, slot = cast_points(solids, 0.01, 0.01)
    assert slot == 0
    assert depth == pytest.approx(expected, abs=2e-3)  # the ray is a hundredth off the axis
    assert cast_points(solids, 0.5, 0.0)[1] == 1


def test_sphere_depth_in_closed_form() -> None:
    local_from_cam = np.eye(4)
    local_from_cam[2, 3] = -5
    x, y = 0.1, 0.05
    a, b, c = 1 + x * x + y * y, -5.0, 24.0
    expected = (-b - np.sqrt(b * b - a * c)) / a
    depth, _ = cast_points(single_solid(ELLIPSOID, local_from_cam), x, y)
    assert depth == pytest.approx(expected, rel=2e-5)


def test_a_solid_behind_the_camera_is_not_seen() -> None:
    local_from_cam = np.eye(4)
    local_from_cam[2, 3] = 5
    for kind in (ELLIPSOID, BOX, CYLINDER):
        assert cast_points(single_solid(kind, local_from_cam), 0.0, 0.0) == (
            pytest.approx(50, rel=1e-4),
            1,
        )


def test_bounds_change_nothing() -> None:
    options = SceneOptions(tiles=8, atlases=1, outdoor_share=0.5)
    world = sample_world(np.random.default_rng(4), 6, 2, SIZE, options)
    solids = _gather_solids(world, SIZE, torch.device("cpu"))
    assert (solids.bounds[..., 1] - solids.bounds[..., 0] < SIZE[0]).any()
    x, y = _pixel_rays(torch.from_numpy(world.K).float(), 2, SIZE)
    depth, slot = cast(solids, x, y)
    bounded_depth, bounded_slot = cast(solids, x, y, bounded=True)
    assert torch.equal(slot, bounded_slot)
    torch.testing.assert_close(depth, bounded_depth)


def test_terrain_is_met_on_its_surface() -> None:
    rng = np.random.default_rng(0)
    waves = np.concatenate(
        [rng.normal(0, 0.7, (4, 2)), rng.uniform(0, 6, (4, 1)), rng.uniform(0.02, 0.1, (4, 1))], 1
    )
    local_from_cam = np.eye(4)
    local_from_cam[1, 3] = -1.5  # the ground lies 1.5 below the camera
    solids = single_solid(TERRAIN, local_from_cam, waves)
    x = torch.linspace(-0.5, 0.5, 40)[None, None]
    y = torch.linspace(0.15, 0.9, 30)[None, :, None]
    depth, slot = cast(solids, x, y)
    met = slot == 0
    assert met.float().mean() > 0.95
    ground = terrain_height(solids.waves, depth * x, depth * y * 0 + depth)
    gap = (depth * y - 1.5 - ground).abs()[met]
    assert gap.quantile(0.99) < 5e-3
    steps = torch.linspace(0.02, 0.98, 40)[:, None, None]
    above = (
        depth * steps * y
        - 1.5
        - terrain_height(solids.waves.expand(40, 4, 4), depth * steps * x, depth * steps)
    )
    assert (above < 5e-3).float().mean() > 0.995  # nothing was jumped over


# --- textures and effects -------------------------------------------------------------------------------


def test_atlas_look_up_is_exact_at_texels_and_repeats() -> None:
    images = torch.rand(3, 3, TILE, TILE)
    atlas = build_atlas(images)
    column = torch.tensor([0, 5, 255, 100])
    u = (column + 0.5) / TILE
    v = torch.full_like(u, (7 + 0.5) / TILE)
    tile = torch.tensor([0, 1, 2, 2])
    colour = sample_atlas(atlas.image, 3, tile, u, v, torch.zeros(4))
    torch.testing.assert_close(colour, images[tile, :, 7, column].T, atol=2e-3, rtol=0)
    again = sample_atlas(atlas.image, 3, tile, u + 3, v - 2, torch.zeros(4))
    torch.testing.assert_close(colour, again, atol=2e-3, rtol=0)
    coarse = sample_atlas(atlas.image, 3, tile, u, v, torch.full((4,), float(LEVELS)))
    torch.testing.assert_close(coarse, images.mean((2, 3))[tile].T, atol=0.1, rtol=0)


def test_photos_become_seamless_tiles(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 255, 400)[None, :, None], 300, 0).repeat(3, 2).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "ramp.png"), ramp)
    tile = photo_tile(np.random.default_rng(0), tmp_path / "ramp.png")
    assert tile.shape == (TILE, TILE, 3)
    inner = np.abs(np.diff(tile, axis=1)).max()
    assert np.abs(tile[:, 0] - tile[:, -1]).max() < 3 * inner
    atlas = make_atlas(0, 8, str(tmp_path), 1.0)
    assert atlas.tiles == 8


def test_bad_photo_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        render_clips(0, 1, 2, SIZE, "cpu", SceneOptions(photo_dir=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="holds no image"):
        render_clips(0, 1, 2, SIZE, "cpu", SceneOptions(photo_dir=str(tmp_path)))
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match="cannot decode"):
        render_clips(0, 1, 2, SIZE, "cpu", SceneOptions(photo_dir=str(tmp_path), photo_share=1.0))


@pytest.mark.parametrize(
    "bad", [{"static_share": 1.5}, {"solids": (5, 2)}, {"camera_weights": (1.0,)}, {"tiles": 2}]
)
def test_options_are_checked(bad: dict) -> None:
    with pytest.raises(ConfigError):
        SceneOptions(**bad)


def test_compression_is_mild_when_fine_and_blocky_when_coarse() -> None:
    image = F.interpolate(torch.rand(1, 3, 9, 12), (70, 91), mode="bicubic").clamp(0, 1)
    assert (compress(image, 0.01) - image).abs().max() < 5e-3
    assert (compress(image, 20.0) - image).abs().mean() > 0.01


def test_motion_blur_follows_the_flow() -> None:
    rgb = torch.zeros(1, 1, 3, 33, 33)
    rgb[..., 16, 16] = 1
    velocity = torch.zeros(1, 1, 33, 33, 2)
    velocity[..., 0] = 12.0
    blurred = apply_effects(rgb, velocity, 0, blur_share=1.0, jpeg_share=0.0)[0, 0].mean(0)
    energy = (blurred - blurred.median()).clamp(min=0)
    assert energy[16].sum() > 2 * energy[:, 16].sum()


# --- the batch itself -----------------------------------------------------------------------------------


def test_parts_and_joins(clips: ClipBatch) -> None:
    joined = concatenate([clips.clip(0), clips.clip(slice(1, 3))])
    assert torch.equal(joined.rgb, clips.rgb[:3])
    part = clips.frames(1, 3)
    assert part.rgb.shape[1] == 2
    assert part.flow.shape[1] == 1
    assert torch.equal(part.flow[:, 0], clips.flow[:, 1])
    with pytest.raises(ValueError, match="do not lie"):
        clips.frames(1, 4)
    with pytest.raises(ValueError, match="differ"):
        concatenate([clips, part])


def test_contact_sheet_has_one_row_a_clip(clips: ClipBatch) -> None:
    sheet = contact_sheet(clips, 2)
    assert sheet.shape == (2 * SIZE[0], 6 * SIZE[1], 3)
    assert sheet.dtype == np.uint8
    assert sheet.std() > 20


def test_too_short_a_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 clip of 2 frames"):
        render_clips(0, 1, 1, SIZE)


def test_fetched_pictures_are_chosen_and_shrunk(tmp_path: Path) -> None:
    from stream4d.train.fetch_textures import _wallpapers, save

    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 255, (90, 160, 3)).astype(np.uint8), (3200, 1800))
    deep = tmp_path / "wallpapers/Hill/contents/images"
    deep.mkdir(parents=True)
    cv2.imwrite(str(deep / "320x180.png"), cv2.resize(noise, (320, 180)))
    cv2.imwrite(str(deep / "3200x1800.png"), noise)
    cv2.imwrite(str(deep.parent / "screenshot.png"), noise)
    found = dict(_wallpapers(tmp_path))
    assert list(found) == ["Hill"]
    assert found["Hill"].shape == (1800, 3200, 3)
    assert save(found["Hill"], tmp_path / "hill.jpg")
    assert cv2.imread(str(tmp_path / "hill.jpg")).shape[0] == 1024
    assert not save(np.full((600, 600, 3), 200, np.uint8), tmp_path / "plain.jpg")


def test_fetching_without_apt_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stream4d.train.fetch_textures import fetch

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TrainingError, match="Debian and Ubuntu only"):
        fetch(tmp_path / "textures")

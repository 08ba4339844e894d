"""Augmentation: after every change, flow still follows from depth, pose and intrinsics."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stream4d.errors import ConfigError
from stream4d.train.augment import (
    AugmentOptions,
    augment,
    erase,
    jitter_colour,
    mirror,
    reverse_time,
)
from stream4d.train.clip import ClipBatch
from stream4d.train.crop import crop_and_zoom
from stream4d.train.scenes import SceneOptions, render_clips

SIZE = (60, 80)


@pytest.fixture(scope="module")
def clips() -> ClipBatch:
    options = SceneOptions(
        tiles=8, atlases=1, effects=False, static_share=0.0, camera_move=(0.005, 0.03), camera_turn=(0.002, 0.02)
    )  # fmt: skip
    return render_clips(5, 3, 3, SIZE, "cpu", options)


def geometric_flow(batch: ClipBatch) -> torch.Tensor:
    """Flow that depth, pose, K and scene flow imply."""
    H, W = batch.size
    moved = batch.pointmap_in_world[:, :-1] + batch.scene_flow
    cam_from_world = torch.linalg.inv(batch.world_from_cam[:, 1:])
    local = torch.einsum("btij,bthwj->bthwi", cam_from_world[..., :3, :3], moved)
    local = local + cam_from_world[..., None, None, :3, 3]
    pixel = torch.einsum("btij,bthwj->bthwi", batch.K[:, 1:], local)
    v, u = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return pixel[..., :2] / pixel[..., 2:] - torch.stack((u, v), -1)


def flow_error(batch: ClipBatch, still_only: bool = False) -> torch.Tensor:
    error = (geometric_flow(batch) - batch.flow).norm(dim=-1)
    usable = batch.valid_flow & ~batch.occluded & batch.valid_depth[:, :-1]
    if still_only:
        usable &= ~batch.motion_mask[:, :-1]
    return error[usable]


def test_whole_pixel_crop_is_exact(clips: ClipBatch) -> None:
    cut = crop_and_zoom(clips, 1.0, (7.0, 4.0), (40, 50))
    torch.testing.assert_close(cut.rgb, clips.rgb[..., 4:44, 7:57], atol=1e-5, rtol=0)
    torch.testing.assert_close(cut.depth, clips.depth[..., 4:44, 7:57], rtol=1e-6, atol=0)
    assert torch.equal(cut.flow, clips.flow[..., 4:44, 7:57, :])
    assert flow_error(cut).max() < 5e-3  # float32
    torch.testing.assert_close(
        cut.pointmap_in_world, clips.pointmap_in_world[..., 4:44, 7:57, :], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("zoom", "corner"), [(1.7, (10.3, 20.9)), (1.25, (0.0, 0.0)), (0.75, (0.4, 0.2))]
)
def test_zoom_keeps_flow_true_to_the_geometry(
    clips: ClipBatch, zoom: float, corner: tuple[float, float]
) -> None:
    cut = crop_and_zoom(clips, zoom, corner, (44, 58))
    error = flow_error(cut)
    assert error.median() < 0.02
    assert error.quantile(0.9) < 0.15  # nearest pixel at outlines; bent surfaces
    assert torch.allclose(cut.K[..., 0, 0], zoom * clips.K[..., 0, 0])


def test_zoom_moves_the_picture_as_K_says(clips: ClipBatch) -> None:
    zoom, corner = 2.0, (31.0, 17.0)
    cut = crop_and_zoom(clips, zoom, corner, (40, 50))
    # pixel (u', v') sees the ray that the input's pixel (u' + corner + ½)/zoom - ½ sees
    for u, v in ((0, 0), (49, 39), (20, 11)):
        before = torch.tensor(
            [(u + corner[0] + 0.5) / zoom - 0.5, (v + corner[1] + 0.5) / zoom - 0.5, 1.0]
        )
        ray = torch.linalg.inv(clips.K[0, 0]) @ before
        ray_after = torch.linalg.inv(cut.K[0, 0]) @ torch.tensor([u, v, 1.0])
        torch.testing.assert_close(ray, ray_after, atol=1e-5, rtol=1e-5)


def test_crop_outside_the_picture_is_refused(clips: ClipBatch) -> None:
    with pytest.raises(ValueError, match="does not lie in a picture"):
        crop_and_zoom(clips, 1.0, (40.0, 0.0), (60, 60))


def test_what_leaves_the_crop_is_occluded(clips: ClipBatch) -> None:
    cut = crop_and_zoom(clips, 1.0, (20.0, 10.0), (30, 40))
    u = torch.arange(40) + cut.flow[..., 0]
    assert cut.occluded[(u < -0.5) | (u > 39.5)].all()
    assert cut.occluded.float().mean() > clips.occluded[..., 10:40, 20:60].float().mean()


def test_mirror_is_exact_and_its_own_inverse(clips: ClipBatch) -> None:
    other = mirror(clips)
    assert flow_error(other).max() < 5e-3
    assert torch.det(other.world_from_cam[..., :3, :3]).min() > 0.99
    assert not torch.equal(other.rgb, clips.rgb)
    again = mirror(other)
    for field in fields(ClipBatch):
        torch.testing.assert_close(
            getattr(again, field.name), getattr(clips, field.name), msg=field.name
        )


def test_reversed_time(clips: ClipBatch) -> None:
    back = reverse_time(clips)
    assert torch.equal(back.flow[:, 0], clips.flow_backward[:, -1])
    assert torch.equal(back.occluded_backward[:, 0], clips.occluded[:, -1])
    assert flow_error(back, still_only=True).max() < 5e-3
    assert flow_error(back).quantile(0.95) < 0.3  # movers: looked up at whole pixels
    for name in ("rgb", "depth", "flow", "flow_backward", "motion_mask", "world_from_cam"):
        assert torch.equal(getattr(reverse_time(back), name), getattr(clips, name))


def test_colours_change_alike_or_frame_by_frame(clips: ClipBatch) -> None:
    still = clips.rgb[:, :1].expand(-1, 3, -1, -1, -1)
    alike = jitter_colour(still, np.random.default_rng(0), AugmentOptions(asymmetric=0.0))
    torch.testing.assert_close(alike[:, 0], alike[:, 2])
    assert (alike - still).abs().mean() > 0.01
    own = jitter_colour(still, np.random.default_rng(0), AugmentOptions(asymmetric=1.0))
    assert (own[:, 0] - own[:, 2]).abs().mean() > 0.01
    grey = jitter_colour(still, np.random.default_rng(0), AugmentOptions(grey=1.0))
    assert grey.std(2).max() < 1e-5
    nothing = jitter_colour(
        still, np.random.default_rng(0), AugmentOptions(brightness=0.0, hue=0.0, grey=0.0)
    )
    torch.testing.assert_close(nothing, still, atol=1e-5, rtol=0)


def test_erasing_spares_the_first_frame_and_the_labels(clips: ClipBatch) -> None:
    rgb = erase(clips.rgb, np.random.default_rng(0), 1.0)
    changed = (rgb != clips.rgb).any(2).flatten(2).any(-1)  # (B, T)
    assert not changed[:, 0].any()
    assert (changed.sum(1) == 1).all()


def test_unknown_labels_stay_unknown(clips: ClipBatch) -> None:
    from dataclasses import replace

    holes = torch.rand(clips.valid_flow.shape) < 0.5
    sparse = replace(clips, valid_flow=holes, flow=torch.where(holes[..., None], clips.flow, 1e6))
    cut = crop_and_zoom(sparse, 1.3, (3.0, 2.0), (50, 60))
    assert cut.flow[cut.valid_flow].abs().max() < 1e3  # nothing leaked in from unknown pixels
    assert 0.4 < cut.valid_flow.float().mean() < 0.6


def test_augment_is_deterministic_and_keeps_the_geometry(clips: ClipBatch) -> None:
    options = AugmentOptions(size=(48, 64))
    for seed in range(6):
        first, again = augment(clips, seed, options), augment(clips, seed, options)
        assert first.rgb.shape == (3, 3, 3, 48, 64)
        assert torch.equal(first.rgb, again.rgb)
        assert 0 <= first.rgb.min() <= first.rgb.max() <= 1
        assert flow_error(first, still_only=True).median() < 0.02
        warped = F.l1_loss(first.rgb[:, 0], first.rgb[:, 1])
        assert torch.isfinite(warped)


@pytest.mark.parametrize("bad", [{"flip": 2.0}, {"zoom": (2.0, 1.0)}])
def test_options_are_checked(bad: dict) -> None:
    with pytest.raises(ConfigError):
        AugmentOptions(**bad)

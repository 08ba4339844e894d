"""Depth Anything 3: names and shapes, numbers of all three networks, reference view, preprocessing, adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import families
import numpy as np
import pytest
import torch
from families import check_pinhole, check_prediction, make_frames, run_windows, video_info
from golden import Golden, Recorder, check_manifest

from stream4d.errors import ModelError
from stream4d.geometry.camera import make_K
from stream4d.geometry.transforms import rigid, so3_exp
from stream4d.models.da3 import Views, key_map
from stream4d.models.da3_config import METRIC_LARGE, SIZES, Da3Config, ResizeRule
from stream4d.models.da3_metric import SKY_FROM, at_focal, fill_sky, to_metric
from stream4d.models.da3_net import (
    Da3Net,
    Da3Output,
    MonoOutput,
    NestedNet,
    reference_first,
    reference_view,
    take_views,
)
from stream4d.models.da3_rays import camera_from_rays, centre_of_rays, ray_homography
from stream4d.models.da3_resize import fit_image
from stream4d.models.encoders import normalise_imagenet
from stream4d.models.pose_encoding import decode_cameras, encode_cameras
from stream4d.models.registry import create_model
from stream4d.packets import Window

TINY = families.TINY["da3"]
TINY_GIANT = TINY | {"depth": 7, "alternate_from": 3, "taps": (3, 4, 5, 6), "swiglu": True}
TINY_METRIC = TINY | {"depth": 5, "alternate_from": None, "taps": (1, 2, 3, 4)}


@pytest.mark.parametrize("name", ["da3-small", "da3-base", "da3-large", "da3-giant"])
@pytest.mark.parametrize("ray_head", [False, True])
def test_manifest(name, ray_head):
    config = replace(SIZES[name], ray_head=ray_head)
    net = check_manifest(name, lambda: Da3Net(config), key_map(config))
    assert ray_head == any("_aux" in key for key in net.state_dict())


def test_manifest_of_metric_and_nested():
    check_manifest("da3metric-large", lambda: Da3Net(METRIC_LARGE), key_map(METRIC_LARGE))
    config = SIZES["da3-nested"]
    check_manifest("da3nested-giant-large", lambda: NestedNet(config), key_map(config))


@pytest.mark.parametrize(("name", "sizes"), [("da3", TINY), ("da3_giant", TINY_GIANT)])
def test_numbers_equal_the_official_code(name, sizes):
    golden = Golden("tiny", name)
    config = Da3Config(ray_head=True, **sizes)
    net = golden.load(lambda: Da3Net(config), key_map(config))
    got = {}
    for run in ("two", "four", "port"):
        got |= outputs(net, golden.inputs[run][None], run)
    middle = Da3Config(ray_head=True, reference="middle", **sizes)
    net.backbone.config = middle
    got |= outputs(net, golden.inputs["four"][None], "four_mid")
    w2c = golden.inputs["ext"][None]
    c2w = torch.linalg.inv(w2c)[..., :3, :]
    cameras = encode_cameras(c2w, golden.inputs["K"][None], (42, 56))
    got |= outputs(net, golden.inputs["four"][None, :3], "pose", cameras)
    golden.check(got)


def outputs(net, images, run, cameras=None):
    """Run views and name everything as the golden file does."""
    depth, T = net.config.depth, images.shape[1]
    parts = ["refinenet4", "refinenet4_aux", "refinenet1", "refinenet1_aux", "output_conv2"]
    blocks = [f"backbone.blocks.{i}" for i in range(depth)]
    names = [*blocks, *(f"head.scratch.{p}" for p in parts), "cam_enc"]
    with Recorder(net, *names) as seen:
        out = net(images, cameras)
    with torch.inference_mode():
        tokens = net.backbone(images, seen["cam_enc"][0] if cameras is not None else None)
    c2w, K = decode_cameras(out.pose_encoding, (images.shape[-2], images.shape[-1]))
    bottom = torch.tensor([0.0, 0, 0, 1]).expand(1, T, 1, 4)
    got = {
        "pose_enc": out.pose_encoding,
        "depth": out.depth,
        "depth_conf": out.depth_confidence,
        "extrinsics": torch.linalg.inv(torch.cat([c2w, bottom], 2))[..., :3, :],
        "intrinsics": K,
        "head.ray": out.rays,
        "head.ray_conf": out.rays_confidence,
        "ref_view": out.reference,
    }
    got |= {f"block{i}": seen[b][0] for i, b in enumerate(blocks)}
    got |= {f"dpt.{p}": torch.cat(seen[f"head.scratch.{p}"]) for p in parts}
    got |= {f"feat{i}": f[None] for i, f in enumerate(tokens.features)}
    got["camtok3"] = tokens.camera
    if run == "two":
        got |= camera_tokens(net.backbone, [seen[b][0] for b in blocks])
    if cameras is not None:
        got["cam_enc_token"] = seen["cam_enc"][0]
    return {f"{run}.{key}": value for key, value in got.items()}


def camera_tokens(backbone, blocks):
    """Return the first tokens of the tapped blocks (two views): the last state within a view beside the newest."""
    config = backbone.config
    first = [b.reshape(1, 2, -1, config.dim)[:, :, 0] for b in blocks]
    start = config.alternate_from
    out = {}
    for k, tap in enumerate(config.taps):
        within = [i for i in range(tap + 1) if i < start or i % 2 == 0][-1]
        # At the start the camera token replaces what the blocks within a view had made.
        local = first[within] if within >= start else backbone.camera_token
        out[f"camtok{k}"] = torch.cat([local, first[tap]], dim=-1)
    return out


def test_metric_network_equals_the_official_code():
    golden = Golden("tiny", "da3_metric")
    config = Da3Config(**TINY_METRIC)
    net = golden.load(lambda: Da3Net(config), key_map(config))
    parts = ["refinenet4", "refinenet1", "output_conv2"]
    blocks = [f"backbone.blocks.{i}" for i in range(config.depth)]
    got = {}
    for run, images in (("one", golden.inputs["two"][:1]), ("port", golden.inputs["port"])):
        with Recorder(net, *blocks, *(f"head.scratch.{p}" for p in parts)) as seen:
            out = net.mono(images[None])
        tokens = net.backbone(images[None])
        maps = {"head.depth": out.depth, "head.sky": out.sky, "sky": out.sky}
        maps["depth"] = fill_sky(out.depth, out.sky >= SKY_FROM)
        maps |= {f"block{i}": seen[b][0] for i, b in enumerate(blocks)}
        maps |= {
            f"camtok{i}": seen[blocks[tap]][0][None, :, 0] for i, tap in enumerate(config.taps)
        }
        maps |= {f"feat{i}": f[None] for i, f in enumerate(tokens.features)}
        maps |= {f"dpt.{p}": seen[f"head.scratch.{p}"][0] for p in parts}
        got |= {f"{run}.{key}": value for key, value in maps.items()}
    why = "an input of the other networks"
    golden.check(got, left_out={"four": why, "ext": why, "K": why})


def test_geometry_equals_the_official_code():
    golden = Golden("post", "da3_post")
    t = golden.tensors
    golden.check(
        reference_views(t) | cameras(t) | metric_scale(t) | ray_cameras(t),
        given=r"ref\.x\d|pose\.enc|nested\.(depth|conf|K|extrinsics|metric_raw|sky)"
        r"|raypose\.(ray|conf|randperm_calls)",
    )


def reference_views(t):
    got = {}
    for views in (3, 4, 6):
        x = t[f"ref.x{views}"]
        for how in ("first", "middle", "saddle_balanced", "saddle_sim_range"):
            got[f"ref.{how}.{views}"] = reference_view(x[:, :, 0], how)
        order = reference_first(torch.tensor([views - 1, 1]), views)
        got[f"ref.reorder{views}"] = take_views(x, order)
    return got


def cameras(t):
    size = (42, 56)
    c2w, K = decode_cameras(t["pose.enc"], size)
    matrix = c2w[0].double().numpy()
    w2c = np.linalg.inv(rigid(matrix[..., :3], matrix[..., 3]))[:, :3]
    back = encode_cameras(c2w, K, size)
    return {"pose.c2w": c2w, "pose.K": K, "pose.enc_back": back, "pose.w2c_out": w2c[None]}


def metric_scale(t):
    depth, confidence, K = t["nested.depth"], t["nested.conf"], t["nested.K"]
    mono = MonoOutput(t["nested.metric_raw"], t["nested.sky"])
    out = to_metric(depth, confidence, mono, K)
    extrinsics = t["nested.extrinsics"].clone()
    extrinsics[..., 3] *= out.scale
    return {
        "nested.metric_scaled": at_focal(mono.depth, K),
        "nested.scale": out.scale,
        "nested.out_depth": out.depth,
        "nested.out_conf": torch.where(out.is_sky, 1.0, confidence),
        "nested.out_extrinsics": extrinsics,
        "mono_sky.out_depth": fill_sky(depth, mono.sky >= SKY_FROM),
    }


def ray_cameras(t):
    """Fit with the recorded draws, and split as the official code does (see `camera_from_rays`)."""
    poses, focals, middles, Ks = [], [], [], []
    draws = t["raypose.randperm_calls"][:, :8].numpy()
    for rays, confidence in zip(t["raypose.ray"][0], t["raypose.conf"][0, ..., 0], strict=True):
        rays, confidence = rays.numpy(), confidence.numpy()
        R, lower = official_split(ray_homography(rays, confidence, draws))
        focal, middle = 1 / np.diag(lower)[:2], lower[2, :2] + 1
        half = np.array([28.0, 21.0])
        poses.append(rigid(R, centre_of_rays(rays, confidence)))
        focals.append(focal)
        middles.append(middle)
        Ks.append(make_K(*(focal * half), *(middle * half)))
    return {
        "raypose.c2w": np.stack(poses)[None],
        "raypose.focal_norm": np.stack(focals)[None],
        "raypose.pp_norm": np.stack(middles)[None],
        "raypose.final_intrinsics_42x56": np.stack(Ks)[None],
        "raypose.final_extrinsics_w2c": np.linalg.inv(np.stack(poses))[None, :, :3],
    }


def official_split(A):
    """Split into a rotation and a lower triangle."""
    flip = np.eye(3)[::-1]
    Q, upper = np.linalg.qr(A @ flip)
    Q, lower = Q @ flip, flip @ upper @ flip
    sign = np.sign(np.diag(lower))
    lower = sign[:, None] * lower
    return Q * sign, lower / lower[2, 2]


def test_camera_of_exact_rays_is_exact():
    K = make_K(61, 58, 30, 19)
    pose = rigid(so3_exp(np.array([0.2, -0.4, 0.1])), np.array([1.0, 2, 3]))
    # The ray map's cells are twice as large as the image's pixels.
    y, x = 2 * (np.mgrid[:21, :28] + 0.5)
    in_cam = np.stack([(x - 30) / 61, (y - 19) / 58, np.ones_like(x)], axis=-1)
    direction = 3 * in_cam @ pose[:3, :3].T
    direction[5, 5:9] = [0, 0, -1]  # outliers
    rays = np.concatenate([direction, np.broadcast_to(pose[:3, 3], direction.shape)], axis=-1)
    got = camera_from_rays(rays, np.ones((21, 28)), (42, 56))
    np.testing.assert_allclose(got.K, K, atol=0.02)
    np.testing.assert_allclose(got.scene_from_cam, pose, atol=1e-3)


def test_rays_of_nothing_have_no_camera():
    assert camera_from_rays(np.full((4, 5, 6), np.nan), np.ones((4, 5)), (8, 10)) is None


def official_K(fit, W, H):
    """Bring the table's intrinsics to the network's image; the official ones count from the corner of a pixel."""
    K = fit.K_to_network(make_K(0.9 * W, 0.95 * W, W / 2 - 0.5, H / 2 - 0.5))
    return [K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5]


def test_preprocessing_equals_the_official_code():
    golden = Golden("post", "da3_preprocess")

    def row(W, H, rule, size, lens):
        fit = fit_image(W, H, rule=rule)
        got = list(fit.size), official_K(fit, W, H)
        return got, (size, pytest.approx(lens, rel=1e-6))

    # The official rule leaves nothing of a 17×900 image; we refuse it.
    golden.check_rows("table", row, left_out=lambda W, H, rule, size, lens: 0 in size)
    got = {}
    for which in ("big", "small"):
        rgb = golden.tensors[f"pre.{which}_uint8"].numpy()
        for rule in get_args(ResizeRule):
            fit = fit_image(rgb.shape[1], rgb.shape[0], 56, rule)
            got[f"pre.{which}.{rule}_56"] = normalise_imagenet(fit.batch([rgb]))[0]
    # Images of two shapes are cut to the smaller one.
    fits = [fit_image(100, H, 56) for H in (60, 75)]
    fits[1] = replace(fits[1], top=7, size=fits[0].size)
    lenses = [official_K(fit, 100, H) for fit, H in zip(fits, (60, 75), strict=True)]
    got["pre.mixed_K"] = np.stack([make_K(*lens) for lens in lenses])
    name = "pre.mixed_100x60_100x75"
    golden.check(
        got, given=r".*_uint8", left_out={name: "the file does not hold the images it was made of"}
    )


def test_sliver_is_refused():
    with pytest.raises(ModelError, match="upper_bound_resize"):
        fit_image(17, 900, rule="upper_bound_crop")
    with pytest.raises(ModelError, match="lower_bound_crop, got 'stretch'"):
        fit_image(640, 480, rule="stretch")


@pytest.mark.parametrize("pose_from", ["token", "rays"])
@pytest.mark.parametrize("size", [(150, 101), (60, 110)])
def test_prediction(size, pose_from):
    model = create_model("da3-base", weights="random", resolution=98, pose_from=pose_from, **TINY)
    for prediction in run_windows(model, *size):
        check_prediction(prediction, 3, *size)
        check_pinhole(prediction)
        assert not prediction.is_metric


@pytest.mark.parametrize("rule", ["upper_bound_crop", "lower_bound_crop"])
def test_prediction_from_cut_frames(rule):
    model = create_model("da3-base", weights="random", resolution=70, resize=rule, **TINY)
    for prediction in run_windows(model, 150, 101):
        check_prediction(prediction, 3, 150, 101)
        check_pinhole(prediction)


@pytest.mark.parametrize("sky", ["unknown", "far"])
def test_prediction_of_the_nested_model(sky):
    metric = Da3Config(**TINY_METRIC)
    model = create_model(
        "da3-nested", weights="random", resolution=98, metric=metric, sky=sky, **TINY_GIANT
    )
    has_sky = []
    for prediction in run_windows(model, 150, 101):
        assert prediction.is_metric
        check_prediction(prediction, 3, 150, 101)
        has_sky.append(np.isnan(prediction.depth).any())
    assert any(has_sky) == (sky == "unknown")


def exact_output(poses, K, depth):
    """Return the network output that says exactly this of two views."""
    encoding = encode_cameras(torch.tensor(poses[None, :, :3]), torch.tensor(K[None]), (42, 56))
    return Da3Output(
        depth=torch.tensor(depth[None]),
        depth_confidence=torch.full((1, *depth.shape), 2.0),
        pose_encoding=encoding,
        rays=None,
        rays_confidence=None,
        reference=None,
    )


def test_views_of_exact_outputs_are_exact():
    K = np.stack([make_K(60, 58, 28, 21), make_K(61, 59, 28, 21)])
    poses = rigid(
        so3_exp(np.array([[0.1, 0, 0], [0, 0.2, 0.1]])), np.array([[1.0, 0, 0], [3, 0, 1]])
    )
    depth = 2 + 0.01 * np.arange(2 * 42 * 56, dtype=np.float64).reshape(2, 42, 56) / 100
    views = Views.of(exact_output(poses, K, depth), fit_image(56, 42, 56), [None, K[0]], "token")
    window_from_cam = np.linalg.inv(poses[0]) @ poses
    np.testing.assert_allclose(views.window_from_cam, window_from_cam, atol=1e-6)
    np.testing.assert_allclose(views.K, [K[0], K[0]], rtol=1e-6)  # the second was given
    twice = window_from_cam.copy()
    twice[:, :3, 3] *= 2
    scaled = views.at_poses(twice)
    np.testing.assert_allclose(scaled.depth, 2 * depth, rtol=1e-6)
    np.testing.assert_allclose(scaled.window_from_cam, twice, atol=1e-9)
    still = views.at_poses(np.tile(np.eye(4), (2, 1, 1)))
    np.testing.assert_allclose(still.depth, depth, rtol=1e-6)


def test_views_in_metres():
    K, poses = np.stack([make_K(60, 60, 28, 21)] * 2), np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = 0.5
    depth = np.linspace(1, 2, 2 * 42 * 56).reshape(2, 42, 56)
    views = Views.of(exact_output(poses, K, depth), fit_image(56, 42, 56), [None, None], "token")
    sky = torch.zeros(1, 2, 42, 56)
    sky[:, :, :10] = 1
    mono = MonoOutput(torch.tensor(depth[None]) * 3 / 60 * 300, sky)  # three metres a unit
    unknown, far = views.in_metres(mono, "unknown"), views.in_metres(mono, "far")
    np.testing.assert_allclose(unknown.depth[:, 10:], 3 * depth[:, 10:], rtol=1e-5)
    assert np.isnan(unknown.depth[:, :10]).all()
    assert far.depth[:, :10].min() > 5.9
    np.testing.assert_allclose(unknown.window_from_cam[1, :3, 3], [1.5, 0, 0], rtol=1e-5)


def test_given_cameras_are_used_and_kept():
    model = create_model("da3-base", weights="random", resolution=98, **TINY)
    K = np.array([[123.0, 0, 70], [0, 125, 52], [0, 0, 1]])
    free = run_windows(model, 150, 101, count=3)[0]
    frames = make_frames(3, 150, 101, K=K)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = [5.0, 5.2, 5.4]
    frames = tuple(replace(f, world_from_cam=p) for f, p in zip(frames, poses, strict=True))
    with model.session(video_info(150, 101)) as session:
        known = session.step(Window(index=0, frames=frames, overlap=0))
    np.testing.assert_allclose(known.K, np.stack([K] * 3), rtol=1e-9)
    np.testing.assert_allclose(known.window_from_cam[:, 0, 3], [0, 0.2, 0.4], atol=1e-9)
    check_prediction(known, 3, 150, 101)
    check_pinhole(known)
    # The network saw them: depth differs by more than a factor.
    ratio = known.depth / free.depth
    assert ratio.std() / ratio.mean() > 1e-3


def test_unknown_option_is_refused():
    with pytest.raises(ModelError, match=r"resolutoin.*resolution"):
        create_model("da3-base", weights="random", resolutoin=98)

"""MapAnything: names and shapes, numbers with and without given geometry, pre- and post-processing, adapter."""

from __future__ import annotations

from dataclasses import replace

import families
import numpy as np
import pytest
import torch
from families import check_prediction, make_frames, run_windows, video_info
from golden import Golden, Recorder, check_manifest

from stream4d.errors import ModelError
from stream4d.geometry.camera import make_K, pixel_rays
from stream4d.geometry.transforms import invert, rigid, transform_points
from stream4d.models.encoders import normalise_imagenet
from stream4d.models.mapanything import (
    KEY_MAP,
    SIZES_BY_ASPECT,
    K_from_rays,
    fit_image,
    fit_pinhole,
    mapanything_prediction,
)
from stream4d.models.mapanything_inputs import (
    GivenView,
    collect,
    normalised_depth,
    normalised_translation,
    unit_rays,
)
from stream4d.models.mapanything_masks import (
    depth_edge,
    multiview_confidence,
    normal_edge,
    on_edge,
    surface_normals,
)
from stream4d.models.mapanything_net import (
    V1,
    MapAnythingConfig,
    MapAnythingNet,
    MapAnythingOutput,
)
from stream4d.models.pointmaps import rigid_fit
from stream4d.models.pose_encoding import matrix_from_quat_xyzw, quat_xyzw_from_matrix
from stream4d.models.registry import create_model
from stream4d.packets import Window

TINY = families.TINY["mapanything"]
CONFIGS = {
    "mapanything_v1": replace(V1, **TINY | {"trunk_dim": 32, "trunk_heads": 2}),
    "mapanything_v1_1": MapAnythingConfig(**TINY),
}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("mapanything_v1", V1),
        ("mapanything_v1.hf", V1),
        ("mapanything_v1_1", MapAnythingConfig()),
        ("mapanything_v1_1.hf", MapAnythingConfig()),
    ],
)
def test_manifest(name, config):
    check_manifest(name, lambda: MapAnythingNet(config), KEY_MAP)


@pytest.mark.parametrize("name", ["mapanything_v1", "mapanything_v1_1"])
def test_numbers_equal_the_official_code(name):
    golden = Golden("tiny", name)
    net = golden.load(lambda: MapAnythingNet(CONFIGS[name]), KEY_MAP)
    land, port = golden.inputs["land"], golden.inputs["port"]
    got = outputs(net, land, None, "images") | outputs(net, port, None, "port")
    got |= outputs(net, land, known_geometry(golden.inputs), "prior")
    golden.check(got)


def known_geometry(inputs):
    """View 0: K and pose; view 1: K, depth and pose; view 2: rays alone. Poses and depth in metres."""
    size = (42, 56)
    R = matrix_from_quat_xyzw(inputs["pose_q"].double()).numpy()
    poses = rigid(R, inputs["pose_t"].double().numpy())
    rays = [unit_rays(K.numpy(), size) for K in inputs["K"][:2]]
    return collect(
        [
            GivenView(rays[0], None, poses[0], True),
            GivenView(rays[1], inputs["depth_z"].numpy(), poses[1], True),
            GivenView(inputs["rays2"].numpy()),
        ],
        size,
    )


def outputs(net, images, given, run):
    """Run views and name everything as the golden file does."""
    T, grid = len(images), (images.shape[-2] // 14, images.shape[-1] // 14)
    blocks = [f"info_sharing.self_attention_blocks.{i}" for i in range(net.config.trunk_depth)]
    encoders = [f"geometry.{n}" for n, _ in net.geometry.named_children()]
    heads = ["dense_head.dpt", "dense_head", "pose_head", "scale_head"]
    parts = ["encoder", "fusion_norm_layer", "info_sharing", *blocks, *encoders, *heads]
    with torch.inference_mode(), Recorder(net, *parts) as seen:
        out = net(images[None], given)

    def maps(tokens):  # (..., N, C) -> (..., C, h, w)
        return tokens.transpose(-1, -2).unflatten(-1, grid)

    trunk = seen["info_sharing"][0]
    got = {
        "encoder.features": maps(seen["encoder"][0][:, 1:]),
        "fused": seen["fusion_norm_layer"][0][0].unflatten(1, grid),
        "info.inter0_views": maps(trunk.taps[0][0])[:, None],
        "info.inter1_views": maps(trunk.taps[1][0])[:, None],
        "info.final_views": maps(trunk.views[0])[:, None],
        "info.final_scale_token": trunk.scale[..., None],
        "dpt.feat8x": torch.cat(seen["dense_head.dpt"]),
        "dpt.raw": torch.cat(seen["dense_head"]),
        "pose.raw": seen["pose_head"][0],
        "scale.raw": seen["scale_head"][0][..., None],
    }
    got |= {f"info.block{i}": seen[b][0] for i, b in enumerate(blocks)}
    if given is not None:
        for name in ("ray_dirs", "depth"):
            key = {"ray_dirs": "ray_feat", "depth": "depth_feat"}[name]
            got[key] = maps(seen[f"geometry.{name}_encoder"][0])
        for name in ("depth_scale", "cam_rot", "cam_trans", "cam_trans_scale"):
            got[f"{name}_feat"] = seen[f"geometry.{name}_encoder"][0]
    return {f"{run}.{key}": value for key, value in (got | factors(out, T)).items()}


def factors(out, T):
    """Return the activated factors and what follows from them, stacked over views."""
    scale = out.scale[0]
    R = matrix_from_quat_xyzw(out.quat_xyzw[0])
    t = out.translation[0] * scale
    distance = out.ray_distance[0, ..., None] * scale
    in_cam = out.rays[0] * distance
    in_scene = torch.einsum("tij,thwj->thwi", R, in_cam) + t[:, None, None]
    pose = torch.eye(4).repeat(T, 1, 1)
    pose[:, :3, :3], pose[:, :3, 3] = R, t
    K = torch.tensor(np.stack([fit_pinhole(r.numpy()) for r in out.rays[0]]))
    per_view = {
        "pts3d": in_scene,
        "pts3d_cam": in_cam,
        "ray_directions": out.rays[0],
        "depth_along_ray": distance,
        "depth_z": in_cam[..., 2:],
        "cam_trans": t,
        "cam_quats": out.quat_xyzw[0],
        "camera_poses": pose,
        "intrinsics": K,
        "metric_scaling_factor": scale.expand(T, 1),
        "conf": out.confidence[0],
        "non_ambiguous_mask_logits": out.mask_logits[0],
    }
    return {key: value[:, None] for key, value in per_view.items()}


def test_geometry_equals_the_official_code():
    golden = Golden("post", "mapanything_geometry")
    t = {k: v.numpy() for k, v in golden.tensors.items()}
    golden.check(
        rays_and_points(t)
        | intrinsics(t)
        | normalised(t)
        | given_to_network(t)
        | edges_and_masks(t),
        given=r"rays\.K|fact\.(depth_along_ray|quats_xyzw|scale|trans)|intr\..*rays.*|norm\.depth_in"
        r"|edge\.(mask_in|pts3d)|prep\.depth_z|post\.in\d\..*",
        loose={
            # The official fit runs in float32, ours does not.
            r"intr|post\.intrinsics": 3e-5,
            r"norm\.depth$": 1e-4,  # expm1 of log1p
            # The official code takes arccos of float32 products, which is NaN where rounding takes them over 1: it so
            # misses edges that we mark.
            r"normals_edge|edges_conf10\.mask": 0.015,
        },
        left_out={
            "intr.geometric": "only for images of over a million pixels, which the network never sees",
        },
    )


def rays_and_points(t):
    R = matrix_from_quat_xyzw(torch.tensor(t["fact.quats_xyzw"]))
    rays = np.stack([unit_rays(K, (42, 56)) for K in t["rays.K"]])
    in_cam = rays * t["fact.depth_along_ray"]
    pose = rigid(R.numpy(), t["fact.trans"])
    in_scene = np.stack([transform_points(T, p) for T, p in zip(pose, in_cam, strict=True)])
    scale = t["fact.scale"][:, :, None, None]
    return {
        "rays.unit": rays,
        "rays.plane": np.stack([pixel_rays(K, 42, 56) for K in t["rays.K"]]),
        "fact.R": R,
        "fact.quat_back": quat_xyzw_from_matrix(R),
        "fact.pts3d_unscaled": in_scene,
        "fact.pts3d_metric": in_scene * scale,
        "fact.pts3d_cam_metric": in_cam * scale,
    }


def intrinsics(t):
    def fitted(rays):
        return np.stack([K_from_rays(r) for r in rays])

    return {
        "intr.regression": fitted(t["intr.noisy_rays"]),
        "intr.exact_regression": fitted(t["rays.unit"]),
        "intr.strided_regression": fitted(t["intr.strided_rays_180x240"]),
        "post.intrinsics": fitted([t[f"post.in{i}.ray_directions"][0] for i in range(3)])[:, None],
    }


def normalised(t):
    """Depth and translations, divided by their own means."""
    depth, factor = normalised_depth(torch.tensor(t["norm.depth_in"]).movedim(-1, 1)[None])
    translation, length = normalised_translation(torch.tensor(t["fact.trans"])[None])
    return {
        "norm.depth_log": depth[0].movedim(1, -1),
        "norm.depth_factor": factor[0, :, 0],
        "norm.depth": depth[0].movedim(1, -1).expm1(),
        "norm.trans": translation,
        "norm.trans_factor": length[0, 0],
    }


def given_to_network(t):
    """What a user gives, as the network takes it."""
    R = matrix_from_quat_xyzw(torch.tensor(t["fact.quats_xyzw"]).double()).numpy()
    poses = rigid(R, t["fact.trans"].astype(np.float64))
    known = collect([GivenView(world_from_cam=pose) for pose in poses], (42, 56))
    rays = unit_rays(t["rays.K"][0], (42, 56))
    metric = MapAnythingConfig().inputs_are_metric
    view = collect([GivenView(rays, t["prep.depth_z"][0], np.eye(4), metric)], (42, 56))
    return {
        "pose2to1.q": known.quat_xyzw[0],
        "pose2to1.t": known.translation[0],
        "prep.depth_along_ray": view.ray_distance[0].movedim(1, -1),
        "prep.quats": view.quat_xyzw[0],
        "prep.is_metric_default": view.is_metric[0],
    }


def edges_and_masks(t):
    points, valid = t["edge.pts3d"], t["edge.mask_in"]
    normals, has_normal = surface_normals(points, valid)
    turns = normal_edge(normals, has_normal, 5.0)
    assert not (t["edge.normals_edge_5deg"] & ~turns).any()
    got = {
        "edge.normals": normals,
        "edge.normals_mask": has_normal,
        "edge.depth_edge_rtol0.03": depth_edge(points[..., 2], valid, 0.03),
        "edge.normals_edge_5deg": turns,
    }
    parts = [{k: t[f"post.in{i}.{k}"][0] for k in POST_INPUTS} for i in range(3)]
    in_cam = np.stack([p["ray_directions"] * p["depth_along_ray"] for p in parts])
    valid = np.stack([p["non_ambiguous_mask"] for p in parts])
    weight = np.ones(in_cam.shape[1:3])
    pairs = zip(in_cam.astype(float), parts, strict=True)
    poses = np.stack([rigid_fit(own, p["pts3d"].astype(float), weight) for own, p in pairs])
    # Their intrinsics: a pixel at the limit would fall to the other side with ours, which are equal to rounding.
    confirmed = multiview_confidence(in_cam[..., 2], valid, t["post.intrinsics"][:, 0], poses)
    for i, part in enumerate(parts):
        kept = valid[i] & (part["conf"] > np.percentile(part["conf"], 10))
        got |= {
            f"post.edges_conf10.conf{i}": part["conf"][None],
            f"post.edges_conf10.mask{i}": (kept & ~on_edge(in_cam[i], kept))[None, ..., None],
            f"post.mvconf.conf{i}": confirmed[i][None],
            f"post.mvconf.mask{i}": valid[i][None, ..., None],
        }
    return got


POST_INPUTS = ("ray_directions", "depth_along_ray", "non_ambiguous_mask", "conf", "pts3d")


def test_intrinsics_of_nonsense_are_usable():
    rays = np.random.default_rng(0).normal(size=(42, 56, 3))
    K = K_from_rays(rays / np.linalg.norm(rays, axis=-1, keepdims=True))
    assert K[0, 0] > 0
    assert np.isfinite(K).all()


def test_preprocessing_equals_the_official_code():
    golden = Golden("post", "mapanything_preprocess")

    def row(W, H, rule, size, known, resized, name, box, out):
        chosen = {"size": tuple(size)} if rule == "fixed_size" else {"rule": rule}
        fit = fit_image(W, H, **chosen, resolution=known if rule == "fixed_mapping" else 518)
        got = list(fit.resized), fit.filter.name, [fit.left, fit.top], list(fit.size)
        return got, (resized, name, [int(edge) for edge in box[:2]], out)

    # The sizes around 512 are for networks with patches of 16.
    golden.check_rows("table", row, left_out=lambda W, H, rule, size, known, *_: known == 512)
    golden.check_rows(
        "resolution_mappings",
        lambda known, sizes: (
            SIZES_BY_ASPECT[int(known)],
            {float(k): tuple(v) for k, v in sizes.items()},
        ),
        left_out=lambda known, sizes: known == "512",
    )
    got = {}
    for i in range(2):
        rgb = golden.tensors[f"pre.img{i}_uint8"].numpy()
        fit = fit_image(rgb.shape[1], rgb.shape[0], (56, 42))
        got[f"pre.out{i}"] = normalise_imagenet(fit.batch([rgb]))[0]
    golden.check(got, given=r".*_uint8")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"resolution": 512}, "518 or 504"), ({"resize": "stretch"}, "longest_side or square")],
)
def test_impossible_size_is_refused(options, message):
    model = create_model("mapanything", weights="random", **options, **TINY)
    with pytest.raises(ModelError, match=message):
        model.session(video_info(150, 101))


def test_confidence_is_what_other_views_confirm():
    K, poses = np.stack([make_K(50, 50, 27, 21)] * 2), np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = 0.2
    depth = np.full((2, 42, 56), 2.0)
    valid = np.ones_like(depth, dtype=bool)
    assert multiview_confidence(depth, valid, K, poses)[:, :, 6:-6].min() == 1
    depth[1, 10:20, 20:30] = 1.0  # something that only the second view sees
    confidence = multiview_confidence(depth, valid, K, poses)
    assert (confidence[1, 10:20, 20:30] == 0).all()
    assert 0.8 < confidence.mean() < 0.9
    poses[1, 0, 3] = 1000
    assert multiview_confidence(depth, valid, K, poses).min() == 1


def test_prediction_of_exact_factors_is_exact():
    size, K = (42, 56), make_K(50, 52, 27, 21)
    rays = unit_rays(K, size)
    depth = 2 + 0.02 * np.arange(56)[None] + np.zeros((42, 1))
    pose = rigid(
        matrix_from_quat_xyzw(torch.tensor([[0, 0, 0, 1.0], [0, 0.1, 0, 1]])).numpy(),
        [[0, 0, 0], [1, 0, 0]],
    )
    out = MapAnythingOutput(
        rays=torch.tensor(np.stack([rays, rays]))[None],
        ray_distance=torch.tensor(np.stack([depth / rays[..., 2]] * 2))[None] / 2,
        confidence=torch.full((1, 2, 42, 56), 2.0),
        mask_logits=torch.ones(1, 2, 42, 56),
        translation=torch.tensor(pose[None, :, :3, 3]) / 2,
        quat_xyzw=quat_xyzw_from_matrix(torch.tensor(pose[None, :, :3, :3])),
        scale=torch.tensor([2.0]),
    )
    got = mapanything_prediction(fit_image(56, 42, (56, 42)), out, [None, None], mask_edges=True)
    check_prediction(got, 2, 56, 42)
    np.testing.assert_allclose(got.depth[0], depth, rtol=1e-5)
    np.testing.assert_allclose(got.window_from_cam, pose, atol=1e-6)
    np.testing.assert_allclose(got.K[0], K, rtol=1e-4)
    again = transform_points(invert(pose[1]), got.pointmap_in_window[1])
    np.testing.assert_allclose(again / again[..., 2:], pixel_rays(K, 42, 56), atol=1e-4)
    assert got.is_metric


@pytest.mark.parametrize("size", [(150, 101), (60, 110)])
def test_prediction(size):
    options = {"resolution": 98, "resize": "longest_side", "confidence_from": "views"}
    model = create_model("mapanything", weights="random", mask_edges=False, **options, **TINY)
    for prediction in run_windows(model, *size):
        check_prediction(prediction, 3, *size)
        assert prediction.is_metric


def test_given_geometry_changes_the_answer_and_K_is_kept():
    model = create_model("mapanything", weights="random", size=(98, 70), mask_edges=False, **TINY)
    K = make_K(123, 125, 70, 52)
    frames = make_frames(3, 150, 101)
    answers = []
    for given in (
        {},
        {"K": K},
        {"K": K, "depth": np.full((101, 150), 3.0, np.float32)},
        {"K": K, "world_from_cam": rigid(np.eye(3), np.array([1.0, 2, 3]))},
    ):
        with model.session(video_info(150, 101)) as session:
            window = Window(index=0, frames=tuple(replace(f, **given) for f in frames), overlap=0)
            answers.append(session.step(window))
    np.testing.assert_allclose(answers[1].K, np.stack([K] * 3), rtol=1e-9)
    for a, b in ((0, 1), (1, 2), (1, 3)):
        moved = np.nanmax(np.abs(answers[a].depth - answers[b].depth))
        assert moved > 1e-4 * np.nanmax(answers[a].depth), (a, b)


def test_poses_count_only_with_the_first_view():
    pose = np.eye(4)
    assert collect([GivenView(), GivenView(world_from_cam=pose)], (14, 14)) is None
    known = collect([GivenView(world_from_cam=pose), GivenView()], (14, 14))
    assert known is not None
    assert known.has_pose.tolist() == [[True, False]]

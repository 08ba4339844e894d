"""MapAnything: names and shapes, numbers with and without given geometry, pre- and post-processing, adapter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import check_prediction, make_frames, run_windows, video_info
from golden import Golden, Recorder, check_manifest, relative_error

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
    InputConfig,
    collect,
    normalised_depth,
    normalised_translation,
    unit_rays,
)
from stream4d.models.mapanything_masks import depth_edge, normal_edge, on_edge, surface_normals
from stream4d.models.mapanything_net import (
    V1,
    MapAnythingConfig,
    MapAnythingNet,
    MapAnythingOutput,
)
from stream4d.models.pose_encoding import matrix_from_quat_xyzw, quat_xyzw_from_matrix
from stream4d.models.registry import create_model
from stream4d.packets import Window

TINY = {
    "dim": 48,
    "encoder_depth": 2,
    "encoder_heads": 3,
    "patch_grid": 5,
    "trunk_dim": 48,
    "trunk_depth": 6,
    "trunk_heads": 3,
    "taps": (1, 3),
    "dpt_layers": (8, 12, 16, 20),
    "dpt_features": 16,
    "pose_hidden": 36,
    "scale_hidden": 20,
    "inputs": InputConfig(dense=(16, 12, 20), flat=(8, 12, 16)),
}
CONFIGS = {
    "mapanything_v1": replace(V1, **TINY | {"trunk_dim": 32, "trunk_heads": 2}),
    "mapanything_v1_1": MapAnythingConfig(**TINY),
}


@pytest.mark.parametrize("form", ["", ".hf"])
@pytest.mark.parametrize(
    ("name", "config"), [("mapanything_v1", V1), ("mapanything_v1_1", MapAnythingConfig())]
)
def test_manifest(name, config, form):
    check_manifest(name + form, lambda: MapAnythingNet(config), KEY_MAP)


@pytest.mark.parametrize("name", CONFIGS)
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


def geometry():
    """Return the tensors of the geometry golden file as numpy arrays."""
    return {k: v.numpy() for k, v in Golden("post", "mapanything_geometry").tensors.items()}


def close(got, wanted, tolerance=1e-5):
    assert relative_error(torch.as_tensor(got), torch.as_tensor(wanted)) < tolerance


def test_rays_and_points_equal_the_official_ones():
    t = geometry()
    for i, K in enumerate(t["rays.K"]):
        close(unit_rays(K, (42, 56)), t["rays.unit"][i])
        close(pixel_rays(K, 42, 56), t["rays.plane"][i])
    R = matrix_from_quat_xyzw(torch.tensor(t["fact.quats_xyzw"]))
    close(R, t["fact.R"])
    close(quat_xyzw_from_matrix(R), t["fact.quat_back"])
    in_cam = t["rays.unit"] * t["fact.depth_along_ray"]
    pose = rigid(R.numpy(), t["fact.trans"])
    in_scene = np.stack([transform_points(T, p) for T, p in zip(pose, in_cam, strict=True)])
    scale = t["fact.scale"][:, :, None, None]
    close(in_scene, t["fact.pts3d_unscaled"])
    close(in_scene * scale, t["fact.pts3d_metric"])
    close(in_cam * scale, t["fact.pts3d_cam_metric"])


def test_intrinsics_of_rays_equal_the_official_ones():
    t = geometry()
    for i in range(3):
        close(K_from_rays(t["intr.noisy_rays"][i]), t["intr.regression"][i])
        # The official fit runs in float32.
        close(K_from_rays(t["rays.unit"][i]), t["intr.exact_regression"][i], 3e-5)
        close(K_from_rays(t["rays.unit"][i]), t["rays.K"][i], 1e-6)
    close(K_from_rays(t["intr.strided_rays_180x240"][0]), t["intr.strided_regression"][0])


def test_intrinsics_of_nonsense_are_usable():
    rays = np.random.default_rng(0).normal(size=(42, 56, 3))
    K = K_from_rays(rays / np.linalg.norm(rays, axis=-1, keepdims=True))
    assert K[0, 0] > 0
    assert np.isfinite(K).all()


def test_normalisation_of_inputs_equals_the_official_one():
    t = geometry()
    depth, factor = normalised_depth(torch.tensor(t["norm.depth_in"]).movedim(-1, 1)[None])
    close(depth[0].movedim(1, -1), t["norm.depth_log"])
    close(factor[0, :, 0], t["norm.depth_factor"])
    close(depth[0].movedim(1, -1).expm1(), t["norm.depth"], 1e-4)
    translation, factor = normalised_translation(torch.tensor(t["norm.trans"]) * 3.8673)
    close(translation, t["norm.trans"])
    close(factor, torch.full((1, 1, 1), 3.8673))


def test_edges_equal_the_official_ones():
    t = geometry()
    points, valid = t["edge.pts3d"], t["edge.mask_in"]
    normals, has_normal = surface_normals(points, valid)
    close(normals, t["edge.normals"])
    assert np.array_equal(has_normal, t["edge.normals_mask"])
    assert np.array_equal(depth_edge(points[..., 2], valid, 0.03), t["edge.depth_edge_rtol0.03"])
    # The official code takes arccos of float32 products, which is NaN where rounding takes them over 1: it so
    # misses edges that we mark.
    ours = normal_edge(normals, has_normal, 5.0)
    assert not (t["edge.normals_edge_5deg"] & ~ours).any()
    assert (ours != t["edge.normals_edge_5deg"]).mean() < 0.01


def test_masks_equal_the_official_ones():
    t = geometry()
    for i in range(3):
        name = f"post.in{i}."
        in_cam = (t[name + "ray_directions"] * t[name + "depth_along_ray"])[0]
        valid, conf = t[name + "non_ambiguous_mask"][0], t[name + "conf"][0]
        kept = valid & (conf > np.percentile(conf, 10))
        ours = kept & ~on_edge(in_cam, kept)
        theirs = t[f"post.edges_conf10.mask{i}"][0, ..., 0]
        assert (ours != theirs).mean() < 0.015, i  # see test_edges_equal_the_official_ones


def test_resize_equals_the_official_table():
    info = Golden("post", "mapanything_preprocess").info
    listed = {float(k): tuple(v) for k, v in info["resolution_mappings"]["518"].items()}
    assert listed == SIZES_BY_ASPECT
    for W, H, mode, size, known, resized, name, box, out in info["table"]:
        if mode == "fixed_mapping" and known == 518:
            fit = fit_image(W, H)
        elif mode == "fixed_size":
            fit = fit_image(W, H, tuple(size))
        else:
            continue
        assert (list(fit.resized), fit.filter.name, list(fit.size)) == (resized, name, out), (W, H)
        assert [fit.left, fit.top] == [int(b) for b in box[:2]], (W, H)


def test_pixels_equal_the_official_ones():
    t = Golden("post", "mapanything_preprocess").tensors
    for i in range(2):
        rgb = t[f"pre.img{i}_uint8"].numpy()
        fit = fit_image(rgb.shape[1], rgb.shape[0], (56, 42))
        got = normalise_imagenet(fit.batch([rgb]))[0]
        torch.testing.assert_close(got, t[f"pre.out{i}"], atol=1e-5, rtol=0)


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
    model = create_model("mapanything", weights="random", size=(98, 70), mask_edges=False, **TINY)
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

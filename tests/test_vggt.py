"""VGGT: names and shapes, numbers of trunk, heads and tracker, preprocessing, pose encoding, adapter."""

from __future__ import annotations

from dataclasses import replace

import families
import numpy as np
import pytest
import torch
from families import check_pinhole, check_prediction, run_windows
from golden import Golden, Recorder, check_manifest
from PIL import Image

from stream4d.geometry.camera import unproject
from stream4d.geometry.transforms import invert, transform_points
from stream4d.models.heads import sincos_grid
from stream4d.models.pose_encoding import (
    decode_cameras,
    encode_cameras,
    matrix_from_quat_xyzw,
    quat_xyzw_from_matrix,
)
from stream4d.models.registry import create_model
from stream4d.models.tracker import TrackerConfig, TrackHead
from stream4d.models.vggt import fit_image, rigid_4x4
from stream4d.models.vggt_net import VggtConfig, VggtNet, key_map
from stream4d.models.weights import KeyMap

TINY = families.TINY["vggt"]


def test_manifest():
    config = VggtConfig(point_head=True, track_head=True)
    check_manifest("vggt_1b", lambda: VggtNet(config), key_map(config))


def test_heads_that_are_not_built_are_not_loaded():
    config = VggtConfig()
    net = check_manifest("vggt_1b", lambda: VggtNet(config), key_map(config))
    assert not any(name.startswith(("track_head", "point_head")) for name in net.state_dict())


def test_numbers_equal_the_official_code():
    golden = Golden("tiny", "vggt")
    config = VggtConfig(point_head=True, **TINY)
    net = golden.load(lambda: VggtNet(config), key_map(config))
    got = {}
    for run, frames in golden.inputs.items():
        got |= {f"{run}.{key}": value for key, value in outputs(net, frames[None]).items()}
    golden.check(got)


def outputs(net, frames):
    """Run frames and name everything as the golden file does."""
    depth = net.config.depth
    blocks = [f"aggregator.{kind}_blocks.{i}" for kind in ("frame", "global") for i in range(depth)]
    parts = [f"projects.{i}" for i in range(4)] + [f"scratch.refinenet{i}" for i in (1, 2, 3, 4)]
    heads = [
        f"{head}_head{part}"
        for head in ("point", "depth")
        for part in ["", *("." + p for p in parts)]
    ]
    cams = ["camera_head.token_norm", "camera_head.pose_branch"]
    with Recorder(net, "aggregator.patch_embed", *blocks, *heads, *cams) as seen:
        out = net(frames)
    T = frames.shape[1]
    got = {
        "dino_norm_all": seen["aggregator.patch_embed"][0],
        "cam.tokens": seen["camera_head.token_norm"][0],
        "depth": out.depth[..., None],
        "depth_conf": out.depth_confidence,
        "world_points": out.points,
        "world_points_conf": out.points_confidence,
    }
    for i in range(depth):
        local = seen[f"aggregator.frame_blocks.{i}"][0].unflatten(0, (1, T))
        wide = seen[f"aggregator.global_blocks.{i}"][0].unflatten(1, (T, -1))
        got[f"agg{i}"] = torch.cat([local, wide], dim=-1)
    for i, encoding in enumerate(out.pose_encodings):
        got[f"pose_enc_iter{i}"] = encoding
        got["cam.delta" + (f"#{i}" if i else "")] = seen["camera_head.pose_branch"][i]
    for head in ("point", "depth"):
        got[f"{head}.raw"] = torch.cat(seen[f"{head}_head"])
        for part in parts:
            key = part.removeprefix("scratch.").replace("projects.", "project")
            got[f"{head}.{key}"] = torch.cat(seen[f"{head}_head.{part}"])
    return got


def test_tracker_equals_the_official_code():
    golden = Golden("tiny", "vggt_track")
    config = TrackerConfig(
        features=12,
        iterations=3,
        corr_levels=4,
        corr_radius=3,
        hidden=32,
        depth=2,
        virtual_tracks=6,
    )
    net = golden.load(
        lambda: TrackHead(80, config, (8, 12, 16, 20)), KeyMap(prefixes=("track_head.",))
    )
    layers = [golden.inputs[f"tok{k}"] for k in range(5)]
    tokens = [layers[k][:, :, 5:] for k in TINY["taps"]]
    with Recorder(
        net, "tracker.fmap_norm", "tracker.corr_mlp", "tracker.updateformer", "tracker"
    ) as seen:
        out = net(tokens, (4, 5), (56, 70), golden.inputs["query"])
    got = {
        "features": net.features(tokens, (4, 5), (56, 70)),
        "fmap_norm": seen["tracker.fmap_norm"][0],
        "vis": out.visibility,
        "conf": out.confidence,
    }
    for i in range(3):
        mark = f"#{i}" if i else ""
        got[f"coords_iter{i}"] = out.pixels[i]
        got[f"corr_mlp{mark}"] = seen["tracker.corr_mlp"][i]
        got[f"delta{mark}"] = seen["tracker.updateformer"][i]
    golden.check(got)


def test_tracker_of_the_whole_network_runs():
    config = VggtConfig(
        track_head=True,
        tracker=TrackerConfig(features=12, hidden=32, depth=1, virtual_tracks=4, corr_levels=2),
        **TINY,
    )
    torch.manual_seed(0)
    net = VggtNet(config).eval()
    queries = torch.tensor([[[10.0, 12.0], [30.0, 20.0]]])
    tracks = net.track(torch.rand(1, 3, 3, 42, 56), queries)
    assert tracks.pixels[-1].shape == (1, 3, 2, 2)
    torch.testing.assert_close(tracks.pixels[-1][:, 0], queries)


def test_geometry_equals_the_official_code():
    golden = Golden("post", "vggt_geometry")
    t = golden.tensors
    got = {
        "rot.mat": matrix_from_quat_xyzw(t["rot.quat_xyzw_in"]),
        "rot.quat_back": quat_xyzw_from_matrix(matrix_from_quat_xyzw(t["rot.quat_xyzw_in"])),
    }
    for size in ((294, 518), (518, 350)):
        matrix, K = decode_cameras(t["pose.enc_in"], size)
        name = "x".join(map(str, size))
        got |= {f"pose.extri.{name}": matrix, f"pose.intri.{name}": K}
        got[f"pose.enc_back.{name}"] = encode_cameras(matrix, K, size)
    for key in t:
        if key.startswith("uv."):
            width, height = map(int, key.split(".")[1].split("x"))
            aspect, channels = key.split("aspect")[1].rsplit(".c", 1)
            got[key] = sincos_grid(width, height, float(aspect), int(channels))
    scene_from_cam = invert(rigid_4x4(t["unproj.extri"].numpy()))
    depth = t["unproj.depth"][..., 0].double().numpy()
    in_cam = unproject(depth, t["unproj.intri"].numpy())
    got["unproj.inv_extri"] = scene_from_cam
    got["unproj.points"] = transform_points(scene_from_cam, in_cam)
    golden.check(
        got,
        given=r"rot\.quat_xyzw_in|pose\.enc_in|unproj\.(depth|extri|intri)",
        loose={r"^uv": 1e-4},  # the file's names round the aspect ratio to four digits
    )


def test_preprocessing_equals_the_official_code():
    golden = Golden("post", "vggt_preprocess")

    def row(W, H, mode, resized, name, crop, pad, out):
        fit = fit_image(W, H, mode=mode)
        got = list(fit.resized), fit.filter.name, [fit.left, fit.top], list(fit.size)
        corner = [0, crop] if mode == "crop" else [-pad[0], -pad[1]]
        return got, (resized, name, corner, out)

    golden.check_rows("table", row)
    got, fits = {}, {}
    images = {name: golden.tensors[f"img.{name}_uint8"].numpy() for name in "ab"}
    # The reader lays transparent images over black before a model sees them; theirs lie over white.
    rgba = Image.fromarray(golden.tensors["img.c_rgba_uint8"].numpy())
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    images["c"] = np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    for name, rgb in images.items():
        for mode in ("crop", "pad"):
            fits[mode, name] = fit_image(rgb.shape[1], rgb.shape[0], 56, mode)
            got[f"img.t56.{mode}.{name}"] = fits[mode, name].batch([rgb])
    # Of two shapes, the lower one gets white bars.
    fits["crop", "a"] = replace(fits["crop", "a"], top=-7, size=(56, 56))
    got["img.t56.crop.mixed_ab"] = torch.cat([fits["crop", n].batch([images[n]]) for n in "ab"])
    golden.check(got, given=r".*_uint8")


@pytest.mark.parametrize("source", ["depth", "points"])
@pytest.mark.parametrize("size", [(150, 101), (60, 110)])
def test_prediction(source, size):
    model = create_model("vggt", weights="random", resolution=98, points_from=source, **TINY)
    for prediction in run_windows(model, *size):
        if source == "depth":
            check_prediction(prediction, 3, *size)
            check_pinhole(prediction)
        else:
            assert prediction.pointmap_in_window.shape == (3, size[1], size[0], 3)

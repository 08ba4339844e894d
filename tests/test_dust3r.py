"""DUSt3R: names and shapes, numbers, preprocessing and the adapter."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from families import check_prediction, make_frames, placed, run_windows, video_info
from golden import Golden, Recorder, check_manifest

from stream4d.geometry.camera import make_K
from stream4d.models.checkpoint import Checkpoint
from stream4d.models.dust3r import fit_image
from stream4d.models.dust3r_net import KEY_MAP, Dust3rConfig, Dust3rNet
from stream4d.models.pointmaps import estimate_focal
from stream4d.models.registry import create_model
from stream4d.packets import Window

TINY = families.TINY["dust3r"]


@pytest.mark.parametrize(
    ("name", "head"),
    [("dust3r_512_dpt", "dpt"), ("dust3r_512_dpt.hf", "dpt"), ("dust3r_224_linear", "linear")],
)
def test_manifest(name, head):
    check_manifest(name, lambda: Dust3rNet(Dust3rConfig(head=head)), KEY_MAP)


def outputs(net, image1, image2, run):
    """Run a pair and name everything as the golden file does."""
    depth = len(net.dec_blocks)
    heads = ("downstream_head1", "downstream_head2")
    blocks = [f"{b}.{i}" for b in ("dec_blocks", "dec_blocks2") for i in range(depth)]
    fusions = [f"{h}.dpt.scratch.refinenet{i}" for h in heads for i in (1, 2, 3, 4)]
    linear = net.config.head == "linear"
    heads_inside = [f"{h}.proj" for h in heads] if linear else fusions
    with Recorder(
        net, "encoder", "decoder_embed", "dec_norm", *heads, *blocks, *heads_inside
    ) as seen:
        out = net(image1, image2)
    names = ("pts3d_1", "conf_1", "pts3d_in_other_view_2", "conf_2")
    got = dict(zip(names, out, strict=True))
    got["enc"], got["enc2"] = seen["encoder"]
    if image1.shape == image2.shape:
        got["enc"] = torch.cat(seen["encoder"])
    for side in (0, 1):
        prefix = f"dec{side + 1}"
        got[f"{prefix}.embed"] = seen["decoder_embed"][side]
        got[f"{prefix}.norm"] = seen["dec_norm"][side]
        for i in range(depth):
            got[f"{prefix}.block{i + 1}"] = seen[f"{('dec_blocks', 'dec_blocks2')[side]}.{i}"][0]
        head = f"head{side + 1}"
        if linear:
            got[f"{head}.proj"] = seen[f"{heads[side]}.proj"][0]
        else:
            got[f"{head}.raw"] = seen[heads[side]][0]
            for i in (1, 2, 3, 4):
                got[f"{head}.refinenet{i}"] = seen[f"{heads[side]}.dpt.scratch.refinenet{i}"][0]
    return {f"{run}.{key}": value for key, value in got.items()}


@pytest.mark.parametrize(("name", "head"), [("dust3r_dpt", "dpt"), ("dust3r_linear", "linear")])
def test_numbers_equal_the_official_code(name, head):
    golden = Golden("tiny", name)
    net = golden.load(lambda: Dust3rNet(Dust3rConfig(head=head, **TINY)), KEY_MAP)
    x = golden.inputs
    got = outputs(net, x["land.img1"], x["land.img2"], "land")
    got |= outputs(net, x["mixed.img1"], x["mixed.img2"], "mixed")
    both = torch.cat([x["sym.imgA"], x["sym.imgB"]])
    got |= outputs(net, both, both.flip(0), "sym")
    golden.check(got)


def test_preprocessing_equals_the_official_code():
    golden = Golden("post", "dust3r_preprocess")

    def row(W, H, size, square_ok, resized, name, box, out):
        fit = fit_image(W, H, size, square_ok=square_ok)
        return placed(fit), (resized, name, box, out)

    # The official rule leaves nothing of a 17×900 image; we refuse it, see below.
    golden.check_rows("table", row, left_out=lambda *cells: 0 in cells[-1])
    got = {}
    for which in ("big", "small"):
        rgb = golden.tensors[f"pre.{which}_uint8"].numpy()
        fit = fit_image(rgb.shape[1], rgb.shape[0], 96)
        got[f"pre.{which}_size96"] = fit.batch([rgb])[0] * 2 - 1
    golden.check(got, given=r".*_uint8")


def test_sliver_is_refused():
    from stream4d.errors import ModelError

    with pytest.raises(ModelError, match="too small"):
        fit_image(17, 900)


def test_focal_equals_the_official_one():
    golden = Golden("post", "dust3r_focal")
    got = {}
    for case in range(4):
        points = golden.tensors[f"focal.{case}.pts3d"].numpy()
        H, W = points.shape[:2]
        found = {
            "weiszfeld": estimate_focal(points),
            "median": estimate_focal(points, mode="median"),
            "weiszfeld_clip": estimate_focal(points, min_focal=0.5, max_focal=3.5),
            "weiszfeld_pp": estimate_focal(points, (W / 2 + 1.5, H / 2 + 1.5)),
        }
        got |= {f"focal.{case}.{name}": [value] for name, value in found.items()}
    golden.check(got, given=r".*pts3d")


@pytest.mark.parametrize("head", ["dpt", "linear"])
def test_prediction(head):
    model = create_model("dust3r", weights="random", head=head, resolution=96, **TINY)
    predictions = run_windows(model, 150, 101)
    assert len(predictions) == 2
    for prediction in predictions:
        check_prediction(prediction, 3, 150, 101)


def test_encodings_of_the_overlap_are_reused():
    model = create_model("dust3r", weights="random", head="linear", resolution=96, **TINY)
    frames = make_frames(5, 96, 64)
    with model.session(video_info(96, 64)) as session, Recorder(model.net, "encoder") as seen:
        session.step(Window(index=0, frames=frames[:3], overlap=0))
        session.step(Window(index=1, frames=frames[2:], overlap=1))
        assert len(seen["encoder"]) == 5
        assert len(session.encoded) == 3


@pytest.mark.parametrize("where", ["constructor", "json"])
def test_head_and_resolution_come_from_the_checkpoint(where):
    text = "AsymmetricCroCo3DStereo(img_size=(224, 224), conf_mode=('exp', 1, inf), head_type='linear')"
    args = {"model": text} if where == "constructor" else {"img_size": [224, 224]}
    names = {"downstream_head1.proj.weight": torch.zeros(1)}
    config = Dust3rConfig.infer(Checkpoint(source="x", tensors=names, args=args))
    assert (config.head, config.resolution) == ("linear", 224)
    config = Dust3rConfig.infer(Checkpoint(source="x", tensors={}, args=args), resolution=512)
    assert (config.head, config.resolution) == ("dpt", 512)


def test_given_intrinsics_are_kept():
    model = create_model("dust3r", weights="random", head="linear", resolution=96, **TINY)
    K = make_K(123.0, 125.0, 70.0, 52.0)
    prediction = run_windows(model, 150, 101, count=2, size=2, K=K)[0]
    np.testing.assert_allclose(prediction.K, np.stack([K, K]), rtol=1e-9)

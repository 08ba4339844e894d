"""SIU3R: names and shapes, numbers of every part, Gaussians, panoptic labels, object numbers, adapter."""

from __future__ import annotations

import families
import numpy as np
import plyfile
import pytest
import torch
from families import check_prediction, make_frames, placed, run_windows, video_info
from golden import Golden, Recorder, check_manifest

from stream4d.errors import ExportError
from stream4d.export.siu3r import write_siu3r
from stream4d.export.source import Selection
from stream4d.geometry.camera import make_K
from stream4d.models.deformable import DeformableAttention, places_of
from stream4d.models.registry import create_model
from stream4d.models.siu3r import KEY_MAP, Siu3rModel, fit_image
from stream4d.models.siu3r_net import Siu3rConfig, Siu3rNet, harmonics_gain, unpack_gaussians
from stream4d.models.siu3r_panoptic import (
    NOTHING,
    Kept,
    ObjectNumbers,
    Panoptic,
    Segment,
    keep_queries,
    lift,
    segment,
)
from stream4d.packets import Window
from tests.posed import Frames, posed_frames
from tests.synthetic import Scene

TINY = families.TINY["siu3r"]


def test_manifest():
    check_manifest("siu3r", lambda: Siu3rNet(Siu3rConfig()), KEY_MAP)


def test_sizes_are_told_from_a_checkpoint():
    checkpoint = Golden("tiny", "siu3r").checkpoint()
    config = Siu3rModel.configure("siu3r", checkpoint, {})
    assert (config.classes, config.sh_degree) == (5, 2)


def test_numbers_equal_the_official_code():
    golden = Golden("tiny", "siu3r")
    config = Siu3rConfig(score_threshold=0.35, **TINY)
    net = golden.load(lambda: Siu3rNet(config), KEY_MAP)
    model = Siu3rModel("siu3r", net, config, device="cpu", precision="float32")
    golden.check(outputs(model, golden.inputs["images"][None], golden.inputs["K"][None]))


def outputs(model, images, K):
    """Run a pair and name everything as the golden file does."""
    net = model.net
    blocks = [f"backbone.dec_blocks{s}.{i}" for s in ("", "2") for i in range(4)]
    backbone = [
        "intrinsic_encoder",
        "encoder.norm",
        "encoder.blocks.3",
        "decoder_embed",
        "dec_norm",
    ]
    interactions = [f"adapter.interactions.{i}" for i in range(4)]
    heads = ["downstream_head1", "downstream_head2", "gaussian_param_head1", "gaussian_param_head2"]
    pixel = [f"mask2former.pixel_decoder.input_projections.{i}" for i in range(3)]
    pixel += [f"mask2former.pixel_decoder.encoder.layers.{i}" for i in range(2)]
    pixel += ["mask2former.pixel_decoder.mask_projection"]
    decoder = ["mask2former.decoder.layernorm", "mask2former.decoder.mask_embedder"]
    names = [*(f"backbone.{b}" for b in backbone), *blocks, *interactions, *heads, *pixel, *decoder]
    with (
        torch.inference_mode(),
        Recorder(net, *names, "adapter", "adapter.spm.stem", "adapter.spm.conv4") as seen,
    ):
        out = net(images, K)
        scene = model.understood(out, (96, 64))
    got = {
        "backbone.intrinsic_embed": torch.stack(seen["backbone.intrinsic_encoder"], dim=1),
        "backbone.enc_block3": torch.cat(seen["backbone.encoder.blocks.3"]),
        "backbone.enc_norm": torch.cat(seen["backbone.encoder.norm"]),
        "pixel.mask_features": seen["mask2former.pixel_decoder.mask_projection"][0],
        "queries.last_hidden": out.queries.queries,
        "seg.class_queries_logits": out.queries.class_logits,
        "seg.masks_queries_logits": out.queries.mask_logits,
    }
    for v in (0, 1):
        mark, side = ("#1", "2") if v else ("", "")
        got[f"backbone.dec_embed{mark}"] = seen["backbone.decoder_embed"][v]
        got[f"backbone.dec_norm{mark}"] = seen["backbone.dec_norm"][v]
        for i in range(4):
            got[f"backbone.dec{v + 1}.block{i + 1}"] = seen[f"backbone.dec_blocks{side}.{i}"][0]
            got[f"adapter.img{v + 1}.interaction{i}"] = seen[f"adapter.interactions.{i}"][v]
            got[f"adapter.img{v + 1}.f{i + 1}"] = seen["adapter"][v][i]
        for part in ("spm.stem", "spm.conv4"):
            got[f"adapter.img{v + 1}.{part}"] = seen[f"adapter.{part}"][v]
        got[f"downstream_head{v + 1}.raw"] = seen[f"downstream_head{v + 1}"][0]
        raw = seen[f"gaussian_param_head{v + 1}"][0]
        got[f"gaussian_param_head{v + 1}.raw_every3"] = raw[..., ::3, ::3]
    for i, name in enumerate(pixel[:3]):
        got[f"pixel.input_proj{i}"] = seen[name][0]
    for i, name in enumerate(pixel[3:5]):
        got[f"pixel.enc_layer{i}"] = seen[name][0]
    for i, normed in enumerate(seen[decoder[0]][:5]):
        got["queries.normed" + (f"#{i}" if i else "")] = normed.transpose(0, 1)
    pixels = got["pixel.mask_features"][None]
    masks = [torch.einsum("bqc,btchw->bqthw", e, pixels) for e in seen[decoder[1]]]
    got["queries.masks_all"] = torch.stack(masks)
    return got | labelled(scene)


def labelled(scene):
    """Name Gaussians and labels as the golden file does."""
    gaussians, panoptic = scene.gaussians, scene.panoptic
    scores = torch.tensor([s.score for s in panoptic.segments])
    return {
        "gs.means": gaussians.means.flatten(0, 2)[None],
        "gs.opacities": gaussians.opacities.flatten()[None],
        "gs.harmonics_every11": gaussians.harmonics.flatten(0, 2)[None, ::11],
        "gs.covariances_every11": gaussians.covariances.flatten(0, 2)[None, ::11],
        "gs.semantic_labels": torch.tensor(panoptic.labels() + 1).flatten()[None],
        "gs.instance_labels": torch.tensor(panoptic.numbers).flatten()[None],
        "gs.seg_query_class_logits_every7": scene.segment_logits.flatten(0, 2)[::7],
        "seg.segmentation": torch.tensor(panoptic.numbers),
        "seg.segments": torch.tensor(
            [[s.number, s.label, int(s.was_fused)] for s in panoptic.segments]
        ),
        "seg.scores": scores,
        "seg.query_scores": scores,
    }


def test_postprocessing_equals_the_official_code():
    golden = Golden("post", "siu3r_post")
    t = golden.tensors
    labels = panoptic(t)
    got = gaussians(t)
    for (name, scene), (kept, found) in labels.items():
        got[f"pan.{name}.seg{scene}"] = found.numbers
        logits = lift(kept, found).permute(0, 3, 4, 1, 2)[..., ::5, ::5]
        got[f"pan.{name}.query_class_logits{scene}_every5"] = logits

    def segments(key, wanted):
        name, scene = key.split(".")
        found = labels[name, int(scene)][1].segments
        got = [
            {"id": s.number, "label_id": s.label, "was_fused": s.was_fused, "score": s.score}
            for s in found
        ]
        wanted = [s | {"score": pytest.approx(s["score"], abs=1e-6)} for s in wanted["segments"]]
        return got, wanted

    golden.check_rows("info", segments)
    golden.check(got, given=r"ga\.(raw83|means)|pan\.(class|mask)_logits")


def gaussians(t):
    got = unpack_gaussians(t["ga.means"], t["ga.raw83"], 4)
    # The official ones keep the quaternion as it came, and norm it where it is used.
    length = t["ga.raw83"][..., 4:8].norm(dim=-1, keepdim=True)
    return {
        "ga.opacities": got.opacities,
        "ga.scales": got.scales,
        "ga.covariances": got.covariances,
        "ga.harmonics": got.harmonics,
        "ga.sh_mask": harmonics_gain(4),
        "ga.rotations_stored_unnormalised": got.quats_xyzw * length,
    }


def panoptic(t):
    """Return the labels of two scenes under three settings."""
    got = {}
    for scene in (0, 1):
        for name, fused, threshold in (
            ("fuse01", (0, 1), 0.5),
            ("nofuse", (), 0.5),
            ("thr03", (2,), 0.3),
        ):
            logits = t["pan.class_logits"][scene], t["pan.mask_logits"][scene]
            kept = keep_queries(*logits, (64, 96), threshold)
            got[name, scene] = kept, segment(kept, fused)
    return got


def test_no_query_means_no_label():
    nothing = torch.zeros(3, 6)
    nothing[:, -1] = 9
    kept = keep_queries(nothing, torch.zeros(3, 2, 4, 4), (8, 8), 0.5)
    got = segment(kept, ())
    assert got.segments == []
    assert (got.labels() == NOTHING).all()


def test_fused_numbers_do_not_shift_later_objects():
    masks = torch.zeros(3, 1, 1, 3)
    masks[0, 0, 0, 0] = masks[1, 0, 0, 1] = masks[2, 0, 0, 2] = 1
    kept = Kept(torch.ones(3), torch.tensor([0, 4, 0]), masks, torch.zeros(3, 6))
    got = segment(kept, (0,))
    assert got.numbers.tolist() == [[[1, 2, 1]]]
    assert got.labels().tolist() == [[[0, 4, 0]]]


def test_objects_keep_their_numbers():
    first, second = np.zeros((2, 6, 6), np.int32)
    first[:3], first[3:, :3] = 1, 2
    second[:3], second[3:, :3], second[4:, 4:] = 2, 1, 3  # other order, and one more
    chair = lambda n: Segment(n, 5, 0.9, False, n)  # noqa: E731
    numbers = ObjectNumbers()
    before = numbers.number(Panoptic(numbers=first[None], segments=[chair(1), chair(2)]), 0, None)
    known = before[first]
    after = numbers.number(
        Panoptic(numbers=second[None], segments=[chair(n) for n in (1, 2, 3)]), 0, known
    )
    assert np.array_equal(after[second][known > 0], known[known > 0])
    assert after[3] == 3
    wall = Segment(1, 0, 0.9, True, 0)
    assert numbers.number(Panoptic(numbers=first[None], segments=[wall]), 0, None)[1] == 4
    assert numbers.number(Panoptic(numbers=first[None], segments=[wall]), 0, None)[1] == 4


def test_deformable_attention_reads_where_it_is_told():
    shapes = [(4, 6), (2, 3)]
    layer = DeformableAttention(8, heads=2, levels=2, points=1)
    with torch.no_grad():
        for linear in (layer.sampling_offsets, layer.attention_weights):
            linear.weight.zero_()
            linear.bias.zero_()
        # One column to the right on level 0, and only level 0 counts.
        layer.sampling_offsets.bias.view(2, 2, 1, 2)[:, 0, 0, 0] = 1.0
        layer.attention_weights.bias.view(2, 2, 1)[:, 0] = 50.0
    values = torch.randn(1, 30, 8)
    got = layer(torch.zeros(1, 24, 8), places_of(shapes[:1]), values, shapes)
    grid = values[:, :24].unflatten(1, shapes[0])
    moved = torch.cat([grid[:, :, 1:], torch.zeros(1, 4, 1, 8)], dim=2)
    wanted = layer.output_proj(layer.value_proj(moved))[:, :, :-1]
    torch.testing.assert_close(got.unflatten(1, shapes[0])[:, :, :-1], wanted, atol=1e-5, rtol=1e-5)


def test_resize_equals_the_official_table():
    def row(W, H, resized, name, box, out):
        return placed(fit_image(W, H)), (resized, name, box, out)

    Golden("post", "siu3r_preprocess").check_rows("table", row)


@pytest.fixture(scope="module")
def models():
    """Untrained models, one for each kind of semantics."""
    return {
        kind: create_model(
            "siu3r", weights="random", resolution=64, semantics=kind, score_threshold=0.0, **TINY
        )
        for kind in ("classes", "instances", "panoptic")
    }


@pytest.mark.parametrize("kind", ["classes", "instances", "panoptic"])
def test_prediction(models, kind):
    for prediction in run_windows(models[kind], 110, 81):
        check_prediction(prediction, 3, 110, 81)
        labels = prediction.semantics
        assert labels.shape == (3, 81, 110)
        assert labels.dtype == np.int32
        # The crop is square: nothing is known beside it.
        assert (labels[:, :, 0] == -1).all()
        assert labels.max() < {"classes": 5, "instances": 500, "panoptic": 5000}[kind]
        assert labels.min() >= -1


def test_encodings_are_reused_and_numbers_survive_a_resume(models):
    model = models["instances"]
    frames = make_frames(5, 80, 80, K=make_K(90, 90, 40, 40))
    windows = [
        Window(index=0, frames=frames[:3], overlap=0),
        Window(index=1, frames=frames[2:], overlap=1),
    ]
    with (
        model.session(video_info(80, 80)) as session,
        Recorder(model.net, "backbone.encoder.norm") as seen,
    ):
        session.step(windows[0])
        state = session.state()
        second = session.step(windows[1])
        assert len(seen["backbone.encoder.norm"]) == 5
        assert len(session.encoded) == len(session.objects) == 3
    with model.session(video_info(80, 80)) as session:
        session.restore(state)
        again = session.step(windows[1])
    assert np.array_equal(second.semantics, again.semantics)
    np.testing.assert_allclose(second.K, np.stack([make_K(90, 90, 40, 40)] * 3), rtol=1e-9)


def test_a_pair_becomes_labelled_gaussians(models):
    scene = models["classes"].understand(torch.rand(2, 3, 64, 96))
    assert scene.gaussians.means.shape == (2, 64, 96, 3)
    assert scene.gaussians.harmonics.shape == (2, 64, 96, 3, 9)
    assert scene.panoptic.numbers.shape == (2, 64, 96)
    assert scene.segment_logits.shape[:3] == (2, 64, 96)
    assert torch.linalg.eigvalsh(scene.gaussians.covariances.double()).min() > 0


def test_gaussians_of_two_stored_frames_are_exported(models, tmp_path):
    frames = Frames(posed_frames(4, Scene(width=96, height=72, focal=82.0)))
    path = tmp_path / "gaussians.ply"
    write_siu3r(frames, path, selection=Selection(stride=3), model=models["classes"])
    vertices = plyfile.PlyData.read(str(path))["vertex"]
    names = [p.name for p in vertices.properties]
    assert names[-2:] == ["rot_3", "label"]
    assert set(vertices["label"]) <= {*range(5), NOTHING}
    assert 0 < len(vertices["x"]) <= 2 * 64 * 64
    lengths = sum(vertices[f"rot_{i}"] ** 2 for i in range(4))
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
    # sh_degree 2: eight harmonics above the constant one, of 15 that a colour has room for.
    assert any(vertices[f"f_rest_{15 + k}"].any() for k in range(8))
    assert not any(vertices[f"f_rest_{k}"].any() for k in range(8, 15))
    # One pixel in two views: half of them come from the first, whose depth sets the size.
    depth = frames[0].depth
    first = vertices["z"][: len(vertices["z"]) // 2]
    first = first[first > 0]
    assert 0.3 < np.median(first) / np.median(depth) < 3


def test_one_frame_is_not_enough_for_gaussians(models, tmp_path):
    frames = Frames(posed_frames(1, Scene(width=96, height=72, focal=82.0)))
    with pytest.raises(ExportError, match="two frames"):
        write_siu3r(frames, tmp_path / "x.ply", model=models["classes"])
    assert list(tmp_path.iterdir()) == []

"""MUSt3R: names and shapes, numbers of decoder and memory, keyframes, and the bounded session."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import check_pinhole, check_prediction, make_frames, run_windows, video_info
from golden import Golden, Recorder, check_manifest, relative_error

from stream4d.errors import ModelError
from stream4d.models.crop_table import fit_to_table
from stream4d.models.dust3r import fit_image
from stream4d.models.must3r_net import (
    KEY_MAP,
    Encoded,
    Memory,
    Must3rConfig,
    Must3rNet,
    activate,
    refine,
)
from stream4d.models.overlap import PointIndex, direction_bins
from stream4d.models.pointmaps import estimate_focal, rigid_fit
from stream4d.models.registry import create_model
from stream4d.models.weights import Checkpoint
from stream4d.packets import Window

TINY = {
    "encoder_dim": 64,
    "encoder_depth": 2,
    "encoder_heads": 4,
    "decoder_dim": 48,
    "decoder_depth": 4,
    "decoder_heads": 3,
}


def load(**options):
    golden = Golden("tiny", "must3r")
    return golden, golden.load(lambda: Must3rNet(Must3rConfig(**TINY, **options)), KEY_MAP)


def test_manifest():
    check_manifest("must3r_512", lambda: Must3rNet(Must3rConfig()), KEY_MAP)


def cameras(raw):
    """Activate and add what follows from the points, named as in the golden file."""
    points = activate(raw)
    focal = [estimate_focal(p.numpy()) for p in points.in_cam]
    poses = [
        rigid_fit(a.numpy(), b.numpy(), c.numpy() - 1)
        for a, b, c in zip(points.in_cam, points.in_scene, points.confidence, strict=True)
    ]
    return {
        "raw": raw[None],
        "pts3d": points.in_scene[None],
        "pts3d_local": points.in_cam[None],
        "conf": points.confidence[None],
        "focal": torch.tensor(focal)[None],
        "c2w": torch.tensor(np.stack(poses))[None],
    }


def memory_entries(prefix, memory):
    got = {f"{prefix}.mem{i}": x for i, x in enumerate(memory.layers)}
    return got | {
        f"{prefix}.labels": memory.labels[None],
        f"{prefix}.n_imgs": torch.tensor(memory.images),
    }


def sequence(net, x, mode):
    """Two images together, two more one by one, then all rendered."""
    depth = len(net.decoder.blocks_dec)
    names = [f"decoder.blocks_dec.{i}.mlp" for i in range(depth)]
    steps, memory = {}, Memory()
    with Recorder(net, "decoder.norm_dec", *names):
        for name, part in {"init2": x[:2], "update3": x[2:3], "update4": x[3:]}.items():
            raw, memory = net(part, memory)
            steps[name] = (raw, memory)
        raw, same = net(x, memory, render=True)
        assert same is memory
    got = memory_entries(f"seq.{mode}.final", memory)
    got[f"seq.{mode}.render.raw_first"] = raw[None, :1]
    return steps, raw, got


def features(net, x):
    """Return the list of layer states of the first call, as the official ``return_feats`` does."""
    decoder, found = net.decoder, []
    encoded = net.encode(x)
    states, ropes, _ = decoder._enter([encoded], Memory(), False)
    for block in decoder.blocks_dec:
        own = [decoder.store(block, part) for part in states[0].split(1)]
        states = decoder._layer(block, states, ropes, None, own)
        found.append(states[0])
    found[-1] = decoder.norm_dec(found[-1])
    return [encoded.tokens, *found]


def test_numbers_equal_the_official_code():
    golden, net = load()
    x, port = golden.inputs["seq"], golden.inputs["port"]
    steps, rendered, got = sequence(net, x, "kv")
    for name, (raw, _) in steps.items():
        got |= {f"seq.{name}.{key}": value for key, value in cameras(raw).items()}
    got |= {f"seq.render.{key}": value for key, value in cameras(rendered).items()}
    got |= memory_entries("seq.kv.after_init2", steps["init2"][1])
    got |= memory_entries("seq.kv.after_update3", steps["update3"][1])
    got["seq.enc"] = net.encoder(x)
    got |= {f"seq.init2.feat{i}": value for i, value in enumerate(features(net, x[:2]))}
    for storage in ("norm_y", "raw"):
        _, other = load(storage=storage)
        got |= sequence(other, x, storage)[2]
    raw, memory = net(x[:1], Memory())
    got["single.init1.raw"] = raw[None]
    raw, memory = net(x[1:2], memory)
    got["single.update2.raw"] = raw[None]
    got |= memory_entries("single.final", memory)
    (a, b), memory = net.decoder([net.encode(x[:2]), net.encode(port[:1])], Memory())
    got |= {"list.init.raw0": a[None], "list.init.raw1": b[None]}
    got |= memory_entries("list.init", memory)
    (a,), memory = net.decoder([net.encode(port[1:])], memory)
    got["list.update.raw0"] = a[None]
    (a, b), _ = net.decoder([net.encode(x[:2]), net.encode(port)], memory, render=True)
    got |= {"list.render.raw0": a[None], "list.render.raw1": b[None]}
    _, squeezed = load(rope_scale=512 / 768)
    got["f0.enc"] = squeezed.encoder(x[:2])
    got["f0.raw"] = squeezed(x[:2], Memory())[0][None]
    # Both follow from garbage points of random weights: seq.*.focal is within a pixel of zero.
    golden.check(got)


def test_cameras_equal_the_official_ones():
    t = Golden("post", "must3r_memory_geometry").tensors
    got = cameras(t["geo.raw7"])
    for key in ("pts3d", "pts3d_local", "conf", "focal", "c2w"):
        assert relative_error(got[key][0], t[f"geo.out.{key}"]) < 1e-5, key


@pytest.fixture(scope="module")
def seven_images():
    t = Golden("post", "must3r_memory_geometry").tensors
    _, net = load()
    land = t["mem.images_land"].split(1)
    images = [*land[:4], t["mem.image_port"], *land[4:]]
    return t, net, [net.encode(image) for image in images]


def together(encoded, numbers):
    return Encoded(torch.cat([encoded[i].tokens for i in numbers]), encoded[numbers[0]].size)


def check_memory(t, prefix, memory):
    assert torch.equal(memory.labels[None], t[f"{prefix}.labels"])
    for layer in (0, 3):
        if f"{prefix}.mem{layer}" in t:
            assert relative_error(memory.layers[layer], t[f"{prefix}.mem{layer}"]) < 5e-5


KEYFRAMES = {0, 1, 3, 6}
BATCHES = ([0, 1], [2], [3], [4], [5], [6])


def check_points(t, prefix, points):
    for i, p in points.items():
        assert relative_error(p.in_scene, t[f"{prefix}.pts3d{i}"]) < 5e-5
        if f"{prefix}.conf{i}" in t:
            assert relative_error(p.confidence, t[f"{prefix}.conf{i}"]) < 5e-5


@pytest.mark.parametrize(("prefix", "local"), [("mem.video.w2", 2), ("mem.video.w3_refine1", 3)])
def test_working_memory_equals_the_official_video_loop(seven_images, prefix, local):
    t, net, encoded = seven_images
    memory, points = Memory(), {}

    def forget(memory, newest):
        return memory.keep(sorted({*range(newest - local + 1, newest + 1), *KEYFRAMES}))

    for batch in BATCHES:
        raw, memory = net.decoder([together(encoded, batch)], memory)
        points |= {i: activate(raw[0][j]) for j, i in enumerate(batch)}
        memory = forget(memory, batch[-1])
    memory = memory.keep(sorted(KEYFRAMES))
    if "refine" in prefix:
        for batch in BATCHES:
            raw, memory = refine(net.decoder, memory, {i: encoded[i] for i in batch})
            points |= {i: activate(raw[j][0]) for j, i in enumerate(batch)}
            memory = forget(memory, batch[-1])
        memory = memory.keep(sorted(KEYFRAMES))
    assert memory.images == t[f"{prefix}.n_imgs"]
    check_memory(t, prefix, memory)
    check_points(t, prefix, points)


def test_refined_memory_equals_the_official_one(seven_images):
    t, net, encoded = seven_images
    memory = Memory()
    for batch in BATCHES[:3]:
        _, memory = net.decoder([together(encoded, batch)], memory)
    for passes in (0, 1):
        if passes:
            for batch in BATCHES[:3]:
                _, memory = refine(net.decoder, memory, {i: encoded[i] for i in batch})
        prefix = f"mem.offline.refine{passes}"
        check_memory(t, prefix, memory)
        for i in range(7):
            raw, _ = net.decoder([encoded[i]], memory, render=True)
            got = activate(raw[0][0]).in_scene
            assert relative_error(got, t[f"{prefix}.render_pts3d{i}"]) < 5e-5


def test_direction_bins_equal_the_official_ones():
    t = Golden("post", "must3r_memory_geometry").tensors
    for divisions in (1, 2, 4):
        got = direction_bins(t["quadrant.rays"].numpy(), divisions)
        np.testing.assert_array_equal(got, t[f"quadrant.id_div{divisions}"].numpy())


@pytest.mark.parametrize("case", range(4))
def test_keyframes_equal_the_official_ones(case):
    golden = Golden("post", "must3r_memory_geometry")
    t, wanted = golden.tensors, golden.info["keyframe_decisions"][case]
    known = PointIndex(
        divisions=2 if "quadrant" in wanted["searcher"] else 0,
        mode="relative" if wanted["overlap_mode"] == "nn-norm" else "absolute",
    )
    points = activate(t["geo.raw7"])
    for i, score in enumerate(wanted["scores"]):
        scene_from_cam = np.linalg.inv(t[f"slam.w2c{i}"].numpy().astype(float))
        parts = (
            points.in_scene[i].numpy(),
            points.in_cam[i, ..., 2].numpy(),
            points.confidence[i].numpy(),
            scene_from_cam[:3, 3],
        )
        got = known.novelty(*parts)
        # The official depth is rescaled by mean focal / focal, here 1 ± 4e-4.
        assert got == (np.inf if score == "max" else pytest.approx(score, rel=1e-3))
        assert (got > wanted["thr"]) == wanted["keyframe"][i]
        if wanted["keyframe"][i]:
            known.add(*parts)


def test_resize_of_the_online_tool():
    for W, H, size, resized, name, box, out, _ in Golden("post", "must3r_preprocess").info["slam"]:
        if size != 512 or 0 in out:
            continue
        fit = fit_image(W, H, size)
        corners = [fit.left, fit.top, fit.left + fit.size[0], fit.top + fit.size[1]]
        if resized[0] == resized[1]:
            continue  # the online tool keeps squares, we crop them to 4:3 as in training
        assert (list(fit.resized), fit.filter.name, corners, list(fit.size)) == (
            resized,
            name,
            box,
            out,
        ), (W, H)


def test_crop_and_resize_of_the_demos():
    for W, H, size, target, crop, to_rescaled, to_orig in Golden("post", "must3r_preprocess").info[
        "demo"
    ]:
        fit = fit_to_table(W, H, size)
        assert list(fit.size) == target, (W, H, size)
        assert list(fit.crop[::-1]) == (crop or [H, W]), (W, H, size)
        (sx, sy), (x, y) = fit.scale, fit.corner
        wanted = np.array(to_rescaled)
        np.testing.assert_allclose([sx, sy], np.diag(wanted)[:2], rtol=1e-6)
        # The official matrices keep half pixels of an odd margin; the crop itself cannot, and ours are the crop's.
        np.testing.assert_allclose([-x * sx, -y * sy], wanted[:2, 2], atol=0.501 * max(sx, sy))
        np.testing.assert_allclose([x, y], np.array(to_orig)[:2, 2], atol=0.501)


def test_pixels_of_the_demos():
    t = Golden("post", "must3r_preprocess").tensors
    rgb = t["resize.uint8"].numpy()
    fit = fit_to_table(rgb.shape[1], rgb.shape[0], 64, ((64, 48), (64, 32)))
    got = fit.batch([rgb])[0] * 2 - 1
    torch.testing.assert_close(got, t["resize.tensor_table_4:3_64x48"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(fit.scale, np.diag(t["resize.to_rescaled"])[:2])
    assert fit.image(rgb).shape == (48, 64, 3)


def test_prediction_with_the_crop_of_the_demos():
    model = create_model("must3r", weights="random", crop="table", resolution=224, **TINY)
    check_prediction(run_windows(model, 150, 101, count=2, size=2)[0], 2, 150, 101)
    model = create_model("must3r", weights="random", crop="table", resolution=96, **TINY)
    with pytest.raises(ModelError, match="224"):
        model.session(video_info(150, 101))


def test_constructor_strings_are_read_as_data():
    text = "Dust3rEncoder(img_size=(768, 768), pos_embed='RoPE100_512:768', embed_dim=1024)"
    config = Must3rConfig.infer(Checkpoint(source="x", tensors={}, args={"encoder": text}))
    assert config.resolution == 768
    assert config.rope_scale == pytest.approx(512 / 768)


def test_memory_is_bounded():
    options = {"memory_images": 4, "local_images": 2, "keyframe_threshold": 0.0}
    model = create_model("must3r", weights="random", resolution=96, **options, **TINY)
    frames = make_frames(12, 96, 64)
    tokens = 6 * 4
    with model.session(video_info(96, 64)) as session:
        for start in range(0, 12, 3):
            session.step(Window(index=start // 3, frames=frames[start : start + 3], overlap=0))
            held = session.memory.held
            assert held[0] == 0
            assert len(held) <= 4
            assert session.memory.layers[0].shape[1] == tokens * len(held)
        assert session.memory.images == 12
        assert held[-2:] == [10, 11]


@pytest.mark.parametrize("size", [(150, 101), (60, 110)])
def test_prediction(size):
    model = create_model("must3r", weights="random", resolution=96, **TINY)
    for prediction in run_windows(model, *size):
        check_prediction(prediction, 3, *size)
        check_pinhole(prediction)


def test_impossible_bound_is_refused():
    with pytest.raises(ModelError, match="local_images"):
        create_model("must3r", weights="random", memory_images=3, local_images=3)

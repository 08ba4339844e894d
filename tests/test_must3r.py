"""MUSt3R: names and shapes, numbers of decoder and memory, keyframes, and the bounded session."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from families import (
    check_pinhole,
    check_prediction,
    make_frames,
    placed,
    run_windows,
    video_info,
)
from golden import Golden, Recorder, check_manifest, manifest

from stream4d.errors import ModelError
from stream4d.models.checkpoint import Checkpoint
from stream4d.models.crop_table import SIZES, fit_to_table
from stream4d.models.dust3r import fit_image
from stream4d.models.must3r import Must3rSession
from stream4d.models.must3r_net import (
    KEY_MAP,
    Encoded,
    Memory,
    Must3rConfig,
    Must3rNet,
    Points,
    activate,
    refine,
)
from stream4d.models.overlap import PointIndex, direction_bins
from stream4d.models.pointmaps import estimate_focal, rigid_fit
from stream4d.models.registry import create_model
from stream4d.models.resize import Fit
from stream4d.packets import Window

TINY = families.TINY["must3r"]


def load(**options):
    golden = Golden("tiny", "must3r")
    return golden, golden.load(lambda: Must3rNet(Must3rConfig(**TINY, **options)), KEY_MAP)


def test_manifest():
    check_manifest("must3r_512", lambda: Must3rNet(Must3rConfig()), KEY_MAP)


def test_checkpoint_is_of_two_parts():
    parts = {"encoder": "must3r_512_encoder", "decoder": "must3r_512_decoder"}
    joined = {f"{k}.{name}": v for k, part in parts.items() for name, v in manifest(part).items()}
    assert joined == manifest("must3r_512")


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


KEYFRAMES = {0, 1, 3, 6}
BATCHES = ([0, 1], [2], [3], [4], [5], [6])


def test_memory_and_geometry_equal_the_official_code():
    golden = Golden("post", "must3r_memory_geometry")
    t = golden.tensors
    _, net = load()
    land = t["mem.images_land"].split(1)
    images = [*land[:4], t["mem.image_port"], *land[4:]]
    encoded = [net.encode(image) for image in images]
    got = {f"geo.out.{key}": x[0] for key, x in cameras(t["geo.raw7"]).items() if key != "raw"}
    got |= video_loop(net, encoded, "mem.video.w2", 2)
    got |= video_loop(net, encoded, "mem.video.w3_refine1", 3)
    got |= offline(net, encoded) | online_poses(t["geo.raw7"])
    for divisions in (1, 2, 4):
        got[f"quadrant.id_div{divisions}"] = direction_bins(t["quadrant.rays"].numpy(), divisions)
    # The synthetic scene that geo.raw7 was made of.
    scene = r"geo\.(conf|global|local|true_[Rt])"
    for name in ("geo.conf", "geo.global", "geo.local", "geo.true_R", "geo.true_t"):
        assert t[name].isfinite().all()
    smooth = "smoothing a finished path for display; the pose chain adjusts poses by what was seen"
    golden.check(
        got,
        given=rf"geo\.raw7|mem\.image.*|quadrant\.rays|{scene}|smooth\.(traj|conf)",
        loose={r"^mem": 5e-5},
        left_out=dict.fromkeys(
            ("smooth.laplacian", "smooth.laplacian_conf", "smooth.traj", "smooth.conf"), smooth
        ),
    )


def together(encoded, numbers):
    return Encoded(torch.cat([encoded[i].tokens for i in numbers]), encoded[numbers[0]].size)


def memory_of(prefix, memory):
    return {
        f"{prefix}.labels": memory.labels[None],
        f"{prefix}.n_imgs": torch.tensor(memory.images),
        f"{prefix}.mem0": memory.layers[0],
        f"{prefix}.mem3": memory.layers[3],
    }


def video_loop(net, encoded, prefix, local):
    """Seven images, one by one; the memory keeps keyframes and the ``local`` newest images; maybe a second pass."""
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
    got = {f"{prefix}.pts3d{i}": p.in_scene for i, p in points.items()}
    got |= {f"{prefix}.conf{i}": p.confidence for i, p in points.items()}
    return got | memory_of(prefix, memory)


def offline(net, encoded):
    """A memory of four images, before and after a refining pass, and all images rendered from it."""
    memory, got = Memory(), {}
    for batch in BATCHES[:3]:
        _, memory = net.decoder([together(encoded, batch)], memory)
    for passes in (0, 1):
        if passes:
            for batch in BATCHES[:3]:
                _, memory = refine(net.decoder, memory, {i: encoded[i] for i in batch})
        prefix = f"mem.offline.refine{passes}"
        got |= memory_of(prefix, memory)
        for i in range(7):
            raw, _ = net.decoder([encoded[i]], memory, render=True)
            got[f"{prefix}.render_pts3d{i}"] = activate(raw[0][0]).in_scene
    return got


def online(raw, **options):
    """Place the synthetic views one by one, as a session does; return it and what it says of each."""
    model = create_model("must3r", weights="random", resolution=96, **options, **TINY)
    H, W = raw.shape[1:3]
    fit = Fit(source=(W, H), resized=(W, H), left=0, top=0, size=(W, H))
    session = Must3rSession(model, video_info(W, H), fit)
    points = activate(raw)
    frames = make_frames(len(raw), W, H)
    placed = [
        session._place(frame, i, Points(*(x[i] for x in points))) for i, frame in enumerate(frames)
    ]
    return session, placed


def online_poses(raw):
    _, placed = online(raw)
    got = {f"slam.w2c{i}": np.linalg.inv(p.scene_from_cam) for i, p in enumerate(placed)}
    points = activate(raw)
    return got | {
        f"slam.focal{i}": [estimate_focal(p.numpy(), min_focal=0.5, max_focal=3.5)]
        for i, p in enumerate(points.in_cam)
    }


def test_keyframes_equal_the_official_ones():
    golden = Golden("post", "must3r_memory_geometry")
    raw = golden.tensors["geo.raw7"]
    points = activate(raw)
    session, placed = online(raw)

    def row(searcher, overlap_mode, thr, min_conf, percentile, subsamp, scores, **wanted):
        known = PointIndex(
            divisions=2 if "quadrant" in searcher else 0,
            mode="relative" if overlap_mode == "nn-norm" else "absolute",
            min_confidence=min_conf,
            percentile=percentile,
            step=subsamp,
        )
        novelty = []
        for i, place in enumerate(placed):
            parts = (
                points.in_scene[i].numpy(),
                place.depth,
                points.confidence[i].numpy(),
                place.scene_from_cam[:3, 3],
            )
            novelty.append(known.novelty(*parts))
            if novelty[-1] > thr:
                known.add(*parts)
        decided = {
            "keyframe": [score > thr for score in novelty],
            "mean_focal": session.focal_sum / session.focal_weight,
        }
        wanted["mean_focal"] = pytest.approx(wanted["mean_focal"], rel=1e-6)
        first = [np.inf if score == "max" else score for score in scores]
        return (novelty, decided), (pytest.approx(first, rel=1e-5), wanted)

    golden.check_rows("keyframe_decisions", row)


def test_preprocessing_equals_the_official_code():
    golden = Golden("post", "must3r_preprocess")

    def of_the_online_tool(W, H, size, resized, name, box, out, to_orig):
        fit = fit_image(W, H, size, square_ok=True)
        got = placed(fit), 1 / fit.scale[0]
        return got, ((resized, name, box, out), pytest.approx(to_orig, rel=1e-9))

    # As for DUSt3R: nothing is left of a 17×900 image.
    golden.check_rows("slam", of_the_online_tool, left_out=lambda *cells: 0 in cells[6])

    def of_the_demos(W, H, size, target, crop, to_rescaled, to_orig):
        fit = fit_to_table(W, H, size)
        # The official matrices keep half pixels of an odd margin; the crop itself cannot, and ours are the crop's.
        half = 0.501 * np.array([*fit.scale, 1])
        there, back = matrices(fit)
        got = list(fit.size), list(fit.crop[::-1]), near(there, to_rescaled, half)
        return (*got, near(back, to_orig, 0.501)), (target, crop or [H, W], True, True)

    golden.check_rows("demo", of_the_demos)
    golden.check_rows(
        "ratios_resolutions",
        lambda size, listed: ([list(s) for s in SIZES[int(size)]], list(listed.values())),
    )
    t = golden.tensors
    rgb = t["resize.uint8"].numpy()
    fit = fit_to_table(rgb.shape[1], rgb.shape[0], 64, ((64, 48), (64, 32)))
    there, back = matrices(fit)
    got = {
        "resize.tensor_table_4:3_64x48": fit.batch([rgb])[0] * 2 - 1,
        "resize.to_rescaled": there,
        "resize.to_orig": back,
    }
    # Half a pixel of the odd margin, over the matrices' largest entry.
    golden.check(got, given="resize.uint8", loose={r"\.to_": 0.36})
    assert fit.image(rgb).shape == (48, 64, 3)


def matrices(fit):
    """Return the affine maps of pixel corners from the frame to the network's image, and back."""
    (sx, sy), (x, y) = fit.scale, fit.corner
    there = np.array([[sx, 0, -x * sx], [0, sy, -y * sy], [0, 0, 1]])
    return there, np.linalg.inv(there)


def near(got, wanted, within):
    """Compare affine maps: equal factors, shifts within so many pixels."""
    wanted = np.array(wanted)
    shift = np.abs(got - wanted)[:, 2] <= within
    return bool(np.allclose(got[:, :2], wanted[:, :2], rtol=1e-6) and shift.all())


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

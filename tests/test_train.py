"""The trainer: it learns, resumes exactly, runs on several processes, and keeps its checkpoint when it fails."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from stream4d import cli as program
from stream4d.errors import TrainingError
from stream4d.models.registry import create_model
from stream4d.models.temporal_net import NetConfig
from stream4d.models.temporal_weights import FORMAT
from stream4d.train import benchmark, cli, loop
from stream4d.train.batches import Batches, initial_flows, layered_batch
from stream4d.train.criterion import LossWeights, objective
from stream4d.train.layers import LayeredClips, load_photos
from stream4d.train.loop import Trainer
from stream4d.train.options import SceneOptions
from stream4d.train.recipe import Recipe, Stage, dump_recipe, load_recipe, recipe_from
from stream4d.train.ship import averaged, ship
from stream4d.train.validation import clip_scores

RECIPES = Path(__file__).resolve().parents[1] / "configs" / "train"
TINY = Recipe(
    steps=9,
    warmup=4,
    learning_rate=1e-3,
    log_every=4,
    validate_every=1000,
    validation_clips=1,
    layered=1.0,
    amp=False,
    net=NetConfig(quarter=16, tokens=32, depth=1, heads=2, queries=4, memory_frames=1, hidden=16),
    stages=(Stage(height=64, width=64, batch=2),),
    scenes=SceneOptions(atlases=1, tiles=8),
)


def tiny(**changes: Any) -> Recipe:
    return dataclasses.replace(TINY, **changes)


def total_of(trainer: Trainer, batch: Any) -> float:
    clips, initial = batch
    with torch.no_grad():
        # Gradients off would leave out the terms of early steps: the same terms as in training are wanted.
        with torch.enable_grad():
            output = trainer.net(clips.rgb, initial)
        return float(objective(output, clips, trainer.recipe.loss)[0])


# --- learning and resuming -------------------------------------------------------------------------------------------


def test_fifty_steps_lower_the_loss(tmp_path: Path) -> None:
    trainer = Trainer(tiny(steps=50, layered=0.9), tmp_path)
    seen = [trainer.batches.batch(i) for i in (3, 7, 11)]
    before = np.mean([total_of(trainer, b) for b in seen])
    trainer.run()
    after = np.mean([total_of(trainer, b) for b in seen])
    assert after < 0.9 * before
    assert {p.name for p in tmp_path.iterdir()} >= {
        "last.pt",
        "best.pt",
        "ema.safetensors",
        "recipe.yaml",
    }
    assert any(p.name.startswith("events") for p in tmp_path.iterdir())


def test_killed_and_resumed_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer(TINY, tmp_path / "whole")
    whole.run()

    broken = Trainer(TINY, tmp_path / "broken")
    broken.run(stop_after=4)
    update = Trainer._update

    def dies(self: Trainer, module: Any, clips: Any, initial: Any, step: int) -> Any:
        if step == 7:
            raise KeyboardInterrupt
        return update(self, module, clips, initial, step)

    monkeypatch.setattr(Trainer, "_update", dies)
    again = Trainer(TINY, tmp_path / "broken", resume=True)
    assert again.step == 4
    with pytest.raises(KeyboardInterrupt):
        again.run()
    monkeypatch.setattr(Trainer, "_update", update)
    resumed = Trainer(TINY, tmp_path / "broken", resume=True)
    assert resumed.step == 4  # steps 4 to 6 were not saved and are done again
    resumed.run()
    assert resumed.best == whole.best
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name]), name
    for name, value in whole.ema.items():
        assert torch.equal(value, resumed.ema[name]), name


def test_the_first_ctrl_c_keeps_a_checkpoint(tmp_path: Path) -> None:
    """SIGINT ends the command after the step in hand; --resume takes up there."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(dump_recipe(TINY)))
    out, update = tmp_path / "run", Trainer._update

    def interrupted(self: Trainer, module: Any, clips: Any, initial: Any, step: int) -> Any:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return update(self, module, clips, initial, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupted)
        assert program.main(["train", str(recipe), "--out", str(out)]) == 130
    assert Trainer(TINY, out, resume=True).step == 3
    assert program.main(["train", str(recipe), "--out", str(out), "--resume", "--steps", "1"]) == 0
    assert Trainer(TINY, out, resume=True).step == 4


def test_workers_do_not_change_the_batches() -> None:
    plain, ahead = Batches(tiny(steps=4)), Batches(tiny(steps=4, workers=2))
    for (i, a, x), (j, b, y) in zip(plain.iterate(1), ahead.iterate(1), strict=True):
        assert i == j
        assert torch.equal(a.rgb, b.rgb)
        assert torch.equal(x, y)


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """torchrun with gloo: both processes end with the same weights, from different batches."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(dump_recipe(tiny(steps=2))))
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, os, torch\n"
        "from stream4d.train.loop import Trainer\n"
        "from stream4d.train.recipe import load_recipe\n"
        "t = Trainer(load_recipe(sys.argv[1]), sys.argv[2]); t.run()\n"
        "torch.save(t.net.state_dict(), f'{sys.argv[2]}/rank{os.environ[\"RANK\"]}.pt')\n"
        "torch.distributed.destroy_process_group()\n"
    )
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         str(script), str(recipe), str(out)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    states = [torch.load(out / f"rank{i}.pt", weights_only=True) for i in range(2)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    a, b = Batches(TINY, rank=0).batch(0)[0], Batches(TINY, rank=1).batch(0)[0]
    assert not torch.equal(a.rgb, b.rgb)


def test_shipped_format_loads_as_a_model(tmp_path: Path) -> None:
    trainer = Trainer(tiny(steps=2), tmp_path)
    trainer.run()
    model = create_model("temporal", weights=tmp_path / "ema.safetensors")
    assert model.net.config == TINY.net  # type: ignore[attr-defined]


def test_shipping_halves_the_file_and_forgets_the_machine(tmp_path: Path) -> None:
    trainer = Trainer(tiny(steps=1), tmp_path / "run")
    trainer.run()
    source = tmp_path / "run" / "ema.safetensors"
    shipped = ship(source, tmp_path / "weights" / "temporal.safetensors")
    assert shipped.stat().st_size < 0.6 * source.stat().st_size
    with safe_open(shipped, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["licence"] == "Apache-2.0"
    assert not {"photos", "start_from", "xfeat"} & json.loads(metadata["recipe"]).keys()
    create_model("temporal", weights=shipped)
    with pytest.raises(TrainingError, match="cannot read"):
        ship(tmp_path / "none.safetensors", tmp_path / "a.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(TrainingError, match="not a run's"):
        ship(tmp_path / "b.safetensors", tmp_path / "a.safetensors")


def test_shipping_averages_runs_of_one_network(tmp_path: Path) -> None:
    values = torch.arange(4.0)
    for name, tensor in (("a", values), ("b", 3 * values), ("c", values[:2])):
        save_file({"x": tensor}, tmp_path / f"{name}.safetensors", {"format": FORMAT})
    tensors, _ = averaged(tmp_path / "a.safetensors", [tmp_path / "b.safetensors"])
    assert torch.equal(tensors["x"], 2 * values)
    with pytest.raises(TrainingError, match="another network"):
        averaged(tmp_path / "a.safetensors", [tmp_path / "c.safetensors"])


def test_a_run_starts_from_another(tmp_path: Path) -> None:
    first = Trainer(tiny(steps=2), tmp_path / "a")
    first.run()
    for name in ("last.pt", "ema.safetensors"):
        second = Trainer(tiny(start_from=str(tmp_path / "a" / name)), tmp_path / name)
        for key, value in first.ema.items():
            assert torch.equal(second.net.state_dict()[key], value), key


# --- trouble ---------------------------------------------------------------------------------------------------------


def test_a_loss_without_value_stops_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(tiny(steps=30), tmp_path).run(stop_after=3)
    kept = (tmp_path / "last.pt").read_bytes()

    def nan(output: Any, clips: Any, weights: Any) -> Any:
        total, terms = objective(output, clips, weights)
        return total * float("nan"), terms

    monkeypatch.setattr(loop, "objective", nan)
    with pytest.raises(TrainingError, match=r"no finite value .* lower learning_rate"):
        Trainer(tiny(steps=30), tmp_path, resume=True).run()
    assert (tmp_path / "last.pt").read_bytes() == kept


def test_a_single_bad_step_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def once(output: Any, clips: Any, weights: Any) -> Any:
        total, terms = objective(output, clips, weights)
        calls.append(1)
        return total * (float("inf") if len(calls) == 2 else 1.0), terms

    monkeypatch.setattr(loop, "objective", once)
    trainer = Trainer(tiny(steps=4), tmp_path)
    trainer.run()
    assert all(bool(torch.isfinite(v).all()) for v in trainer.net.state_dict().values())


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(TINY, tmp_path)
    trainer.run(stop_after=2)
    kept = (tmp_path / "last.pt").read_bytes()

    def full(state: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"No space left.*is intact"):
        trainer.save()
    assert (tmp_path / "last.pt").read_bytes() == kept
    assert not list(tmp_path.glob("*partial*"))


def test_an_occupied_folder_and_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        Trainer(TINY, tmp_path, resume=True)
    Trainer(TINY, tmp_path).run(stop_after=1)
    with pytest.raises(TrainingError, match="already holds a run"):
        Trainer(TINY, tmp_path)
    (tmp_path / "last.pt").write_bytes(b"junk")
    with pytest.raises(TrainingError, match="cannot resume"):
        Trainer(TINY, tmp_path, resume=True)


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write"):
        Trainer(TINY, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, "Did you mean 'steps'"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"learning_rate": "fast"}, "learning_rate must be a number"),
        ({"layered": 2}, "layered must be a number between 0 and 1"),
        ({"stages": [{"height": 100}]}, "multiples of 32"),
        ({"stages": [{"until": 0.5}]}, "rising shares up to 1"),
        ({"stages": {"until": 1}}, "must be a list"),
        ({"stages": [{"wide": 64}]}, "Did you mean 'width'"),
        ({"net": {"tokens": 30}}, "multiple of"),
        ({"loss": {"flow": -1}}, "weight of loss 'flow'"),
        ({"loss": {"flwo": 1}}, "Did you mean 'flow'"),
        ({"scenes": {"fov_deg": [90, 30]}}, "fov_deg must be a range"),
        ({"layers": {"still": 3}}, "still must lie in"),
    ],
)
def test_bad_recipes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        recipe_from(values)


def test_bad_recipe_files(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot read recipe"):
        load_recipe(tmp_path / "none.yaml")
    file = tmp_path / "recipe.yaml"
    file.write_text("steps: [")
    with pytest.raises(TrainingError, match="cannot read recipe"):
        load_recipe(file)
    file.write_text("- 3")
    with pytest.raises(TrainingError, match="keys and values"):
        load_recipe(file)


def test_missing_inputs(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no photo found"):
        Batches(tiny(photos=str(tmp_path)))
    with pytest.raises(TrainingError, match="name:path"):
        Batches(tiny(real=("sintel",)))
    with pytest.raises(TrainingError, match="cannot read initial weights"):
        Trainer(tiny(start_from=str(tmp_path / "none.pt")), tmp_path / "run")


def test_recipes_round_trip_and_the_shipped_ones_load() -> None:
    recipe = tiny(loss=LossWeights(flow=2.0))
    assert recipe_from(dump_recipe(recipe)) == recipe
    shipped = sorted(RECIPES.glob("*.yaml"))
    assert shipped
    for path in shipped:
        load_recipe(path)


def test_stages_follow_one_another() -> None:
    recipe = tiny(steps=10, stages=(Stage(until=0.5), Stage(until=1.0, height=192, width=256)))
    assert [recipe.stage(i).width for i in (0, 4, 5, 9)] == [160, 160, 256, 256]


def test_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    trainer = Trainer(tiny(steps=100, warmup=10), tmp_path)
    rates = [trainer.learning_rate(i) for i in range(100)]
    assert rates[0] < rates[5] < rates[9]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.01 * TINY.learning_rate)


# --- layered clips and scores ----------------------------------------------------------------------------------------


def test_layered_flow_is_true() -> None:
    """Frame 1 sampled along the flow shows frame 0, both ways, where nothing is hidden."""
    clips = LayeredClips()
    better = []
    for seed in range(6):
        pair = clips.pair(seed, (96, 128))
        for t in (0, 1):
            v, u = np.mgrid[:96, :128].astype(np.float32)
            at = (u + pair.flow[t, ..., 0], v + pair.flow[t, ..., 1])
            back = cv2.remap(pair.rgb[1 - t], *at, cv2.INTER_LINEAR)
            seen = ~pair.occluded[t]
            # Exposure drift and noise differ between frames: compare contrast, not level.
            here = pair.rgb[t].astype(np.float32) - pair.rgb[t][seen].mean()
            there = back.astype(np.float32) - back[seen].mean()
            plain = pair.rgb[1 - t].astype(np.float32) - pair.rgb[1 - t][seen].mean()
            error, unmoved = np.abs(here - there)[seen].mean(), np.abs(here - plain)[seen].mean()
            assert error < 18
            better.append(error <= unmoved + 1)
    assert all(better)


def test_layered_clips_repeat_and_differ() -> None:
    clips = LayeredClips()
    a, b, c = clips.pair(1, (64, 64)), LayeredClips().pair(1, (64, 64)), clips.pair(2, (64, 64))
    assert np.array_equal(a.rgb, b.rgb)
    assert np.array_equal(a.flow, b.flow)
    assert not np.array_equal(a.rgb, c.rgb)


def test_photos_are_used(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (300, 1400, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    cv2.imwrite(str(tmp_path / "blank.png"), np.full((50, 50, 3), 7, np.uint8))
    photos = load_photos(tmp_path)
    assert [p.shape for p in photos] == [(214, 1000, 3)]


def test_scores_of_a_perfect_answer() -> None:
    """The network's output replaced by the truth: no error, full overlap."""
    pairs = [LayeredClips().pair(seed, (64, 64)) for seed in range(40)]
    moving = next(p for p in pairs if 0.1 < p.moving[1].mean() < 0.6)
    clips = layered_batch([moving])
    initial = initial_flows(clips, ["fast"])
    trainer_net = loop.TemporalNet(TINY.net)
    with torch.no_grad():
        output = trainer_net(clips.rgb, initial)
    pair = output.pairs[0]
    truth = torch.cat([clips.flow[:, 0], clips.flow_backward[:, 0]]).permute(0, 3, 1, 2)
    motion = torch.nn.functional.avg_pool2d(clips.motion_mask.transpose(0, 1).float(), 4) * 20 - 10
    perfect = pair._replace(
        flow=pair.flow._replace(steps=[truth]), maps=pair.maps._replace(motion=motion)
    )
    scores = clip_scores(output._replace(pairs=[perfect]), clips, initial)
    assert scores["epe"] == pytest.approx(0, abs=1e-5)
    assert scores["inside_1sigma"] == 1
    assert scores["iou"] > 0.7  # at a quarter of the resolution
    assert scores["epe_initial"] > 0
    assert "depth" not in scores


# --- scoring on clips with ground truth ------------------------------------------------------------------------------


@pytest.fixture
def truth_folder(tmp_path: Path) -> Path:
    """A sequence that slides 3 px right a frame, and the same as a flow pair, with all kinds of truth."""
    rng = np.random.default_rng(0)
    wide = cv2.resize(
        rng.integers(0, 255, (40, 60, 3), np.uint8), (180, 96), interpolation=cv2.INTER_CUBIC
    )
    shots = [np.ascontiguousarray(wide[:, 30 - 3 * t : 158 - 3 * t]) for t in range(5)]
    folder, pairs = tmp_path / "truth" / "slide", tmp_path / "truth" / "pairs"
    for name in ("frames", "flow", "masks", "depth"):
        (folder / name).mkdir(parents=True)
    pairs.mkdir()
    flow = np.full((96, 128, 3), 32768, np.uint16)
    flow[..., 0] += 3 * 64
    flow[..., 2] = 1
    flow[:, -3:, 2] = 0
    mask = np.zeros((96, 128), np.uint8)
    mask[:, :64] = 255
    for t, shot in enumerate(shots):
        cv2.imwrite(str(folder / "frames" / f"{t:06d}.png"), shot)
        cv2.imwrite(str(folder / "flow" / f"{t:06d}.png"), flow[..., ::-1])
        cv2.imwrite(str(folder / "masks" / f"{t:06d}.png"), mask)
        cv2.imwrite(str(folder / "depth" / f"{t:06d}.png"), np.full((96, 128), 2000, np.uint16))
    poses = [f"{t * 0.1:.3f} 0 0 0 0 0 0 1" for t in range(5)]
    (folder / "groundtruth.txt").write_text("\n".join(poses))
    (folder / "timestamps.txt").write_text("\n".join(f"{t * 0.1:.3f}" for t in range(5)))
    about = {
        "name": "slide",
        "fps": 10,
        "frames": 5,
        "width": 128,
        "height": 96,
        "depth_scale": 0.001,
    }
    (folder / "sequence.json").write_text(json.dumps(about))
    for i in (0, 1):
        cv2.imwrite(str(pairs / f"slide_0-img{i}.png"), shots[i])
    cv2.imwrite(str(pairs / "slide_0-gt.png"), flow[..., ::-1])
    return tmp_path / "truth"


def test_scores_of_a_sliding_scene(truth_folder: Path) -> None:
    """Untrained, the network has DIS's flow, a constant depth, no motion and no rotation: each score is known."""
    model = create_model("temporal", weights="random", precision="float32")
    sequence, pair = benchmark.validate(truth_folder, model)  # type: ignore[arg-type]
    assert sequence.name == "slide"
    for scores in (sequence, pair):
        assert scores.mean("dis_epe") < 0.5
        assert scores.mean("epe") == pytest.approx(scores.mean("dis_epe"), abs=0.4)
    assert sequence.mean("static") == 1
    assert sequence.mean("mask_j") == 0
    assert sequence.mean("abs_rel") == pytest.approx(0, abs=1e-3)
    assert sequence.mean("delta") == 1
    assert sequence.mean("rot_deg") < 0.5
    text = benchmark.table([sequence, pair])
    assert len(text.splitlines()) == 3
    assert "abs_rel" in text.splitlines()[0]


def test_flow_files(tmp_path: Path) -> None:
    flow = np.random.default_rng(0).normal(size=(4, 6, 2)).astype("<f4")
    file = tmp_path / "a.flo"
    file.write_bytes(b"PIEH" + np.array([6, 4], "<i4").tobytes() + flow.tobytes())
    found, valid = benchmark.read_flow(file)
    assert np.array_equal(found, flow)
    assert valid.all()
    file.write_bytes(b"nope")
    with pytest.raises(TrainingError, match="not a Middlebury"):
        benchmark.read_flow(file)
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(TrainingError, match="not a KITTI"):
        benchmark.read_flow(tmp_path / "b.png")


def test_the_command(
    truth_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    with pytest.raises(TrainingError, match="give a recipe"):
        cli.run(parser.parse_args([]))
    with pytest.raises(TrainingError, match="no such folder"):
        cli.run(parser.parse_args(["--validate", str(tmp_path / "none")]))
    with pytest.raises(TrainingError, match=r"holds no sequence\.json"):
        cli.run(
            parser.parse_args(
                ["--validate", str(truth_folder / "slide" / "masks"), "--weights", "random"]
            )
        )
    args = ["--validate", str(truth_folder / "pairs"), "--weights", "random"]
    assert cli.run(parser.parse_args(args)) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("slide")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(dump_recipe(TINY)))
    assert program.main(["train", str(recipe), "--out", str(tmp_path / "a"), "--device", "no"]) == 1
    assert "device 'no' cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert (
        cli.run(parser.parse_args([str(recipe), "--out", str(tmp_path / "run"), "--steps", "1"]))
        == 0
    )
    assert (tmp_path / "run" / "last.pt").is_file()

"""The trainer: it learns, resumes exactly, runs on several processes, and keeps its checkpoint when it fails."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from stream4d import cli as program
from stream4d.errors import TrainingError
from stream4d.train import loop
from stream4d.train.batches import Batches
from stream4d.train.criterion import objective
from stream4d.train.loop import Trainer
from stream4d.train.recipe import dump_recipe
from tests.tiny_runs import TINY, tiny


def total_of(trainer: Trainer, batch: Any) -> float:
    clips, initial = batch
    with torch.no_grad():
        # Gradients off would leave out the terms of early steps: the same terms as in training are wanted.
        with torch.enable_grad():
            output = trainer.net(clips.rgb, initial)
        return float(objective(output, clips, trainer.recipe.loss)[0])


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
        "ema-000050.safetensors",
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

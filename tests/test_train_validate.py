"""``stream4d train --validate``: the network scored on clips with ground truth; and the command itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from stream4d import cli as program
from stream4d.errors import TrainingError
from stream4d.models.registry import create_model
from stream4d.train import benchmark, cli
from stream4d.train.recipe import dump_recipe
from tests.tiny_runs import TINY


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
    assert program.main(["train", str(recipe), "--out", str(tmp_path / "a"), "--resume"]) == 1
    assert "nothing to resume" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert (
        cli.run(parser.parse_args([str(recipe), "--out", str(tmp_path / "run"), "--steps", "1"]))
        == 0
    )
    assert (tmp_path / "run" / "last.pt").is_file()

"""What all data sets share: occlusion from flow, draws that repeat, plain video, errors that name the cause."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stream4d.errors import MissingDependencyError, TrainingError
from stream4d.train.clip import ClipBatch
from stream4d.train.datasets import FAMILIES, open_dataset, read_clip
from stream4d.train.formats import read_flo
from stream4d.train.recordings import RawClip, complete, to_batch
from tests.dataset_folders import (
    SIZE,
    arrays,
    images,
    tagged,
    write_images,
    write_sintel,
)


def test_unlabelled_video_and_images(tmp_path: Path, still_clip: ClipBatch) -> None:
    write_images(still_clip, str(tmp_path / "frames/{t:04d}.png"))
    writer = cv2.VideoWriter(
        str(tmp_path / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, SIZE[::-1]
    )
    for image in images(still_clip):
        writer.write(image)
    writer.release()
    dataset = open_dataset("video", tmp_path)
    assert [r.length for r in dataset.recordings] == [3, 3]
    for recording in dataset.recordings:
        got = read_clip(recording, [0, 2])
        assert (got.rgb - still_clip.rgb[:, [0, 2]]).abs().mean() < 0.1
        assert not got.valid_flow.any()
        assert not got.has_pose.any()
        assert not got.has_intrinsics.any()


def test_occlusion_from_flow_both_ways(moving_clip: ClipBatch) -> None:
    a = arrays(moving_clip)
    raw = RawClip(rgb=images(moving_clip), flow=a["flow"], flow_backward=a["flow_backward"])
    got = to_batch(complete(raw))
    wrong = (got.occluded != moving_clip.occluded).float().mean()
    assert wrong < 0.06


def test_draws_fit_the_size_and_repeat(tmp_path: Path, moving_clip: ClipBatch) -> None:
    write_sintel(tmp_path, moving_clip)
    dataset = open_dataset("sintel", tmp_path)
    first = dataset.batch(np.random.default_rng(3), 2, 2, (32, 40))
    again = dataset.batch(np.random.default_rng(3), 2, 2, (32, 40))
    assert first.rgb.shape == (2, 2, 3, 32, 40)
    assert torch.equal(first.flow, again.flow)
    larger = dataset.batch(np.random.default_rng(3), 1, 3, (96, 96))
    assert larger.rgb.shape == (1, 3, 3, 96, 96)
    with pytest.raises(TrainingError, match="no recording of 9 frames"):
        dataset.batch(np.random.default_rng(0), 1, 9, (32, 32))


def test_errors_name_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="Did you mean 'sintel'"):
        open_dataset("sintle", tmp_path)
    with pytest.raises(TrainingError, match="does not exist"):
        open_dataset("sintel", tmp_path / "none")
    for name in FAMILIES:
        with pytest.raises(TrainingError, match="the layout is"):
            open_dataset(name, tmp_path)
    (tmp_path / "bad.flo").write_bytes(b"0123456789abcdef")
    with pytest.raises(TrainingError, match="does not begin with the tag"):
        read_flo(tmp_path / "bad.flo")
    (tmp_path / "short.flo").write_bytes(tagged(np.zeros((4, 4, 2)))[:40])
    with pytest.raises(TrainingError, match="shorter than its 4x4 pixels"):
        read_flo(tmp_path / "short.flo")
    monkeypatch.setitem(sys.modules, "h5py", None)
    from stream4d.train.formats import read_h5

    with pytest.raises(MissingDependencyError, match="h5py"):
        read_h5(tmp_path / "any.h5", "depth")


@pytest.mark.parametrize("package", ["h5py", "OpenEXR"])
def test_the_extra_that_is_advised_brings_the_reader(package: str) -> None:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["train"]
    assert package in [entry.partition(">")[0] for entry in extra]

"""Loaders of captured data sets: what is written in the official layout comes back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stream4d.train.clip import ClipBatch
from stream4d.train.datasets import open_dataset, read_clip
from stream4d.train.families_captured import co3d_camera
from tests.dataset_folders import (
    check,
    check_flow,
    first_clip,
    write_co3d,
    write_megadepth,
    write_scannet,
    write_waymo,
)


def test_scannet(tmp_path: Path, still_clip: ClipBatch) -> None:
    write_scannet(tmp_path, still_clip)
    dataset = open_dataset("scannet", tmp_path)
    assert dataset.recordings[0].length == 3  # the lost frame is left out
    got = first_clip("scannet", tmp_path)
    check(got, still_clip, depth=2e-3, rgb=0.06)
    check_flow(got, still_clip, 0.05)  # millimetres of depth
    assert got.valid_motion.all()
    assert not got.motion_mask.any()
    wrong = (got.occluded != still_clip.occluded).float().mean()
    assert wrong < 0.03  # depth comparison is uncertain along outlines


def test_waymo(tmp_path: Path, still_clip: ClipBatch) -> None:
    write_waymo(tmp_path, still_clip)
    got = first_clip("waymo", tmp_path)
    assert got.valid_depth[:, :, ::2].all()
    assert not got.valid_depth[:, :, 1::2].any()
    torch.testing.assert_close(got.depth[:, :, ::2], still_clip.depth[:, :, ::2])
    torch.testing.assert_close(got.world_from_cam, still_clip.world_from_cam, atol=1e-5, rtol=1e-5)
    assert not got.valid_flow.any()
    assert not got.valid_motion.any()


def test_co3d(tmp_path: Path, still_clip: ClipBatch) -> None:
    write_co3d(tmp_path, still_clip)
    got = first_clip("co3d", tmp_path)
    check(got, still_clip, depth=2e-3)  # half floats
    check_flow(got, still_clip, 0.05)
    assert not got.is_metric.any()


def test_co3d_camera_by_hand() -> None:
    viewpoint = {
        "R": np.eye(3).tolist(), "T": [0.0, 0.0, 2.0],
        "focal_length": [2.0, 2.0], "principal_point": [0.0, 0.0],
    }  # fmt: skip
    K, world_from_cam = co3d_camera(viewpoint, (100, 200))
    assert K[0, 0] == 200  # width / 2 · 2: the older convention, per axis
    assert K[1, 1] == 100
    assert (K[0, 2], K[1, 2]) == (99.5, 49.5)
    # a world point up and left in PyTorch3D lies up and left in the picture
    seen = np.linalg.inv(world_from_cam) @ [0.1, 0.1, 0.0, 1]
    np.testing.assert_allclose(seen[:3], [-0.1, -0.1, 2.0])


def test_megadepth(tmp_path: Path, still_clip: ClipBatch) -> None:
    write_megadepth(tmp_path, still_clip)
    recording = open_dataset("megadepth", tmp_path).recordings[0]
    got = read_clip(recording, [0, 1])
    torch.testing.assert_close(got.depth[:, 0], still_clip.depth[:, 0])
    torch.testing.assert_close(got.K, still_clip.K[:, :2], rtol=1e-5, atol=1e-3)
    order = [t for t in (1, 2) if torch.allclose(got.depth[0, 1], still_clip.depth[0, t])]
    torch.testing.assert_close(
        got.world_from_cam[:, 1], still_clip.world_from_cam[:, order[0]], atol=1e-4, rtol=1e-4
    )


def test_megadepth_without_cameras_is_depth_of_still_photos(
    tmp_path: Path, still_clip: ClipBatch
) -> None:
    write_megadepth(tmp_path, still_clip, posed=False)
    recordings = open_dataset("megadepth", tmp_path).recordings
    assert len(recordings) == 3
    got = read_clip(recordings[1], [0, 1])
    assert not got.has_pose.any()
    assert torch.equal(got.rgb[:, 0], got.rgb[:, 1])
    assert got.valid_depth.all()

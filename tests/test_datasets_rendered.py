"""Loaders of rendered data sets: what is written in the official layout comes back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stream4d.train.clip import ClipBatch
from stream4d.train.families_rendered import tartan_poses
from tests.dataset_folders import (
    check,
    check_flow,
    first_clip,
    motion_agreement,
    render,
    write_odyssey,
    write_png,
    write_sintel,
    write_spring,
    write_vkitti,
)


def test_sintel(tmp_path: Path, moving_clip: ClipBatch) -> None:
    write_sintel(tmp_path, moving_clip)
    got = first_clip("sintel", tmp_path)
    check(got, moving_clip, depth=1e-6)
    assert not got.valid_flow[:, :, :2].any()  # marked invalid
    assert torch.equal(got.flow[:, :, 2:], moving_clip.flow[:, :, 2:])
    assert torch.equal(got.occluded[:, :, 2:], moving_clip.occluded[:, :, 2:])
    assert motion_agreement(got, moving_clip) > 0.99
    assert not got.is_metric.any()


def test_vkitti2(tmp_path: Path, moving_clip: ClipBatch) -> None:
    write_vkitti(tmp_path, moving_clip)
    got = first_clip("vkitti2", tmp_path)
    check(got, moving_clip, depth=0.02)  # whole centimetres of about half a metre
    check_flow(got, moving_clip, 2e-3)
    assert motion_agreement(got, moving_clip) > 0.99
    assert got.is_metric.all()


def test_spring(tmp_path: Path, moving_clip: ClipBatch) -> None:
    write_spring(tmp_path, moving_clip)
    got = first_clip("spring", tmp_path)
    check(got, moving_clip, depth=1e-5)
    check_flow(got, moving_clip, 1e-4)


def test_point_odyssey(tmp_path: Path) -> None:
    clip = render(2, static=False, frames=2)
    write_odyssey(tmp_path, clip)
    got = first_clip("pointodyssey", tmp_path, 2)
    check(got, clip, depth=0.03)  # steps of 15 mm
    valid = got.valid_flow
    assert 0.05 < valid.float().mean() < 0.4
    torch.testing.assert_close(got.flow[valid], clip.flow[valid], atol=1e-3, rtol=1e-4)
    known = got.valid_motion[:, 0]
    assert torch.equal(got.motion_mask[:, 0][known], clip.motion_mask[:, 0][known])
    assert clip.motion_mask[:, 0][known].any()


def test_tartanair_plane(tmp_path: Path) -> None:
    folder = tmp_path / "office/Easy/P000"
    for name in ("image_left", "depth_left", "flow"):
        (folder / name).mkdir(parents=True)
    depth = np.full((480, 640), 4.0, np.float32)
    depth[:100] = 1e5
    for t in range(3):
        write_png(folder / f"image_left/{t:06d}_left.png", np.full((480, 640, 3), 60 * t, np.uint8))
        np.save(folder / f"depth_left/{t:06d}_left_depth.npy", depth)
    # NED: 0.1 m to the right (y), then 0.2 m down (z)
    rows = [[5, 1.0, 2, 0, 0, 0, 1], [5, 1.1, 2, 0, 0, 0, 1], [5, 1.1, 2.2, 0, 0, 0, 1]]
    np.savetxt(folder / "pose_left.txt", rows)
    got = first_clip("tartanair", tmp_path)
    assert not got.valid_depth[:, :, :100].any()
    expected = torch.tensor([[-0.1 * 320 / 4, 0.0], [0.0, -0.2 * 320 / 4]])
    torch.testing.assert_close(got.flow[0, :, 200, 300], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(got.flow_backward[0, :, 200, 300], -expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(got.world_from_cam[0, 2, :3, 3], torch.tensor([0.1, 0.2, 0.0]))
    assert got.occluded[0, 0, 200, :7].all()  # eight pixels leave on the left
    flow = np.zeros((480, 640, 2), np.float32)
    flow[..., 0] = -8
    for t in (0, 1):
        np.save(folder / f"flow/{t:06d}_{t + 1:06d}_flow.npy", flow)
        np.save(
            folder / f"flow/{t:06d}_{t + 1:06d}_mask.npy", np.full((480, 640), 100 * t, np.uint8)
        )
    got = first_clip("tartanair", tmp_path)
    assert torch.equal(got.flow[0, 0], torch.from_numpy(flow))
    assert got.occluded[0, 1].all()


def test_tartanair_rotation_turns_the_right_way(tmp_path: Path) -> None:
    half = np.sin(np.radians(45))
    # a quarter turn about NED's down axis: looking north, then east, which is to the right
    np.savetxt(tmp_path / "pose.txt", [[0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, half, half]])
    forward = tartan_poses(tmp_path / "pose.txt")[1][:3, 2]
    np.testing.assert_allclose(forward, [1, 0, 0], atol=1e-6)

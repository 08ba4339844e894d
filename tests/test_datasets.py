"""Data-set loaders: a rendered clip is written in each official layout and must come back as it was."""

from __future__ import annotations

import gzip
import json
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stream4d.errors import MissingDependencyError, TrainingError
from stream4d.geometry.flow import ego_flow
from stream4d.geometry.transforms import quat_wxyz_from_rotation
from stream4d.train.clip import ClipBatch
from stream4d.train.datasets import FAMILIES, open_dataset, read_clip
from stream4d.train.families_captured import co3d_camera
from stream4d.train.families_rendered import tartan_poses
from stream4d.train.formats import read_flo
from stream4d.train.recordings import RawClip, complete, to_batch
from stream4d.train.scenes import SceneOptions, render_clips

SIZE = (48, 64)


def render(seed: int, static: bool, frames: int = 3) -> ClipBatch:
    options = SceneOptions(
        tiles=8, atlases=1, effects=False, outdoor_share=0.0, static_share=float(static), fov_deg=(60, 61),
        camera_weights=(0, 0, 1, 0, 0, 1, 0), camera_move=(0.02, 0.03), camera_turn=(0.005, 0.01),
        mover_speed=(0.03, 0.06), solids=(6, 8), figure_share=0.0,
    )  # fmt: skip
    return render_clips(seed, 1, frames, SIZE, "cpu", options)


@pytest.fixture(scope="module")
def still() -> ClipBatch:
    return render(1, static=True)


@pytest.fixture(scope="module")
def moving() -> ClipBatch:
    return render(2, static=False)


def images(clip: ClipBatch) -> np.ndarray:  # (T, H, W, 3) uint8 BGR
    rgb = (clip.rgb[0].permute(0, 2, 3, 1) * 255).round().byte().numpy()
    return np.ascontiguousarray(rgb[..., ::-1])


def write_images(clip: ClipBatch, path: str) -> None:
    for t, image in enumerate(images(clip)):
        target = Path(path.format(t=t, n=t + 1))
        target.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(target), image, [cv2.IMWRITE_JPEG_QUALITY, 100])


def write_png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values)


def arrays(clip: ClipBatch) -> dict[str, np.ndarray]:
    names = ("depth", "K", "world_from_cam", "flow", "flow_backward", "occluded", "motion_mask")
    return {name: getattr(clip, name)[0].numpy().astype(np.float64) for name in names}


def check(got: ClipBatch, want: ClipBatch, *, depth: float, rgb: float = 0.05) -> None:
    """Compare geometry; ``depth`` is the relative error that the file format allows."""
    assert got.rgb.shape == want.rgb.shape
    assert (got.rgb - want.rgb).abs().mean() < rgb
    torch.testing.assert_close(got.K, want.K, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(got.world_from_cam, want.world_from_cam, rtol=1e-4, atol=1e-4)
    error = (got.depth / want.depth - 1).abs()[got.valid_depth]
    assert got.valid_depth.float().mean() > 0.99
    assert error.max() < depth
    assert bool(got.has_pose)
    assert bool(got.has_intrinsics)


def check_flow(got: ClipBatch, want: ClipBatch, tolerance: float) -> None:
    for name in ("flow", "flow_backward"):
        valid = getattr(got, f"valid_{name}")
        error = (getattr(got, name) - getattr(want, name)).norm(dim=-1)[valid]
        assert valid.float().mean() > 0.95
        assert error.quantile(0.99) < tolerance, name


def motion_agreement(got: ClipBatch, want: ClipBatch) -> float:
    """Return the share of right motion labels where the truth is still, or deviates by over a pixel."""
    a = arrays(want)
    residual = []
    for t in range(len(a["flow"])):
        next_from_this = np.linalg.inv(a["world_from_cam"][t + 1]) @ a["world_from_cam"][t]
        residual.append(
            a["flow"][t] - ego_flow(a["depth"][t], a["K"][t], a["K"][t + 1], next_from_this)
        )
    clear = torch.from_numpy(np.linalg.norm(np.stack(residual), axis=-1) > 1)[None]
    truth = want.motion_mask[:, :-1]
    judged = got.valid_motion[:, :-1] & (clear | ~truth)
    assert (judged & truth).sum() > 50
    return float((got.motion_mask[:, :-1] == truth)[judged].float().mean())


# --- writers, one a layout ------------------------------------------------------------------------------


def tagged(values: np.ndarray) -> bytes:
    H, W = values.shape[:2]
    header = np.float32(202021.25).tobytes() + np.array([W, H], "<i4").tobytes()
    return header + values.astype("<f4").tobytes()


def write_sintel(root: Path, clip: ClipBatch) -> None:
    a = arrays(clip)
    write_images(clip, str(root / "training/final/alley_1/frame_{n:04d}.png"))
    for kind in ("flow", "depth", "camdata_left", "occlusions", "invalid"):
        (root / "training" / kind / "alley_1").mkdir(parents=True)
    for t in range(len(a["depth"])):
        name = f"alley_1/frame_{t + 1:04d}"
        (root / f"training/depth/{name}.dpt").write_bytes(tagged(a["depth"][t]))
        cam_from_world = np.linalg.inv(a["world_from_cam"][t])[:3]
        numbers = np.concatenate([a["K"][t].ravel(), cam_from_world.ravel()]).astype("<f8")
        (root / f"training/camdata_left/{name}.cam").write_bytes(
            np.float32(202021.25).tobytes() + numbers.tobytes()
        )
        if t < len(a["flow"]):
            (root / f"training/flow/{name}.flo").write_bytes(tagged(a["flow"][t]))
            write_png(
                root / f"training/occlusions/{name}.png", (a["occluded"][t] * 255).astype(np.uint8)
            )
            invalid = np.zeros(SIZE, np.uint8)
            invalid[:2] = 255
            write_png(root / f"training/invalid/{name}.png", invalid)


def write_vkitti(root: Path, clip: ClipBatch) -> None:
    a = arrays(clip)
    variant = root / "Scene01/clone"
    write_images(clip, str(variant / "frames/rgb/Camera_0/rgb_{t:05d}.jpg"))

    def encode(flow: np.ndarray) -> np.ndarray:
        span = np.array([SIZE[1] - 1, SIZE[0] - 1])
        coded = np.round((flow / span + 1) / 2 * 65535)
        inside = (np.abs(flow) < span).all(-1)
        return (
            np.concatenate([coded, 65535 * inside[..., None]], -1).clip(0, 65535).astype(np.uint16)
        )

    poses, lenses = ["frame cameraID r"], ["frame cameraID K"]
    for t in range(len(a["depth"])):
        centimetres = np.round(a["depth"][t] * 100).astype(np.uint16)
        write_png(variant / f"frames/depth/Camera_0/depth_{t:05d}.png", centimetres)
        rows = np.linalg.inv(a["world_from_cam"][t]).ravel()
        poses += [f"{t} {c} " + " ".join(f"{x:.9f}" for x in rows) for c in (0, 1)]
        K = a["K"][t]
        lenses += [f"{t} {c} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}" for c in (0, 1)]
        if t < len(a["flow"]):
            write_png(
                variant / f"frames/forwardFlow/Camera_0/flow_{t:05d}.png", encode(a["flow"][t])
            )
            name = f"backwardFlow_{t + 1:05d}.png"
            write_png(
                variant / "frames/backwardFlow/Camera_0" / name, encode(a["flow_backward"][t])
            )
    (variant / "extrinsic.txt").write_text("\n".join(poses))
    (variant / "intrinsic.txt").write_text("\n".join(lenses))


def write_spring(root: Path, clip: ClipBatch) -> None:
    h5py = pytest.importorskip("h5py")
    a = arrays(clip)
    folder = root / "train/0001"
    write_images(clip, str(folder / "frame_left/frame_left_{n:04d}.png"))
    (folder / "cam_data").mkdir()

    def save(kind: str, t: int, suffix: str, key: str, values: np.ndarray) -> None:
        path = folder / kind / f"{kind}_{t + 1:04d}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            file[key] = values.repeat(2, 0).repeat(2, 1).astype(np.float32)

    for t in range(len(a["depth"])):
        save("disp1_left", t, "dsp5", "disparity", a["K"][t, 0, 0] * 0.065 / a["depth"][t])
        if t < len(a["flow"]):
            save("flow_FW_left", t, "flo5", "flow", a["flow"][t])
            save("flow_BW_left", t + 1, "flo5", "flow", a["flow_backward"][t])
    np.savetxt(folder / "cam_data/intrinsics.txt", a["K"][:, [0, 1, 0, 1], [0, 1, 2, 2]])
    np.savetxt(
        folder / "cam_data/extrinsics.txt", np.linalg.inv(a["world_from_cam"]).reshape(-1, 16)
    )


def write_odyssey(root: Path, clip: ClipBatch) -> None:
    a = arrays(clip)
    folder = root / "train/seq"
    write_images(clip, str(folder / "rgbs/rgb_{t:05d}.jpg"))
    for t, depth in enumerate(a["depth"]):
        coded = np.round(depth / 1000 * 65535).astype(np.uint16)
        write_png(folder / f"depths/depth_{t:05d}.png", coded)
    rng = np.random.default_rng(0)
    v, u = rng.integers(0, SIZE[0], 900), rng.integers(0, SIZE[1], 900)
    first = np.stack([u, v], -1).astype(np.float64)
    points = clip.pointmap_in_world[0, 0].numpy()[v, u]
    moved = points + clip.scene_flow[0, 0].numpy()[v, u]
    np.savez(
        folder / "anno.npz",
        trajs_2d=np.stack([first, first + a["flow"][0][v, u]]),
        trajs_3d=np.stack([points, moved]),
        visibs=np.stack([np.ones(900), 1 - a["occluded"][0][v, u]]),
        valids=np.ones((2, 900)),
        intrinsics=a["K"],
        extrinsics=np.linalg.inv(a["world_from_cam"]),
    )


def write_scannet(root: Path, clip: ClipBatch) -> None:
    a = arrays(clip)
    folder = root / "scans/scene0000_00"
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    K_colour = np.eye(4)
    K_colour[:3, :3] = a["K"][0]
    K_depth = K_colour.copy()
    K_colour[:2, :3] *= 2
    K_colour[:2, 2] += 0.5  # pixel centres at integers: (c + ½) · 2 - ½
    np.savetxt(folder / "intrinsic/intrinsic_color.txt", K_colour)
    np.savetxt(folder / "intrinsic/intrinsic_depth.txt", K_depth)
    lost = len(a["depth"])
    for t in range(lost + 1):
        seen = min(t, lost - 1)
        large = cv2.resize(images(clip)[seen], None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(folder / f"color/{t}.jpg"), large, [cv2.IMWRITE_JPEG_QUALITY, 100])
        write_png(folder / f"depth/{t}.png", np.round(a["depth"][seen] * 1000).astype(np.uint16))
        pose = a["world_from_cam"][seen] if t < lost else np.full((4, 4), -np.inf)
        np.savetxt(folder / f"pose/{t}.txt", pose)


def write_waymo(root: Path, clip: ClipBatch) -> None:
    a = arrays(clip)
    write_images(clip, str(root / "segment-1.tfrecord/{t:05d}_1.jpg"))
    for t, depth in enumerate(a["depth"]):
        stem = root / "segment-1.tfrecord" / f"{t:05d}_1"
        sparse = np.where(np.arange(SIZE[0])[:, None] % 2 == 0, depth, 0).astype(np.float32)
        np.save(stem.with_suffix(".npy"), sparse)
        np.savez(stem.with_suffix(".npz"), intrinsics=a["K"][t], cam2world=a["world_from_cam"][t])


def write_co3d(root: Path, clip: ClipBatch) -> None:
    a = arrays(clip)
    write_images(clip, str(root / "apple/110_1/images/frame{n:06d}.jpg"))
    H, W = SIZE
    rows = []
    flip = np.diag([-1.0, -1, 1])
    for t, depth in enumerate(a["depth"]):
        half = min(H, W) / 2
        K, cam_from_world = a["K"][t], np.linalg.inv(a["world_from_cam"][t])
        coded = (depth / 2).astype(np.float16).view(np.uint16)
        write_png(root / f"apple/110_1/depths/frame{t + 1:06d}.jpg.geometric.png", coded)
        write_png(
            root / f"apple/110_1/depth_masks/frame{t + 1:06d}.png", np.full(SIZE, 255, np.uint8)
        )
        rows.append({
            "sequence_name": "110_1", "frame_number": t,
            "image": {"path": f"apple/110_1/images/frame{t + 1:06d}.jpg", "size": [H, W]},
            "depth": {"path": f"apple/110_1/depths/frame{t + 1:06d}.jpg.geometric.png", "scale_adjustment": 2.0,
                      "mask_path": f"apple/110_1/depth_masks/frame{t + 1:06d}.png"},
            "viewpoint": {
                "R": (flip @ cam_from_world[:3, :3]).T.tolist(), "T": (flip @ cam_from_world[:3, 3]).tolist(),
                "focal_length": [K[0, 0] / half, K[1, 1] / half], "intrinsics_format": "ndc_isotropic",
                "principal_point": [(W / 2 - K[0, 2] - 0.5) / half, (H / 2 - K[1, 2] - 0.5) / half],
            },
        })  # fmt: skip
    with gzip.open(root / "apple/frame_annotations.jgz", "wt") as file:
        json.dump(rows[::-1], file)  # order must come from frame_number


def write_megadepth(root: Path, clip: ClipBatch, posed: bool = True) -> None:
    h5py = pytest.importorskip("h5py")
    a = arrays(clip)
    folder = root / "0000/dense0"
    write_images(clip, str(folder / "imgs/{t}.jpg"))
    (folder / "depths").mkdir()
    (folder / "sparse").mkdir()
    views, cameras = ["# images"], ["# cameras"]
    for t, depth in enumerate(a["depth"]):
        with h5py.File(folder / f"depths/{t}.h5", "w") as file:
            file["depth"] = depth
        K, cam_from_world = a["K"][t], np.linalg.inv(a["world_from_cam"][t])
        q = quat_wxyz_from_rotation(cam_from_world[:3, :3])
        numbers = " ".join(f"{x:.9f}" for x in (*q, *cam_from_world[:3, 3]))
        views += [f"{t + 1} {numbers} {t + 1} {t}.jpg", ""]
        lens = f"{K[0, 0]} {K[1, 1]} {K[0, 2] + 0.5} {K[1, 2] + 0.5}"
        cameras.append(f"{t + 1} PINHOLE {SIZE[1]} {SIZE[0]} {lens}")
    if posed:
        (folder / "sparse/images.txt").write_text("\n".join(views) + "\n")
        (folder / "sparse/cameras.txt").write_text("\n".join(cameras) + "\n")


# --- one test a family ----------------------------------------------------------------------------------


def first_clip(name: str, root: Path, frames: int = 3) -> ClipBatch:
    return read_clip(open_dataset(name, root).recordings[0], list(range(frames)))


def test_sintel(tmp_path: Path, moving: ClipBatch) -> None:
    write_sintel(tmp_path, moving)
    got = first_clip("sintel", tmp_path)
    check(got, moving, depth=1e-6)
    assert not got.valid_flow[:, :, :2].any()  # marked invalid
    assert torch.equal(got.flow[:, :, 2:], moving.flow[:, :, 2:])
    assert torch.equal(got.occluded[:, :, 2:], moving.occluded[:, :, 2:])
    assert motion_agreement(got, moving) > 0.99
    assert not got.is_metric.any()


def test_vkitti2(tmp_path: Path, moving: ClipBatch) -> None:
    write_vkitti(tmp_path, moving)
    got = first_clip("vkitti2", tmp_path)
    check(got, moving, depth=0.02)  # whole centimetres of about half a metre
    check_flow(got, moving, 2e-3)
    assert motion_agreement(got, moving) > 0.99
    assert got.is_metric.all()


def test_spring(tmp_path: Path, moving: ClipBatch) -> None:
    write_spring(tmp_path, moving)
    got = first_clip("spring", tmp_path)
    check(got, moving, depth=1e-5)
    check_flow(got, moving, 1e-4)


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


def test_scannet(tmp_path: Path, still: ClipBatch) -> None:
    write_scannet(tmp_path, still)
    dataset = open_dataset("scannet", tmp_path)
    assert dataset.recordings[0].length == 3  # the lost frame is left out
    got = first_clip("scannet", tmp_path)
    check(got, still, depth=2e-3, rgb=0.06)
    check_flow(got, still, 0.05)  # millimetres of depth
    assert got.valid_motion.all()
    assert not got.motion_mask.any()
    wrong = (got.occluded != still.occluded).float().mean()
    assert wrong < 0.03  # depth comparison is uncertain along outlines


def test_waymo(tmp_path: Path, still: ClipBatch) -> None:
    write_waymo(tmp_path, still)
    got = first_clip("waymo", tmp_path)
    assert got.valid_depth[:, :, ::2].all()
    assert not got.valid_depth[:, :, 1::2].any()
    torch.testing.assert_close(got.depth[:, :, ::2], still.depth[:, :, ::2])
    torch.testing.assert_close(got.world_from_cam, still.world_from_cam, atol=1e-5, rtol=1e-5)
    assert not got.valid_flow.any()
    assert not got.valid_motion.any()


def test_co3d(tmp_path: Path, still: ClipBatch) -> None:
    write_co3d(tmp_path, still)
    got = first_clip("co3d", tmp_path)
    check(got, still, depth=2e-3)  # half floats
    check_flow(got, still, 0.05)
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


def test_megadepth(tmp_path: Path, still: ClipBatch) -> None:
    write_megadepth(tmp_path, still)
    recording = open_dataset("megadepth", tmp_path).recordings[0]
    got = read_clip(recording, [0, 1])
    torch.testing.assert_close(got.depth[:, 0], still.depth[:, 0])
    torch.testing.assert_close(got.K, still.K[:, :2], rtol=1e-5, atol=1e-3)
    order = [t for t in (1, 2) if torch.allclose(got.depth[0, 1], still.depth[0, t])]
    torch.testing.assert_close(
        got.world_from_cam[:, 1], still.world_from_cam[:, order[0]], atol=1e-4, rtol=1e-4
    )


def test_megadepth_without_cameras_is_depth_of_still_photos(
    tmp_path: Path, still: ClipBatch
) -> None:
    write_megadepth(tmp_path, still, posed=False)
    recordings = open_dataset("megadepth", tmp_path).recordings
    assert len(recordings) == 3
    got = read_clip(recordings[1], [0, 1])
    assert not got.has_pose.any()
    assert torch.equal(got.rgb[:, 0], got.rgb[:, 1])
    assert got.valid_depth.all()


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


def test_unlabelled_video_and_images(tmp_path: Path, still: ClipBatch) -> None:
    write_images(still, str(tmp_path / "frames/{t:04d}.png"))
    writer = cv2.VideoWriter(
        str(tmp_path / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, SIZE[::-1]
    )
    for image in images(still):
        writer.write(image)
    writer.release()
    dataset = open_dataset("video", tmp_path)
    assert [r.length for r in dataset.recordings] == [3, 3]
    for recording in dataset.recordings:
        got = read_clip(recording, [0, 2])
        assert (got.rgb - still.rgb[:, [0, 2]]).abs().mean() < 0.1
        assert not got.valid_flow.any()
        assert not got.has_pose.any()
        assert not got.has_intrinsics.any()


# --- what follows ---------------------------------------------------------------------------------------


def test_occlusion_from_flow_both_ways(moving: ClipBatch) -> None:
    a = arrays(moving)
    raw = RawClip(rgb=images(moving), flow=a["flow"], flow_backward=a["flow_backward"])
    got = to_batch(complete(raw))
    wrong = (got.occluded != moving.occluded).float().mean()
    assert wrong < 0.06


def test_draws_fit_the_size_and_repeat(tmp_path: Path, moving: ClipBatch) -> None:
    write_sintel(tmp_path, moving)
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

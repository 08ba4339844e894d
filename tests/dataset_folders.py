"""A rendered clip written in the official layout of each data set, and compared with what is read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stream4d.geometry.flow import ego_flow
from stream4d.geometry.transforms import quat_wxyz_from_rotation
from stream4d.train.clip import ClipBatch
from stream4d.train.datasets import open_dataset, read_clip
from stream4d.train.scenes import SceneOptions, render_clips

SIZE = (48, 64)


def render(seed: int, static: bool, frames: int = 3) -> ClipBatch:
    options = SceneOptions(
        tiles=8, atlases=1, effects=False, outdoor_share=0.0, static_share=float(static), fov_deg=(60, 61),
        camera_weights=(0, 0, 1, 0, 0, 1, 0), camera_move=(0.02, 0.03), camera_turn=(0.005, 0.01),
        mover_speed=(0.03, 0.06), solids=(6, 8), figure_share=0.0,
    )  # fmt: skip
    return render_clips(seed, 1, frames, SIZE, "cpu", options)


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


def first_clip(name: str, root: Path, frames: int = 3) -> ClipBatch:
    return read_clip(open_dataset(name, root).recordings[0], list(range(frames)))

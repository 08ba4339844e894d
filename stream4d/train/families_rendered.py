"""Rendered data sets in the folder layouts that their makers publish.

PointOdyssey (Zheng et al. 2023), TartanAir (Wang et al. 2020), Virtual KITTI 2 (Cabon et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stream4d.geometry.transforms import rigid, rotation_from_quat_wxyz
from stream4d.train.formats import (
    are_neighbours,
    read_if_there,
    read_png16,
    read_rgb,
    read_vkitti_flow,
    stack,
)
from stream4d.train.recordings import UNKNOWN, RawClip, Recording

Array = npt.NDArray[Any]


# --- PointOdyssey ---------------------------------------------------------------------------------------

_ODYSSEY_DEPTH_M = 1000.0
"""Depth that the largest 16-bit value means."""


def point_odyssey(root: Path) -> list[Recording]:
    """``{train,val,test}/SEQUENCE/{rgbs,depths,anno.npz}``: sparse flow and motion from the point tracks."""
    return [
        _odyssey_sequence(anno.parent)
        for anno in sorted(root.rglob("anno.npz"))
        if (anno.parent / "rgbs").is_dir()
    ]


def _odyssey_sequence(folder: Path) -> Recording:
    frames = sorted((folder / "rgbs").glob("rgb_*.jpg"))
    depths = [folder / "depths" / f"depth_{path.stem[4:]}.png" for path in frames]

    def read(indices: Sequence[int]) -> RawClip:
        rgb = stack(read_rgb, [frames[i] for i in indices])
        with np.load(folder / "anno.npz") as anno:  # no pickle
            K = anno["intrinsics"][list(indices)].astype(np.float64)
            cam_from_world = anno["extrinsics"][list(indices)].astype(np.float64)
            tracks = {name: anno[name][list(indices)] for name in ("trajs_2d", "trajs_3d")}
            seen = anno["visibs"] if "visibs" in anno else anno["visibilities"]
            visible = seen[list(indices)].astype(bool)
        flow, back, motion = _from_tracks(
            tracks["trajs_2d"], tracks["trajs_3d"], visible, rgb.shape[1:3]
        )
        known = all(depths[i].exists() for i in indices)
        depth = stack(read_png16, [depths[i] for i in indices]) if known else None
        return RawClip(
            rgb=rgb,
            K=K,
            world_from_cam=np.linalg.inv(cam_from_world),
            depth=None if depth is None else depth.astype(np.float32) * (_ODYSSEY_DEPTH_M / 65535),
            flow=flow,
            flow_backward=back,
            motion=motion,
            is_metric=True,
        )

    return Recording(str(folder), len(frames), read, max_stride=4)


def _from_tracks(
    pixels: Array,  # (T, N, 2)
    points: Array,  # (T, N, 3) world
    visible: Array,  # (T, N)
    size: tuple[int, int],
) -> tuple[Array, Array, Array]:
    """Write point tracks into sparse flow maps and motion masks, at the nearest pixel."""
    T = len(pixels)
    H, W = size
    flow = np.full((T - 1, H, W, 2), np.nan, np.float32)
    back = flow.copy()
    motion = np.full((T, H, W), UNKNOWN, np.uint8)
    cell = np.round(np.nan_to_num(pixels, nan=-1e6)).astype(np.int64)
    inside = visible & (cell >= 0).all(-1) & (cell < [W, H]).all(-1)
    for t in range(T - 1):
        both = inside[t] & inside[t + 1] & np.isfinite(points[t : t + 2]).all((0, 2))
        step = (pixels[t + 1] - pixels[t])[both]
        here, there = cell[t, both], cell[t + 1, both]
        flow[t, here[:, 1], here[:, 0]] = step
        back[t, there[:, 1], there[:, 0]] = -step
        moved = np.linalg.norm((points[t + 1] - points[t])[both], axis=-1) > 1e-3  # a millimetre
        motion[t, here[:, 1], here[:, 0]] = moved
        if t == T - 2:
            motion[t + 1, there[:, 1], there[:, 0]] = moved
    return flow, back, motion


# --- TartanAir ------------------------------------------------------------------------------------------

_TARTAN_K = np.array([[320.0, 0, 320], [0, 320, 240], [0, 0, 1]])
_NED_FROM_CV = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""TartanAir cameras are north-east-down: x forward, y right, z down."""
_TARTAN_SKY_M = 1000.0


def tartanair(root: Path) -> list[Recording]:
    """``ENV/{Easy,Hard}/P000/{image_left,depth_left,flow,pose_left.txt}``: static scenes, metres, 640×480."""
    return [_tartan_sequence(pose.parent) for pose in sorted(root.rglob("pose_left.txt"))]


def tartan_poses(path: Path) -> Array:  # (N, 4, 4)
    """Read ``tx ty tz qx qy qz qw`` in NED axes as world_from_cam with OpenCV axes on both sides."""
    rows = np.loadtxt(path, ndmin=2)
    R = rotation_from_quat_wxyz(rows[:, [6, 3, 4, 5]])
    return np.asarray(_NED_FROM_CV.T @ rigid(R, rows[:, :3]) @ _NED_FROM_CV)


def _tartan_sequence(folder: Path) -> Recording:
    frames = sorted((folder / "image_left").glob("*_left.png"))
    poses = tartan_poses(folder / "pose_left.txt")

    def read(indices: Sequence[int]) -> RawClip:
        names = [frames[i].stem.removesuffix("_left") for i in indices]
        depth_paths = [folder / "depth_left" / f"{name}_left_depth.npy" for name in names]
        has_depth = all(path.exists() for path in depth_paths)
        depth = stack(np.load, depth_paths).astype(np.float32) if has_depth else None
        if depth is not None:
            depth[depth > _TARTAN_SKY_M] = np.nan
        flow = occluded = None
        if are_neighbours(indices):
            stems = [f"{a}_{b}" for a, b in pairwise(names)]
            flow = read_if_there(
                range(len(stems)), lambda i: folder / "flow" / f"{stems[i]}_flow.npy", np.load
            )
            masks = read_if_there(
                range(len(stems)), lambda i: folder / "flow" / f"{stems[i]}_mask.npy", np.load
            )
            occluded = None if flow is None or masks is None else masks != 0
        return RawClip(
            rgb=stack(read_rgb, [frames[i] for i in indices]),
            K=np.tile(_TARTAN_K, (len(indices), 1, 1)),
            world_from_cam=poses[list(indices)],
            depth=depth,
            flow=flow,
            occluded=occluded,
            is_static=True,
            is_metric=True,
        )

    return Recording(str(folder), min(len(frames), len(poses)), read, max_stride=4)


# --- Virtual KITTI 2 ------------------------------------------------------------------------------------

_VKITTI_SKY_CM = 65535


def vkitti2(root: Path) -> list[Recording]:
    """``Scene01/clone/{frames/{rgb,depth,forwardFlow,backwardFlow}/Camera_0,extrinsic.txt,intrinsic.txt}``."""
    return [
        _vkitti_sequence(folder, int(folder.name.removeprefix("Camera_")))
        for folder in sorted(root.glob("Scene*/*/frames/rgb/Camera_*"))
    ]


def _vkitti_table(path: Path, camera: int) -> Array:
    """Read rows ``frame cameraID …`` of one camera, without those two columns, in order of frame."""
    rows = np.loadtxt(path, skiprows=1, ndmin=2)
    rows = rows[rows[:, 1] == camera]
    return np.asarray(rows[rows[:, 0].argsort(), 2:])


def _vkitti_sequence(rgb_folder: Path, camera: int) -> Recording:
    frames = sorted(rgb_folder.glob("rgb_*.jpg"))
    variant = rgb_folder.parents[2]
    intrinsics = _vkitti_table(variant / "intrinsic.txt", camera)
    cam_from_world = _vkitti_table(variant / "extrinsic.txt", camera).reshape(-1, 4, 4)

    def beside(kind: str, prefix: str, index: int) -> Path:
        number = frames[index].stem[4:]
        return variant / "frames" / kind / f"Camera_{camera}" / f"{prefix}_{number}.png"

    def read(indices: Sequence[int]) -> RawClip:
        K = np.zeros((len(indices), 3, 3))
        K[:, [0, 1, 0, 1], [0, 1, 2, 2]] = intrinsics[list(indices)]
        K[:, 2, 2] = 1
        tied = are_neighbours(indices)
        depth = read_if_there(indices, lambda i: beside("depth", "depth", i), read_png16)
        if depth is not None:
            depth = np.where(depth == _VKITTI_SKY_CM, np.nan, depth / 100.0)  # centimetres
        return RawClip(
            rgb=stack(read_rgb, [frames[i] for i in indices]),
            K=K,
            world_from_cam=np.linalg.inv(cam_from_world[list(indices)]),
            depth=depth,
            flow=read_if_there(
                indices[:-1] if tied else [],
                lambda i: beside("forwardFlow", "flow", i),
                read_vkitti_flow,
            ),
            flow_backward=read_if_there(
                indices[1:] if tied else [],
                lambda i: beside("backwardFlow", "backwardFlow", i),
                read_vkitti_flow,
            ),
            is_metric=True,
        )

    return Recording(str(rgb_folder), min(len(frames), len(cam_from_world)), read)

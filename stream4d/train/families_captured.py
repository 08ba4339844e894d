"""Captured data sets in the folder layouts that their makers (or usual extraction scripts) produce.

ScanNet (Dai et al. 2017), Waymo Open (Sun et al. 2020) as extracted to images, CO3D v2 (Reizenstein et al. 2021),
MegaDepth (Li and Snavely 2018).
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stream4d.errors import TrainingError
from stream4d.geometry.transforms import invert, rigid, rotation_from_quat_wxyz
from stream4d.train.formats import read_exr, read_h5, read_png16, read_rgb, stack
from stream4d.train.recordings import RawClip, Recording

Array = npt.NDArray[Any]


# --- ScanNet --------------------------------------------------------------------------------------------


def scannet(root: Path) -> list[Recording]:
    """``scene0000_00/{color,depth,pose,intrinsic}`` as SensReader exports them; frames without a pose are left out."""
    return [
        _scannet_sequence(folder.parent) for folder in sorted(root.rglob("pose")) if folder.is_dir()
    ]


def _scannet_sequence(folder: Path) -> Recording:
    found = sorted((int(p.stem), p) for p in (folder / "color").glob("*.jpg"))
    poses = {n: np.loadtxt(folder / "pose" / f"{n}.txt") for n, _ in found}
    frames = [(n, path) for n, path in found if np.isfinite(poses[n]).all()]
    K_colour = np.loadtxt(folder / "intrinsic" / "intrinsic_color.txt")[:3, :3]
    K_depth = np.loadtxt(folder / "intrinsic" / "intrinsic_depth.txt")[:3, :3]

    def read(indices: Sequence[int]) -> RawClip:
        numbers = [frames[i][0] for i in indices]
        rgb = stack(read_rgb, [frames[i][1] for i in indices])
        depth = stack(read_png16, [folder / "depth" / f"{n}.png" for n in numbers]) / 1000.0
        return RawClip(
            rgb=np.stack([_onto_depth(image, K_colour, K_depth, depth.shape[1:]) for image in rgb]),
            K=np.tile(K_depth, (len(numbers), 1, 1)),
            world_from_cam=np.stack([poses[n] for n in numbers]),
            depth=depth,
            is_static=True,
            is_metric=True,
        )

    return Recording(str(folder), len(frames), read, max_stride=8)


def _onto_depth(image: Array, K_colour: Array, K_depth: Array, size: tuple[int, ...]) -> Array:
    """Resample the colour image to the depth camera's raster (SensReader's two images share one viewpoint)."""
    H, W = size
    v, u = np.mgrid[:H, :W].astype(np.float64)
    x = (u - K_depth[0, 2]) / K_depth[0, 0] * K_colour[0, 0] + K_colour[0, 2]
    y = (v - K_depth[1, 2]) / K_depth[1, 1] * K_colour[1, 1] + K_colour[1, 2]
    shrink = K_colour[0, 0] / K_depth[0, 0]
    smooth = cv2.GaussianBlur(image, (0, 0), 0.5 * shrink) if shrink > 1.2 else image
    return np.asarray(
        cv2.remap(
            smooth,
            x.astype(np.float32),
            y.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
    )


# --- Waymo, extracted -----------------------------------------------------------------------------------


def waymo(root: Path) -> list[Recording]:
    """``SEGMENT/{00000_1.jpg,00000_1.npz,00000_1.exr|npy}``: npz holds intrinsics, cam2world; depth is lidar."""
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*_*.npz")):
        groups[path.parent, path.stem.rsplit("_", 1)[1]].append(path)
    return [
        Recording(f"{folder}, camera {camera}", len(paths), _WaymoReader(paths))
        for (folder, camera), paths in sorted(groups.items())
    ]


class _WaymoReader:
    """Reads frames of one camera of one segment."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __call__(self, indices: Sequence[int]) -> RawClip:
        K, poses = [], []
        for i in indices:
            with np.load(self._paths[i]) as camera:
                K.append(camera["intrinsics"].astype(np.float64))
                poses.append(camera["cam2world"].astype(np.float64))
        paths = [self._paths[i] for i in indices]
        return RawClip(
            rgb=stack(read_rgb, [p.with_suffix(".jpg") for p in paths]),
            K=np.stack(K),
            world_from_cam=np.stack(poses),
            depth=stack(_waymo_depth, paths),
            is_metric=True,
        )


def _waymo_depth(path: Path) -> Array:
    plain = path.with_suffix(".npy")
    return np.asarray(np.load(plain)) if plain.exists() else read_exr(path.with_suffix(".exr"))


# --- CO3D -----------------------------------------------------------------------------------------------

_CV_FROM_P3D = np.diag([-1.0, -1.0, 1.0])
"""PyTorch3D cameras look along z with x left and y up."""


def co3d(root: Path) -> list[Recording]:
    """``CATEGORY/{frame_annotations.jgz,SEQUENCE/{images,depths,depth_masks}}``: turntable views of one object."""
    recordings = []
    for listing in sorted(root.rglob("frame_annotations.jgz")):
        with gzip.open(listing, "rt") as file:
            rows = json.load(file)
        sequences: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            sequences[row["sequence_name"]].append(row)
        base = listing.parents[1]
        for name, frames in sorted(sequences.items()):
            frames.sort(key=lambda row: row["frame_number"])
            label = str(listing.parent / name)
            recordings.append(
                Recording(label, len(frames), _Co3dReader(base, frames), max_stride=3)
            )
    return recordings


def co3d_camera(viewpoint: dict[str, Any], size: tuple[int, int]) -> tuple[Array, Array]:
    """Turn a PyTorch3D viewpoint into K (3, 3) and world_from_cam (4, 4) with OpenCV axes.

    Args:
        viewpoint: R and T with ``x_view = x_world @ R + T``, focal length and principal point in NDC.
        size: (H, W) of the image.

    Raises:
        TrainingError: the NDC convention has an unknown name.
    """
    H, W = size
    convention = viewpoint.get("intrinsics_format", "ndc_norm_image_bounds")
    if convention == "ndc_isotropic":
        half = np.array([min(H, W), min(H, W)]) / 2
    elif convention == "ndc_norm_image_bounds":
        half = np.array([W, H]) / 2
    else:
        raise TrainingError(f"CO3D intrinsics_format {convention!r} is not known")
    focal = np.asarray(viewpoint["focal_length"]) * half
    centre = np.array([W, H]) / 2 - np.asarray(viewpoint["principal_point"]) * half
    K = np.array([[focal[0], 0, centre[0] - 0.5], [0, focal[1], centre[1] - 0.5], [0, 0, 1]])
    R = _CV_FROM_P3D @ np.asarray(viewpoint["R"], np.float64).T
    return K, invert(rigid(R, _CV_FROM_P3D @ np.asarray(viewpoint["T"], np.float64)))


class _Co3dReader:
    """Reads frames of one CO3D sequence; views of another size are cropped about their centre to the first's."""

    def __init__(self, base: Path, rows: list[dict[str, Any]]) -> None:
        self._base, self._rows = base, rows

    def __call__(self, indices: Sequence[int]) -> RawClip:
        views = [self._view(self._rows[i]) for i in indices]
        H, W = (min(view[0].shape[axis] for view in views) for axis in (0, 1))
        rgb, depth, K, poses = [], [], [], []
        for image, z, intrinsics, pose in views:
            top, left = (image.shape[0] - H) // 2, (image.shape[1] - W) // 2
            rgb.append(image[top : top + H, left : left + W])
            depth.append(z[top : top + H, left : left + W])
            K.append(intrinsics - np.array([[0, 0, left], [0, 0, top], [0, 0, 0]]))
            poses.append(pose)
        return RawClip(
            rgb=np.stack(rgb),
            K=np.stack(K),
            world_from_cam=np.stack(poses),
            depth=np.stack(depth),
            is_static=True,
        )

    def _view(self, row: dict[str, Any]) -> tuple[Array, Array, Array, Array]:
        image = read_rgb(self._base / row["image"]["path"])
        depth = np.full(image.shape[:2], np.nan, np.float32)
        if row.get("depth") and row["depth"].get("path"):
            bits = read_png16(self._base / row["depth"]["path"]).astype(np.uint16)
            depth = bits.view(np.float16).astype(np.float32)  # half floats stored as 16-bit grey
            depth *= row["depth"].get("scale_adjustment", 1.0)
            if row["depth"].get("mask_path"):
                mask = read_png16(self._base / row["depth"]["mask_path"])
                depth = np.where(mask > 0, depth, np.nan)
        K, pose = co3d_camera(row["viewpoint"], image.shape[:2])
        return image, depth, K, pose


# --- MegaDepth ------------------------------------------------------------------------------------------


def megadepth(root: Path) -> list[Recording]:
    """``SCENE/dense0/{imgs,depths}`` and, where it is there, ``sparse/{cameras,images}.txt`` (COLMAP, undistorted).

    With cameras, a recording walks from each photo to the next nearest viewpoint. Without, each photo is a
    still recording of its own: depth only. Depth is negative or zero where a photo has ordinal labels only.
    """
    recordings: list[Recording] = []
    for depths in sorted(root.rglob("depths")):
        folder = depths.parent
        photos = {
            p.stem: p
            for p in sorted((folder / "imgs").glob("*"))
            if (depths / f"{p.stem}.h5").exists()
        }
        model = folder / "sparse"
        if (model / "images.txt").exists():
            views = _colmap_views(model)
            named = [(photos[s], *views[s]) for s in sorted(photos) if s in views]
            recordings.append(
                Recording(str(folder), len(named), _MegaReader(depths, _by_nearness(named)))
            )
        else:
            recordings += [
                Recording(str(path), 2, _MegaReader(depths, [(path, None, None)] * 2))
                for path in photos.values()
            ]
    return recordings


_View = tuple[Path, Array | None, Array | None]


def _colmap_views(model: Path) -> dict[str, tuple[Array, Array]]:
    """Read a COLMAP text model: image stem → (K, world_from_cam). Pixel centres are at .5 there."""
    cameras = {}
    for line in (model / "cameras.txt").read_text().splitlines():
        if line.startswith("#") or not line.strip():
            continue
        number, kind, _, _, *parameters = line.split()
        values = [float(p) for p in parameters]
        fx, fy, cx, cy = (values[0], *values) if kind.startswith("SIMPLE") else values[:4]
        cameras[number] = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    views = {}
    lines = [x for x in (model / "images.txt").read_text().splitlines() if not x.startswith("#")]
    for line in lines[::2]:  # every other line lists points
        _, *numbers, camera, name = line.split(maxsplit=9)
        values = [float(n) for n in numbers]
        cam_from_world = rigid(rotation_from_quat_wxyz(np.array(values[:4])), np.array(values[4:7]))
        views[Path(name).stem] = cameras[camera], invert(cam_from_world)
    return views


def _by_nearness(views: Sequence[tuple[Path, Array, Array]]) -> list[_View]:
    """Order views greedily, so that neighbours in the list stand and look alike."""
    left = list(views)
    path: list[_View] = [left.pop(0)] if left else []
    while left:
        pose = path[-1][2]
        assert pose is not None
        spread = np.median([np.linalg.norm(v[2][:3, 3] - pose[:3, 3]) for v in left]) + 1e-9
        cost = [
            np.linalg.norm(v[2][:3, 3] - pose[:3, 3]) / spread - v[2][:3, 2] @ pose[:3, 2]
            for v in left
        ]
        path.append(left.pop(int(np.argmin(cost))))
    return path


class _MegaReader:
    """Reads photos of one MegaDepth scene, at the size of the smallest photo read together."""

    def __init__(self, depths: Path, views: Sequence[_View]) -> None:
        self._depths, self._views = depths, views

    def __call__(self, indices: Sequence[int]) -> RawClip:
        picked = [self._views[i] for i in indices]
        images = [read_rgb(path) for path, _, _ in picked]
        maps = [read_h5(self._depths / f"{path.stem}.h5", "depth") for path, _, _ in picked]
        H, W = (min(image.shape[axis] for image in images) for axis in (0, 1))
        corners = [((i.shape[0] - H) // 2, (i.shape[1] - W) // 2) for i in images]
        posed = all(K is not None for _, K, _ in picked)
        shift = [np.array([[0, 0, left], [0, 0, top], [0, 0, 0]]) for top, left in corners]
        return RawClip(
            rgb=np.stack(
                [i[t : t + H, s : s + W] for i, (t, s) in zip(images, corners, strict=True)]
            ),
            K=np.stack([K - s for (_, K, _), s in zip(picked, shift, strict=True) if K is not None])
            if posed
            else None,
            world_from_cam=np.stack([T for _, _, T in picked if T is not None]) if posed else None,
            depth=np.stack(
                [m[t : t + H, s : s + W] for m, (t, s) in zip(maps, corners, strict=True)]
            ),
            is_static=posed,
        )

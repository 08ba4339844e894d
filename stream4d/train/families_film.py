"""Data sets cut from open animation films: Spring (Mehl et al. 2023) and MPI Sintel (Butler et al. 2012)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stream4d.train.formats import (
    are_neighbours,
    read_cam,
    read_dpt,
    read_flo,
    read_h5,
    read_if_there,
    read_png16,
    read_rgb,
    stack,
)
from stream4d.train.recordings import RawClip, Recording

Array = npt.NDArray[Any]


# --- Spring ---------------------------------------------------------------------------------------------

_SPRING_BASELINE_M = 0.065


def spring(root: Path) -> list[Recording]:
    """``train/0001/{frame_left,disp1_left,flow_FW_left,flow_BW_left,cam_data}``; labels at twice the size."""
    return [
        _spring_sequence(cam.parent)
        for cam in sorted(root.rglob("cam_data"))
        if (cam.parent / "frame_left").is_dir()
    ]


def _every_second(values: Array) -> Array:
    """Take the label of the sub-pixel nearest to each image pixel's upper left quarter."""
    return values[::2, ::2]


def _spring_sequence(folder: Path) -> Recording:
    frames = sorted((folder / "frame_left").glob("frame_left_*.png"))
    intrinsics = np.loadtxt(folder / "cam_data" / "intrinsics.txt", ndmin=2)
    cam_from_world = np.loadtxt(folder / "cam_data" / "extrinsics.txt", ndmin=2).reshape(-1, 4, 4)

    def labels(kind: str, index: int, suffix: str, key: str) -> Array | None:
        path = folder / kind / f"{kind}_{frames[index].stem.split('_')[-1]}.{suffix}"
        return _every_second(read_h5(path, key)).astype(np.float32) if path.exists() else None

    def flows(kind: str, indices: Sequence[int]) -> Array | None:
        maps = [labels(kind, i, "flo5", "flow") for i in indices]
        found = [m for m in maps if m is not None]
        # The values are pixels of the image, the raster is twice as fine.
        return np.stack(found) if maps and len(found) == len(maps) else None

    def depth_of(indices: Sequence[int]) -> Array | None:
        disparity = [labels("disp1_left", i, "dsp5", "disparity") for i in indices]
        found = [d for d in disparity if d is not None]
        if not found or len(found) != len(disparity):
            return None
        fx = intrinsics[list(indices), 0][:, None, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(fx * _SPRING_BASELINE_M / np.abs(np.stack(found)), np.float32)

    def read(indices: Sequence[int]) -> RawClip:
        K = np.zeros((len(indices), 3, 3))
        K[:, [0, 1, 0, 1], [0, 1, 2, 2]] = intrinsics[list(indices)]
        K[:, 2, 2] = 1
        tied = are_neighbours(indices)
        return RawClip(
            rgb=stack(read_rgb, [frames[i] for i in indices]),
            K=K,
            world_from_cam=np.linalg.inv(cam_from_world[list(indices)]),
            depth=depth_of(indices),
            flow=flows("flow_FW_left", indices[:-1]) if tied else None,
            flow_backward=flows("flow_BW_left", indices[1:]) if tied else None,
            is_metric=True,
        )

    return Recording(str(folder), min(len(frames), len(cam_from_world)), read)


# --- Sintel ---------------------------------------------------------------------------------------------


def sintel(root: Path) -> list[Recording]:
    """``training/{clean,final}/SCENE/frame_0001.png`` with flow, occlusions, invalid, depth and camdata_left beside.

    Backward flow, which Sintel itself has not, is read where there is a ``flow_backward`` (``train.pathtraced``).
    """
    training = root / "training" if (root / "training").is_dir() else root
    return [
        _sintel_sequence(training, folder)
        for render in ("clean", "final")
        for folder in sorted((training / render).glob("*"))
        if folder.is_dir()
    ]


def _sintel_sequence(training: Path, folder: Path) -> Recording:
    frames = sorted(folder.glob("frame_*.png"))
    scene = folder.name

    def beside(kind: str, index: int, suffix: str) -> Path:
        return training / kind / scene / f"{frames[index].stem}{suffix}"

    def masks(kind: str, indices: Sequence[int]) -> Array | None:
        maps = read_if_there(indices, lambda i: beside(kind, i, ".png"), read_png16)
        return None if maps is None else maps > 0

    def read(indices: Sequence[int]) -> RawClip:
        tied = are_neighbours(indices)
        pairs = indices[:-1] if tied else []
        flow = read_if_there(pairs, lambda i: beside("flow", i, ".flo"), read_flo)
        invalid = masks("invalid", pairs)
        if flow is not None and invalid is not None:
            flow = np.where(invalid[..., None], np.nan, flow)
        cameras = [beside("camdata_left", i, ".cam") for i in indices]
        posed = [read_cam(path) for path in cameras] if all(c.exists() for c in cameras) else None
        return RawClip(
            rgb=stack(read_rgb, [frames[i] for i in indices]),
            K=None if posed is None else np.stack([K for K, _ in posed]),
            world_from_cam=None if posed is None else np.stack([pose for _, pose in posed]),
            depth=read_if_there(indices, lambda i: beside("depth", i, ".dpt"), read_dpt),
            flow=flow,
            flow_backward=read_if_there(
                indices[1:] if tied else [], lambda i: beside("flow_backward", i, ".flo"), read_flo
            ),
            occluded=masks("occlusions", pairs),
        )

    return Recording(str(folder), len(frames), read)

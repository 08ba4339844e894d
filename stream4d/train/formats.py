"""File formats of flow, depth and cameras, each as its maker documents it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stream4d.errors import MissingDependencyError, TrainingError

Array = npt.NDArray[Any]
_TAG = 202021.25
"""First float of Middlebury .flo and Sintel .dpt and .cam files ("PIEH")."""


def read_rgb(path: Path) -> Array:  # (H, W, 3) uint8
    """Read a colour image.

    Raises:
        TrainingError: it is missing or cannot be decoded.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise TrainingError(f"cannot read the image {str(path)!r}")
    return np.ascontiguousarray(image[..., ::-1])


def read_png16(path: Path) -> Array:  # (H, W) or (H, W, 3 as R, G, B)
    """Read an image as it is stored, 8 or 16 bit.

    Raises:
        TrainingError: it is missing or cannot be decoded.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise TrainingError(f"cannot read the image {str(path)!r}")
    return np.asarray(image[..., ::-1] if image.ndim == 3 else image)


def _tagged(path: Path) -> bytes:
    data = path.read_bytes()
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != np.float32(_TAG):
        raise TrainingError(f"{str(path)!r} does not begin with the tag {_TAG}: not such a file")
    return data[4:]


def _sized(path: Path, channels: int) -> Array:
    data = _tagged(path)
    W, H = (int(n) for n in np.frombuffer(data, "<i4", 2))
    if len(data) < 8 + 4 * W * H * channels:
        raise TrainingError(f"{str(path)!r} is shorter than its {W}x{H} pixels")
    return np.frombuffer(data, "<f4", W * H * channels, 8).reshape(H, W, channels)


def read_flo(path: Path) -> Array:  # (H, W, 2)
    """Read Middlebury flow; above 1e9 means unknown and becomes NaN."""
    flow = _sized(path, 2)
    return np.where(np.abs(flow) > 1e9, np.nan, flow)


def read_dpt(path: Path) -> Array:  # (H, W)
    """Read Sintel depth."""
    return _sized(path, 1)[..., 0]


def read_cam(path: Path) -> tuple[Array, Array]:
    """Read a Sintel camera: K (3, 3) and world_from_cam (4, 4); the file holds cam_from_world."""
    numbers = np.frombuffer(_tagged(path), "<f8", 21)
    cam_from_world = np.eye(4)
    cam_from_world[:3] = numbers[9:].reshape(3, 4)
    return numbers[:9].reshape(3, 3).copy(), np.linalg.inv(cam_from_world)


def read_h5(path: Path, key: str) -> Array:
    """Read one array of an HDF5 file (Spring .flo5 and .dsp5, MegaDepth .h5).

    Raises:
        MissingDependencyError: h5py is not installed.
    """
    with _package("h5py", path).File(path, "r") as file:
        if key not in file:
            raise TrainingError(f"{str(path)!r} holds {sorted(file)}, not {key!r}")
        return np.asarray(file[key])


def read_vkitti_flow(path: Path) -> Array:  # (H, W, 2)
    """Read VKITTI 2 flow: 16-bit R and G span ±(width-1), ±(height-1); B = 0 means unknown."""
    image = read_png16(path)
    H, W = image.shape[:2]
    span = np.array([W - 1, H - 1], np.float32)
    flow = (image[..., :2].astype(np.float32) * (2 / 65535) - 1) * span
    return np.where(image[..., 2:3] == 0, np.nan, flow)


def read_exr(path: Path) -> Array:  # (H, W)
    """Read a one-channel EXR depth map.

    Raises:
        MissingDependencyError: OpenEXR is not installed.
    """
    channels = _package("OpenEXR", path).File(str(path)).channels()
    pixels = np.asarray(next(iter(channels.values())).pixels, np.float32)
    return pixels[..., 0] if pixels.ndim == 3 else pixels


def _package(name: str, path: Path) -> Any:
    """Import what reads a file, or say that it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            name, needed_for=f"reading {path.name}", extra="train"
        ) from error


def stack(read: Callable[[Path], Array], paths: Sequence[Path]) -> Array:
    """Read files into one array."""
    return np.stack([read(path) for path in paths])


def are_neighbours(indices: Sequence[int]) -> bool:
    """Return whether frames follow one another, so that flow files tie them together."""
    return all(b == a + 1 for a, b in pairwise(indices))


def read_if_there(
    indices: Sequence[int], path_of: Callable[[int], Path], read: Callable[[Path], Array]
) -> Array | None:
    """Read one file a frame into one array, or None where one is missing or there is no frame."""
    paths = [path_of(i) for i in indices]
    if not paths or not all(path.exists() for path in paths):
        return None
    return stack(read, paths)

"""Optical flow: file formats, errors, and the DIS reference that every machine can repeat.

EPE is the mean length of the error; Fl the share of pixels that are wrong by more than 3 px *and* 5 % of the true
length (KITTI 2015); 1px the share wrong by more than one pixel. DIS is OpenCV's dense inverse search at its medium
preset (Kroeger et al., ECCV 2016), computed on the same images: a classical figure to stand beside ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from stream4d.errors import EvaluationError
from stream4d.models import dis
from stream4d.packets import Array

FLO_TAG = 202021.25
"""First float of a Middlebury file ("PIEH")."""
UNKNOWN_FLOW = 1e9
"""Middlebury marks unknown flow by components beyond this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowScore:
    """Means over all known pixels of all frames."""

    epe: float
    """Mean end-point error, pixels of the ground truth."""
    fl_percent: float
    """Pixels wrong by > 3 px and > 5 %, percent."""
    px1_percent: float
    """Pixels wrong by > 1 px, percent."""
    pixels: int
    """Pixels compared."""


class FlowScorer:
    """Accumulates flow errors in constant memory, every known pixel with equal weight."""

    def __init__(self) -> None:
        self._sums = np.zeros(3)
        self._pixels = 0

    def add(self, predicted: Array, truth: Array) -> None:
        """Compare (H, W, 2) fields; truth is NaN where unknown, a predicted NaN counts as zero flow."""
        known = np.isfinite(truth).all(axis=-1)
        flow = np.nan_to_num(predicted[known].astype(np.float64))
        true = truth[known].astype(np.float64)
        error = np.linalg.norm(flow - true, axis=-1)
        is_outlier = (error > 3) & (error > 0.05 * np.linalg.norm(true, axis=-1))
        self._sums += error.sum(), is_outlier.sum(), (error > 1).sum()
        self._pixels += int(known.sum())

    def score(self) -> FlowScore | None:
        """Return the means, or None where nothing was compared."""
        if self._pixels == 0:
            return None
        epe, outliers, px1 = self._sums / self._pixels
        return FlowScore(
            epe=float(epe),
            fl_percent=float(100 * outliers),
            px1_percent=float(100 * px1),
            pixels=self._pixels,
        )


def read_flow(path: Path) -> Array:
    """Read ``.flo`` (Middlebury) or 16-bit ``.png`` (KITTI): (H, W, 2) float32, NaN where unknown.

    Raises:
        EvaluationError: unknown suffix, or a damaged file.
    """
    if path.suffix == ".flo":
        return _read_flo(path)
    if path.suffix == ".png":
        return _read_kitti(path)
    raise EvaluationError(f"{path} is neither .flo (Middlebury) nor .png (KITTI) flow")


def _read_flo(path: Path) -> Array:
    data = path.read_bytes()
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != np.float32(FLO_TAG):
        raise EvaluationError(f"{path} does not begin with the Middlebury tag {FLO_TAG}")
    W, H = (int(n) for n in np.frombuffer(data, "<i4", 2, offset=4))
    if W <= 0 or H <= 0 or len(data) != 12 + 8 * W * H:
        raise EvaluationError(f"{path} holds {len(data)} bytes, but says {W}x{H}")
    flow = np.frombuffer(data, "<f4", offset=12).reshape(H, W, 2).copy()
    flow[(np.abs(flow) > UNKNOWN_FLOW).any(axis=-1)] = np.nan
    return flow


def _read_kitti(path: Path) -> Array:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16 or image.ndim != 3:
        raise EvaluationError(f"{path} is not a 16-bit three-channel PNG in KITTI's flow format")
    valid, v, u = (image[..., c].astype(np.float32) for c in range(3))  # OpenCV reads BGR
    flow = np.stack([u - 32768, v - 32768], axis=-1) / 64
    flow[valid == 0] = np.nan
    return flow


def dis_flow(first_rgb: Array, second_rgb: Array) -> Array:
    """Return (H, W, 2) flow of OpenCV's DIS, medium preset, between two uint8 images."""
    return dis.dis_flow(dis.grey_image(first_rgb), dis.grey_image(second_rgb), "medium")

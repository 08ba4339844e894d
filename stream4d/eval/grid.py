"""Put predictions and ground truth on one pixel grid: the ground truth's own size.

The reader resizes the whole source image, so a processed pixel maps to the source by ratio alone. Predictions are
brought to the ground truth's size (depth, probability and flow by linear interpolation; flow vectors are scaled),
ground truth is never interpolated. Where the run was given the lens (``calibrated``), its frames are undistorted:
ground truth is then moved through the same undistortion by nearest neighbour.
"""

from __future__ import annotations

import cv2
import numpy as np

from stream4d.eval.sequence import Camera
from stream4d.geometry.camera import scale_K
from stream4d.packets import Array
from stream4d.reader.preprocess import undistortion


class TruthGrid:
    """Maps for one sequence.

    Args:
        source_size: (width, height) of the source images.
        camera: true camera of the source images, or None.
        calibrated: the run was given that camera.
    """

    def __init__(
        self, source_size: tuple[int, int], camera: Camera | None, *, calibrated: bool
    ) -> None:
        self._size = source_size
        self._camera = camera
        self._maps: tuple[Array, Array] | None = None
        self._K = None if camera is None else camera.K
        if camera is not None and camera.distortion and calibrated:
            self._K, _ = undistortion(camera.K, np.array(camera.distortion), source_size)
            # The reader's own maps are fixed-point and floor under nearest: these are the same map in floats.
            x, y = cv2.initUndistortRectifyMap(
                camera.K, np.array(camera.distortion), None, self._K, source_size, cv2.CV_32FC1
            )
            self._maps = x, y
        self._rays: Array | None = None

    @property
    def undistorts(self) -> bool:
        """True where frames, and so ground truth, are undistorted."""
        return self._maps is not None

    @property
    def keeps_distortion(self) -> bool:
        """True where frames and ground truth keep the distortion of the lens: K alone does not project."""
        return self._camera is not None and bool(self._camera.distortion) and not self.undistorts

    def truth(self, image: Array) -> Array:
        """Return a ground-truth map as the run's frames see it, by nearest neighbour; 0 outside."""
        if self._maps is None:
            return image
        return cv2.remap(image, *self._maps, cv2.INTER_NEAREST, borderValue=0)

    def truth_K(self, size: tuple[int, int]) -> Array | None:
        """Return the true K of the run's frames at (width, height), or None where unknown."""
        if self._K is None:
            return None
        return scale_K(self._K, size[0] / self._size[0], size[1] / self._size[1])

    def truth_rays(self, shape: tuple[int, int]) -> Array | None:
        """Return (H, W, 3) true rays with z = 1 for a ground-truth map, or None where the camera is unknown.

        They follow the lens: in a run without calibration, frames and ground truth keep its distortion.
        """
        if self._camera is None or self._K is None:
            return None
        if self._rays is None or self._rays.shape[:2] != shape:
            self._rays = self._make_rays(shape)
        return self._rays

    def _make_rays(self, shape: tuple[int, int]) -> Array:
        H, W = shape
        K = self.truth_K((W, H))
        assert K is not None
        assert self._camera is not None
        v, u = np.mgrid[:H, :W].astype(np.float64)
        xy = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]], axis=-1)
        if self._camera.distortion and not self.undistorts:
            xy = _remove_distortion(xy, np.array(self._camera.distortion))
        return np.concatenate([xy, np.ones((H, W, 1))], axis=-1)


def _remove_distortion(distorted: Array, distortion: Array) -> Array:
    """Return the ideal (H, W, 2) coordinates whose distortion gives ``distorted``, by fixed-point iteration.

    OpenCV's own inverse stops after five steps, which leaves 0.1 px in the corners of a strong lens.
    """
    ideal, zero = distorted.copy(), np.zeros(3)
    for _ in range(60):
        points = np.concatenate([ideal, np.ones((*ideal.shape[:2], 1))], axis=-1).reshape(-1, 1, 3)
        again, _ = cv2.projectPoints(points, zero, zero, np.eye(3), distortion)
        step = distorted - again.reshape(ideal.shape)
        ideal += step
        if np.abs(step).max() < 1e-7:
            break
    return ideal


def camera_rays(K: Array, size: tuple[int, ...], shape: tuple[int, int]) -> Array:
    """Return (H, W, 3) rays with z = 1 of a camera whose K belongs to images of ``size`` (h, w)."""
    H, W = shape
    K = scale_K(K, W / size[1], H / size[0])
    v, u = np.mgrid[:H, :W].astype(np.float64)
    return np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones((H, W))], axis=-1)


def resize_map(image: Array, shape: tuple[int, int]) -> Array:
    """Resize a predicted (h, w) map to (H, W) linearly; NaN spreads to every pixel that it touches."""
    if image.shape[:2] == shape:
        return image
    resized: Array = cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return resized


def resize_flow(flow: Array, shape: tuple[int, int]) -> Array:
    """Resize a predicted (h, w, 2) flow to (H, W, 2), vectors in pixels of the new size."""
    h, w = flow.shape[:2]
    scaled: Array = resize_map(flow, shape) * np.array([shape[1] / w, shape[0] / h], flow.dtype)
    return scaled

"""Turns posed frames into Rerun log calls on one recording, and remembers what was already sent."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import rerun as rr

from stream4d.packets import Array, PosedFrame, PoseRevision
from stream4d.viz import blueprint as names
from stream4d.viz import colors
from stream4d.viz.cloud import MOVING_FROM, StaticCloud, frame_points, voxel_for

PATH_BLOCK = 128
"""Camera positions per line strip: the last strip is sent again with every frame, earlier ones never."""
CLOUD_BLOCK = 2048
"""Points per batch of the static cloud, likewise."""
CLOUD_STEP = 256
"""The growing batch is sent again when it has this many new points …"""
CLOUD_EVERY = 10
"""… or this many frames have passed."""
MAP_SIZE = 256
"""Long side of depth, flow and confidence pictures in the viewer."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How the run is doing when a frame is written."""

    fps: float | None = None
    """None: too early to tell."""
    latency_ms: float | None = None
    """From capture to the view; None where there is nothing live to measure."""


class SceneLog:
    """One Rerun recording of a run. Not thread-safe: one thread owns it.

    Data grows by what is new: the path and the static cloud are sent in blocks under their own entities,
    so a recording of T frames holds O(T), and scrubbing back shows what was known then.
    """

    def __init__(
        self,
        recording: rr.RecordingStream,
        *,
        max_points: int,
        timing: bool,
        fit_at_end: bool = True,
    ) -> None:
        """Start on ``recording``.

        Args:
            recording: already connected to a viewer or file.
            max_points: bound of the static cloud.
            timing: frames will come with fps and latency.
            fit_at_end: let ``finish`` move the eye so that it sees the whole scene. False for a viewer that is
                watched meanwhile.
        """
        self._rec = recording
        self._max_points = max_points
        self._timing = timing
        self._plots: set[str] = set()
        self._fit_at_end = fit_at_end
        self._segment: int | None = None
        self._begin_empty()
        recording.log(names.WORLD, rr.ViewCoordinates.RDF, static=True)

    def _begin_empty(self) -> None:
        self._indices: list[int] = []
        self._poses: list[Array] = []
        self._scale: float | None = None
        self._K: Array | None = None
        self._depth_log_bounds: Array | None = None
        self._flow_longest: float | None = None
        self._cloud = StaticCloud(max_points=self._max_points)
        self._cloud_sent = 0
        self._cloud_sent_at = 0

    def log(self, frame: PosedFrame, timing: Timing | None = None) -> None:
        """Send one frame. Frames may be missing (a viewer that drops), never out of order."""
        self._rec.set_time(names.FRAME, sequence=frame.index)
        self._rec.set_time(names.TIME, duration=np.timedelta64(frame.timestamp_ns, "ns"))
        if frame.segment != self._segment:
            self._start_segment(frame)
        self._indices.append(frame.index)
        self._poses.append(frame.world_from_cam.copy())  # a view would keep its base alive
        self._send_path_block((len(self._poses) - 1) // PATH_BLOCK)
        self._log_camera(frame)
        self._log_points(frame)
        self._log_maps(frame)
        self._log_plots(frame, timing)

    def revise(self, revision: PoseRevision) -> None:
        """Move path and cloud to better poses, from the current time on.

        Frames of earlier segments, and frames that a live view dropped, are passed over.
        """
        _, mine, at = np.intersect1d(
            revision.indices, np.array(self._indices, np.int64), return_indices=True
        )
        if len(mine) == 0:
            return
        revision = PoseRevision(
            indices=revision.indices[mine],
            world_from_cam=revision.world_from_cam[mine],
            scale=revision.scale[mine],
        )
        moved = self._cloud.revise(revision, np.stack([self._poses[i] for i in at]))
        for i, pose in zip(at, revision.world_from_cam, strict=True):
            self._poses[i] = pose
        for block in np.unique(at // PATH_BLOCK).tolist():
            self._send_path_block(block)
        for block in np.unique(moved[moved < self._cloud_sent] // CLOUD_BLOCK).tolist():
            self._send_cloud_block(block)

    def finish(self) -> None:
        """Send what was held back, and a layout for the whole scene."""
        if not self._poses:
            return
        self._send_new_points()
        if not self._fit_at_end:
            return
        positions = np.stack([pose[:3, 3] for pose in self._poses])
        eye = names.fitted_eye(positions, self._cloud.points)
        self._rec.send_blueprint(names.layout(eye, self._plots))

    def _send_first_layout(self, frame: PosedFrame) -> None:
        bounds = colors.depth_range(frame.depth) or (1.0, 1.0)
        eye = names.default_eye(float(np.sqrt(bounds[0] * bounds[1])))
        plots = set(names.PLOT_TITLES) - (set() if self._timing else names.TIMING_PLOTS)
        self._rec.send_blueprint(names.layout(eye, plots))

    def _start_segment(self, frame: PosedFrame) -> None:
        """Begin the 3D scene anew: segments share neither scale nor origin."""
        if self._segment is not None:
            for entity in (names.PATH, names.STATIC, names.MOVING):
                self._rec.log(entity, rr.Clear(recursive=True))
            self._begin_empty()
        self._segment = frame.segment
        self._cloud_sent_at = frame.index
        self._send_first_layout(frame)

    def _log_camera(self, frame: PosedFrame) -> None:
        if self._scale is None and (bounds := colors.depth_range(frame.depth)):
            self._scale = float(np.sqrt(bounds[0] * bounds[1]))
        pose = frame.world_from_cam
        self._rec.log(names.CAMERA, rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        if self._K is None or not np.allclose(self._K, frame.K, rtol=1e-4):
            self._K = frame.K
            self._rec.log(
                names.IMAGE,
                rr.Pinhole(
                    image_from_camera=frame.K,
                    resolution=frame.rgb.shape[1::-1],
                    camera_xyz=rr.ViewCoordinates.RDF,
                    image_plane_distance=0.2 * (self._scale or 1.0),
                    color=colors.PATH,
                ),
            )
        self._rec.log(names.IMAGE, _jpeg(frame.rgb, quality=80))
        self._rec.log(names.MOTION, _png(colors.motion_layer(frame.motion_prob)))

    def _log_points(self, frame: PosedFrame) -> None:
        points = frame_points(frame)
        if self._cloud.voxel is None:
            self._cloud.voxel = voxel_for(frame)
        if self._cloud.add(points.static_in_world, points.static_rgb, frame.index):
            self._cloud_sent = 0
            self._rec.log(names.STATIC, rr.Clear(recursive=True))
        due = frame.index - self._cloud_sent_at >= CLOUD_EVERY
        if due or len(self._cloud) - self._cloud_sent >= CLOUD_STEP:
            self._send_new_points()
            self._cloud_sent_at = frame.index
        # A third of the accent keeps what moves recognisable and still stands out.
        tinted = points.moving_rgb * 0.6 + np.array(colors.MOVING, np.float32) * 0.4
        self._rec.log(
            names.MOVING,
            rr.Points3D(points.moving_in_world, colors=tinted.astype(np.uint8), radii=self._radius),
        )

    @property
    def _radius(self) -> float:
        return 0.6 * (self._cloud.voxel or 0.01)

    def _send_new_points(self) -> None:
        first, last = self._cloud_sent // CLOUD_BLOCK, (len(self._cloud) - 1) // CLOUD_BLOCK
        self._cloud_sent = len(self._cloud)
        for block in range(first, last + 1):
            self._send_cloud_block(block)

    def _send_cloud_block(self, block: int) -> None:
        stop = min((block + 1) * CLOUD_BLOCK, self._cloud_sent)
        points, rgb = self._cloud.part(block * CLOUD_BLOCK, stop)
        archetype = rr.Points3D(points, colors=rgb, radii=self._radius)
        self._rec.log(f"{names.STATIC}/{block:04d}", archetype)

    def _send_path_block(self, block: int) -> None:
        # Each strip begins where the one before ends, so that the line has no gaps.
        first = max(block * PATH_BLOCK - 1, 0)
        poses = self._poses[first : (block + 1) * PATH_BLOCK]
        strip = np.stack([pose[:3, 3] for pose in poses]).astype(np.float32)
        line = rr.LineStrips3D([strip], colors=[colors.PATH], radii=rr.Radius.ui_points(1.5))
        self._rec.log(f"{names.PATH}/{block:04d}", line)

    def _log_maps(self, frame: PosedFrame) -> None:
        depth = _shrink(frame.depth)
        bounds = self._steady_depth_bounds(depth)
        self._rec.log(names.DEPTH, _jpeg(colors.color_depth(depth, bounds)))
        self._rec.log(names.CONFIDENCE, _jpeg(colors.color_confidence(_shrink(frame.confidence))))
        if frame.flow is not None:
            flow = _shrink(frame.flow)
            longest = colors.flow_range(flow)
            before = self._flow_longest or longest
            self._flow_longest = 0.9 * before + 0.1 * longest
            self._rec.log(names.FLOW, _jpeg(colors.color_flow(flow, self._flow_longest)))

    def _steady_depth_bounds(self, depth: Array) -> tuple[float, float] | None:
        """Follow the range of depth slowly, so that colours do not flicker."""
        if bounds := colors.depth_range(depth):
            new = np.log(bounds)
            old = new if self._depth_log_bounds is None else self._depth_log_bounds
            self._depth_log_bounds = 0.9 * old + 0.1 * new
        if self._depth_log_bounds is None:
            return None
        near, far = np.exp(self._depth_log_bounds)
        return float(near), float(far)

    def _log_plots(self, frame: PosedFrame, timing: Timing | None) -> None:
        known = frame.depth[np.isfinite(frame.depth)]
        values: dict[str, float | None] = {
            "static_share": float(np.mean(frame.motion_prob < MOVING_FROM)),
            "focal_px": float(frame.K[0, 0]),
        }
        if known.size:
            values["depth_median"] = float(np.median(known))
        if timing is not None:
            values |= {"fps": timing.fps, "latency_ms": timing.latency_ms}
        for name, value in values.items():
            if value is not None:
                self._plots.add(name)
                self._rec.log(f"{names.PLOTS}/{name}", rr.Scalars(value))


def _shrink(array: Array) -> Array:
    """Take every n-th pixel: keeps NaN and flow values as they are."""
    step = max(1, round(max(array.shape[:2]) / MAP_SIZE))
    return array[step // 2 :: step, step // 2 :: step]


def _jpeg(rgb: Array, quality: int = 85) -> rr.EncodedImage:
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return rr.EncodedImage(contents=data.tobytes(), media_type="image/jpeg")


def _png(rgba: Array) -> rr.EncodedImage:
    _, data = cv2.imencode(
        ".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 3]
    )
    return rr.EncodedImage(contents=data.tobytes(), media_type="image/png")

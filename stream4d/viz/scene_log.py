"""Turns posed frames into Rerun log calls on one recording, and remembers what was already sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import rerun as rr

from stream4d.packets import Array, PosedFrame, PoseRevision
from stream4d.viz import blueprint as names
from stream4d.viz import colors
from stream4d.viz.cloud import MOVING_FROM, FramePoints, StaticCloud, frame_points, voxel_for
from stream4d.viz.map_log import Follow, MapLog, jpeg, png
from stream4d.viz.track_log import TrackLog

PATH_BLOCK = 128
"""Camera positions per line strip: the last strip is sent again with every frame, earlier ones never."""
CLOUD_BLOCK = 2048
"""Points per batch of the static cloud, likewise."""
CLOUD_STEP = 256
"""The growing batch is sent again when it has this many new points …"""
CLOUD_EVERY = 10
"""… or this many frames have passed."""
POINT = rr.Radius.ui_points(1.5)
"""Of points and lines, on the screen: sizes in the world vanish from afar where scale is misjudged."""
FRUSTUM = 0.2
"""Depth of the drawn camera, of what it sees."""
NOW_POINTS = 2000
"""Points shown of the current frame alone, static and moving each."""


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
        self._has_labels = False
        self._tracks = TrackLog(recording)
        self._begin_empty()
        recording.log(names.WORLD, rr.ViewCoordinates.RDF, static=True)

    def _begin_empty(self) -> None:
        self._indices: list[int] = []
        self._poses: list[Array] = []
        self._Ks: list[Array] = []
        self._scale = Follow()
        self._voxel = Follow()
        self._shown_scale = 0.0
        self._K: Array | None = None
        self._maps = MapLog(self._rec)
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
        self._Ks.append(frame.K.copy())
        if bounds := colors.depth_range(colors.known_depth(frame.depth, frame.confidence)):
            self._scale.update(float(np.sqrt(bounds[0] * bounds[1])))
        self._send_path_block((len(self._poses) - 1) // PATH_BLOCK)
        self._log_camera(frame)
        self._log_points(frame)
        self._tracks.log(frame)
        self._maps.log(frame)
        self._log_plots(frame, timing)

    def revise(self, revision: PoseRevision) -> None:
        """Move path and cloud to better poses and cameras, from the current time on.

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
            K=None if revision.K is None else revision.K[mine],
        )
        self._tracks.forget()
        moved = self._cloud.revise(
            revision, np.stack([self._poses[i] for i in at]), np.stack([self._Ks[i] for i in at])
        )
        for i, pose in zip(at, revision.world_from_cam, strict=True):
            self._poses[i] = pose
        if revision.K is not None:
            for i, K in zip(at, revision.K, strict=True):
                self._Ks[i] = K
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
        scale = self._scale.value or 1.0
        eye = names.fitted_eye(positions, self._cloud.points, at_least=2 * FRUSTUM * scale)
        self._rec.send_blueprint(names.layout(eye, self._plots, has_labels=self._has_labels))

    def _send_first_layout(self, frame: PosedFrame) -> None:
        bounds = colors.depth_range(frame.depth) or (1.0, 1.0)
        eye = names.default_eye(float(np.sqrt(bounds[0] * bounds[1])))
        plots = set(names.PLOT_TITLES) - (set() if self._timing else names.TIMING_PLOTS)
        self._has_labels = frame.semantics is not None
        self._rec.send_blueprint(names.layout(eye, plots, has_labels=self._has_labels))

    def _start_segment(self, frame: PosedFrame) -> None:
        """Begin the 3D scene anew: segments share neither scale nor origin."""
        if self._segment is not None:
            for entity in (names.PATH, names.STATIC, names.MOVING, names.NOW, names.SPATIAL_TRACKS):
                self._rec.log(entity, rr.Clear(recursive=True))
            self._tracks.forget()
            self._begin_empty()
        self._segment = frame.segment
        self._cloud_sent_at = frame.index
        self._send_first_layout(frame)

    def _log_camera(self, frame: PosedFrame) -> None:
        scale = self._scale.value or 1.0
        pose = frame.world_from_cam
        self._rec.log(names.CAMERA, rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        rescaled = not 0.6 < self._shown_scale / scale < 1.6
        if rescaled or self._K is None or not np.allclose(self._K, frame.K, rtol=1e-4):
            self._K, self._shown_scale = frame.K, scale
            self._rec.log(
                names.IMAGE,
                rr.Pinhole(
                    image_from_camera=frame.K,
                    resolution=frame.rgb.shape[1::-1],
                    camera_xyz=rr.ViewCoordinates.RDF,
                    image_plane_distance=FRUSTUM * scale,
                    color=colors.PATH,
                ),
            )
        self._rec.log(names.IMAGE, jpeg(frame.rgb, quality=80))
        self._rec.log(names.MOTION, png(colors.motion_layer(frame.motion_prob)))
        if frame.semantics is not None:
            self._rec.log(names.LABELS, png(colors.label_layer(frame.semantics)))

    def _log_points(self, frame: PosedFrame) -> None:
        points = frame_points(frame)
        if self._adapt_voxel(frame) | self._add(frame, points):
            self._cloud_sent = 0
            self._rec.log(names.STATIC, rr.Clear(recursive=True))
        due = frame.index - self._cloud_sent_at >= CLOUD_EVERY
        if due or len(self._cloud) - self._cloud_sent >= CLOUD_STEP:
            self._send_new_points()
            self._cloud_sent_at = frame.index
        # What this frame alone says of the static scene: the cloud waits for a second opinion.
        some = _every(len(points.static_in_world))
        self._log_cloud(names.NOW, points.static_in_world[some], points.static_rgb[some])
        # Two fifths of the accent keep what moves recognisable and still make it stand out.
        some = _every(len(points.moving_in_world))
        tinted = points.moving_rgb[some] * 0.6 + np.array(colors.MOVING, np.float32) * 0.4
        self._log_cloud(names.MOVING, points.moving_in_world[some], tinted.astype(np.uint8))

    def _log_cloud(self, entity: str, points: Array, rgb: Array) -> None:
        self._rec.log(entity, rr.Points3D(points, colors=rgb, radii=POINT))

    def _adapt_voxel(self, frame: PosedFrame) -> bool:
        """Let voxels follow the view as it widens; True if blocks sent before are void."""
        if voxel := voxel_for(frame):
            self._voxel.update(voxel)
        wanted, now = self._voxel.value, self._cloud.voxel
        # Seldom, as everything must be sent again.
        return (
            wanted is not None and (now is None or wanted > 2 * now) and self._cloud.widen(wanted)
        )

    def _add(self, frame: PosedFrame, points: FramePoints) -> bool:
        if self._cloud.voxel is None:
            return False
        return self._cloud.add(points.static_in_world, points.static_rgb, frame.index)

    def _send_new_points(self) -> None:
        first, last = self._cloud_sent // CLOUD_BLOCK, (len(self._cloud) - 1) // CLOUD_BLOCK
        self._cloud_sent = len(self._cloud)
        for block in range(first, last + 1):
            self._send_cloud_block(block)

    def _send_cloud_block(self, block: int) -> None:
        stop = min((block + 1) * CLOUD_BLOCK, self._cloud_sent)
        points, rgb = self._cloud.part(block * CLOUD_BLOCK, stop)
        self._log_cloud(f"{names.STATIC}/{block:04d}", points, rgb)

    def _send_path_block(self, block: int) -> None:
        # Each strip begins where the one before ends, so that the line has no gaps.
        first = max(block * PATH_BLOCK - 1, 0)
        poses = self._poses[first : (block + 1) * PATH_BLOCK]
        strip = np.stack([pose[:3, 3] for pose in poses]).astype(np.float32)
        line = rr.LineStrips3D([strip], colors=[colors.PATH], radii=POINT)
        self._rec.log(f"{names.PATH}/{block:04d}", line)

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


def _every(count: int) -> slice:
    """Return the slice that leaves at most ``NOW_POINTS`` of ``count``."""
    return slice(None, None, max(1, -(-count // NOW_POINTS)))

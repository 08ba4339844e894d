"""Scores one run of the pipeline, frame by frame, in memory that does not grow with the images.

What stays: one pose and K per frame, a bounded sample of depths and points, running sums. ``row`` is the line that
other tools read; ``details`` holds everything else.
"""

from __future__ import annotations

from typing import Any

from stream4d.errors import EvaluationError
from stream4d.eval.camera_path import CameraPath
from stream4d.eval.grid import TruthGrid
from stream4d.eval.maps import MapScorer
from stream4d.eval.row import empty_row
from stream4d.eval.sequence import EvalSequence
from stream4d.eval.trajectory import Trajectory
from stream4d.packets import Array, PosedFrame, PoseRevision, VideoInfo


class SequenceScorer:
    """Takes posed frames in order and revisions as they come, then gives the row.

    Args:
        sequence: ground truth.
        info: the reader's description of the video.
        calibrated: the run was given the true camera.
    """

    def __init__(self, sequence: EvalSequence, info: VideoInfo, *, calibrated: bool) -> None:
        self._sequence = sequence
        source_size = (info.source_width, info.source_height)
        self._grid = TruthGrid(source_size, sequence.camera, calibrated=calibrated)
        self._path = CameraPath(sequence)
        self._maps = MapScorer(sequence, self._grid)

    def add(self, frame: PosedFrame) -> None:
        """Compare one frame with its ground truth.

        Raises:
            EvaluationError: frames are missing or out of order, or a pose is not finite and rigid.
        """
        H, W = frame.rgb.shape[:2]
        self._path.add(frame, self.truth_K(W, H))
        self._maps.add(frame)

    def revise(self, revision: PoseRevision) -> None:
        """Replace poses and scales of frames already added."""
        self._path.revise(revision)
        self._maps.revise(revision)

    def truth_K(self, width: int, height: int) -> Array | None:
        """Return the true K of frames of a size, or None where unknown."""
        return self._grid.truth_K((width, height))

    def trajectory(self) -> Trajectory:
        """Return the final poses of the longest segment, timed by the ground truth's clock."""
        return self._path.trajectory()

    def results(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (row, details).

        Raises:
            EvaluationError: no frame came, or the trajectory cannot be compared.
        """
        poses = self._path.poses
        if not poses:
            raise EvaluationError("the run gave no frame")
        row = empty_row(self._sequence.name, "ok", frames=len(poses))
        details: dict[str, Any] = {"kind": self._sequence.kind, "notes": self._sequence.notes}
        score = self._path.score(row, details)
        self._maps.score(row, details, None if score is None else poses)
        return row, details

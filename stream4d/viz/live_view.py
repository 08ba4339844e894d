"""A viewer that is watched while the run goes on.

It takes the latest frame from a one-slot mailbox: it drops, never delays the pipeline, and a fault of the view ends the
view, not the run.
"""

from __future__ import annotations

import logging
from collections import deque

import rerun as rr

from stream4d.errors import Stream4DError
from stream4d.packets import PoseRevision
from stream4d.viz.arrival import QUEUE, Arrival
from stream4d.viz.mailbox import Mailbox, WaitingQueue, Worker
from stream4d.viz.scene_log import SceneLog
from stream4d.viz.viewer_process import ViewerProcess

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
"""How long a live view may take to accept a frame before it counts as hung."""
REVISIONS = 64
"""Revisions kept for a live view that is busy."""


class LiveView:
    """A viewer process and the thread that feeds it."""

    def __init__(
        self, viewer: ViewerProcess, recording: rr.RecordingStream, log: SceneLog, *, drop: bool
    ) -> None:
        self.viewer = viewer
        self._recording = recording
        self._log = log
        self._revisions: deque[PoseRevision] = deque(maxlen=REVISIONS)
        self._warned = False
        self.source: Mailbox[Arrival] | WaitingQueue[Arrival] = (
            Mailbox() if drop else WaitingQueue(QUEUE)
        )
        self._worker = Worker("view", self.source, self._show)

    def write(self, arrival: Arrival) -> None:
        if self._worker.error is None:
            self.source.put(arrival)
        elif not self._warned:
            self._warned = True
            logger.warning("the live view has ended: %s. The run goes on", self._worker.error)

    def revise(self, revision: PoseRevision) -> None:
        self._revisions.append(revision)

    def finish(self) -> None:
        """Show what is left, and leave the viewer open."""
        done = self._worker.join(ANSWER_SECONDS)
        if done and self._worker.error is None and self.viewer.is_running:
            self._drain_revisions()
            self._log.finish()
            self._recording.flush(timeout_sec=ANSWER_SECONDS)
            self._recording.disconnect()
        if self.viewer.page is None:
            self.viewer.detach()

    def _show(self, arrival: Arrival) -> None:
        if not self.viewer.is_running:
            raise Stream4DError("its window or server was closed")
        self._log.log(arrival.frame, arrival.timing_in_view())
        # After the frame: a revision may speak of it.
        self._drain_revisions()
        # Waiting for the viewer here is what makes the mailbox drop; unflushed data would pile up in memory.
        self._recording.flush(timeout_sec=ANSWER_SECONDS)

    def _drain_revisions(self) -> None:
        while self._revisions:
            self._log.revise(self._revisions.popleft())

"""A Rerun recording of a run: it holds every frame, and its queue is bounded and waits."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import rerun as rr

from stream4d.errors import Stream4DError
from stream4d.packets import PoseRevision
from stream4d.viz.arrival import QUEUE, Arrival, new_recording
from stream4d.viz.mailbox import WaitingQueue, Worker
from stream4d.viz.scene_log import SceneLog

BATCHES = rr.ChunkBatcherConfig(flush_tick=10.0, flush_num_bytes=1 << 17)
"""Of a recording, per entity: longer columns than for a live view. The file's writer keeps a list of all batches, and
the batches themselves until they are full: 128 KiB keeps the sum flat (+1 kB per frame over 3000 frames)."""
CHECK_EVERY = 64
"""Frames between looks at whether the recording's writer, which does not tell, still writes."""
FULL_BYTES = 1 << 20
"""A disk with less room than this counts as full."""


class RecordingFile:
    """An ``.rrd`` file and the thread that writes it. The file gets its name when it is complete."""

    def __init__(self, path: Path, name: str, *, max_points: int, timing: bool) -> None:
        self._path = path
        # Keeps the suffix: the viewer opens a recording that a crash left behind.
        self._partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self._recording = new_recording(name, BATCHES)
        try:
            self._recording.save(self._partial)
        except RuntimeError as error:
            raise self._failure(str(error)) from None
        self._log = SceneLog(self._recording, max_points=max_points, timing=timing)
        self._queue: WaitingQueue[Arrival | PoseRevision] = WaitingQueue(QUEUE)
        self._frames = 0
        self._worker = Worker("recording", self._queue, self._record)

    def write(self, item: Arrival | PoseRevision) -> None:
        self._check()
        self._queue.put(item)

    def finish(self, *, failed: bool = False) -> None:
        """Write the rest and give the file its name; a run that failed before its first frame leaves none.

        Raises:
            Stream4DError: not all of it could be written; what there is keeps the name of a partial file.
        """
        self._worker.join()
        try:
            self._check()
            self._log.finish()
            self._flush()
        finally:
            self._recording.disconnect()
            if failed and not self._frames:
                self._partial.unlink()
        if self._partial.exists():
            os.replace(self._partial, self._path)

    def _record(self, item: Arrival | PoseRevision) -> None:
        if isinstance(item, PoseRevision):
            self._log.revise(item)
            return
        self._log.log(item.frame, item.timing)
        self._frames += 1
        if self._frames % CHECK_EVERY == 0:
            self._flush()

    def _flush(self) -> None:
        """Wait for the writer; Rerun only says that it has ended, the disk why."""
        try:
            self._recording.flush()
        except RuntimeError as error:
            is_full = shutil.disk_usage(self._path.parent).free < FULL_BYTES
            reason = "no space left on the disk" if is_full else str(error)
            kept = f"what was written is in {self._partial}"
            raise self._failure(f"{reason}; {kept}") from error

    def _check(self) -> None:
        error = self._worker.error
        if error is not None:
            raise (
                error if isinstance(error, Stream4DError) else self._failure(str(error))
            ) from error

    def _failure(self, reason: str) -> Stream4DError:
        return Stream4DError(f"cannot write the recording {self._path}: {reason}")


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise before the run starts rather than at its end."""
    if path.suffix != ".rrd":
        raise Stream4DError(f"a recording must end in .rrd, got {str(path)!r}")
    if path.exists() and not overwrite:
        raise Stream4DError(f"the recording {path} exists: choose another name or `--overwrite`")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise Stream4DError(
            f"cannot write {path}: {path.parent} is not a folder that can be written"
        )

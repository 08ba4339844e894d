"""Write posed frames window by window, so that a kill at any moment loses nothing committed."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from stream4d.config import StoreConfig
from stream4d.errors import StoreError
from stream4d.packets import Array, PosedFrame, PoseRevision, State, VideoInfo
from stream4d.store.arrays import ArraySet, row_values
from stream4d.store.encode import depth_scale_for
from stream4d.store.files import replace_file
from stream4d.store.integrity import check_intact
from stream4d.store.metadata import (
    read_attributes,
    read_root,
    root_document,
    store_attributes,
)
from stream4d.store.resume import ResumePoint, load_snapshot, remove_snapshot, save_snapshot
from stream4d.store.revisions import merged, work_in
from stream4d.store.target import (
    begins_anew,
    check_nobody_writes,
    fresh_folder,
    move_into_place,
    only_writer,
    write_failure,
)

_COMPRESSORS = 2
"""Threads that compress while the pipeline works on the next window."""

Pending = tuple[dict[str, Any], dict[str, Future[bytes | None]]]
"""One frame's rows, and its maps on their way through the compressor."""


class StoreWriter:
    """A sink that keeps everything in a zarr store.

    Nothing appears at ``path`` before the first commit with frames, and an old store is only replaced then;
    so a run that fails to start leaves everything as it was. Leaving the ``with`` block normally marks the
    store complete; an exception, Ctrl-C included, keeps what is committed for ``resume``.

    Args:
        path: local folder to write, usually ending in ``.zarr``.
        info: the source. Frames must have its size.
        config: all resolved settings, for the record and for checking a resume.
        card: the model's card, or None.
        store_config: what to keep, and how precisely.
        overwrite: replace a store that is there. Anything else is never deleted.
        resume: go on with an unfinished store; starts afresh where there is none.

    Raises:
        StoreError: the target exists, is being written by another process, cannot be written, or does not fit
            what is to be resumed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        info: VideoInfo,
        config: Mapping[str, Any],
        card: Mapping[str, Any] | None = None,
        store_config: StoreConfig | None = None,
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        if "://" in str(path):
            raise StoreError(
                f"stores are written to local folders, not to {path}: copy it afterwards"
            )
        if overwrite and resume:
            raise StoreError("--overwrite and --resume contradict each other: give one")
        self.path = Path(path).absolute()
        self.resume_point: ResumePoint | None = None
        """Where the pipeline begins again, after entering with ``resume``; None: at the first frame."""
        self._info = info
        self._settings = store_config or StoreConfig()
        tracks = int(config.get("tracks", 0))
        self._arrays = ArraySet(self._settings, info.height, info.width, tracks=tracks)
        self._attributes = store_attributes(info, config, card)
        self._folder = self.path
        self._begins_anew = functools.partial(
            begins_anew, self.path, self._attributes, overwrite=overwrite, resume=resume
        )
        check_nobody_writes(self.path)
        self._begins_anew()
        self._claim = ExitStack()
        self._committed = 0
        self._next = 0
        self._seen = 0
        self._snapshot_at = 0
        self._revisions_to_skip = 0
        self._pending: list[Pending] = []
        self._revisions: list[PoseRevision] = []
        self._is_broken = False
        self._stays_unfinished = False

    @property
    def committed(self) -> int:
        """How many frames are safe."""
        return self._committed

    def leave_unfinished(self) -> None:
        """Keep the store resumable when the ``with`` block ends without an exception."""
        self._stays_unfinished = True

    def __enter__(self) -> Self:
        try:
            self._claim.enter_context(only_writer(self.path))
            if self._begins_anew():  # asked again: another run may have come and gone meanwhile
                self._folder = fresh_folder(self.path)
            else:
                self._pick_up()
            self._open_files()
        except (OSError, ValueError) as error:
            self._release()
            raise StoreError(write_failure(self.path, error, self._committed)) from None
        except StoreError:
            self._release()
            raise
        self._pool = ThreadPoolExecutor(_COMPRESSORS, thread_name_prefix="stream4d-store")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None and not self._is_broken:
                self._end()
        finally:
            self._pool.shutdown(cancel_futures=True)
            self._release()

    def _release(self) -> None:
        """Let go of all files; a store that never got its name goes too."""
        self._arrays.close()
        if self._folder != self.path:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._claim.close()

    def write(self, frame: PosedFrame) -> None:
        """Take one frame; it is safe after the next ``commit``. Frames that are safe already are passed over.

        Raises:
            StoreError: a frame is missing or repeated, or its size is not the video's.
        """
        self._seen = frame.index + 1
        if frame.index < self._committed:
            return
        if frame.index != self._next:
            raise StoreError(
                f"expected frame {self._next}, got {frame.index}: frames come in order"
            )
        if frame.rgb.shape[:2] != (self._info.height, self._info.width):
            raise StoreError(
                f"frame {frame.index} is {frame.rgb.shape[1]}×{frame.rgb.shape[0]}, the store holds "
                f"{self._info.width}×{self._info.height}"
            )
        if frame.semantics is not None:
            self._arrays.add_semantics(self._committed, len(self._pending))
        self._next += 1
        scale = depth_scale_for(frame.depth, self._settings.depth_dtype)
        maps = {
            name: self._pool.submit(self._arrays.encode, name, frame, scale)
            for name in self._arrays.maps
        }
        self._pending.append((row_values(frame, scale), maps))
        self._attributes["scale"] = (
            "metric"
            if frame.is_metric and (frame.index == 0 or self._attributes["scale"] == "metric")
            else "relative"
        )

    def revise(self, revision: PoseRevision) -> None:
        """Replace poses and intrinsics, scale depths of frames already written; takes effect at the next ``commit``.

        Raises:
            StoreError: it names frames that were not written yet.
        """
        if self._revisions_to_skip:
            self._revisions_to_skip -= 1
            return
        if (
            len(revision.indices)
            and not 0 <= revision.indices.min() <= revision.indices.max() < self._next
        ):
            raise StoreError(
                f"revision of frames up to {revision.indices.max()}, but only {self._next} are written"
            )
        self._revisions.append(revision)

    def commit(self, resume_state: Callable[[], State] | None = None) -> None:
        """Make everything written so far safe.

        Args:
            resume_state: returns what the pipeline needs to go on; it is called every ``state_every`` frames.

        Raises:
            StoreError: the disk is full or the folder has gone. What was committed stays safe.
        """
        try:
            if self._pending or self._revisions:
                self._commit()
            is_due = self._committed - self._snapshot_at >= self._settings.state_every
            if resume_state and is_due and not self._is_replaying:
                revisions = self._attributes["revisions"]
                save_snapshot(self.path, resume_state(), self._committed, revisions)
                self._snapshot_at = self._committed
        except (OSError, ValueError) as error:
            self._is_broken = True
            raise StoreError(write_failure(self.path, error, self._committed)) from None

    @property
    def _is_replaying(self) -> bool:
        """True while a resumed pipeline repeats what is committed: its state is older than the store."""
        return self._seen < self._committed or self._revisions_to_skip > 0

    def _commit(self) -> None:
        """Append, then publish by replacing the root document: only then do readers see anything new."""
        for rows, maps in self._pending:
            self._arrays.append(rows, {name: future.result() for name, future in maps.items()})
        self._arrays.flush()
        count = self._committed + len(self._pending)
        self._pending.clear()
        changes = merged(self._revisions, self._arrays.rows)
        self._publish(count, changes)
        self._apply(changes)

    def _publish(self, committed: int, changes: dict[str, Array] | None) -> None:
        self._attributes["committed"] = committed
        self._attributes["revisions"] += len(self._revisions)
        if changes is not None:
            pending = {name: value.tolist() for name, value in changes.items()}
            self._attributes["pending_revision"] = pending
        self._write_root()
        self._committed = committed
        self._revisions.clear()

    def _write_root(self) -> None:
        root = root_document(
            self._attributes, self._arrays.documents(self._attributes["committed"])
        )
        replace_file(self._folder / "zarr.json", json.dumps(root).encode())
        if self._folder != self.path:
            self._arrays.close()
            move_into_place(self._folder, self.path)
            self._folder = self.path
            self._arrays.open(self._folder, self._attributes["committed"])

    def _apply(self, changes: dict[str, Array] | None) -> None:
        """Bring the arrays up to date with the published revision, then take it out of the root."""
        if changes is None:
            return
        work_in(changes, self._arrays.rows)
        del self._attributes["pending_revision"]
        self._write_root()

    def _end(self) -> None:
        """Commit what is left; mark the store complete unless told not to."""
        try:
            if self._next == 0 and self._stays_unfinished:
                return
            if self._pending or self._revisions or self._folder != self.path:
                self._commit()
            for name, document in self._arrays.documents(self._committed).items():
                replace_file(self.path / name / "zarr.json", json.dumps(document).encode())
            if not self._stays_unfinished:
                self._attributes["complete"] = True
                self._write_root()
                remove_snapshot(self.path)
        except (OSError, ValueError) as error:
            raise StoreError(write_failure(self.path, error, self._committed)) from None

    def _pick_up(self) -> None:
        """Load what an earlier run committed."""
        root = read_root(self.path)
        attributes = read_attributes(root, self.path)
        check_intact(self.path, root)
        for name in ("committed", "revisions", "scale", "pending_revision"):
            if name in attributes:
                self._attributes[name] = attributes[name]
        self._committed = self._next = int(attributes["committed"])
        self.resume_point, revisions = load_snapshot(self.path, self._committed)
        self._seen = self._snapshot_at = (
            self.resume_point.snapshot_frames if self.resume_point else 0
        )
        self._revisions_to_skip = int(attributes["revisions"]) - revisions

    def _open_files(self) -> None:
        self._arrays.open(self._folder, self._committed)
        if pending := self._attributes.get("pending_revision"):
            self._apply({name: np.array(value) for name, value in pending.items()})

"""The pose chain: predictions in, posed frames out, a few frames later.

Each frame is followed by flow, its patches aligned against their keyframes, its pose fitted to the map. Now and then
a frame becomes a keyframe; the window of keyframes is then adjusted as a whole. Frames leave after ``lag`` frames,
with a pose fitted once more to the adjusted map. The parts, in the order of a frame's life: ``measure`` (patches
followed and aligned), ``anchoring`` (before the map), ``locate`` (in the map), ``mapping`` (keyframes), ``leaving``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from stream4d.config import ChainConfig
from stream4d.packets import (
    Array,
    Frame,
    PosedFrame,
    PoseRevision,
    Prediction,
    State,
    VideoInfo,
    Window,
)
from stream4d.pose import anchoring, correction, dense, leaving, locate, measure, patches
from stream4d.pose.keyframe_view import Correction, KeyframeListener, NullListener
from stream4d.pose.loops import LoopCloser
from stream4d.pose.mapping import settle_all
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record
from stream4d.pose.state import nested, part
from stream4d.pose.windows import WindowPlacer

AHEAD = 1
"""Frames placed while the maps of one that leaves are made: more than one, because a keyframe takes twice the time."""
MAX_HELD = 40
"""Frames held back while nothing has moved enough to start; then they leave with rotation only."""


class PoseChain:
    """Poses, depth and motion of one video, frame by frame, in bounded memory.

    A ``listener`` sees every keyframe and may answer with a correction of the path; None: loop closure, if the
    config asks for it.
    """

    def __init__(
        self, config: ChainConfig, info: VideoInfo, listener: KeyframeListener | None = None
    ) -> None:
        self._config = config
        own = LoopCloser() if config.loop_closure else NullListener()
        self._listener: KeyframeListener = listener or own
        self._progress: Progress | None = None
        self._by_windows: bool | None = None
        self._placer = WindowPlacer()

    # -- the interface -------------------------------------------------------------------------------------

    def extend(self, window: Window, prediction: Prediction) -> Iterator[PosedFrame]:
        """Place the window's new frames; yields the frames that are ready to leave."""
        if self._by_windows is None:
            self._by_windows = _has_geometry_only(prediction)
        if self._by_windows:
            yield from self._placer.place(window, prediction, keep=len(window.frames) - 1)
            return
        ready: deque[Callable[[], PosedFrame]] = deque()
        for k in range(window.overlap, len(window.frames)):
            ready += self._let_leave()  # their maps are made while the next frames are placed
            self._step(window.frames[k], _slice(prediction, k))
            while len(ready) > AHEAD:
                yield ready.popleft()()
        yield from (frame() for frame in ready)

    def finish(self) -> Iterator[PosedFrame]:
        """Yield all frames still held."""
        if self._progress is not None:
            left = [leaving.leave(self._progress) for _ in range(len(self._progress.records))]
            yield from (frame() for frame in left)
            settle_all(self._progress)

    def correct(self, answer: Correction) -> None:
        """Bend the path now (what a listener's answer does): frame index → Sim(3) new-world-from-old-world.

        Raises ``ValueError`` before the first frame.
        """
        if self._progress is None:
            raise ValueError("PoseChain.correct needs frames: none has been placed yet")
        correction.apply(self._progress, answer)

    def revisions(self) -> list[PoseRevision]:
        """Return and forget the corrections of frames that have already left."""
        if self._progress is None:
            return []
        out, self._progress.revisions = self._progress.revisions, []
        return out

    def state(self) -> State:
        """Return everything that ``restore`` needs; bounded by the lag and the keyframes."""
        out: State = {}
        if self._by_windows is not None:
            out["by_windows"] = np.array(self._by_windows)
        if self._by_windows:
            out |= nested("placer", self._placer.state())
        if self._progress is not None:
            out |= nested("progress", self._progress.state())
        return out

    def restore(self, state: State) -> None:
        """Go on from ``state``, exactly as the chain that gave it would have."""
        self._by_windows = bool(state["by_windows"]) if "by_windows" in state else None
        if self._by_windows:
            self._placer.restore(part("placer", state))
        inner = part("progress", state)
        self._progress = Progress.restore(inner, self._config, self._listener) if inner else None

    # -- one frame -----------------------------------------------------------------------------------------

    def _let_leave(self) -> list[Callable[[], PosedFrame]]:
        """Let the frames go that were held for long enough; returns what gives them once their maps are made."""
        progress = self._progress
        if progress is None:
            return []
        held = self._config.lag if progress.started else MAX_HELD
        return [leaving.leave(progress) for _ in range(len(progress.records) - held)]

    def _step(self, frame: Frame, new: dense.Maps) -> None:
        if self._progress is None:
            self._progress = Progress.begin(frame, self._config, self._listener)
        progress = self._progress
        record = Record.of(frame, patches.pyramid(frame.rgb), progress.map)
        previous = progress.records[-1] if progress.records else None
        record.take(new, previous)
        if previous is None:
            anchoring.anchor(progress, record, np.eye(3, 4))
        else:
            measure.follow(progress, record, previous)
            if progress.started:
                locate.locate(progress, record, previous)
            else:
                anchoring.try_start(progress, record)
        progress.records.append(record)
        correction.show_keyframes(progress)


def _has_geometry_only(prediction: Prediction) -> bool:
    geometry = prediction.pointmap_in_window is not None or prediction.window_from_cam is not None
    return prediction.flow is None and geometry


def _slice(prediction: Prediction, k: int) -> dense.Maps:
    """Take what a window's prediction says of its k-th frame (flow is that from the frame before)."""

    def at(array: Array | None, i: int) -> Array | None:
        return None if array is None or i < 0 else array[i]

    return dense.Maps(
        flow=at(prediction.flow, k - 1), flow_backward=at(prediction.flow_backward, k - 1),
        sigma=at(prediction.flow_uncertainty, k - 1), motion=at(prediction.motion_prob, k),
        depth=at(prediction.depth, k),
    )  # fmt: skip

"""The short table at the end of a run."""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path

import numpy as np

from stream4d.eval.process import peak_rss_mb
from stream4d.geometry.camera import fov_from_focal
from stream4d.packets import PosedFrame, VideoInfo


class RunSummary:
    """Running totals over posed frames, in constant memory.

    Args:
        info: the source.
        out: the store that is written.
        frames_before: frames that an earlier run has done, where this one resumes it.
    """

    def __init__(self, info: VideoInfo, out: str | Path, *, frames_before: int = 0) -> None:
        self._info = info
        self._out = out
        self._frames_before = frames_before
        self._started, self._started_cpu = time.monotonic(), time.process_time()
        self.frames = 0
        self.tracked = 0
        self.segments = 0
        self.path_length = 0.0
        self._static_sum = 0.0
        self._last: PosedFrame | None = None

    def add(self, frame: PosedFrame) -> None:
        """Count one frame."""
        if self._last is not None and self._last.segment == frame.segment:
            step = frame.world_from_cam[:3, 3] - self._last.world_from_cam[:3, 3]
            self.path_length += float(np.linalg.norm(step))
        self.frames += 1
        self.tracked += frame.is_tracked
        self.segments = max(self.segments, frame.segment + 1)
        self._static_sum += float(np.mean(frame.motion_prob < 0.5))
        self._last = frame

    @property
    def fps(self) -> float:
        """Frames per second since the start of the run."""
        return self.frames / max(time.monotonic() - self._started, 1e-9)

    @property
    def cpu_s(self) -> float:
        """Processor time per frame in seconds, all threads of this process together."""
        return (time.process_time() - self._started_cpu) / max(self.frames, 1)

    @property
    def static_share(self) -> float:
        """Mean share of pixels with motion probability below one half."""
        return self._static_sum / max(self.frames, 1)

    @property
    def focal_px(self) -> float:
        """Focal length of the last frame, pixels of the stored resolution; NaN before any."""
        return float(self._last.K[0, 0]) if self._last is not None else float("nan")

    def figures(self) -> dict[str, float | None]:
        """Return what the table says, as numbers: for ``--progress json``; None where the system does not say."""
        peak = peak_rss_mb()
        return {
            "frames": self._frames_before + self.frames,
            "computed": self.frames,
            "tracked": self.tracked,
            "fps": self.fps,
            "cpu_s_per_frame": self.cpu_s,
            "segments": self.segments,
            "path_length": self.path_length,
            "static_share": self.static_share,
            "peak_memory_mb": peak if math.isfinite(peak) else None,
        }

    def opening(self, model: str) -> str:
        """Say what will be done, on one line."""
        info = self._info
        count = _count(info.frame_count, "frame") if info.frame_count else "frames until it ends"
        why = f" ({info.reason})" if info.reason else ""
        resumed = f"; going on from frame {self._frames_before}" if self._frames_before else ""
        return (
            f"{info.source}: {count} of {info.source_width}×{info.source_height} "
            f"at {info.fps:.3g} fps, processed at {info.width}×{info.height}; "
            f"reader {info.backend}{why}; model {model}{resumed}"
        )

    def closing(
        self, *, interrupted: bool = False, overwrites: bool = False, dropped: int = 0
    ) -> str:
        """Return the table, and what to type next.

        Args:
            interrupted: the user stopped it, and there is more to do.
            overwrites: it was started with ``--overwrite``.
            dropped: frames of a live source that came faster than they were taken.
        """
        unit = "m" if self._last is not None and self._last.is_metric else "units (scale unknown)"
        fov = fov_from_focal(self.focal_px, self._info.width)
        before = f", after {self._frames_before} of an earlier run" if self._frames_before else ""
        lost = f", {dropped} dropped" if dropped else ""
        rows = [
            ("frames", f"{self.frames} ({self.tracked} tracked{lost}){before}"),
            ("speed", f"{self.fps:.3g} fps; {self.cpu_s:.2g} s of processor time a frame"),
            ("path length", f"{self.path_length:.3g} {unit}"),
            ("focal", f"{self.focal_px:.0f} px at {self._info.width} px wide ({fov:.0f}°)"),
            ("static share", f"{100 * self.static_share:.0f} %"),
            ("peak memory", f"{peak_rss_mb():.0f} MB"),
        ]
        if self.segments > 1:
            rows.append(("segments", f"{self.segments} (the video cuts, or tracking was lost)"))
        if self.frames == 0:
            rows = rows[:1]
        if self.frames or self._frames_before:
            rows.append(("store", str(self._out)))
        lines = [f"  {name:<13} {value}" for name, value in rows]
        if interrupted and not (self.frames or self._frames_before):
            lines.append("stopped before the first frame was kept")
        elif interrupted:
            how = "--resume in place of --overwrite" if overwrites else "--resume"
            lines.append(f"stopped early; the same command with {how} goes on")
        elif self.frames:
            lines.append(f"look at it with: stream4d replay {shlex.quote(str(self._out))}")
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

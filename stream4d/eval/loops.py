"""What loop closure does to drift: the same clip with and without it. ``python -m stream4d.eval.loops [CLIP…]``.

Without arguments two clips are played forward and then back: one rendered on an orbit, and the bundled recording. A
camera that comes back along its own way sees every image twice; how far apart the two poses of one image come out is
drift that needs no ground truth. Sequence folders and videos are run as they are, or with ``--there-and-back`` too.
The return is in percent of the way out, the error against truth in percent of the path; times are CPU time per frame.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stream4d import logs
from stream4d.config import RunConfig
from stream4d.eval.loop_clips import LoopClip, chosen_clips
from stream4d.eval.report import aligned
from stream4d.geometry import transforms
from stream4d.models.registry import create_model
from stream4d.packets import Array, PosedFrame
from stream4d.pose.chain import PoseChain
from stream4d.pose.keyframe_view import Correction, KeyframeView
from stream4d.pose.loops import LoopCloser
from stream4d.reader.windows import sliding_windows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """One run over a clip."""

    poses: Array
    """(n, 4, 4) final world-from-camera, revisions applied."""
    keyframes: int
    closed: int
    """Loops found."""
    bent: int
    """Times the path was bent."""
    loop_ms: float
    """CPU milliseconds per frame spent on loops, without applying the corrections."""
    total_ms: float
    """CPU milliseconds per frame in the pose chain, corrections included."""


class TimedCloser(LoopCloser):
    """Loop closure that notes what it does and how long it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.keyframes, self.bent = 0.0, 0, 0

    def enters(self, keyframe: KeyframeView) -> Correction | None:
        """Pass on and count."""
        started = time.process_time()
        answer = super().enters(keyframe)
        self.seconds += time.process_time() - started
        self.keyframes += 1
        self.bent += answer is not None
        return answer

    def leaves(self, keyframe: KeyframeView) -> None:
        """Pass on and time."""
        started = time.process_time()
        super().leaves(keyframe)
        self.seconds += time.process_time() - started


def main(arguments: list[str] | None = None) -> int:
    """Run all clips twice, print the table."""
    parser = argparse.ArgumentParser(prog="python -m stream4d.eval.loops", description=__doc__)
    parser.add_argument("clips", nargs="*", type=Path, help="sequence folders or videos")
    parser.add_argument(
        "--there-and-back", action="store_true", help="play the clips forward and then back"
    )
    parser.add_argument("--uncalibrated", action="store_true", help="do not give the true camera")
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames of a clip")
    parser.add_argument("--resolution", type=int, default=384, help="long side, pixels [384]")
    parser.add_argument(
        "--model", default="classical", help="model that gives the flow [classical]"
    )
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the paths as PNG")
    args = parser.parse_args(arguments)
    rows = [HEADINGS]
    for clip in chosen_clips(args):
        without, with_loops = (outcome(clip, args.model, loop_closure=on) for on in (False, True))
        rows.append(row(clip, without, with_loops))
        if args.plot:
            args.plot.mkdir(parents=True, exist_ok=True)
            (args.plot / f"{clip.name}.png").write_bytes(picture(clip, without, with_loops))
    logs.show("\n".join(aligned(rows)))
    return 0


def outcome(clip: LoopClip, model: str, *, loop_closure: bool) -> Outcome:
    """Run the pose chain over a clip."""
    network = create_model(model)
    closer = TimedCloser()
    config = dataclasses.replace(RunConfig().chain, loop_closure=loop_closure)
    chain = PoseChain(config, clip.info, closer if loop_closure else None)
    poses, keyframes, seconds = np.tile(np.eye(4), (len(clip.frames), 1, 1)), 0, 0.0

    def take(frames: Iterator[PosedFrame]) -> None:
        nonlocal keyframes, seconds
        started = time.process_time()
        for frame in frames:
            poses[frame.index] = frame.world_from_cam
            keyframes += frame.is_keyframe
        for revision in chain.revisions():
            poses[revision.indices] = revision.world_from_cam
        seconds += time.process_time() - started

    with network.session(clip.info) as session:
        card = network.card
        for window in sliding_windows(iter(clip.frames), card.window, card.overlap):
            prediction = session.step(window)
            take(chain.extend(window, prediction))
        take(chain.finish())
    per_frame = 1000 / len(clip.frames)
    return Outcome(
        poses=poses, keyframes=keyframes, closed=closer.closed, bent=closer.bent,
        loop_ms=per_frame * closer.seconds, total_ms=per_frame * seconds,
    )  # fmt: skip


HEADINGS = [
    "clip", "frames", "keyframes", "loops", "bent", "return %", "→", "return °", "→",
    "error %", "→", "loops CPU ms", "chain CPU ms", "→",
]  # fmt: skip


def row(clip: LoopClip, without: Outcome, with_loops: Outcome) -> list[str]:
    """Return one line of the table: each figure without, then with loop closure."""
    runs = (without, with_loops)
    back = [return_drift(run.poses) if clip.is_mirrored else (None, None) for run in runs]
    error = [path_error(run.poses, clip.truth) for run in runs]
    return [
        clip.name, str(len(clip.frames)), str(with_loops.keyframes), str(with_loops.closed), str(with_loops.bent),
        *(_number(way, "{:.3f}") for way, _ in back), *(_number(turn, "{:.3f}") for _, turn in back),
        *(_number(e, "{:.3f}") for e in error), f"{with_loops.loop_ms:.2f}",
        f"{without.total_ms:.1f}", f"{with_loops.total_ms:.1f}",
    ]  # fmt: skip


def return_drift(poses: Array) -> tuple[float, float]:
    """Return how far apart the poses of equal images are, RMS: percent of the way out, degrees."""
    half = (len(poses) + 1) // 2
    out, back = poses[:half], poses[::-1][:half]
    way = np.linalg.norm(np.diff(out[:, :3, 3], axis=0), axis=1).sum()
    apart = transforms.invert(out) @ back
    turn = np.linalg.norm(transforms.so3_log(apart[:, :3, :3]), axis=1)
    moved = np.linalg.norm(apart[:, :3, 3], axis=1)
    return (
        100 * float(np.sqrt((moved**2).mean())) / max(float(way), 1e-9),
        float(np.degrees(np.sqrt((turn**2).mean()))),
    )


def path_error(poses: Array, truth: dict[int, Array]) -> float | None:
    """Return the RMSE of positions after Sim(3) alignment in percent of the true path, None without truth."""
    from stream4d.eval.trajectory import Trajectory
    from stream4d.eval.trajectory_score import score_trajectory

    known = np.array(sorted(truth))
    if len(known) < 3:
        return None
    true = np.stack([truth[i] for i in known.tolist()])
    times = known.astype(np.float64)
    return score_trajectory(
        Trajectory(timestamps_s=times, world_from_cam=poses[known], covariance=None),
        Trajectory(timestamps_s=times, world_from_cam=true, covariance=None),
    ).ate_percent


def picture(clip: LoopClip, without: Outcome, with_loops: Outcome) -> bytes:
    """Draw both paths over the truth, seen from above; PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from stream4d.eval.plots import OURS, TRUTH, png
    from stream4d.eval.trajectory import Trajectory
    from stream4d.eval.trajectory_score import align

    figure = Figure(figsize=(5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=clip.name, aspect="equal")
    known = np.array(sorted(clip.truth), np.int64)
    true = np.stack([clip.truth[i] for i in known.tolist()]) if len(known) > 2 else None
    if true is not None:
        axes.plot(*true[:, [0, 2], 3].T, color=TRUTH, linewidth=3, label="truth")
    for run, colour, label in ((without, "#30638e", "without"), (with_loops, OURS, "with loops")):
        path = run.poses[:, :3, 3]
        if true is not None:
            stamps = known.astype(np.float64)
            ours = Trajectory(timestamps_s=stamps, world_from_cam=run.poses[known], covariance=None)
            goal = Trajectory(timestamps_s=stamps, world_from_cam=true, covariance=None)
            path = align(ours, goal).points(path)
        axes.plot(path[:, 0], path[:, 2], color=colour, linewidth=1, label=label)
    axes.legend()
    return png(figure)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


if __name__ == "__main__":
    raise SystemExit(main())

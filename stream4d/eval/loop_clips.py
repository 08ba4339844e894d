"""Clips for measuring loop closure: sequences and videos, rendered or played there and back."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stream4d.config import ReaderConfig, bundled
from stream4d.eval.sequence import EvalSequence, load_folder
from stream4d.eval.trajectory import MAX_TIME_DIFFERENCE_S
from stream4d.packets import Array, Frame, VideoInfo
from stream4d.reader import open_video

RENDERED_FRAMES = 120


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoopClip:
    """Frames to run, and what is known of them."""

    name: str
    """What the table calls it."""
    frames: list[Frame]
    """In order, indices 0, 1, 2, …"""
    truth: dict[int, Array]
    """Frame index → true world-from-camera (4, 4)."""
    is_mirrored: bool = False
    """True where the second half shows the first half's images backwards."""

    @property
    def info(self) -> VideoInfo:
        """Describe the clip as a video."""
        H, W = self.frames[0].rgb.shape[:2]
        return VideoInfo.of_frames(self.name, W, H, count=len(self.frames))


def there_and_back(clip: LoopClip) -> LoopClip:
    """Return the clip played forward and then back to its first frame."""
    n = len(clip.frames)
    order = [*range(n), *range(n - 2, -1, -1)]
    frames = [
        dataclasses.replace(clip.frames[t], index=i, timestamp_ns=i * 33_333_333)
        for i, t in enumerate(order)
    ]
    truth = {i: clip.truth[t] for i, t in enumerate(order) if t in clip.truth}
    return LoopClip(name=f"{clip.name}-and-back", frames=frames, truth=truth, is_mirrored=True)


def rendered_orbit(frames: int = RENDERED_FRAMES, seed: int = 3) -> LoopClip:
    """Return a clip of a random still scene, the camera on an arc around it."""
    from stream4d.train.scenes import SceneOptions, render_clips

    options = SceneOptions(
        camera_weights=(0, 0, 0, 0, 1, 0, 0), static_share=1.0, outdoor_share=0.0, fog_share=0.0,
        camera_move=(0.008, 0.009), fov_deg=(60.0, 61.0), tiles=12,
    )  # fmt: skip
    batch = render_clips(seed, 1, frames, (216, 288), options=options)
    rgb = (255 * batch.rgb[0].permute(0, 2, 3, 1).clamp(0, 1)).round().byte().numpy()
    K, poses = batch.K[0].double().numpy(), batch.world_from_cam[0].double().numpy()
    made = [
        Frame(index=i, timestamp_ns=i * 33_333_333, rgb=rgb[i].copy(), K=K[i])
        for i in range(frames)
    ]
    return LoopClip(name="rendered-orbit", frames=made, truth=dict(enumerate(poses)))


def read_clip(path: Path, args: argparse.Namespace) -> LoopClip:
    """Read a sequence folder or a video whole.

    Raises:
        EvaluationError, VideoError: it cannot be read.
    """
    sequence = load_folder(path) if (path / "sequence.json").is_file() else None
    reader = ReaderConfig(resolution=args.resolution, max_frames=args.max_frames)
    if sequence is not None and sequence.camera is not None and not args.uncalibrated:
        K = sequence.camera.K
        reader = dataclasses.replace(
            reader, intrinsics=(K[0, 0], K[1, 1], K[0, 2], K[1, 2]),
            distortion=sequence.camera.distortion or None,
        )  # fmt: skip
    with open_video(str(sequence.source if sequence else path), reader) as video:
        frames = list(video.frames_from(0))
    return LoopClip(name=path.stem, frames=frames, truth=_truth(sequence, len(frames)))


def _truth(sequence: EvalSequence | None, count: int) -> dict[int, Array]:
    if sequence is None:
        return {}
    poses = sequence.true_poses(MAX_TIME_DIFFERENCE_S)
    return {i: pose for i, pose in poses.items() if i < count}


def chosen_clips(args: argparse.Namespace) -> Iterator[LoopClip]:
    """Give the clips that the command line names; without any, two that are at hand."""
    if not args.clips:
        yield there_and_back(rendered_orbit())
        recording = bundled("recordings", "recordings") / "room_walker.mp4"
        yield there_and_back(read_clip(recording, args))
    for path in args.clips:
        clip = read_clip(path, args)
        yield there_and_back(clip) if args.there_and_back else clip

"""Video without labels: nothing but colour, for the photometric and consistency losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stream4d.errors import TrainingError
from stream4d.train.formats import read_rgb, stack
from stream4d.train.recordings import RawClip, Recording

_VIDEO_TYPES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v"}
_IMAGE_TYPES = {".jpg", ".jpeg", ".png"}


def unlabelled(root: Path) -> list[Recording]:
    """Any tree of video files and folders of numbered images; there is nothing but colour."""
    videos = [
        _video(path) for path in sorted(root.rglob("*")) if path.suffix.lower() in _VIDEO_TYPES
    ]
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in _IMAGE_TYPES:
            folders[path.parent].append(path)
    stills = [
        Recording(str(folder), len(paths), _ImageReader(paths), max_stride=2)
        for folder, paths in sorted(folders.items())
    ]
    return videos + stills


def _video(path: Path) -> Recording:
    from decord import VideoReader

    try:
        length = len(VideoReader(str(path)))
    except RuntimeError as error:
        raise TrainingError(f"cannot open the video {str(path)!r}: {error}") from error

    def read(indices: Sequence[int]) -> RawClip:
        frames = VideoReader(str(path)).get_batch(list(indices))
        return RawClip(rgb=np.asarray(frames.asnumpy(), np.uint8))

    return Recording(str(path), length, read, max_stride=2)


class _ImageReader:
    """Reads images of one folder."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __call__(self, indices: Sequence[int]) -> RawClip:
        return RawClip(rgb=stack(read_rgb, [self._paths[i] for i in indices]))

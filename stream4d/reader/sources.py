"""Find out what a source is, and pick the backend that decodes it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np

from stream4d.config import ReaderConfig
from stream4d.errors import VideoError
from stream4d.reader.backend import Backend
from stream4d.reader.folder_reader import (
    IMAGE_SUFFIXES,
    FolderBackend,
    list_images,
    read_timestamps,
)
from stream4d.reader.pyav_reader import PyavBackend
from stream4d.reader.selection import select

logger = logging.getLogger(__name__)

_WEBCAM = re.compile(r"webcam(?::(?P<device>.+))?|(?P<path>/dev/video\d+)")
_LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "udp", "srt", "rtp", "tcp", "mms")
_VIDEO_NAMES = ("video.mp4", "video.mov", "video.mkv", "video.webm", "video.avi")
_IMAGE_FOLDERS = ("frames", "images", "rgb")
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
    ".ts", ".webm", ".wmv",
})  # fmt: skip
"""What a video's name ends in, where videos are picked out of a folder; files that are named may end in anything."""
_SEEKS_PAY_FROM = 1.5
"""How many keyframe intervals apart wanted frames must be for decord's seeking to pay. Its CPU time against
decoding everything, at gaps of 1, 2 and 4 intervals: 1.2, 0.7, 0.5 (640×480, a keyframe every 12 frames)."""


def choose_backend(source: str, config: ReaderConfig) -> tuple[Backend, str]:
    """Return the backend for a source and why it was chosen.

    Raises:
        VideoError: the source is missing, empty, or of no kind that can be read.
    """
    if not source.strip():
        raise VideoError("the source is empty: give a video file, image folder, webcam or URL")
    if is_live_or_url(source):
        return _live_or_url(source)
    path = Path(source.removeprefix("file://"))
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        return _in_folder(path, config)
    if os.path.isfile(path):
        return _in_file(path, config)
    if os.path.exists(path):
        raise VideoError(f"{source} is neither a file nor a folder: save it to a file first")
    if any(letter in source for letter in "*?["):
        return FolderBackend(list_images(source), source), "a glob of images"
    raise VideoError(f"no such file or folder: {source}")


def _live_or_url(source: str) -> tuple[Backend, str]:
    from stream4d.reader.camera_reader import CameraBackend

    webcam = _WEBCAM.fullmatch(source)
    if webcam:
        return CameraBackend(webcam["path"] or source), "a camera: only the newest frames are kept"
    scheme = source.partition("://")[0].lower()
    if scheme not in _LIVE_SCHEMES:
        backend = PyavBackend(source)
        if backend.probe.frame_count is not None:
            return backend, f"a finite video over {scheme}"
    return CameraBackend(source), f"a live {scheme} stream: only the newest frames are kept"


def is_live_or_url(source: str) -> bool:
    """Tell whether it is a camera or an address rather than a path."""
    return bool(_WEBCAM.fullmatch(source)) or "://" in source.removeprefix("file://")


def sources_in(folder: Path) -> list[Path]:
    """List what can be reconstructed in a folder: itself where it is one sequence, else its videos and sequences."""
    if _is_sequence(folder):
        return [folder]
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and (_is_video(path) or _is_sequence(path))
    ]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def _is_sequence(folder: Path) -> bool:
    """Tell whether it is opened as one video or as images; among videos, images are taken for previews."""
    if not folder.is_dir() or (folder / "zarr.json").is_file():
        return False
    if videos := [path.name for path in folder.iterdir() if _is_video(path)]:
        return len(videos) == 1 and videos[0] in _VIDEO_NAMES
    folders = [folder, *(folder / name for name in _IMAGE_FOLDERS)]
    return any(each.is_dir() and list_images(each) for each in folders)


def _in_folder(folder: Path, config: ReaderConfig) -> tuple[Backend, str]:
    """Open images in the folder itself, or the video or images of a sequence folder."""
    if images := list_images(folder):
        return FolderBackend(images, str(folder)), _images(len(images))
    for name in _VIDEO_NAMES:
        if (folder / name).is_file():
            backend, reason = _in_file(folder / name, config, folder / "timestamps.txt")
            return backend, f"{name} of a sequence folder, {reason}"
    for name in _IMAGE_FOLDERS:
        if (folder / name).is_dir() and (images := list_images(folder / name)):
            return FolderBackend(images, str(folder)), f"{_images(len(images))} in {name}/"
    if (folder / "zarr.json").is_file():
        raise VideoError(
            f"{folder} is a store, not a video: see it with `stream4d replay {folder}`"
        )
    raise VideoError(
        f"no images in {folder}: give a folder of png, jpg, tiff or webp images, or a video file"
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _in_file(
    path: Path, config: ReaderConfig, timestamps: Path | None = None
) -> tuple[Backend, str]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise VideoError(f"cannot read {path}: {error.strerror}") from None
    if size == 0:
        raise VideoError(f"{path} is empty (0 bytes): the copy or recording failed")
    if path.suffix.lower() == ".rrd":
        raise VideoError(
            f"{path} is a recording, not a video: see it with `stream4d replay {path}`"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return FolderBackend([path], str(path)), "a single image"
    backend = PyavBackend(str(path))
    if timestamps is not None and timestamps.is_file():
        backend.replace_times(read_timestamps(timestamps))
    wants_decord, reason = _wants_decord(backend, config)
    if not wants_decord:
        return backend, reason
    from stream4d.reader.decord_reader import DecordBackend

    try:
        return DecordBackend(backend), reason
    except VideoError as error:
        if config.backend == "decord":
            raise
        logger.debug("not using decord: %s", error)
        return backend, "frames are decoded in order (decord cannot read this file)"


def _wants_decord(backend: PyavBackend, config: ReaderConfig) -> tuple[bool, str]:
    """Tell whether decord should decode a file, and why (not)."""
    if config.backend == "pyav":
        return False, "asked for"
    if backend.probe.timeline is None:
        if config.backend == "decord":
            raise VideoError(
                f"decord cannot read {backend.source}: its frames carry no usable times; "
                "use --backend auto"
            )
        return False, "frames are decoded in order"
    if config.backend == "decord":
        return True, "asked for"
    picks = select(backend.probe.timeline, config)
    gap = float(np.diff(picks).mean()) if len(picks) > 1 else 1.0
    if gap < _SEEKS_PAY_FROM * backend.keyframe_spacing:
        return False, "frames are decoded in order"
    return True, (
        f"one frame in {gap:.0f} is wanted, one in {backend.keyframe_spacing:.0f} is a keyframe: seeking"
    )

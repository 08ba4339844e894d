"""Folders and globs of images, with the times beside them where there are any."""

from __future__ import annotations

import functools
import glob
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from stream4d.errors import VideoError
from stream4d.packets import Array
from stream4d.reader.backend import Decoded, Probe
from stream4d.reader.pixels import over_black
from stream4d.reader.selection import SECOND_NS, even_timeline

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"})
DEFAULT_FPS = 30.0
"""Taken where nothing says how fast the images were made."""


class FolderBackend:
    """Read images in natural order (``2.png`` before ``10.png``).

    Raises:
        VideoError: no images, an unreadable one, differing sizes, times that do not increase, or a single file that
            holds many pictures.
    """

    name = "folder"

    def __init__(self, images: list[Path], source: str) -> None:
        if not images:
            raise VideoError(f"no images match {source}: expected png, jpg, tiff or webp files")
        self._images = images
        first = read_image(images[0])
        if len(images) == 1 and (count := _pictures_in(images[0])) > 1:
            raise VideoError(
                f"{images[0]} holds {count} pictures, of which only the first could be read: "
                "turn it into a video or a folder of images"
            )
        self._shape = first.shape
        timeline = _times_beside(images)
        if timeline is None:
            timeline = even_timeline(len(images), DEFAULT_FPS)
            logger.info("no timestamps.txt for %s: taking %g fps", source, DEFAULT_FPS)
        span_s = max(float(timeline[-1]) / SECOND_NS, 1e-9)
        self.probe = Probe(
            width=first.shape[1],
            height=first.shape[0],
            fps=(len(images) - 1) / span_s if len(images) > 1 else DEFAULT_FPS,
            timeline=timeline,
        )

    def read(self, indices: Array) -> Iterator[Decoded]:
        """Yield the images at ``indices``."""
        assert self.probe.timeline is not None
        for index in indices.tolist():
            time_ns = int(self.probe.timeline[index])
            yield Decoded(index, time_ns, functools.partial(self._image, index))

    def stream(self) -> Iterator[Decoded]:
        """Yield every image."""
        return self.read(np.arange(len(self._images)))

    def _image(self, index: int) -> Array:  # -> (H, W, 3) uint8
        image = read_image(self._images[index])
        if image.shape != self._shape:
            raise VideoError(
                f"images differ in size: {self._images[0].name} is {_size(self._shape)} but "
                f"{self._images[index].name} is {_size(image.shape)}; resize them to one size"
            )
        return image


def _pictures_in(path: Path) -> int:
    """Count the pictures of an animation or of a stack of pages."""
    try:
        return int(cv2.imcount(str(path)))
    except (cv2.error, UnicodeEncodeError):  # a name that is not text
        return 1


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]}"


def list_images(where: str | Path) -> list[Path]:
    """Return the image files of a folder or glob in natural order; hidden files do not count."""
    if isinstance(where, Path):
        paths = list(where.iterdir())
    else:
        paths = [Path(name) for name in glob.glob(where)]
    images = [p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    return sorted(images, key=_natural)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Compare runs of digits as numbers, and the rest as text."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def read_image(path: Path) -> Array:  # -> (H, W, 3) uint8
    """Read any image as 8-bit RGB: 16 bit is scaled down, grey is tripled, alpha is laid over black.

    Raises:
        VideoError: it cannot be read, or holds floating-point pixels.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise VideoError(f"cannot read image {path}: {error.strerror}") from None
    # IMREAD_COLOR turns photographs upright (EXIF); UNCHANGED keeps 16 bit and alpha.
    is_photo = path.suffix.lower() in (".jpg", ".jpeg")
    flags = cv2.IMREAD_COLOR if is_photo else cv2.IMREAD_UNCHANGED
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        raise VideoError(f"{path} is not an image that can be read: remove or replace it")
    return _to_rgb8(image, path)


def _to_rgb8(image: Array, path: Path) -> Array:
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise VideoError(f"{path} holds {image.dtype} pixels: convert it to 8 or 16 bit")
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4:
        return over_black(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA))
    if image.shape[2] == 2:  # grey and alpha
        return over_black(np.ascontiguousarray(image[..., [0, 0, 0, 1]]))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _times_beside(images: list[Path]) -> Array | None:
    """Return the times from ``timestamps.txt`` in the folder or beside it, where they fit the images."""
    folder = images[0].parent
    for path in (folder / "timestamps.txt", folder.parent / "timestamps.txt"):
        if not path.is_file():
            continue
        timeline = read_timestamps(path)
        if len(timeline) == len(images):
            return timeline
        logger.warning("%s has %d lines for %d images: ignored", path, len(timeline), len(images))
    return None


def read_timestamps(path: Path) -> Array:  # -> (N,) int64
    """Read seconds, one line a frame (the first number counts), as ns from the first.

    Raises:
        VideoError: a line is not a number, or times do not increase.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VideoError(f"cannot read {path}: {error}") from None
    times: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            times.append(_seconds_to_ns(line.split()[0]))
        except ValueError:
            raise VideoError(
                f"{path} line {number} is not a time in seconds: {line.strip()[:40]!r}"
            ) from None
        if len(times) > 1 and times[-1] <= times[-2]:
            raise VideoError(f"{path} line {number}: times must increase from line to line")
    return np.array(times, np.int64) - (times[0] if times else 0)


def _seconds_to_ns(text: str) -> int:
    """Convert exactly: a float would round Unix times to 200 ns."""
    whole, _, fraction = text.partition(".")
    if not re.fullmatch(r"\d+", whole) or not re.fullmatch(r"\d*", fraction):
        return round(float(text) * SECOND_NS)
    return int(whole) * SECOND_NS + int((fraction + "000000000")[:9])

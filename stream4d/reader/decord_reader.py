"""Video files through decord: sparse random access, where seeking beats decoding everything between."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import decord
import numpy as np

from stream4d.errors import VideoError
from stream4d.packets import Array
from stream4d.reader.backend import Decoded
from stream4d.reader.pyav_reader import PyavBackend

logger = logging.getLogger(__name__)

_REOPEN_EVERY = 128
"""A decord reader that lives on grows by hundreds of MB; opening it anew costs about 10 ms."""


class DecordBackend:
    """Decode single frames of a local file whose times PyAV has listed.

    Raises:
        VideoError: decord cannot open the file, or sees other frames in it than PyAV does.
    """

    name = "decord"

    def __init__(self, indexed: PyavBackend) -> None:
        self._indexed = indexed
        self.probe = indexed.probe
        video = self._open()
        count = len(video)
        assert self.probe.timeline is not None
        if count != len(self.probe.timeline):
            raise VideoError(
                f"decord sees {count} frames in {indexed.source} where there are "
                f"{len(self.probe.timeline)}: use --backend pyav"
            )
        if not _looks_alike(video[0].asnumpy(), next(indexed.read(np.array([0]))).rgb()):
            # decord 3.4 returns garbage for very small video, and ignores transparency.
            raise VideoError(
                f"decord does not show {indexed.source} as it is (transparent or tiny video): "
                "use --backend pyav"
            )

    def read(self, indices: Array) -> Iterator[Decoded]:
        """Yield the frames at ``indices``, seeking where that saves decoding.

        decord gives up at the first damaged packet; from there PyAV passes over what is damaged.
        """
        assert self.probe.timeline is not None
        for count, index in enumerate(indices.tolist()):
            if count % _REOPEN_EVERY == 0:
                video = self._open()
            try:
                image = video[index]
            except (decord.DECORDError, RuntimeError):
                logger.debug("decord stops at frame %d, going on without it", index)
                yield from self._indexed.read(indices[count:])
                return
            yield Decoded(index, int(self.probe.timeline[index]), image.asnumpy)

    def stream(self) -> Iterator[Decoded]:
        """Yield every frame in order."""
        assert self.probe.timeline is not None
        return self.read(np.arange(len(self.probe.timeline)))

    def _open(self) -> decord.VideoReader:
        decord.logging.set_level(decord.logging.QUIET)
        try:
            return decord.VideoReader(self._indexed.source, ctx=decord.cpu(0))
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:120]
            raise VideoError(
                f"decord cannot read {self._indexed.source} ({reason}): use --backend pyav"
            ) from None


def _looks_alike(a: Array, b: Array) -> bool:
    """Compare with room for other rounding in the colour conversion."""
    return a.shape == b.shape and float(np.abs(a.astype(np.int16) - b).mean()) < 3

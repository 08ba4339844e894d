"""Real data for training: open a data set by name, draw clips from it, mix several by weight.

The families (``families_*``, ``unlabelled``) read official folder layouts; ``recordings``
derives what follows from depth, pose and flow. Every clip has the same type as a rendered one (``ClipBatch``).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stream4d.errors import TrainingError
from stream4d.train import families_captured as captured
from stream4d.train import families_film as film
from stream4d.train import families_rendered as rendered
from stream4d.train.clip import ClipBatch, concatenate
from stream4d.train.recordings import Recording, complete, fit, to_batch
from stream4d.train.unlabelled import unlabelled

FAMILIES: dict[str, Callable[[Path], list[Recording]]] = {
    "pointodyssey": rendered.point_odyssey,
    "tartanair": rendered.tartanair,
    "spring": film.spring,
    "sintel": film.sintel,
    "vkitti2": rendered.vkitti2,
    "scannet": captured.scannet,
    "waymo": captured.waymo,
    "co3d": captured.co3d,
    "megadepth": captured.megadepth,
    "video": unlabelled,
}
"""Name → function that lists the recordings under a folder. ``video`` has no labels."""


def read_clip(
    recording: Recording,
    indices: Sequence[int],
    size: tuple[int, int] | None = None,
    at: tuple[float, float] = (0.5, 0.5),
) -> ClipBatch:
    """Read some frames as a batch of one clip.

    Args:
        recording: where from.
        indices: frames, in order.
        size: (H, W) to fit and crop to; None keeps the files' size.
        at: where the crop lies, see ``recordings.fit``.

    Raises:
        TrainingError: a file is missing or malformed.
        MissingDependencyError: the files' format needs a package that is not installed.
    """
    batch = to_batch(complete(recording.read(indices)))
    return batch if size is None else fit(batch, size, at)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The recordings of one data set; longer ones are drawn more often."""

    name: str
    recordings: tuple[Recording, ...]

    def clip(self, rng: np.random.Generator, frames: int, size: tuple[int, int]) -> ClipBatch:
        """Draw one clip: a recording, a stride, a start and a place of the crop.

        Raises:
            TrainingError: no recording has that many frames, or a file is broken.
        """
        usable = [r for r in self.recordings if r.length >= frames]
        if not usable:
            longest = max(r.length for r in self.recordings)
            raise TrainingError(
                f"{self.name} has no recording of {frames} frames (longest: {longest})"
            )
        lengths = np.array([r.length for r in usable], float)
        recording = usable[rng.choice(len(usable), p=lengths / lengths.sum())]
        largest = (
            min(recording.max_stride, (recording.length - 1) // (frames - 1)) if frames > 1 else 1
        )
        stride = int(rng.integers(1, max(largest, 1) + 1))
        start = int(rng.integers(0, recording.length - (frames - 1) * stride))
        indices = range(start, start + (frames - 1) * stride + 1, stride)
        return read_clip(recording, list(indices), size, (rng.random(), rng.random()))

    def batch(
        self, rng: np.random.Generator, batch: int, frames: int, size: tuple[int, int]
    ) -> ClipBatch:
        """Draw a batch of clips; the same generator state gives the same clips."""
        return concatenate([self.clip(rng, frames, size) for _ in range(batch)])


def open_dataset(name: str, path: str | Path) -> Dataset:
    """Open a data set.

    Args:
        name: one of ``FAMILIES``.
        path: its root folder in the official layout.

    Raises:
        TrainingError: unknown name, missing folder, or nothing in that layout under it.
    """
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TrainingError(f"unknown data set {name!r}.{hint} Known: {', '.join(FAMILIES)}")
    folder = Path(path)
    if not folder.is_dir():
        raise TrainingError(f"data set folder {str(folder)!r} does not exist")
    recordings = [r for r in FAMILIES[name](folder) if r.length > 0]
    if not recordings:
        layout = (FAMILIES[name].__doc__ or "").splitlines()[0]
        raise TrainingError(f"no {name} recording under {str(folder)!r}; the layout is {layout}")
    return Dataset(name, tuple(recordings))

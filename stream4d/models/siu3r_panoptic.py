"""From queries to labels: which query owns a pixel, and the same object's number from window to window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stream4d.packets import Array

MASK_SIZE = (256, 256)
"""Masks pass through this size, whatever the image's: the public model does so."""
MASK_FROM = 0.5
"""Probability from which a pixel belongs to a mask."""
LEAST_OVERLAP = 0.8
"""Share of its own mask that a query must win from the others to count."""
LEAST_IOU = 0.25
"""Overlap from which two segments of one frame are one object."""
NOTHING = -1


class Segment(NamedTuple):
    """One object, or one of several queries of a class without single objects."""

    number: int
    """From 1; the same for all queries of a fused class."""
    label: int
    """Class."""
    score: float
    """Probability of the class."""
    was_fused: bool
    query: int
    """Index into `Kept`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panoptic:
    """Segments of the views of one scene."""

    numbers: Array
    """(T, H, W) int32 number of the segment, 0 where none."""
    segments: list[Segment]
    """One for each query that counts, by the order of queries."""

    def labels(self) -> Array:
        """Return the class of each pixel (T, H, W) int32, -1 where none."""
        table = np.full(self.numbers.max(initial=0) + 1, NOTHING, np.int32)
        for segment in self.segments:
            table[segment.number] = segment.label
        return table[self.numbers]


class Kept(NamedTuple):
    """Queries that are sure enough of being something."""

    scores: Tensor
    """(K,)."""
    labels: Tensor
    """(K,) int64."""
    masks: Tensor
    """(K, T, H, W) probability."""
    classes: Tensor
    """(K, classes + 1) probability."""


def keep_queries(
    class_logits: Tensor,  # (Q, classes + 1)
    mask_logits: Tensor,  # (Q, T, h, w)
    size: tuple[int, int],
    threshold: float,
) -> Kept:
    """Drop the queries that are nothing or unsure, and bring masks to the image's size."""
    probability = class_logits.softmax(dim=-1)
    score, label = probability.max(dim=-1)
    keep = (label != class_logits.shape[-1] - 1) & (score > threshold)
    masks = F.interpolate(mask_logits[keep], size=MASK_SIZE, mode="bilinear", align_corners=False)
    masks = F.interpolate(masks.sigmoid(), size=size, mode="bilinear", align_corners=False)
    return Kept(score[keep], label[keep], masks, probability[keep])


def segment(kept: Kept, fused_classes: Sequence[int]) -> Panoptic:
    """Give each pixel to the query that wants it most; queries left with little of their mask do not count."""
    K, T, H, W = kept.masks.shape
    numbers = np.zeros((T, H, W), np.int32)
    segments: list[Segment] = []
    if K == 0:
        return Panoptic(numbers=numbers, segments=segments)
    masks = kept.masks * kept.scores[:, None, None, None]
    owner = masks.argmax(dim=0)
    number_of_class: dict[int, int] = {}
    newest = 0
    for k in range(K):
        won = owner == k
        own = (masks[k] >= MASK_FROM).sum()
        if not won.any() or own == 0 or won.sum() / own <= LEAST_OVERLAP:
            continue
        label = int(kept.labels[k])
        number = number_of_class.get(label)
        if number is None:
            newest = number = newest + 1
        is_fused = label in fused_classes
        if is_fused:
            number_of_class[label] = number
        numbers[won.cpu().numpy()] = number
        segments.append(Segment(number, label, float(kept.scores[k]), is_fused, k))
    return Panoptic(numbers=numbers, segments=segments)


def lift(kept: Kept, panoptic: Panoptic) -> Tensor:  # (T, H, W, S, classes + 1)
    """Return what each segment says of each pixel: class probability times mask probability.

    Pixel-aligned Gaussians inherit it, and so masks of both views meet in 3D.
    """
    chosen = torch.tensor([s.query for s in panoptic.segments], dtype=torch.long)
    return torch.einsum("sc,sthw->thwsc", kept.classes[chosen], kept.masks[chosen])


class ObjectNumbers:
    """Numbers objects through a video: a segment that overlaps one of the same frame and class keeps its number."""

    def __init__(self) -> None:
        self.newest = 0
        self.of_fused: dict[int, int] = {}

    def number(self, panoptic: Panoptic, view: int, known: Array | None) -> Array:
        """Return a table from the segments' numbers to objects' numbers.

        Args:
            panoptic: segments of a scene.
            view: which of its views is ``known``.
            known: (H, W) int32 objects of that view as numbered before, `NOTHING` where none; None at the start.
        """
        numbers = panoptic.numbers[view]
        table = np.full(panoptic.numbers.max(initial=0) + 1, NOTHING, np.int32)
        taken: set[int] = set()
        for found in panoptic.segments:
            if table[found.number] != NOTHING:
                continue
            if found.was_fused:
                table[found.number] = self._fused(found.label)
                continue
            match = None if known is None else best_overlap(numbers == found.number, known, taken)
            table[found.number] = self._new() if match is None else match
            taken.add(int(table[found.number]))
        return table

    def _fused(self, label: int) -> int:
        if label not in self.of_fused:
            self.of_fused[label] = self._new()
        return self.of_fused[label]

    def _new(self) -> int:
        self.newest += 1
        return self.newest


def best_overlap(mask: Array, known: Array, taken: set[int]) -> int | None:
    """Return the object whose pixels in ``known`` share most with ``mask``, None if that is less than `LEAST_IOU`."""
    best, best_iou = None, LEAST_IOU
    for candidate in np.unique(known[mask]):
        if candidate == NOTHING or int(candidate) in taken:
            continue
        other = known == candidate
        iou = (mask & other).sum() / (mask | other).sum()
        if iou >= best_iou:
            best, best_iou = int(candidate), iou
    return best

"""Places: keyframes remembered so that the camera knows when it comes back. A bounded number, spread over the path.

Retrieval is a bag of binary words (Sivic & Zisserman, "Video Google", 2003; Gálvez-López & Tardós, "Bags of binary
words", 2012) whose vocabulary grows from the video itself: a descriptor far from all words becomes one, up to a bound;
words never change, so that what was written with them stays readable.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import cv2
import numpy as np

from stream4d.packets import Array, State
from stream4d.pose import descriptors

CORNERS = 300
WORDS = 1024
NEW_WORD_BITS = 56
"""Bits of 256 from the nearest word from which a descriptor is a word of its own."""
NEW_WORDS = 48
"""Words that one image may add: the vocabulary shall know more than the first room."""
MAX_PLACES = 192
JPEG_QUALITY = 95
"""A place's image is kept as about 20 kB; what is lost is below the camera's own noise."""
SEEN_AGAIN = 0.35
"""Share of the likeness between neighbouring keyframes from which a place may be the same."""


@dataclass(slots=True, eq=False)
class Place:
    """What is remembered of a keyframe."""

    index: int
    """Frame index."""
    is_live: bool
    """True while the keyframe is in the map: it cannot be come back to yet."""
    jpeg: Array
    """(b,) uint8: its grey image."""
    uv: Array
    """(n, 2) float32 pixels of patches of known depth."""
    rho: Array
    """(n,) their inverse depth in the node's unit."""
    points: Array
    """(m, 2) float32 pixels that are described."""
    descriptors: Array
    """(m, 32) uint8 ORB."""
    words: Array
    """(m,) int16."""

    def grey(self) -> Array:
        """Return the image (H, W) uint8."""
        return np.asarray(cv2.imdecode(self.jpeg, cv2.IMREAD_GRAYSCALE))


@dataclass(slots=True, eq=False)
class PlaceMemory:
    """All places, in order of time, and the vocabulary they are written in."""

    places: list[Place] = field(default_factory=list)
    vocabulary: Array = field(default_factory=lambda: np.zeros((0, 32), np.uint8))
    """(w, 32) uint8."""

    def of(self, index: int) -> Place | None:
        """Return the place of a keyframe."""
        return next((place for place in self.places if place.index == index), None)

    def enter(self, index: int, grey: Array, uv: Array, *, described: bool) -> Place:
        """Remember a keyframe that has just been made; its patches come when it leaves the map.

        One that is not described cannot be searched for; it serves as a neighbour.
        """
        points, bits = descriptors.NOTHING
        if described:
            points, bits = descriptors.describe(grey, uv, CORNERS)
        _, jpeg = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        words = self._read(bits)
        place = Place(
            index, True, np.asarray(jpeg).ravel(), np.zeros((0, 2), np.float32), np.zeros(0),
            points, bits, words,
        )  # fmt: skip
        self.places.append(place)
        return place

    def search(self, query: Place, count: int) -> list[Place]:
        """Return up to ``count`` places that look like ``query``, the likeliest first."""
        likeness = self._likeness(query)
        before = [p for p in self.places if len(p.words) and p.index < query.index]
        if not before or not len(query.words):
            return []
        neighbour = max(before, key=lambda p: p.index)
        enough = SEEN_AGAIN * likeness[neighbour.index]
        known = [p for p in self.places if not p.is_live and likeness.get(p.index, 0) > enough]
        return sorted(known, key=lambda p: (-likeness[p.index], p.index))[:count]

    def drop(self, index: int) -> None:
        """Forget a place."""
        self.places = [place for place in self.places if place.index != index]

    def state(self) -> State:
        """Return what ``restore`` needs: few arrays, the places' joined end to end."""
        out: State = {"vocabulary": self.vocabulary.copy()}
        for f in dataclasses.fields(Place):
            values = [np.asarray(getattr(place, f.name)) for place in self.places]
            if values and values[0].ndim:
                out[f"{f.name}.length"] = np.array([len(v) for v in values], np.int64)
                out[f.name] = np.concatenate(values)
            else:
                out[f.name] = np.array(values)
        return out

    @classmethod
    def restore(cls, state: State) -> PlaceMemory:
        """Return the memory that gave ``state``."""
        columns = []
        for f in dataclasses.fields(Place):
            if f"{f.name}.length" in state:
                ends = np.cumsum(state[f"{f.name}.length"])
                parts = np.split(np.array(state[f.name]), ends[:-1])
                columns.append([part.copy() for part in parts])
            else:
                columns.append(state[f.name].tolist())
        places = [Place(*values) for values in zip(*columns, strict=True)]
        return cls(places, np.array(state["vocabulary"]))

    def _read(self, described: Array) -> Array:
        """Return the words (m,) of descriptors; those that are far from all words become words first."""
        known = len(self.vocabulary)
        word, bits = _nearest(described, self.vocabulary)
        added = _far_apart(described[bits > NEW_WORD_BITS], min(NEW_WORDS, WORDS - known))
        self.vocabulary = np.concatenate([self.vocabulary, added])
        new_word, new_bits = _nearest(described, added)
        return np.where(new_bits < bits, known + new_word, word).astype(np.int16)

    def _likeness(self, query: Place) -> dict[int, float]:
        """Return the cosine of weighted bags of words between ``query`` and all places."""
        W, known = len(self.vocabulary), [p for p in self.places if len(p.words) or p is query]
        bags = np.stack([np.bincount(p.words, minlength=W) for p in known]).astype(float)
        rarity = np.log((len(bags) + 1) / ((bags > 0).sum(axis=0) + 0.5))
        bags = np.sqrt(bags) * np.maximum(rarity, 0)  # a wall of the same brick counts once
        bags /= np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1e-9)
        own = next(i for i, p in enumerate(known) if p is query)
        return {p.index: float(s) for p, s in zip(known, bags @ bags[own], strict=True)}


def _nearest(described: Array, words: Array) -> tuple[Array, Array]:
    """Return the nearest word (m,) of each descriptor and how many bits (m,) it is away; inf where there is none."""
    if not len(described) or not len(words):
        return np.zeros(len(described), np.int64), np.full(len(described), np.inf)
    word, bits = descriptors.nearest(described, words, 1)
    return word[:, 0], bits[:, 0]


def _far_apart(described: Array, count: int) -> Array:
    """Return up to ``count`` descriptors, each far from those before it."""
    bits = np.unpackbits(described, axis=1)
    chosen: list[int] = []
    for i in range(len(described)):
        if len(chosen) == count:
            break
        if not chosen or (bits[chosen] != bits[i]).sum(axis=1).min() > NEW_WORD_BITS:
            chosen.append(i)
    return described[chosen]

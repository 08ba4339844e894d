"""Which frames of a window are paired."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stream4d.errors import ModelError


def window_offsets(kind: str, k: int) -> list[int]:
    """Return the distances in time that a graph pairs: ``swin``, ``swinstride``, ``swin2stride``, …"""
    match kind:
        case "swin":
            return list(range(1, k + 1))
        case "swinstride":
            return list(range(1, 2 * k, 2))
        case "swin2stride":
            return list(range(1, 3 * k, 3))
        case "swinskip_start":
            return list(range(2, k + 2))
        case "logwin":
            return [2**i for i in range(k)]
    raise ModelError(f"unknown pair graph {kind!r}")


def make_pairs(n: int, graph: str, *, symmetric: bool = True) -> list[tuple[int, int]]:
    """List the pairs of n frames, sorted.

    Args:
        graph: ``complete``, ``oneref-i``, or ``swin-k``, ``swinstride-k``, ``swin2stride-k``, ``swinskip_start-k``,
            ``logwin-k`` with ``-noncyclic`` to leave out pairs around the end.
        symmetric: add each pair in the other direction.
    """
    kind, _, rest = graph.partition("-")
    number = rest.split("-")[0]
    if kind == "complete":
        pairs = [(i, j) for i in range(n) for j in range(i)]
    elif kind == "oneref":
        reference = int(number) if number else 0
        pairs = [(reference, j) for j in range(n) if j != reference]
    else:
        cyclic = not graph.endswith("noncyclic")
        offsets = window_offsets(kind, int(number) if number.isdigit() else 3)
        pairs = _window_pairs(n, offsets, cyclic, both_ways=kind == "logwin")
    if symmetric:
        pairs = pairs + [(j, i) for i, j in pairs]
    return sorted(pairs)


def _window_pairs(
    n: int, offsets: Sequence[int], cyclic: bool, both_ways: bool
) -> list[tuple[int, int]]:
    found = set()
    for i in range(n):
        for offset in (*offsets, *(-o for o in offsets if both_ways)):
            j = (i + offset) % n if cyclic else i + offset
            if 0 <= j < n and not (both_ways and i == j):
                found.add((min(i, j), max(i, j)))
    return list(found)


def drop_distant(
    pairs: Iterable[tuple[int, int]], distance: int, n: int, *, cyclic: bool = False
) -> list[tuple[int, int]]:
    """Leave out pairs further apart in time than ``distance``."""

    def gap(i: int, j: int) -> int:
        straight = abs(i - j)
        return min(straight, n - straight) if cyclic else straight

    return [(i, j) for i, j in pairs if gap(i, j) <= distance]


def spanning_tree(scores: dict[tuple[int, int], float], n: int) -> list[tuple[int, int]]:
    """Return the edges of the maximum spanning tree, best first (Kruskal)."""
    group = list(range(n))
    tree = []
    for (i, j), _ in sorted(scores.items(), key=lambda item: -item[1]):
        if group[i] != group[j]:
            tree.append((i, j))
            old, new = group[j], group[i]
            group = [new if g == old else g for g in group]
    return tree

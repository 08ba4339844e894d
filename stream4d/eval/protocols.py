"""The field's benchmarks by name: ``stream4d eval --dataset NAME --root DIR``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stream4d.errors import EvaluationError
from stream4d.eval import layouts_film as film
from stream4d.eval import layouts_indoor as indoor
from stream4d.eval.sequence import EvalSequence, load_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A benchmark: what it holds and how its folder is read."""

    summary: str
    """One line for ``--help`` and the results."""
    load: Callable[[Path], Iterator[EvalSequence]]
    """Yields the sequences below a root folder."""


PROTOCOLS = {
    "sintel": Protocol(summary="MPI Sintel, 14 sequences of MonST3R/CUT3R", load=film.sintel),
    "tum-dynamics": Protocol(
        summary="TUM RGB-D sitting and walking, 90 frames at stride 3", load=indoor.tum_dynamics
    ),
    "tum-fr1": Protocol(summary="TUM RGB-D freiburg1, every frame", load=indoor.tum_freiburg1),
    "bonn": Protocol(summary="Bonn RGB-D Dynamic, 5 sequences of 110 frames", load=indoor.bonn),
    "scannet": Protocol(summary="ScanNet, 90 frames at stride 3", load=indoor.scannet),
    "kitti-odometry": Protocol(summary="KITTI odometry 00 to 10", load=film.kitti_odometry),
    "kitti-depth": Protocol(summary="KITTI depth validation, 110 frames", load=film.kitti_depth),
    "7scenes": Protocol(summary="7-Scenes test split, every 40th frame", load=indoor.seven_scenes),
    "nrgbd": Protocol(summary="Neural RGB-D, every 100th frame", load=indoor.nrgbd),
    "euroc": Protocol(summary="EuRoC MAV, left camera", load=indoor.euroc),
    "davis-16": Protocol(summary="DAVIS 2016 validation", load=film.davis_2016),
    "davis-17": Protocol(summary="DAVIS 2017 validation, objects joined", load=film.davis_2017),
}
"""Name → protocol."""


def load_dataset(name: str, root: Path) -> Iterator[EvalSequence]:
    """Yield the sequences of a benchmark.

    Raises:
        EvaluationError: unknown name, or a root that does not hold the benchmark's layout.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise EvaluationError(f"unknown data set {name!r}.{hint} Known: {', '.join(PROTOCOLS)}")
    found = False
    try:
        for sequence in PROTOCOLS[name].load(Path(root)):
            found = True
            yield sequence
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise EvaluationError(f"{root} does not hold {name} as published: {error!r}") from None
    if not found:
        raise EvaluationError(f"{root} holds no sequence of {name}; see its published layout")


def load_named(dataset: str | None, root: Path, name: str) -> EvalSequence:
    """Load one sequence again in another process: a folder, or one of a benchmark by name.

    Raises:
        EvaluationError: as ``load_folder`` and ``load_dataset``.
    """
    if dataset is None:
        return load_folder(root)
    for sequence in load_dataset(dataset, root):
        if sequence.name == name:
            return sequence
    raise EvaluationError(f"{dataset} below {root} has no sequence {name!r}")

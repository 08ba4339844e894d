"""Rerun recordings of posed frames: written as a run does, and read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rerun.chunk import RrdReader

from stream4d.config import ViewConfig
from stream4d.packets import Array, PosedFrame, PoseRevision
from stream4d.viz.rerun_sink import RerunSink


def rows(path: Path, entity: str, component: str) -> Iterator[tuple[int, Array]]:
    """Yield frame index and values of one component, in order."""
    found = []
    for chunk in RrdReader(path).stream():
        if chunk.entity_path != entity:
            continue
        table = chunk.to_record_batch()
        names = [name for name in table.schema.names if name.endswith(component)]
        if not names or "frame" not in table.schema.names:
            continue
        values = table.column(names[0]).to_pylist()
        found += list(zip(table.column("frame").to_pylist(), values, strict=True))
    return ((i, np.array(v)) for i, v in sorted(found, key=lambda r: r[0]) if v is not None)


def record(path: Path, frames: list[PosedFrame], *revisions: PoseRevision) -> None:
    with RerunSink(ViewConfig(save_rrd=str(path)), "test") as sink:
        for frame in frames:
            sink.write(frame)
        for revision in revisions:
            sink.revise(revision)

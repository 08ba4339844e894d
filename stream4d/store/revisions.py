"""Better poses for frames that are stored: several revisions become one change of rows, which is then worked in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stream4d.packets import Array, PoseRevision
from stream4d.store.files import RowFile

REVISED = ("world_from_cam", "depth_scale", "pose_covariance", "K")
"""Rows that a revision may change."""


def merged(
    revisions: Sequence[PoseRevision], rows: Mapping[str, RowFile]
) -> dict[str, Array] | None:
    """Return the final values of all frames that revisions name, and their indices; None where they name none.

    ``K`` is among them where a revision tells it.
    """
    if not any(len(revision.indices) for revision in revisions):
        return None
    indices = np.unique(np.concatenate([r.indices for r in revisions])).astype(np.int64)
    new = {name: rows[name].get(indices) for name in REVISED}
    for revision in revisions:
        at = np.searchsorted(indices, revision.indices)
        new["world_from_cam"][at] = revision.world_from_cam
        new["depth_scale"][at] *= revision.scale
        if revision.pose_covariance is not None:
            new["pose_covariance"][at] = revision.pose_covariance
        if revision.K is not None:
            new["K"][at] = revision.K
    if all(revision.K is None for revision in revisions):
        del new["K"]
    return {"index": indices, **new}


def work_in(changes: Mapping[str, Array], rows: Mapping[str, RowFile]) -> None:
    """Write a change into the rows; one that an older version left may name fewer."""
    for name in REVISED:
        if name in changes:
            rows[name].put(changes["index"], changes[name])

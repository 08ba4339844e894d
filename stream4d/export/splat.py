"""An initial cloud of 3D Gaussians in the PLY layout of Kerbl et al. (SIGGRAPH 2023).

Viewers and trainers of Gaussian splats read it; nothing is optimised here: one round Gaussian per point of the
static cloud, with its colour.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stream4d.errors import ExportError
from stream4d.export.output import new_file
from stream4d.export.ply import save_vertices
from stream4d.export.source import FrameSource, Selection, static_cloud
from stream4d.packets import Array

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(π)): colour = 0.5 + SH_C0 · f_dc."""
SH_REST = 45
"""Coefficients of degrees 1 to 3, all of red before green before blue."""


def write_splat(
    source: FrameSource,
    path: Path,
    *,
    selection: Selection | None = None,
    overwrite: bool = False,
    opacity: float = 0.7,
) -> None:
    """Write the static cloud as Gaussians that touch their neighbours.

    Args:
        source: a store or frames.
        path: the ``.ply`` file.
        selection: which frames, how many points.
        overwrite: replace an existing file.
        opacity: in (0, 1); 0.1 is what trainers start from, more lets the file be looked at as it is.

    Raises:
        ExportError: no points, or not writable.
        MissingDependencyError: plyfile is not installed.
    """
    if not 0 < opacity < 1:
        raise ExportError(f"opacity must lie between 0 and 1, got {opacity}")
    with new_file(path, overwrite=overwrite) as partial:
        cloud = static_cloud(source, selection or Selection())
        assert cloud.voxel is not None
        save_vertices(partial, gaussians(cloud.points, cloud.rgb, cloud.voxel / 2, opacity))


def gaussians(points: Array, rgb: Array, sigma: float, opacity: float) -> Array:  # (N, 3), (N, 3)
    """Return the structured array of round Gaussians of one size and opacity."""
    N = len(points)
    return splat_table(
        points=points,
        harmonics=((rgb / 255.0 - 0.5) / SH_C0)[..., None],
        opacity=np.full(N, opacity),
        sigma=np.full((N, 3), sigma),
        quat_wxyz=np.tile([1.0, 0, 0, 0], (N, 1)),
    )


def splat_table(
    *,
    points: Array,  # (N, 3)
    harmonics: Array,  # (N, 3, k ≤ 16) of red, green, blue
    opacity: Array,  # (N,) in (0, 1)
    sigma: Array,  # (N, 3)
    quat_wxyz: Array,  # (N, 4)
    label: Array | None = None,  # (N,)
) -> Array:
    """Return the vertices of the file: logit opacity, log scale, quaternion wxyz, and a label if there is one."""
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3))]
    names += [*(f"f_rest_{i}" for i in range(SH_REST)), "opacity"]
    names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    extra = [] if label is None else [("label", "<i4")]
    vertices = np.zeros(len(points), [*((name, "<f4") for name in names), *extra])
    rest = SH_REST // 3
    for i, axis in enumerate("xyz"):
        vertices[axis] = points[:, i]
        vertices[f"f_dc_{i}"] = harmonics[:, i, 0]
        vertices[f"scale_{i}"] = np.log(sigma[:, i])
        for k in range(harmonics.shape[2] - 1):
            vertices[f"f_rest_{i * rest + k}"] = harmonics[:, i, k + 1]
    for i in range(4):
        vertices[f"rot_{i}"] = quat_wxyz[:, i]
    vertices["opacity"] = np.log(opacity / (1 - opacity))
    if label is not None:
        vertices["label"] = label
    return vertices

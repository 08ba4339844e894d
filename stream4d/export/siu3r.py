"""The Gaussians that SIU3R sees in two frames, with the label of each, in the PLY layout of Kerbl et al."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch

from stream4d.errors import ExportError
from stream4d.export.output import new_file
from stream4d.export.ply import save_vertices
from stream4d.export.source import FrameSource, Selection, select_frames
from stream4d.export.splat import splat_table
from stream4d.models.family import numpy
from stream4d.models.siu3r import Siu3rModel, UnderstoodPair, fit_image
from stream4d.packets import Array, PosedFrame

FAINT = 1 / 255
"""Gaussians of less opacity add nothing to any pixel."""
COEFFICIENTS = 16
"""Spherical harmonics that the layout has room for: degree 3."""


def write_siu3r(
    source: FrameSource,
    path: Path,
    *,
    selection: Selection | None = None,
    overwrite: bool = False,
    model: Siu3rModel | None = None,
) -> None:
    """Run SIU3R on the first two selected frames and write its Gaussians, with a property ``label``.

    They stand in the camera of the first of both frames, at the size of its stored depth.

    Args:
        source: a store or frames.
        path: the ``.ply`` file.
        selection: which frames; ``stride`` sets how far apart the two are.
        overwrite: replace an existing file.
        model: with weights already; None reads them from the hub.

    Raises:
        ExportError: fewer than two frames, or not writable.
        WeightsError: the weights cannot be had.
        MissingDependencyError: plyfile is not installed.
    """
    frames = list(islice(select_frames(source, selection or Selection()), 2))
    if len(frames) < 2:
        raise ExportError("Gaussians of SIU3R need two frames: select more, or a smaller --stride")
    model = model or Siu3rModel.create("siu3r")
    with new_file(path, overwrite=overwrite) as partial:
        save_vertices(partial, _table(*_understood(frames, model)))


def _understood(frames: list[PosedFrame], model: Siu3rModel) -> tuple[UnderstoodPair, float]:
    """Return the labelled Gaussians, and the factor that brings them to the stored depth."""
    height, width = frames[0].depth.shape
    fit = fit_image(width, height, model.config.resolution)
    K = np.stack([fit.K_to_network(frame.K) for frame in frames])
    images = fit.batch([frame.rgb for frame in frames])
    scene = model.understand(images, torch.from_numpy(K))
    theirs = numpy(scene.gaussians.means[0, ..., 2])
    ours = fit.depth_to_network(np.nan_to_num(frames[0].depth))
    known = (ours > 0) & (theirs > 0)
    # Where no depth is stored, there is no size to bring them to.
    return scene, float(np.median(ours[known] / theirs[known])) if known.any() else 1.0


def _table(scene: UnderstoodPair, scale: float) -> Array:
    """Return the vertices of all Gaussians that can be seen."""
    gaussians = scene.gaussians
    opacity = numpy(gaussians.opacities).ravel()
    kept = opacity > FAINT
    harmonics = numpy(gaussians.harmonics)
    return splat_table(
        points=scale * numpy(gaussians.means).reshape(-1, 3)[kept],
        harmonics=harmonics.reshape(-1, *harmonics.shape[-2:])[kept, :, :COEFFICIENTS],
        opacity=opacity[kept],
        sigma=scale * numpy(gaussians.scales).reshape(-1, 3)[kept],
        quat_wxyz=numpy(gaussians.quats_xyzw).reshape(-1, 4)[kept][:, [3, 0, 1, 2]],
        label=scene.panoptic.labels().ravel()[kept],
    )

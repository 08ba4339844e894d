"""The scene as one GLB file: static cloud, camera path and some frusta, for any glTF viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stream4d.errors import MissingDependencyError
from stream4d.export.output import new_file
from stream4d.export.source import FrameSource, Selection, select_frames, static_cloud
from stream4d.packets import Array, PosedFrame
from stream4d.viz import colors

GLTF_FROM_WORLD = np.diag([1.0, -1.0, -1.0, 1.0])
"""glTF: x right, y up, z towards the viewer."""
FRUSTA = 24
"""Cameras drawn, spread over the path."""


def write_glb(
    source: FrameSource, path: Path, *, selection: Selection | None = None, overwrite: bool = False
) -> None:
    """Write cloud (node ``static``), path (``camera_path``) and cameras (``cameras``).

    Raises:
        ExportError: no points, or not writable.
        MissingDependencyError: trimesh is not installed.
    """
    trimesh = _trimesh()
    selection = selection or Selection()
    with new_file(path, overwrite=overwrite) as partial:
        cloud = static_cloud(source, selection)
        opaque = np.full((len(cloud), 1), 255, np.uint8)
        scene = trimesh.Scene()
        scene.add_geometry(
            trimesh.PointCloud(cloud.points, colors=np.hstack([_linear(cloud.rgb), opaque])),
            geom_name="static",
            node_name="static",
        )
        positions, cameras = _cameras(source, selection)
        if len(positions) > 1:
            _add_lines(trimesh, scene, "camera_path", [positions])
        _add_lines(trimesh, scene, "cameras", cameras)
        scene.apply_transform(GLTF_FROM_WORLD)
        partial.write_bytes(scene.export(file_type="glb"))


def _linear(srgb: Array) -> Array:  # (..., 3) uint8
    """Undo the sRGB curve: glTF's vertex colours are linear, pictures are not."""
    value = srgb / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    rounded: Array = np.round(linear * 255).astype(np.uint8)
    return rounded


def _cameras(source: FrameSource, selection: Selection) -> tuple[Array, list[Array]]:
    """Return the path (T, 3) and the outlines of some cameras, each (6, 3)."""
    frames = [
        (frame.world_from_cam[:3, 3], _outline(frame)) for frame in select_frames(source, selection)
    ]
    positions = np.stack([position for position, _ in frames])
    shown = np.unique(np.linspace(0, len(frames) - 1, FRUSTA).round().astype(int))
    return positions, [frames[i][1] for i in shown]


def _outline(frame: PosedFrame) -> Array:  # (K, 3)
    """Trace a camera's pyramid in one stroke; its depth is a tenth of what it sees."""
    H, W = frame.rgb.shape[:2]
    known = frame.depth[np.isfinite(frame.depth) & (frame.depth > 0)]
    size = 0.1 * float(np.median(known)) if known.size else 0.1
    pixels = np.array([[0, 0, 1], [W - 1, 0, 1], [W - 1, H - 1, 1], [0, H - 1, 1.0]])
    corners = pixels @ np.linalg.inv(frame.K).T * size
    apex = np.zeros(3)
    a, b, c, d = corners
    stroke = np.stack([apex, a, b, apex, c, d, apex, a, d, c, b])
    outline: Array = stroke @ frame.world_from_cam[:3, :3].T + frame.world_from_cam[:3, 3]
    return outline


def _add_lines(trimesh: Any, scene: Any, name: str, strips: list[Array]) -> None:
    vertices = np.concatenate(strips)
    ends = np.cumsum([len(strip) for strip in strips])
    entities = [
        trimesh.path.entities.Line(np.arange(end - len(strip), end))
        for strip, end in zip(strips, ends, strict=True)
    ]
    color = np.tile([*_linear(np.array(colors.PATH)), 255], (len(entities), 1)).astype(np.uint8)
    path = trimesh.path.Path3D(entities=entities, vertices=vertices, colors=color, process=False)
    scene.add_geometry(path, geom_name=name, node_name=name)


def _trimesh() -> Any:
    try:
        import trimesh
        import trimesh.path
    except ImportError:
        raise MissingDependencyError("trimesh", needed_for="GLB export", extra="export") from None
    return trimesh

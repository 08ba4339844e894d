"""Where things are in the viewer: the 3D scene at the left, maps at the right, plots below."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import rerun.blueprint as rrb

from stream4d.packets import Array

WORLD = "/world"
CAMERA = "/world/camera"
IMAGE = "/world/camera/image"
MOTION = "/world/camera/image/motion"
LABELS = "/world/camera/image/labels"
TRACKS = "/world/camera/image/tracks"
PATH = "/world/path"
STATIC = "/world/static"
MOVING = "/world/moving"
NOW = "/world/now"
SPATIAL_TRACKS = "/world/tracks"
DEPTH, FLOW, CONFIDENCE = "/maps/depth", "/maps/flow", "/maps/confidence"
PLOTS = "/plots"

PLOT_TITLES = {
    "depth_median": "Depth",
    "static_share": "Static",
    "focal_px": "Focal px",
    "fps": "Frames/s",
    "latency_ms": "Latency ms",
}
"""Entity under ``PLOTS`` → title, short enough for a narrow window."""
TIMING_PLOTS = {"fps", "latency_ms"}
"""Those that a replay has not."""

FRAME, TIME = "frame", "video_time"
"""Timelines: index of the frame, and presentation time."""


def default_eye(scale: float) -> rrb.EyeControls3D:
    """Look over the first camera's shoulder at what it sees; ``scale`` is its median depth.

    The world is the first camera's frame: x right, y down, z forward, so up is -y and behind is -z.
    """
    return _eye(
        position=np.array([-0.35, -0.55, -0.9]) * scale, target=np.array([0, 0, 0.8]) * scale
    )


def fitted_eye(
    camera_positions: Array, points: Array, *, at_least: float = 1e-6
) -> rrb.EyeControls3D:
    """Look at a finished scene from behind and above, far enough to see path and most of the cloud.

    Args:
        camera_positions: (T, 3) path in the world.
        points: (N, 3) static cloud in the world, may be empty.
        at_least: radius that is in view, for a camera that hardly moves.
    """
    shown = np.concatenate([camera_positions, points]) if len(points) else camera_positions
    low, high = np.percentile(shown, (10, 90), axis=0)
    low = np.minimum(low, camera_positions.min(axis=0))
    high = np.maximum(high, camera_positions.max(axis=0))
    center, radius = (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, at_least)
    return _eye(position=center + np.array([-0.55, -0.95, -1.6]) * radius, target=center)


def _eye(position: Array, target: Array) -> rrb.EyeControls3D:
    return rrb.EyeControls3D(
        kind=rrb.Eye3DKind.Orbital, position=position, look_target=target, eye_up=(0.0, -1.0, 0.0)
    )


def layout(
    eye: rrb.EyeControls3D,
    plots: Collection[str] = tuple(PLOT_TITLES),
    *,
    has_labels: bool = False,
) -> rrb.Blueprint:
    """Return the whole layout.

    Args:
        eye: where the 3D view looks from.
        plots: which of ``PLOT_TITLES`` there is data for.
        has_labels: show a tab with the labels of classes or objects.
    """
    scene = rrb.Spatial3DView(
        origin=WORLD,
        contents=["$origin/**", f"- {MOTION}", f"- {LABELS}", f"- {TRACKS}/**"],
        name="Scene",
        background=rrb.Background(color=(18, 18, 22)),
        line_grid=rrb.LineGrid3D(visible=False),
        eye_controls=eye,
    )
    return rrb.Blueprint(
        rrb.Horizontal(
            rrb.Vertical(scene, _plots(plots), row_shares=[3, 1]),
            _maps(has_labels=has_labels),
            column_shares=[5, 3],
        ),
        rrb.TimePanel(state="collapsed", timeline=FRAME),
        rrb.SelectionPanel(state="hidden"),
        rrb.BlueprintPanel(state="collapsed"),
        auto_views=False,
    )


def _maps(*, has_labels: bool) -> rrb.Vertical:
    video = rrb.Spatial2DView(origin=IMAGE, contents=[IMAGE, f"{TRACKS}/**"], name="Video")
    motion = rrb.Spatial2DView(
        origin=IMAGE, contents=[IMAGE, MOTION, f"{TRACKS}/**"], name="Motion"
    )
    labels = rrb.Spatial2DView(origin=IMAGE, contents=[IMAGE, LABELS], name="Labels")
    depth = rrb.Spatial2DView(origin=DEPTH, name="Depth: near red, far blue")
    flow = rrb.Spatial2DView(origin=FLOW, name="Flow to the next frame")
    confidence = rrb.Spatial2DView(origin=CONFIDENCE, name="Confidence: yellow is sure")
    return rrb.Vertical(
        rrb.Tabs(motion, video, *([labels] if has_labels else []), active_tab=0),
        rrb.Tabs(depth, confidence, active_tab=0),
        rrb.Tabs(flow),
    )


def _plots(names: Collection[str]) -> rrb.Horizontal:
    views = [
        rrb.TimeSeriesView(
            origin=f"{PLOTS}/{name}",
            name=title,
            plot_legend=rrb.PlotLegend(visible=False),
            axis_y=rrb.ScalarAxis(range=(0.0, 1.0)) if name == "static_share" else None,
        )
        for name, title in PLOT_TITLES.items()
        if name in names
    ]
    return rrb.Horizontal(*views)

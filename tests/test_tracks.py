"""Followed points on a scene whose every point is known: accuracy, movers, hiding, resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stream4d.eval.tracks import PointTrackScore, score_point_tracks
from stream4d.geometry.flow import sample
from stream4d.models.registry import create_model
from stream4d.packets import Array, FrameTracks, PoseRevision, Prediction, State
from stream4d.pose.tracks import PointTracker
from stream4d.store.reader import open_store
from stream4d.store.track_set import TrackSet, by_point
from stream4d.store.writer import StoreWriter
from tests.posed import posed_frame
from tests.synthetic import Scene

COUNT, FRAMES = 60, 24


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene("walk")


def follow(
    scene: Scene, *, break_at: int | None = None, model: str | None = "classical"
) -> list[FrameTracks]:
    """Run a tracker over the scene; ``break_at``: go on with another from the first one's state."""
    tracker, rows = PointTracker(COUNT, scene.info()), []
    session = create_model(model).session(scene.info()) if model else None
    for window in scene.windows(FRAMES):
        if window.index == break_at:
            state: State = tracker.state()
            tracker = PointTracker(COUNT, scene.info())
            tracker.restore({name: np.array(value) for name, value in state.items()})
        tracker.follow(window, session.step(window) if session else Prediction())
        # Two frames stay behind, as in the pose chain.
        for index in [f.index - 2 for f in window.new_frames if f.index >= 2]:
            rows.append(tracker.attach(posed_frame(scene, index)).tracks)
    return rows


def by_truth(scene: Scene, rows: list[FrameTracks]) -> TrackSet:
    slots = {f"track_{name}": np.stack([getattr(row, name) for row in rows]) for name in
             ("id", "uv", "visible", "depth")}  # fmt: skip
    poses = np.stack([scene.world_from_cam(t) for t in range(len(rows))])
    return by_point(slots, np.repeat(scene.K[None], len(rows), axis=0), poses, 0)


def score(scene: Scene, tracks: TrackSet, chosen: Array) -> PointTrackScore:
    """Score some tracks against where the scene's surfaces go."""
    T = tracks.uv.shape[1]
    # Points chosen at the same moment share the rendering of their truth: take the moments with most of them.
    moments = np.bincount(tracks.query_frame[chosen]).argsort()[::-1][:6]
    chosen = chosen[np.isin(tracks.query_frame[chosen], moments)]
    truth, seen = np.zeros((len(chosen), T, 2)), np.zeros((len(chosen), T), bool)
    for q in np.unique(tracks.query_frame[chosen]).tolist():
        mine = np.flatnonzero(tracks.query_frame[chosen] == q)
        start = tracks.uv[chosen[mine], q].astype(np.float64)
        for t in range(q, T):
            flow, visible = scene.flow(q, t)
            truth[mine, t] = start + sample(flow, start)
            seen[mine, t] = sample(visible.astype(float), start) > 0.99
    return score_point_tracks(
        np.nan_to_num(tracks.uv[chosen], nan=-1e3), tracks.visible[chosen], np.nan_to_num(truth),
        seen, tracks.query_frame[chosen], (scene.width, scene.height),
    )  # fmt: skip


def is_on_mover(scene: Scene, tracks: TrackSet) -> Array:
    start = np.array([u[q] for u, q in zip(tracks.uv, tracks.query_frame, strict=True)])
    at = np.rint(start).astype(int)
    return np.array(
        [scene.moving(q)[v, u] for q, (u, v) in zip(tracks.query_frame, at, strict=True)]
    )


@pytest.fixture(scope="module")
def rows(scene: Scene) -> list[FrameTracks]:
    """What a tracker says that is fed by the classical model."""
    return follow(scene)


@pytest.mark.parametrize("has_model", [True, False])
def test_points_are_followed_on_what_stands_and_on_what_moves(
    scene: Scene, rows: list[FrameTracks], has_model: bool
) -> None:
    """Without any flow from the model, the tracker measures its own."""
    tracks = by_truth(scene, rows if has_model else follow(scene, model=None))
    moving = is_on_mover(scene, tracks)
    assert moving.sum() >= 5
    # On the small mover many points lie near its outline, where "hidden" is a matter of a pixel.
    for chosen, least, agrees in ((~moving, 0.75, 0.85), (moving, 0.5, 0.7)):
        result = score(scene, tracks, np.flatnonzero(chosen))
        assert result.average_jaccard > least
        assert result.occlusion_accuracy > agrees


def test_points_in_space_stay_where_they_are(scene: Scene, rows: list[FrameTracks]) -> None:
    tracks = by_truth(scene, rows)
    still = ~is_on_mover(scene, tracks)
    spread = [np.nanmedian(np.linalg.norm(p - np.nanmedian(p, axis=0), axis=1))
              for p, seen in zip(tracks.xyz_in_world[still], tracks.visible[still], strict=True)
              if seen.sum() > 5]  # fmt: skip
    assert np.median(spread) < 0.02  # metres, in a room of 8


def test_numbers_never_come_again_and_slots_are_filled(rows: list[FrameTracks]) -> None:
    assert all((row.id >= 0).mean() > 0.9 for row in rows)
    lives: dict[int, list[int]] = {}
    for t, row in enumerate(rows):
        for number in row.id[row.id >= 0].tolist():
            lives.setdefault(number, []).append(t)
    assert all(life == list(range(life[0], life[-1] + 1)) for life in lives.values())


def test_going_on_from_a_state_changes_nothing(scene: Scene, rows: list[FrameTracks]) -> None:
    for whole, broken in zip(rows, follow(scene, break_at=11), strict=True):
        for name in ("id", "uv", "visible", "depth"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(broken, name))


def test_no_points_cost_nothing(scene: Scene) -> None:
    tracker = PointTracker(0, scene.info())
    tracker.follow(next(iter(scene.windows(2))), Prediction())
    frame = posed_frame(scene, 0)
    assert tracker.attach(frame) is frame
    assert tracker.state() == {}


def test_store_gives_the_points_back_by_slot_and_by_point(
    scene: Scene, rows: list[FrameTracks], tmp_path: Path
) -> None:
    config = {"tracks": COUNT}
    with StoreWriter(tmp_path / "a.zarr", info=scene.info(), config=config) as writer:
        for t, row in enumerate(rows):
            writer.write(dataclasses.replace(posed_frame(scene, t), tracks=row))
        writer.commit()
        # A loop that is closed later doubles all lengths: depth and 3D follow.
        indices, poses = np.arange(len(rows)), np.repeat(np.eye(4)[None], len(rows), axis=0)
        writer.revise(
            PoseRevision(indices=indices, world_from_cam=poses, scale=np.full(len(rows), 2.0))
        )
    store = open_store(tmp_path / "a.zarr")
    for t, row in enumerate(rows):
        found = store[t].tracks
        for name in ("id", "uv", "visible"):
            np.testing.assert_array_equal(getattr(found, name), getattr(row, name))
        np.testing.assert_allclose(found.depth, 2 * row.depth, rtol=1e-6)
    whole, part = store.tracks(), store.tracks(5, 9)
    assert whole.uv.shape == (len(whole.id), len(rows), 2)
    assert part.query_frame.min() == 5
    kept = np.isin(whole.id, part.id)
    np.testing.assert_array_equal(whole.uv[kept, 5:9], part.uv)
    np.testing.assert_array_equal(whole.xyz_in_world[kept, 5:9], part.xyz_in_world)
    z = whole.xyz_in_world[..., 2]
    assert (np.isfinite(z) == whole.visible).mean() > 0.99

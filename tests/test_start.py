"""Where the map begins: the scene's motion among others, from tracks and from a rendered clip."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from stream4d.config import ChainConfig
from stream4d.geometry import camera, transforms
from stream4d.models.registry import create_model
from stream4d.packets import Array, Frame
from stream4d.pose import anchoring, motions, sampling, start
from stream4d.pose.keyframe_view import NullListener
from stream4d.pose.progress import Progress
from stream4d.pose.record import Record
from tests.oracle import OracleModel
from tests.synthetic import BIG_MOVERS, Scene
from tests.test_chain import ate, run

SIZE = 320
K = np.array([[260.0, 0, 159.5], [0, 260, 119.5], [0, 0, 1]])
NOISE_PX = 0.15


@dataclass(frozen=True)
class View:
    """Tracks of a scene and of a body that moves before it, as ``start_map`` takes them."""

    uv0: Array
    uv: Array
    info: Array
    on_body: Array
    poses: Array


def view(seed: int, *, scene: int = 100, body: int = 80, frames: int = 5) -> View:
    """Throw points over the view and over a body in its middle; both move steadily, each in its own way."""
    rng = np.random.default_rng(seed)
    around = rng.uniform([4, 4], [SIZE - 4, 236], (scene, 2))
    on_it = rng.uniform([70, 50], [230, 200], (body, 2))
    uv0 = np.concatenate([around, on_it])
    on_body = np.arange(len(uv0)) >= scene
    depth = np.where(on_body, rng.uniform(2.0, 2.6, len(uv0)), rng.uniform(3.0, 9.0, len(uv0)))
    points = camera.rays(uv0, K) * depth[:, None]
    step = np.concatenate([rng.normal(0, 0.08, 3), rng.normal(0, 0.008, 3)])
    own = np.concatenate([rng.normal(0, 0.07, 3), rng.normal(0, 0.03, 3)])
    poses = transforms.se3_exp(np.arange(frames + 1)[:, None] * step)
    body_moves = transforms.se3_exp(np.arange(frames + 1)[:, None] * own)
    seen = []
    for pose, move in zip(poses[1:], body_moves[1:], strict=True):
        middle = np.array([0.0, 0.0, 2.3])
        moved = transforms.transform_points(move, points - middle) + middle
        world = np.where(on_body[:, None], moved, points)
        seen.append(camera.project(transforms.transform_points(pose, world), K))
    uv = np.stack(seen) + rng.normal(0, NOISE_PX, (frames, len(uv0), 2))
    info = np.zeros((*uv.shape[:2], 3))
    info[..., 0] = info[..., 2] = NOISE_PX**-2
    return View(uv0, uv, info, on_body, poses[:, :3])


def found(v: View, **options: Any) -> start.Start | None:
    return start.start_map(K, v.uv0, v.uv, v.info, size=SIZE, focal_known=True, **options)


def angle_deg(a: Array, b: Array) -> float:
    return float(np.degrees(np.linalg.norm(transforms.so3_log(a[:, :3].T @ b[:, :3]))))


@pytest.mark.parametrize("seed", range(6))
def test_the_scene_is_found_behind_a_body_of_nearly_as_many_tracks(seed: int) -> None:
    v = view(seed)
    begun = found(v)
    assert begun is not None
    assert angle_deg(begun.poses[-1], v.poses[-1]) < 0.3
    assert begun.inlier[~v.on_body].mean() > 0.9
    assert begun.inlier[v.on_body].mean() < 0.1
    assert begun.purity > 0.8
    assert begun.margin > 1.15


def test_a_body_that_fills_less_of_the_view_is_not_the_scene_though_it_has_more_tracks() -> None:
    v = view(1, scene=70, body=110)
    begun = found(v)
    assert begun is not None
    assert begun.inlier[~v.on_body].mean() > 0.9
    assert begun.inlier[v.on_body].mean() < 0.1


def test_a_still_scene_needs_no_thorough_look() -> None:
    v = view(2, scene=120, body=0)
    quick, thorough = found(v, thorough=False), found(v)
    assert quick is not None
    assert thorough is not None
    assert quick.share > 0.95
    np.testing.assert_array_equal(quick.poses, thorough.poses)


def test_a_start_is_the_same_whenever_it_is_looked_for() -> None:
    v = view(3)
    one, two = found(v), found(v)
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.poses, two.poses)


def test_tracks_without_a_common_motion_are_no_pure_start() -> None:
    v = view(4, scene=60, body=60)
    rng = np.random.default_rng(0)
    lost = View(v.uv0, v.uv + rng.normal(0, 12, v.uv.shape), v.info, v.on_body, v.poses)
    begun = found(lost)
    assert begun is None or begun.share < 0.35


def test_a_crowd_of_tracks_has_one_vote() -> None:
    crowd, alone = np.full((30, 2), 50.0), np.array([[200.0, 50], [200, 150], [60, 200]])
    votes = motions.area_votes(np.concatenate([crowd, alone]), 20.0)
    assert votes[:30].sum() == pytest.approx(votes[30])
    assert votes.mean() == pytest.approx(1.0)


def test_samples_too_few_to_choose_from_give_no_guess() -> None:
    v = view(5, scene=15, body=0)
    tracks = motions.Tracks(K, v.uv0, v.uv, v.info, SIZE, True)
    assert sampling.sampled(tracks, 4) == []


def test_movers_over_forty_percent_of_the_view_with_flow_that_errs() -> None:
    """The essential matrix that most tracks agree on is a compromise here: the path was wrong by 11 %."""
    scene = Scene("walk", balls=BIG_MOVERS, width=256, height=192, focal=220)
    frames, poses = run(scene, create_model("classical"), 24)
    error, length = ate(scene, poses)
    assert error < 0.01 * length
    last = frames[-1]
    assert ((last.motion_prob > 0.5) == scene.moving(last.index)).mean() > 0.95


def test_frames_whose_anchor_was_lost_before_the_start_are_placed_backwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new anchor takes over at frame 8, and the map begins after that."""
    begin, follow = anchoring._start, anchoring.try_start

    def late(progress: Progress, record: Record, parallax: float) -> None:
        if record.index > 12:
            begin(progress, record, parallax)

    def with_a_new_anchor(progress: Progress, record: Record) -> None:
        follow(progress, record)
        if record.index == 8:
            anchoring.anchor(progress, record, record.pose)

    monkeypatch.setattr(anchoring, "try_start", with_a_new_anchor)
    monkeypatch.setattr(anchoring, "_start", late)
    scene = Scene("walk")
    _, poses = run(scene, OracleModel(scene), 24)
    error, length = ate(scene, poses)
    assert error < 0.02 * length  # 10 % where they stay in one place


def so_far(frames: int, parallax: float, kept: float = 1.0) -> anchoring._SoFar:
    return anchoring._SoFar(frames, parallax, focal_known=True, kept=kept)


@pytest.fixture(scope="module")
def still_scene() -> start.Start:
    begun = found(view(2, scene=120, body=0))
    assert begun is not None
    return begun


def test_a_start_waits_while_another_motion_explains_nearly_as_much(
    still_scene: start.Start,
) -> None:
    parallax = anchoring.START_PARALLAX
    assert anchoring._is_believed(still_scene, so_far(5, parallax))
    rivalled = dataclasses.replace(still_scene, margin=1.05)
    assert not anchoring._is_believed(rivalled, so_far(5, parallax))
    # so far apart only one can hold
    assert anchoring._is_believed(rivalled, so_far(5, parallax + 0.1))
    # the next frame will see too little of the anchor
    assert anchoring._is_believed(rivalled, so_far(5, parallax, kept=0.45))


def test_what_hardly_moved_is_no_start_however_far_movers_went(still_scene: start.Start) -> None:
    """Where the camera starts slowly, all that stands still and much that moves agree with a motion near zero."""
    slow = dataclasses.replace(still_scene, parallax=0.5 * anchoring.START_PARALLAX)
    assert not anchoring._is_believed(slow, so_far(8, 0.1))


def test_an_essential_matrix_gives_the_pose_that_has_points_before_both_cameras() -> None:
    """Turned half round about the baseline, the other camera has them all behind it; a is none the wiser."""
    rng = np.random.default_rng(0)
    rays = camera.rays(rng.uniform([4, 4], [SIZE - 4, 236], (60, 2)), K)
    points = rays * rng.uniform(2, 8, (60, 1))
    for _ in range(20):
        motion = np.concatenate([rng.normal(0, 0.2, 3), rng.normal(0, 0.1, 3)])
        pose = transforms.se3_exp(motion)
        moved = transforms.transform_points(pose, points)
        x, y, z = pose[:3, 3]
        E = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ pose[:3, :3]
        best = motions.poses_of(E, rays, moved / moved[:, 2:])[0]
        assert angle_deg(best, pose[:3]) < 0.01
        np.testing.assert_allclose(best[:, 3], pose[:3, 3] / np.linalg.norm(pose[:3, 3]), atol=1e-6)


@pytest.mark.parametrize("focal_known", [True, False])
def test_motions_found_before_place_later_frames(focal_known: bool) -> None:
    v = view(0, frames=9)
    early = start.start_map(K, v.uv0, v.uv[:5], v.info[:5], size=SIZE, focal_known=True)
    assert early is not None
    later = motions.Tracks(K, v.uv0, v.uv, v.info, SIZE, focal_known)
    resumed = early.candidates.resumed(later)
    assert len(resumed) > 1  # the body's is kept too
    best = min(resumed, key=lambda m: angle_deg(m.poses[-1], v.poses[-1]))
    assert angle_deg(best.poses[-1], v.poses[-1]) < 0.5
    assert (best.error < motions.AGREEING)[~v.on_body].mean() > 0.9


def test_a_look_goes_on_from_what_an_earlier_one_found(monkeypatch: pytest.MonkeyPatch) -> None:
    v = view(0, frames=9)
    early = start.start_map(K, v.uv0, v.uv[:5], v.info[:5], size=SIZE, focal_known=True)
    assert early is not None
    monkeypatch.setattr(sampling, "sampled", lambda *_: [])  # no sample hits upon the scene
    begun = found(v, earlier=early.candidates)
    assert begun is not None
    assert angle_deg(begun.poses[-1], v.poses[-1]) < 0.3
    assert begun.inlier[v.on_body].mean() < 0.1


def test_motions_found_before_survive_a_resumed_run() -> None:
    early = found(view(0))
    assert early is not None
    frame = Frame(index=0, timestamp_ns=0, rgb=np.zeros((240, SIZE, 3), np.uint8), K=K)
    progress = Progress.begin(frame, ChainConfig(), NullListener())
    progress.candidates = early.candidates
    state = progress.state()
    again = Progress.restore(state, ChainConfig(), NullListener()).candidates
    np.testing.assert_array_equal(again.rho, early.candidates.rho)
    np.testing.assert_array_equal(again.focal, early.candidates.focal)
    # a state from before they were kept
    older = {name: array for name, array in state.items() if "candidates" not in name}
    assert not len(Progress.restore(older, ChainConfig(), NullListener()).candidates.focal)


def test_motions_of_other_tracks_are_grown_to_the_end() -> None:
    """The body's tracks crowd, so that variants of the scene's motion alone used to be left."""
    v = view(0)
    tracks = motions.Tracks(K, v.uv0, v.uv, v.info, SIZE, True)
    grown = motions.grow(tracks, sampling.sampled(tracks, len(v.uv) - 1))
    members = [m.error < motions.CONSISTENT for m in grown]
    assert any(one[~v.on_body].mean() > 0.9 for one in members)
    assert any(one[v.on_body].mean() > 0.9 for one in members)

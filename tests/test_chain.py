"""The pose chain on scenes whose answer is known: accuracy, degenerate motion, resume, bounded memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from stream4d.config import ChainConfig
from stream4d.geometry import transforms
from stream4d.models.registry import create_model
from stream4d.packets import Array, Frame, PosedFrame, Prediction, Window
from stream4d.pose.chain import PoseChain
from stream4d.pose.correction import interpolate
from stream4d.pose.keyframe_view import Correction, KeyframeListener, KeyframeView, NullListener
from stream4d.pose.loops import LoopCloser
from tests.naive import umeyama
from tests.oracle import OracleModel
from tests.synthetic import BIG_MOVERS, Ball, Scene


def run(
    scene: Scene, model: object, n: int, *, with_K: bool = True, config: ChainConfig | None = None,
    listener: KeyframeListener | None = None,
) -> tuple[list[PosedFrame], Array]:  # fmt: skip
    """Run a model and the chain over n frames; returns frames and final poses (revisions applied)."""
    chain = PoseChain(config or ChainConfig(), scene.info(n), listener)
    frames: list[PosedFrame] = []
    poses: dict[int, Array] = {}

    def take(posed: Iterator[PosedFrame]) -> None:
        for frame in posed:
            frames.append(frame)
            poses[frame.index] = frame.world_from_cam
        for revision in chain.revisions():
            poses.update(zip(revision.indices.tolist(), revision.world_from_cam, strict=True))

    with model.session(scene.info(n)) as session:  # type: ignore[attr-defined]
        for window in scene.windows(n, with_K=with_K):
            take(iter(chain.extend(window, session.step(window))))
    take(iter(chain.finish()))
    assert_packets_are_sound(frames, n)
    return frames, np.stack([poses[i] for i in range(n)])


def assert_packets_are_sound(frames: list[PosedFrame], n: int) -> None:
    assert [frame.index for frame in frames] == list(range(n))
    for frame in frames:
        R = frame.world_from_cam[:3, :3]
        assert np.isfinite(frame.world_from_cam).all()
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-9)
        assert np.isfinite(frame.K).all()
        assert frame.K[0, 0] > 0
        assert np.isfinite(frame.pose_covariance).all()
        assert np.linalg.eigvalsh(frame.pose_covariance).min() > 0
        assert 0 <= frame.motion_prob.min() <= frame.motion_prob.max() <= 1
        assert 0 <= frame.confidence.min() <= frame.confidence.max() <= 1
        assert not (frame.depth <= 0).any()


def ate(scene: Scene, poses: Array) -> tuple[float, float]:
    """Return RMSE of positions after Sim(3) alignment, and the length of the path."""
    truth = np.stack([scene.world_from_cam(t) for t in range(len(poses))])[:, :3, 3]
    T = umeyama(poses[:, :3, 3], truth)
    error = transforms.transform_points(T, poses[:, :3, 3]) - truth
    path = np.linalg.norm(np.diff(truth, axis=0), axis=1).sum()
    return float(np.sqrt((error**2).sum(-1).mean())), float(path)


@pytest.mark.parametrize("path", ["orbit", "walk", "forward"])
def test_oracle_flow_gives_the_path_within_half_a_percent(path: str) -> None:
    scene = Scene(path)  # type: ignore[arg-type]
    _, poses = run(scene, OracleModel(scene), 60)
    error, length = ate(scene, poses)
    assert error < 0.005 * length  # a fifth of that is usual; forward motion sees least


@pytest.mark.parametrize("path", ["orbit", "walk"])
def test_the_path_does_not_break_where_a_keyframe_enters(path: str) -> None:
    """Each adjustment moves keyframes; frames between them, those that have left too, must follow."""
    scene = Scene(path)  # type: ignore[arg-type]
    _, poses = run(scene, OracleModel(scene, flow_noise_px=0.5), 60)
    truth = np.stack([scene.world_from_cam(t) for t in range(60)])
    steps, true_steps = (
        np.linalg.norm(np.diff(x[:, :3, 3], axis=0), axis=1) for x in (poses, truth)
    )
    ratio = steps / true_steps
    np.testing.assert_allclose(ratio / np.median(ratio), 1, atol=0.08)


def test_movers_over_forty_percent_of_the_view() -> None:
    scene = Scene("orbit", balls=BIG_MOVERS)
    frames, poses = run(scene, OracleModel(scene), 60)
    error, length = ate(scene, poses)
    assert error < 0.01 * length
    agree = [((f.motion_prob > 0.5) == scene.moving(f.index)).mean() for f in frames]
    assert np.mean(agree) > 0.97


def test_classical_flow_finds_the_path_and_the_mover() -> None:
    scene = Scene("walk", width=256, height=192, focal=220)
    frames, poses = run(scene, create_model("classical"), 40)
    error, length = ate(scene, poses)
    assert error < 0.01 * length
    hit = [(f.motion_prob > 0.5)[scene.moving(f.index)].mean() for f in frames[5:]]
    false = [(f.motion_prob > 0.5)[~scene.moving(f.index)].mean() for f in frames]
    assert np.mean(hit) > 0.6
    assert np.mean(false) < 0.01


def test_depth_is_right_up_to_scale_and_its_confidence_means_something() -> None:
    scene = Scene("walk")
    frames, _ = run(scene, OracleModel(scene), 40)
    for frame in frames[20:]:
        error = np.log(frame.depth / scene.depth(frame.index))
        error = np.abs(error - np.median(error))
        assert np.median(error) < 0.02
        sure, unsure = frame.confidence > 0.9, frame.confidence < 0.5
        assert (error[sure] < 0.1).mean() > 0.9
        assert unsure.sum() < 50 or (error[unsure] < 0.1).mean() < (error[sure] < 0.1).mean()


@pytest.mark.parametrize("balls", [(), BIG_MOVERS])
def test_a_still_camera_stays_still(balls: tuple[Ball, ...]) -> None:
    scene = Scene("static", balls=balls)
    frames, poses = run(scene, create_model("classical"), 50)
    assert np.abs(poses - np.eye(4)).max() < 1e-3
    if not balls:
        assert np.mean([(f.motion_prob > 0.5).mean() for f in frames]) < 0.001


def test_pure_rotation_is_followed_without_inventing_a_path() -> None:
    scene = Scene("rotation")
    frames, poses = run(scene, OracleModel(scene), 60)
    truth = np.stack([scene.world_from_cam(t) for t in range(60)])
    relative = transforms.invert(truth[0]) @ truth
    error = transforms.so3_log(np.swapaxes(relative[:, :3, :3], 1, 2) @ poses[:, :3, :3])
    assert np.degrees(np.linalg.norm(error, axis=-1)).max() < 0.1
    # one unit is the scene's depth
    assert np.linalg.norm(poses[:, :3, 3], axis=-1).max() < 0.02
    assert np.mean([(f.motion_prob > 0.5)[~scene.moving(f.index)].mean() for f in frames]) < 0.02


def spliced(parts: list[tuple[Scene, range]]) -> Iterator[Window]:
    """Yield windows of two over frames taken from several scenes."""
    frames = [dataclasses.replace(scene.frame(t), index=0) for scene, times in parts for t in times]
    frames = [dataclasses.replace(frame, index=i) for i, frame in enumerate(frames)]
    yield Window(index=0, frames=(frames[0],), overlap=0)
    for i in range(1, len(frames)):
        yield Window(index=i, frames=(frames[i - 1], frames[i]), overlap=1)


def follow(parts: list[tuple[Scene, range]]) -> list[PosedFrame]:
    scene = parts[0][0]
    chain = PoseChain(ChainConfig(), scene.info())
    with create_model("classical").session(scene.info()) as session:
        frames = [f for w in spliced(parts) for f in chain.extend(w, session.step(w))]
    frames += chain.finish()
    assert_packets_are_sound(frames, sum(len(times) for _, times in parts))
    return frames


def test_a_cut_begins_a_new_segment() -> None:
    size = {"width": 256, "height": 192, "focal": 220.0}
    first, second = Scene("walk", **size), Scene("orbit", seed=7, **size)  # type: ignore[arg-type]
    frames = follow([(first, range(30)), (second, range(30))])
    segments = np.array([f.segment for f in frames])
    assert (segments[:30] == 0).all()
    assert (segments[32:] == 1).all()


def test_frames_without_texture_are_flagged_and_the_path_goes_on_after_them() -> None:
    size = {"width": 256, "height": 192, "focal": 220.0}
    scene = Scene("walk", **size)  # type: ignore[arg-type]
    blank = Blank("walk", **size)  # type: ignore[arg-type]
    frames = follow([(scene, range(30)), (blank, range(30, 33)), (scene, range(33, 50))])
    assert not any(f.is_tracked for f in frames[30:33])
    assert all(f.is_tracked for f in frames[36:])
    assert {f.segment for f in frames} == {0}
    assert np.trace(frames[31].pose_covariance) > 100 * np.trace(frames[25].pose_covariance)
    error, length = ate(scene, np.stack([f.world_from_cam for f in frames]))
    assert error < 0.05 * length


class Blank(Scene):
    """The same room with the lights off."""

    def rgb(self, t: float) -> Array:
        return np.full((self.height, self.width, 3), 3, np.uint8)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_short_videos_leave_whole(n: int) -> None:
    scene = Scene("walk")
    frames, _ = run(scene, create_model("classical"), n)
    assert len(frames) == n


def chain_of(shots: list[Array]) -> list[PosedFrame]:
    """Run the classical model and the chain over images."""
    frames = [Frame(index=i, timestamp_ns=i, rgb=rgb) for i, rgb in enumerate(shots)]
    H, W = shots[0].shape[:2]
    info = dataclasses.replace(Scene().info(len(shots)), height=H, width=W)
    chain = PoseChain(ChainConfig(), info)
    out: list[PosedFrame] = []
    with create_model("classical").session(info) as session:
        for i in range(1, len(frames)):
            window = Window(index=i - 1, frames=(frames[i - 1], frames[i]), overlap=int(i > 1))
            out += chain.extend(window, session.step(window))
    out += chain.finish()
    assert len(out) == len(shots)
    assert all(np.isfinite(frame.world_from_cam).all() for frame in out)
    return out


@pytest.mark.parametrize("size", [(288, 384), (16, 16)])
def test_a_black_video_is_not_called_tracked(size: tuple[int, int]) -> None:
    out = chain_of([np.zeros((*size, 3), np.uint8)] * 6)
    assert not any(frame.is_tracked for frame in out)


def test_noise_is_neither_tracked_nor_a_row_of_cuts() -> None:
    rng = np.random.default_rng(3)
    out = chain_of([rng.integers(0, 256, (144, 192, 3), np.uint8) for _ in range(8)])
    assert not any(frame.is_tracked for frame in out)
    assert {frame.segment for frame in out} == {0}


def test_focal_is_found_where_none_is_given() -> None:
    scene = Scene("walk", width=256, height=192, focal=220)
    frames, poses = run(scene, OracleModel(scene), 60, with_K=False)
    error, length = ate(scene, poses)
    assert error < 0.02 * length
    assert frames[-1].K[0, 0] == pytest.approx(220, rel=0.05)


def test_a_run_that_was_stopped_goes_on_to_the_same_result() -> None:
    scene = Scene("walk")
    model = OracleModel(scene)
    whole, _ = run(scene, model, 40)
    session = model.session(scene.info(40))
    first, second = (PoseChain(ChainConfig(), scene.info(40)) for _ in range(2))
    frames = [f for w in scene.windows(20) for f in first.extend(w, session.step(w))]
    state = {name: array.copy() for name, array in first.state().items()}
    list(first.finish())  # what happens to the old chain must not reach the state
    second.restore(state)
    # the last frame of the first half begins the second half's windows, as in the pipeline
    for window in scene.windows(40, start=19):
        overlapping = type(window)(index=window.index + 20, frames=window.frames, overlap=1)
        frames += second.extend(overlapping, session.step(window))
    frames += second.finish()
    assert_packets_are_sound(frames, 40)
    for a, b in zip(whole, frames, strict=True):
        np.testing.assert_array_equal(a.world_from_cam, b.world_from_cam)
        np.testing.assert_array_equal(a.depth, b.depth)
        np.testing.assert_array_equal(a.motion_prob, b.motion_prob)


class Bender(NullListener):
    """Moves, turns and scales the whole world once, when frame 20 or later becomes a keyframe."""

    S = transforms.similarity(1.7, transforms.so3_exp(np.array([0.3, -0.2, 0.1])), np.ones(3))

    def __init__(self) -> None:
        self.entered: list[KeyframeView] = []
        self.left: list[int] = []
        self.bent = False

    def enters(self, keyframe: KeyframeView) -> Correction | None:
        self.entered.append(keyframe)
        if self.bent or keyframe.index < 20:
            return None
        self.bent = True
        return {0: self.S, keyframe.index: self.S}

    def leaves(self, keyframe: KeyframeView) -> None:
        self.left.append(keyframe.index)


def test_a_listener_sees_keyframes_and_bends_the_whole_path() -> None:
    scene = Scene("walk")
    model, bender = OracleModel(scene), Bender()
    frames, plain = run(scene, model, 60)
    after, bent = run(scene, model, 60, listener=bender)
    assert bender.bent
    assert [view.index for view in bender.entered] == bender.left
    assert bender.left == [frame.index for frame in after if frame.is_keyframe]
    scale = transforms.scale_of(bender.S)
    expected = transforms.without_scale(bender.S @ plain)
    # all that the chain does is the same in another world, but for the few priors that know its unit
    np.testing.assert_allclose(bent, expected, atol=2e-3)
    np.testing.assert_allclose(np.median(after[-1].depth / frames[-1].depth), scale, rtol=2e-3)
    for view in bender.entered[10:]:
        truth = scene.depth(view.index)[tuple(np.rint(view.uv[:, ::-1]).astype(int).T)]
        sure = view.inverse_depth_info * view.inverse_depth**2 > 400
        ratio = truth[sure] * view.inverse_depth[sure]
        assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 0.05


def test_corrections_are_interpolated_between_the_frames_that_are_listed() -> None:
    far = Bender.S
    half, early, late = interpolate({10: np.eye(4), 20: far}, np.array([15, 3, 99]))
    np.testing.assert_allclose(half @ half, far, atol=1e-9)
    np.testing.assert_array_equal(early, np.eye(4))
    np.testing.assert_array_equal(late, far)


def test_loop_closure_does_no_harm_and_resumes_exactly() -> None:
    scene = Scene("loop", frames_per_turn=60, balls=())
    n, half, info = 72, 50, scene.info(72)
    with OracleModel(scene).session(info) as session:
        seen = [(window, session.step(window)) for window in scene.windows(n)]
    poses = np.tile(np.eye(4), (2, n, 1, 1))

    def play(chain: PoseChain, part: list[tuple[Window, Prediction]], out: Array) -> None:
        frames = [frame for pair in part for frame in chain.extend(*pair)]
        for frame in frames + (list(chain.finish()) if part[-1] is seen[-1] else []):
            out[frame.index] = frame.world_from_cam
        for revision in chain.revisions():
            out[revision.indices] = revision.world_from_cam

    # a small map, so that places leave it soon
    closers, config = (LoopCloser(), LoopCloser()), ChainConfig(keyframes=4, patches=48)
    play(PoseChain(config, info, closers[0]), seen, poses[0])
    assert closers[0].closed > 0
    error, length = ate(scene, poses[0])
    assert error < 0.002 * length
    first, second = (PoseChain(config, info, closer) for closer in (None, closers[1]))
    play(first, seen[:half], poses[1])
    second.restore({name: array.copy() for name, array in first.state().items()})
    play(second, seen[half:], poses[1])
    assert closers[1].closed == closers[0].closed
    np.testing.assert_array_equal(poses[0], poses[1])

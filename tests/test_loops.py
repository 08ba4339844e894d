"""Loop closure: places known again, similarities measured, drift taken away; bounded, resumable, segments apart."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose import _kernels_loops, loops, patches, places, recognise, skeleton
from stream4d.pose.keyframe_view import Correction, KeyframeView
from tests import naive
from tests.interpreted import run_without_compilation
from tests.synthetic import Scene

SCENE = Scene("loop", width=256, height=192, focal=220.0, balls=(), frames_per_turn=80.0)
"""Out, back, out to the other side and back: every place is seen twice within 80 frames."""


@functools.cache
def picture(t: int, seed: int) -> tuple[Array, Array, Array]:
    """Return the grey image, patch pixels and their depths of frame ``t``: rendered once for all tests."""
    scene = dataclasses.replace(SCENE, seed=seed)
    grey = patches.pyramid(scene.rgb(t))[0]
    uv = patches.choose(grey, 150, avoid=np.zeros((0, 2)), allowed=None, spacing=6)
    at = np.rint(uv).astype(int)
    return grey, uv, scene.depth(t)[at[:, 1], at[:, 0]]


def view(t: int, *, seed: int = 0, unit: float = 1.0, segment: int = 0) -> KeyframeView:
    """Return keyframe ``t`` with true pose and depths in some unit."""
    grey, uv, depth = picture(t, seed)
    rho = 1 / (unit * depth)
    pose = SCENE.world_from_cam(t).copy()
    pose[:3, 3] *= unit
    return KeyframeView(
        index=t, segment=segment, grey=grey, uv=uv, inverse_depth=rho,
        inverse_depth_info=1 / (0.01 * rho) ** 2, world_from_cam=pose, K=SCENE.K,
    )  # fmt: skip


class Fit:
    """Random patches, cameras and a similarity between them."""

    def __init__(self, n: int = 30, noise: float = 0.0) -> None:
        rng = np.random.default_rng(2)
        self.cam = np.array([200.0, 210.0, 128.0, 96.0])
        self.rays = np.column_stack([rng.uniform(-0.4, 0.4, (n, 2)), np.ones(n)])
        self.rho, self.rho_var = rng.uniform(0.2, 0.8, n), np.full(n, 1e-4)
        self.S = transforms.sim3_exp(np.array([0.1, -0.1, 0.05, 0.05, -0.1, 0.08, 0.3]))[:3].copy()
        self.poses = transforms.se3_exp(rng.normal(size=(3, 6)) * [0.2, 0.2, 0.1, 0.02, 0.02, 0.02])
        self.poses = np.ascontiguousarray(self.poses[:, :3])
        self.patch, self.frame = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(3)))
        self.uv = np.stack(
            [self.pixel(self.S, *pair) for pair in zip(self.patch, self.frame, strict=True)]
        )
        self.uv += noise * rng.normal(size=self.uv.shape)
        self.info = np.tile([9.0, 1.0, 6.0], (len(self.uv), 1))

    def pixel(self, S: Array, n: int, k: int, rho: float | None = None) -> Array:
        rho = self.rho[n] if rho is None else rho
        point = self.poses[k] @ np.append(S @ np.append(self.rays[n] / rho, 1.0), 1.0)
        return self.cam[:2] * point[:2] / point[2] + self.cam[2:]

    def arguments(self) -> tuple[Array, ...]:
        return (
            self.cam, self.rays, self.rho, self.rho_var, self.poses, self.patch, self.frame, self.uv, self.info
        )  # fmt: skip


def test_similarity_system_is_the_gauss_newton_system() -> None:
    fit = Fit(n=8, noise=0.5)
    A, g, out = np.zeros((7, 7)), np.zeros(7), np.zeros(len(fit.uv))
    _kernels_loops.similarity_system(*fit.arguments(), fit.S, 1e12, A, g, out)
    expected_A, expected_g, errors = naive.similarity_system(fit)
    scale = np.sqrt(np.diag(expected_A))
    np.testing.assert_allclose(
        A / np.outer(scale, scale), expected_A / np.outer(scale, scale), atol=1e-5
    )
    np.testing.assert_allclose(g / scale, expected_g / scale, atol=1e-4)
    np.testing.assert_allclose(out, errors, rtol=1e-5)


def test_the_fit_finds_the_similarity_among_outliers() -> None:
    fit = Fit(n=80, noise=0.1)
    rng = np.random.default_rng(0)
    wrong = rng.random(len(fit.uv)) < 0.3
    fit.uv[wrong] += rng.uniform(-20, 20, (int(wrong.sum()), 2))
    start = transforms.sim3_exp(np.array([0.02, 0.02, -0.02, 0.01, -0.01, 0.01, 0.08]))
    S = np.ascontiguousarray((np.vstack([fit.S, [0, 0, 0, 1]]) @ start)[:3])
    A, out = np.zeros((7, 7)), np.zeros(len(fit.uv))
    assert _kernels_loops.fit_similarity(*fit.arguments(), S, recognise.SCHEDULE, out, A)
    np.testing.assert_allclose(S, fit.S, atol=0.01)
    assert (out[wrong] > 9).mean() > 0.9


def remembered(memory: places.PlaceMemory, seen: KeyframeView) -> places.Place:
    place = memory.enter(seen.index, seen.grey, seen.uv, described=True)
    place.uv, place.rho = seen.uv.astype(np.float32), seen.inverse_depth
    place.is_live = False
    return place


def test_a_place_is_known_again_in_another_unit() -> None:
    memory, unit = places.PlaceMemory(), 1.25
    old, before, after = (remembered(memory, view(t)) for t in (8, 5, 11))
    truth = {t: SCENE.world_from_cam(t) for t in (5, 8, 11, 30)}
    others = [(p, transforms.invert(truth[p.index]) @ truth[8]) for p in (before, after)]
    here = view(30, unit=unit)
    found = recognise.recognise(loops._sighting(here), old, others)
    assert found is not None
    expected = transforms.invert(truth[8]) @ truth[30] @ np.diag([1 / unit, 1 / unit, 1 / unit, 1])
    error = transforms.sim3_log(transforms.invert(expected) @ found.place_from_here)
    assert np.abs(error[3:]).max() < 5e-3
    assert abs(error[:3]).max() < 0.01 * unit * np.median(SCENE.depth(30))
    assert (np.abs(error) < 3 * np.sqrt(np.diag(found.covariance))).all()


def test_another_place_is_not_believed() -> None:
    memory = places.PlaceMemory()
    old, other = (remembered(memory, view(t, seed=9)) for t in (8, 5))
    between = transforms.invert(SCENE.world_from_cam(5)) @ SCENE.world_from_cam(8)
    assert recognise.recognise(loops._sighting(view(30)), old, [(other, between)]) is None


def test_a_place_without_neighbours_is_not_believed() -> None:
    memory = places.PlaceMemory()
    assert recognise.recognise(loops._sighting(view(30)), remembered(memory, view(8)), []) is None


def test_search_finds_the_place_that_was_seen_before() -> None:
    memory = places.PlaceMemory()
    for t in (0, 5, 10, 15, 20):
        remembered(memory, view(t))
    hits = 0
    for t in (25, 30, 35):  # on the way back past 15, 10, 5
        here = memory.enter(t, *(getattr(view(t), name) for name in ("grey", "uv")), described=True)
        found = memory.search(here, 2)
        hits += any(p.index == 40 - t for p in found)
        memory.drop(t)
    assert hits >= 2


def test_images_too_small_or_blank_have_no_words() -> None:
    memory = places.PlaceMemory()
    for i, shape in enumerate([(16, 16), (192, 256)]):
        blank = np.zeros(shape, np.uint8)
        place = memory.enter(i, blank, np.zeros((0, 2)), described=True)
        assert not len(place.words)
        assert memory.search(place, 2) == []


def wandering(t: int) -> Array:
    """Drift of the world by frame ``t``: it grows, turns and shifts."""
    return transforms.sim3_exp(t / 80 * np.array([0.06, -0.04, 0.05, 0.01, -0.02, 0.01, 0.0]))


class Journey:
    """Keyframes along the loop with drift, fed to a listener that plays the chain's part."""

    def __init__(self, closer: loops.LoopCloser, live: int = 3) -> None:
        self.closer, self.live = closer, live
        self.held: list[KeyframeView] = []
        self.world = np.eye(4)
        self.poses: dict[int, Array] = {}
        self.answers: list[tuple[int, Correction]] = []

    def walk(self, times: range) -> None:
        for t in times:
            scale = float(transforms.scale_of(self.world))
            seen = view(t, unit=scale)
            pose = transforms.without_scale(self.world @ wandering(t) @ SCENE.world_from_cam(t))
            seen = dataclasses.replace(seen, world_from_cam=pose)
            self.held.append(seen)
            self.poses[t] = pose
            answer = self.closer.enters(seen)
            if answer is not None:
                self.apply(t, answer)
            if len(self.held) > self.live:
                self.closer.leaves(self.held.pop(0))

    def apply(self, t: int, answer: Correction) -> None:
        self.answers.append((t, answer))
        self.world = answer[t] @ self.world
        for index in self.poses:
            self.poses[index] = transforms.without_scale(answer[index] @ self.poses[index])
        self.held = [
            dataclasses.replace(
                v, world_from_cam=self.poses[v.index],
                inverse_depth=v.inverse_depth / transforms.scale_of(answer[v.index]),
                inverse_depth_info=v.inverse_depth_info * transforms.scale_of(answer[v.index]) ** 2,
            )
            for v in self.held
        ]  # fmt: skip

    def error(self) -> float:
        """Return the RMSE of positions after Sim(3) alignment."""
        times = sorted(self.poses)
        here = np.stack([self.poses[t] for t in times])[:, :3, 3]
        truth = np.stack([SCENE.world_from_cam(t) for t in times])[:, :3, 3]
        aligned = transforms.transform_points(naive.umeyama(here, truth), here)
        return float(np.sqrt(((aligned - truth) ** 2).sum(-1).mean()))


TIMES = range(0, 80, 3)


@pytest.fixture(scope="module")
def plain_error() -> float:
    journey = Journey(loops.LoopCloser())
    for t in TIMES:
        journey.poses[t] = wandering(t) @ SCENE.world_from_cam(t)
    return journey.error()


def test_drift_goes_where_the_path_meets_itself(plain_error: float) -> None:
    closer = loops.LoopCloser()
    journey = Journey(closer)
    journey.walk(TIMES)
    assert closer.closed >= 2
    assert journey.answers
    assert journey.error() < 0.6 * plain_error


def test_a_closer_that_was_stopped_goes_on_to_the_same_answers() -> None:
    whole = Journey(loops.LoopCloser())
    whole.walk(TIMES)
    first = Journey(loops.LoopCloser())
    first.walk(TIMES[:14])
    state = {name: array.copy() for name, array in first.closer.state().items()}
    list(
        map(first.closer.leaves, first.held)
    )  # what happens to the old one must not reach the state
    first.closer = loops.LoopCloser()
    first.closer.restore(state)
    first.walk(TIMES[14:])
    assert [t for t, _ in first.answers] == [t for t, _ in whole.answers]
    for (_, a), (_, b) in zip(first.answers, whole.answers, strict=True):
        assert list(a) == list(b)
        np.testing.assert_array_equal(np.stack(list(a.values())), np.stack(list(b.values())))


def test_a_new_segment_knows_no_places() -> None:
    closer = loops.LoopCloser()
    journey = Journey(closer)
    journey.walk(TIMES[:12])
    closed = closer.closed
    for t in TIMES[12:]:
        assert closer.enters(dataclasses.replace(view(t), segment=1)) is None
    closer.leaves(view(TIMES[9]))  # of the segment before: no longer known
    assert closer.closed == closed


def test_memory_is_bounded_however_many_keyframes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "MAX_PLACES", 6)
    monkeypatch.setattr(skeleton, "MAX_NODES", 20)
    monkeypatch.setattr(skeleton, "MAX_LOOPS", 3)
    closer = loops.LoopCloser()
    sizes = []
    for lap in range(3):
        for t in TIMES:
            seen = dataclasses.replace(view(t), index=80 * lap + t)
            closer.enters(seen)
            closer.leaves(seen)
        sizes.append(sum(array.nbytes for array in closer.state().values()))
    assert closer.closed > 3
    assert len(closer._skeleton.loops) <= 3
    assert len(closer._skeleton) <= 20
    assert sizes[2] < 1.1 * sizes[1]


def test_nodes_are_merged_without_bending_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "MAX_NODES", 10)
    path, truth = skeleton.Skeleton(), {}
    for t in range(0, 80, 2):
        truth[t] = SCENE.world_from_cam(t)
        path.enter(t, truth[t], 1.0, np.eye(7) * 1e-6, np.zeros(7))
        path.leave(t, truth[t])
        path.thin(np.array([0, 10]))
    assert len(path) == 10
    assert {0, 10, 78} <= set(path.index.tolist())
    for k in range(1, 10):
        a, b = path.index[k - 1 : k + 1].tolist()
        expected = transforms.invert(truth[a]) @ truth[b]
        np.testing.assert_allclose(path.step[k], expected, atol=1e-12)
    spread = np.trace(path.step_covariance, axis1=1, axis2=2)
    assert spread[1:].sum() > 39 * np.sum(skeleton.STEP_SIGMA**2)  # nothing gained by merging


def test_a_loop_that_the_path_cannot_bear_is_refused() -> None:
    path = skeleton.Skeleton()
    for t in range(0, 40, 2):
        path.enter(t, SCENE.world_from_cam(t), 1.0, np.eye(7) * 1e-6, np.zeros(7))
        path.leave(t, SCENE.world_from_cam(t))
    free = np.arange(20) > 0
    true = transforms.invert(SCENE.world_from_cam(0)) @ SCENE.world_from_cam(38)
    covariance = np.diag(recognise.FLOOR**2)
    wrong = true @ transforms.sim3_exp(np.array([0.5, 0, 0, 0.3, 0, 0, 0.2]))
    assert path.close(0, 38, wrong, covariance, free) is None
    assert not len(path.loops)
    assert path.close(0, 38, true, covariance, free) is not None
    assert len(path.loops) == 1


def test_kernels_run_without_compilation() -> None:
    run_without_compilation(__file__, "similarity_system")

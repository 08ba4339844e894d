"""Dense depth and motion: kernels against slow twins, and known scenes; once without compilation."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stream4d.config import ChainConfig
from stream4d.geometry import transforms
from stream4d.geometry.flow import sample
from stream4d.models.registry import create_model
from stream4d.packets import Array, PosedFrame
from stream4d.pose import _kernels_dense, _kernels_draw, dense, motion, patches
from stream4d.pose.chain import PoseChain
from stream4d.pose.guess import Guess, guess_depth, shown
from stream4d.pose.map import LocalMap
from tests import naive
from tests.interpreted import run_without_compilation
from tests.synthetic import Ball, Scene

CAM = np.array([82.0, 80.0, 11.5, 8.5])
STEP = 2


WALK = Scene("walk", width=256, height=192, focal=220)


@pytest.fixture(scope="module")
def walk() -> list[PosedFrame]:
    """Frames of the chain with the classical model; the ball is far from where it turns in the first and the last."""
    chain, frames = PoseChain(ChainConfig(), WALK.info(26)), []
    with create_model("classical").session(WALK.info(26)) as session:
        for window in WALK.windows(26):
            frames += list(chain.extend(window, session.step(window)))
    return frames + list(chain.finish())


def map_of(scene: Scene, t: int, n: int = 60) -> LocalMap:
    """Return a map of one keyframe whose patches have true depths."""
    rng = np.random.default_rng(0)
    local_map = LocalMap(scene.height, scene.width, 2, n, scene.K)
    uv = rng.uniform([4, 4], [scene.width - 5, scene.height - 5], (n, 2))
    none = np.zeros((2 * n, 3))
    local_map.add_keyframe(
        0, t, np.eye(3, 4), patches.pyramid(scene.rgb(t)), none[:, :2], np.full(2 * n, np.inf), none
    )
    rho = 1 / sample(scene.depth(t), uv)
    local_map.add_patches(0, uv, rho, 1e4 / rho**2)
    return local_map


def noise_of(shape: tuple[int, ...]) -> Array:
    """Return smooth noise of about 1σ = 0.5."""
    rough = np.random.default_rng(1).normal(0, 0.5, (shape[0] // 8, shape[1] // 8))
    return np.asarray(cv2.resize(rough, shape[::-1], interpolation=cv2.INTER_NEAREST))


def random_views(seed: int = 3) -> tuple[Array, Array, Array, Array]:
    """Return poses (3, 3, 4), positions (3, h, w, 2) with gaps, variances (3, h, w) and true inverse depth (h, w)."""
    rng = np.random.default_rng(seed)
    h, w = 5, 7
    poses = np.stack(
        [
            np.hstack(
                [transforms.so3_exp(0.02 * rng.normal(size=3)), 0.2 * rng.normal(size=(3, 1))]
            )
            for _ in range(3)
        ]
    )
    rho = rng.uniform(0.2, 1.0, (h, w))
    u, v = np.meshgrid(STEP * np.arange(w), STEP * np.arange(h))
    rays = np.stack([(u - CAM[2]) / CAM[0], (v - CAM[3]) / CAM[1], np.ones((h, w))], -1)
    seen = np.stack([naive.seen_at(CAM, rays, rho, P) for P in poses])
    var = rng.uniform(0.05, 0.5, seen.shape[:3])
    seen += np.sqrt(var)[..., None] * rng.normal(size=seen.shape)
    seen[1, 2, 3] = np.nan
    seen[:, 4, 4] = np.nan
    return poses, seen, var, rho


def test_fitted_depths_equal_a_search_over_all_depths() -> None:
    poses, seen, var, rho = random_views()
    guess, info, nearest = np.full(rho.shape, 0.5), np.full(rho.shape, 4.0), 3.0
    out = np.empty((5, *rho.shape))
    _kernels_dense.fit_pixels(CAM, poses, seen, var, STEP, guess, info, nearest, out)
    slow = naive.fit_pixels(CAM, poses, seen, var, STEP, guess, info, nearest)
    np.testing.assert_allclose(out[0], slow[0], atol=2e-3)  # three steps of Gauss–Newton
    np.testing.assert_allclose(out[2:4], slow[1:3], rtol=0.02, atol=0.02)
    np.testing.assert_array_equal(out[4], slow[3])
    assert out[0, 4, 4] == 0.5  # nobody saw it: the guess


def test_a_pixel_is_never_put_behind_the_camera() -> None:
    poses = np.hstack([np.eye(3), [[-0.5], [0.0], [0.0]]])[None]
    u, v = np.meshgrid(STEP * np.arange(7.0), STEP * np.arange(5.0))
    seen = np.stack([u + 4.0, v], -1)[None]  # moves as nothing in front of the camera does
    out = np.empty((5, 5, 7))
    guess, info = np.full((5, 7), 0.1), np.full((5, 7), 1.0)
    _kernels_dense.fit_pixels(
        CAM, poses, seen, np.full((1, 5, 7), 0.1), STEP, guess, info, 2.0, out
    )
    assert (out[0] == 0).all()
    assert out[2].min() > 100  # … and the errors show it, though all are along the epipolar line
    assert out[3].max() < 1e-9


def test_links_are_followed_as_by_bilinear_reading() -> None:
    rng = np.random.default_rng(0)
    flow = rng.normal(0, 1.5, (6, 8, 2)).astype(np.float32)
    doubts = rng.uniform(0.1, 1.0, (6, 8)).astype(np.float32)
    doubts[2, 3] = np.inf
    uv = np.stack(np.meshgrid(np.arange(0.25, 16, 2), np.arange(0.25, 12, 2)), -1)
    fast_uv, fast_var = uv.copy(), np.full(uv.shape[:2], 0.1)
    _kernels_dense.follow_link(flow, doubts, STEP, fast_uv, fast_var)
    slow_uv, slow_var = naive.follow_link(flow, doubts, STEP, uv, np.full(uv.shape[:2], 0.1))
    np.testing.assert_allclose(fast_uv, slow_uv, atol=1e-5)
    np.testing.assert_allclose(fast_var, slow_var, atol=1e-6)
    assert np.isnan(fast_uv[2, 3]).all()


def test_links_doubt_what_does_not_come_home() -> None:
    rng = np.random.default_rng(0)
    flow = rng.normal(0, 1.5, (12, 16, 2)).astype(np.float32)
    back = (-flow + rng.normal(0, 0.7, flow.shape)).astype(np.float32)
    sigma = rng.uniform(0.1, 1.0, (12, 16)).astype(np.float32)
    sigma[4, 6] = 9.0
    out = np.empty((6, 8), np.float32)
    _kernels_dense.find_doubts(flow, back, sigma, STEP, out)
    np.testing.assert_array_equal(out, naive.find_doubts(flow, back, sigma, STEP))
    assert 0.1 < np.isinf(out).mean() < 0.9
    assert np.isinf(out[2, 3])


def test_what_a_mover_hides_is_not_followed_onto_it() -> None:
    """Flow that knows nothing of hidden pixels leads the wall under the mover; the way back starts on the mover."""
    flow, back = np.zeros((12, 40, 2), np.float32), np.zeros((12, 40, 2), np.float32)
    flow[:, 10:20], back[:, 14:24] = (4.0, 0.0), (-4.0, 0.0)
    uv = np.stack(np.meshgrid(np.arange(40.0), np.arange(12.0)), -1)
    _kernels_dense.follow_link(*dense.way_of(flow, back, None), 1, uv, np.zeros((12, 40)))
    lost = np.isnan(uv[5, :38, 0])
    assert lost[20:24].all()
    assert not lost[10:20].any()
    assert not lost[:10].any()
    assert not lost[24:].any()


def test_edges_of_flow_and_image_stop_votes() -> None:
    rng = np.random.default_rng(3)
    flow = rng.normal(size=(5, 7, 2)).astype(np.float32)
    grey = rng.uniform(0, 50, (5, 7)).astype(np.float32)
    flow[2, 3] = np.nan
    edge = 2 * np.abs(np.diff(flow, axis=1)).sum(-1) + 0.1 * np.abs(np.diff(grey, axis=1))
    for turned in (False, True):  # rows as they lie, and as columns of what lies in memory
        fields = (np.asfortranarray(x.swapaxes(0, 1)).swapaxes(0, 1) for x in (flow, grey))
        out = np.empty(grey.shape)
        _kernels_dense.passing_rows(*(fields if turned else (flow, grey)), 2.0, 0.1, 0.05, out)
        assert (out[:, 0] == 0).all()
        np.testing.assert_allclose(out[:, 1:], np.exp(-0.05 - np.nan_to_num(edge)), rtol=1e-5)


def test_votes_spread_as_sums_over_all_pairs() -> None:
    rng = np.random.default_rng(1)
    value, weight, keep = (
        rng.normal(size=(3, 9)),
        rng.uniform(0, 1, (3, 9)),
        rng.uniform(0, 1, (3, 9)),
    )
    fast_v, fast_w = value.copy(), weight.copy()
    _kernels_dense.smooth_rows(fast_v, fast_w, keep)
    np.testing.assert_allclose(fast_v, naive.smooth_rows(value, keep), atol=1e-12)
    np.testing.assert_allclose(fast_w, naive.smooth_rows(weight, keep), atol=1e-12)


def test_maps_are_carried_with_their_surface() -> None:
    scene = Scene("walk", width=96, height=72, focal=82)
    cam = np.array([82.0, 82.0, 47.5, 35.5])
    here = (transforms.invert(scene.world_from_cam(5)) @ scene.world_from_cam(4))[:3]
    flow, back = (scene.flow(a, b)[0].astype(np.float32) for a, b in ((4, 5), (5, 4)))
    sigma = np.full((72, 96), 0.05, np.float32)
    out = np.empty((3, 36, 48))
    rho = np.ascontiguousarray(1 / scene.depth(4)[::2, ::2])
    logit = np.where(scene.moving(4), 4.0, -3.0)[::2, ::2].copy()
    _kernels_dense.carry_maps(cam, here, flow, back, sigma, 2, rho, np.ones((36, 48)), logit, out)
    known = np.isfinite(out[0]) & ~scene.moving(5)[::2, ::2]
    assert known.mean() > 0.7
    error = np.abs(out[0] * scene.depth(5)[::2, ::2] - 1)[known]
    assert np.percentile(error, 95) < 0.02  # depth edges are read to half a grid pixel
    agree = (out[2] > 0) == scene.moving(5)[::2, ::2]
    assert agree[np.isfinite(out[2])].mean() > 0.97


def links_of(scene: Scene, t: int, n: int = 8, sigma: float = 0.05) -> list[dense.Link]:
    """Return exact links from frame t to the n frames after it."""
    here = transforms.invert(scene.world_from_cam(t))
    links = []
    for k in range(n):
        flow, visible = scene.flow(t + k, t + k + 1)
        back, _ = scene.flow(t + k + 1, t + k)
        there = (transforms.invert(scene.world_from_cam(t + k + 1)) @ np.linalg.inv(here))[:3]
        stated = np.where(visible, sigma, 20.0).astype(np.float32)
        there_flow, back_flow = flow.astype(np.float32), back.astype(np.float32)
        links.append(dense.Link(*dense.way_of(there_flow, back_flow, stated), there))
    return links


def test_fit_finds_depth_and_flags_what_moves() -> None:
    scene = Scene("walk", width=96, height=72, focal=82)
    cam = np.array([82.0, 82.0, 47.5, 35.5])
    guess = Guess(np.full((72, 96), 0.3), 0.7, (0.05, 3.0))
    fitted = dense.fit(cam, links_of(scene, 4), np.zeros((72, 96)), guess, 1)
    moving = scene.moving(4)
    sure = (fitted.info * fitted.rho**2 > 400) & ~moving
    assert sure.mean() > 0.25  # eight frames of a slow camera
    assert np.median(np.abs(fitted.rho * scene.depth(4) - 1)[sure]) < 0.03
    assert fitted.odds[moving].mean() > 2
    assert (fitted.odds[~moving] > 0).mean() < 0.02


def test_a_mover_along_its_epipolar_lines_is_seen_over_several_frames() -> None:
    """The camera sways sideways, the ball too, at another rhythm: from frame to frame it looks like a depth."""
    ball = Ball((0.0, 0.1, 1.0), 0.5, (0.12, 0.0, 0.0), 16.0)
    scene = Scene("orbit", width=96, height=72, focal=82, balls=(ball,), frames_per_turn=100)
    cam = np.array([82.0, 82.0, 47.5, 35.5])
    guess = Guess(np.full((72, 96), 0.3), 0.7, (0.05, 3.0))
    moving = scene.moving(4)
    one, eight = (
        dense.fit(cam, links_of(scene, 4, n), np.zeros((72, 96)), guess, 1).odds for n in (1, 8)
    )
    assert (eight[moving] > 0).mean() > 0.8
    assert (eight[moving] > 0).mean() > (one[moving] > 0).mean() + 0.2
    assert (eight[~moving] > 0).mean() < 0.02


def test_want_of_texture_is_want_of_evidence() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((64, 96), 90, np.uint8)
    grey[:, 48:] = rng.integers(0, 255, (64, 48))
    grey[:, :16] += (8 * (np.arange(64) // 8 % 2)).astype(np.uint8)[:, None]  # stripes: an aperture
    var = motion.texture_variance(grey, 2)
    assert var.shape == (32, 48)
    assert var[:, 30:].max() < 0.01
    assert var[8:-8, :4].min() > 2.0
    assert var[8:-8, 12:20].min() > 2.0


def test_the_noise_is_read_off_the_image_but_movers_leave_it_alone() -> None:
    rng = np.random.default_rng(0)
    across, count = rng.chisquare(3, (100, 100)) / 3, np.full((100, 100), 3.0)
    assert motion.noise_scale(across, count) == pytest.approx(1.6, rel=0.3)
    across[:40] = 500.0
    assert motion.noise_scale(across, count) < 4.0
    assert motion.noise_scale(across, np.zeros((100, 100))) == 1.0


def test_votes_stop_at_edges_and_fill_what_moves_together() -> None:
    odds, weight = np.full((40, 60), -1.0), np.ones((40, 60))
    inside = np.zeros((40, 60), bool)
    inside[10:30, 20:40] = True
    odds[10:30, 20:30] = 4.0  # half of the mover is seen to move
    weight[10:30, 30:40] = 1e-3
    flow = np.where(inside, 3.0, 0.0)[..., None] * np.ones(2)
    votes = motion.vote(odds, weight, motion.passing(flow, np.full((40, 60), 0.5)))
    assert votes[inside].min() > 2.0
    assert votes[~inside].max() < 0.0


def test_an_enlarged_map_follows_the_images_edges() -> None:
    """Every third pixel knows on which side of a slanted edge it lies."""
    y, x = np.mgrid[:60, :90]
    inside = x + 0.4 * y > 51.0
    grey = np.where(inside, 0.8, 0.3).astype(np.float32)
    grey += np.random.default_rng(0).normal(0, 0.01, grey.shape).astype(np.float32)
    odds = np.where(inside, 4.0, -4.0)[::3, ::3]
    wrong = [
        ((drawn > 0) != inside).sum()
        for drawn in (
            dense.guided_mean(odds, np.ones_like(odds), grey, 3),
            dense.enlarge(odds, 3, grey.shape),
        )
    ]
    assert wrong[0] <= 0.1 * wrong[1]


def test_the_models_opinion_counts_but_does_not_decide() -> None:
    nothing = np.zeros((4, 4))
    still = motion.update(np.full((4, 4), -3.0), nothing, None)
    seen = motion.update(np.full((4, 4), -3.0), nothing, np.full((4, 4), 0.95, np.float32))
    assert (seen > still + 1).all()
    contradicted = motion.update(seen, nothing - 2.0, np.full((4, 4), 0.95, np.float32))
    agreed = motion.update(seen, nothing, np.full((4, 4), 0.95, np.float32))
    assert (contradicted < agreed - 1).all()
    assert np.isfinite(motion.update(None, nothing, np.full((4, 4), np.nan, np.float32))).all()


def test_the_first_frame_has_a_mask_and_the_last_one_keeps_it(walk: list[PosedFrame]) -> None:
    scene = WALK
    for frame in (walk[0], walk[-1]):
        moving = scene.moving(frame.index)
        assert (frame.motion_prob > 0.5)[moving].mean() > 0.5
        assert (frame.motion_prob > 0.5)[~moving].mean() < 0.02


def test_confidence_is_how_often_depth_is_right(walk: list[PosedFrame]) -> None:
    """With real (DIS) flow, in every well-filled bin; never boastful, and modest by no more than a third."""
    stated, right = [], []
    for frame in walk[8:]:
        error = np.log(frame.depth / WALK.depth(frame.index))
        error -= np.median(error)
        known = ~WALK.moving(frame.index)
        stated.append(frame.confidence[known])
        right.append(np.abs(error[known]) < 0.1)
    confidence, hit = np.concatenate(stated), np.concatenate(right)
    which = np.clip((confidence * 5).astype(int), 0, 4)
    for k in range(5):
        chosen = which == k
        if chosen.mean() > 0.03:
            assert -0.15 < hit[chosen].mean() - confidence[chosen].mean() < 0.35
    shares = [hit[which == k].mean() for k in range(5) if (which == k).mean() > 0.03]
    assert len(shares) >= 2
    assert shares == sorted(shares)


def test_depth_stays_within_what_the_map_shows(walk: list[PosedFrame]) -> None:
    """Where flow says nothing, or nonsense, depth is neither at infinity nor in the lens."""
    for frame in walk[8:]:
        ratio = frame.depth / WALK.depth(frame.index)
        ratio /= np.median(ratio)
        assert ratio.max() < 15
        assert ratio.min() > 1 / 15


def test_a_models_depth_fills_in_at_the_maps_scale() -> None:
    scene = Scene("walk", width=96, height=72, focal=82)
    local_map, pose = map_of(scene, 0), np.eye(3, 4)
    plain = guess_depth(shown(local_map, pose), 2)
    model = (7.0 * scene.depth(0)).astype(np.float32)
    model[:10] = np.nan
    blended = guess_depth(shown(local_map, pose), 2, depth=model)
    truth = 1 / scene.depth(0)[::2, ::2]
    assert blended.sigma < 0.5 * plain.sigma
    wrong = [np.abs(np.log(one.rho / truth))[6:].mean() for one in (plain, blended)]
    assert wrong[1] < 0.3 * wrong[0]
    assert np.isfinite(blended.rho).all()
    liar = guess_depth(shown(local_map, pose), 2, depth=model * np.exp(noise_of(model.shape)))
    assert liar.sigma > 2 * blended.sigma  # its errors are read off the patches


def test_a_models_depth_stands_alone_before_there_is_a_map() -> None:
    """At the scale of the frame before, so that nothing flickers; around 1 at first."""
    scene = Scene("walk", width=96, height=72, focal=82)
    empty, depth = LocalMap(72, 96, 2, 8, scene.K), scene.depth(0).astype(np.float32)
    first = guess_depth(shown(empty, np.eye(3, 4)), 2, depth=7.0 * depth)
    assert abs(np.median(first.rho) - 1) < 0.01
    np.testing.assert_allclose(np.ptp(np.log(first.rho * depth[::2, ::2])), 0, atol=1e-5)
    before = np.full((36, 48), np.nan)
    before[:, :24] = 0.25 * first.rho[:, :24]
    again = guess_depth(shown(empty, np.eye(3, 4)), 2, depth=3.0 * depth, before=before)
    np.testing.assert_allclose(again.rho, 0.25 * first.rho, rtol=1e-5)
    hidden = guess_depth(
        shown(empty, np.eye(3, 4)), 2, depth=3.0 * depth, before=np.full_like(before, np.nan)
    )
    np.testing.assert_allclose(hidden.rho, first.rho, rtol=1e-5)


def test_patches_on_movers_have_no_say_in_the_guess() -> None:
    scene = Scene("walk", width=96, height=72, focal=82)
    local_map = map_of(scene, 0, 250)
    u, v = local_map.uv0[local_map.host >= 0].astype(int).T
    on_mover = np.flatnonzero(local_map.host >= 0)[scene.moving(0)[v, u]]
    assert len(on_mover) > 2
    local_map.rho[on_mover] *= 20
    still = np.where(scene.moving(0)[::2, ::2], 0.0, 1.0)
    heard, unheard = (guess_depth(shown(local_map, np.eye(3, 4)), 2, s).rho for s in (None, still))
    inside = scene.moving(0)[::2, ::2]
    assert np.median(heard[inside]) > 3 * np.median(unheard[inside])
    assert np.median(unheard[inside] * scene.depth(0)[::2, ::2][inside]) < 1.5


@pytest.mark.parametrize("step", [1, 2, 3])
def test_grid_and_image_are_read_as_their_slow_twins_read_them(step: int) -> None:
    rng = np.random.default_rng(step)
    grey = rng.integers(0, 255, (20, 31)).astype(np.uint8)
    grid = (-(-20 // step), -(-31 // step))
    moments = np.empty((3, *grid), np.float32)
    _kernels_draw.gradient_moments(grey, step, moments)
    np.testing.assert_allclose(moments, naive.gradient_moments(grey, step), rtol=1e-4, atol=1e-2)
    slope, offset = rng.normal(size=(2, *grid)).astype(np.float32)
    wide = naive.enlarged(slope, step, grey.shape)
    np.testing.assert_allclose(dense.enlarge(slope, step, grey.shape), wide, atol=1e-5)
    out, guide = np.empty(grey.shape, np.float32), grey.astype(np.float32) / 255
    _kernels_draw.along(slope, offset, guide, step, out)
    expected = wide * guide + naive.enlarged(offset, step, grey.shape)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_kernels_run_without_compilation() -> None:
    run_without_compilation(__file__, "fitted or behind or links or votes_spread or slow_twins")

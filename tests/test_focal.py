"""The focal length where no K is given: what the filter believes, what turning tells, what the chain finds."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.config import ChainConfig
from stream4d.geometry import camera, transforms
from stream4d.packets import Array, PosedFrame, Prediction, Window
from stream4d.pose import turning
from stream4d.pose.chain import PoseChain
from stream4d.pose.focal import BEST_SIGMA, OVERCONFIDENCE, Focal, limits
from tests.oracle import OracleModel
from tests.synthetic import Path, Scene
from tests.test_chain import ate, run

Pair = tuple[Window, Prediction]
Told = dict[int, tuple[Array, Array, float]]
"""Frame → K, pose, factor of its depth."""
SIZE = 384
TRUE = float(np.log(400.0))


def window(focal: Focal, says: float, sigma: float) -> None:
    """Let the filter hear of a window that would put log focal at ``says``, by itself, with so much information."""
    own, held = 1 / sigma**2, focal.held_info
    focal.weigh((own * says + held * focal.mean) / (own + held), own + held, 0.0, SIZE)


def test_a_window_is_discounted_and_counted_once() -> None:
    focal = Focal.usual(SIZE)
    before = focal.info
    for _ in range(20):  # the same map, adjusted again and again
        window(focal, TRUE, 0.02)
    assert focal.window_info == pytest.approx(0.02**-2 / OVERCONFIDENCE)
    assert focal.info == before
    assert focal.window_mean == pytest.approx(TRUE)
    focal.take_up(0.5)
    assert focal.info == pytest.approx(before + 0.5 * 0.02**-2 / OVERCONFIDENCE)
    assert focal.window_info == 0


def test_biased_windows_do_not_carry_the_focal_length_away() -> None:
    """Each window is off by 30 % of where the last one left the estimate, and sure of it."""
    focal = Focal.usual(SIZE)
    for _ in range(2):
        window(focal, TRUE, 0.004)
        focal.take_up(1.0)
    for _ in range(50):
        window(focal, focal.best + 0.3, 0.01)
        focal.take_up(1.0)
    assert abs(focal.best - TRUE) < 0.1  # a random walk of priors would have gone 15 the way
    assert focal.best < limits(SIZE)[1]


def test_no_window_is_believed_without_end_nor_beyond_what_lenses_do() -> None:
    focal = Focal.usual(SIZE)
    window(focal, TRUE, 1e-5)
    assert focal.window_info <= BEST_SIGMA**-2 * 1.001
    focal.see(9.0, 1e12, 0.0, SIZE)
    assert focal.window_mean == limits(SIZE)[1]
    assert camera.fov_from_focal(float(np.exp(limits(SIZE)[1])), SIZE) == pytest.approx(20)
    assert camera.fov_from_focal(float(np.exp(limits(SIZE)[0])), SIZE) == pytest.approx(130)


@pytest.mark.parametrize("fov_deg", [35.0, 60.0, 100.0])
def test_turning_tells_the_focal_length(fov_deg: float) -> None:
    rng = np.random.default_rng(0)
    f = camera.focal_from_fov(fov_deg, SIZE)
    K = camera.centred_K(f, SIZE, 288)
    turns = np.linspace(0.1, 0.6, 4)[:, None] * np.radians(fov_deg) * [0.3, 1.0, 0.1]
    R = transforms.so3_exp(turns)
    uv0 = rng.uniform((0, 0), (SIZE, 288), (120, 2))
    q = camera.rays(uv0, K) @ np.swapaxes(R, 1, 2)
    uv = camera.project(q, K)  # NaN behind the camera
    uv = uv + 0.1 * rng.normal(size=uv.shape)
    uv[:, :15] += rng.uniform(-30, 30, (15, 2))  # a mover
    info = np.tile([100.0, 0.0, 100.0], (*uv.shape[:2], 1))
    info[~camera.inside(uv, 288, SIZE)] = 0
    guess = camera.split_K(camera.centred_K(1.3 * f, SIZE, 288))
    said = turning.focal_from_turning(guess, uv0, uv, info, transforms.so3_exp(turns / 1.3))
    sigma = said.information**-0.5
    assert sigma < 0.01
    assert abs(said.log_scale + np.log(1.3)) < 4 * sigma
    assert 0.8 < said.explained < 0.95


def test_standing_still_tells_nothing() -> None:
    uv0 = np.random.default_rng(0).uniform((0, 0), (SIZE, 288), (120, 2))
    info = np.tile([100.0, 0.0, 100.0], (2, 120, 1))
    cam = np.array([300.0, 300.0, 191.5, 143.5])
    said = turning.focal_from_turning(
        cam, uv0, np.stack([uv0] * 2), info, np.stack([np.eye(3)] * 2)
    )
    assert said.sensitivity_px < 1e-3
    assert said.log_scale == pytest.approx(0, abs=1e-6)


def test_a_turning_camera_finds_its_focal_length_and_turns_as_if_it_had_known() -> None:
    scene = Scene("rotation", width=256, height=192, focal=160, frames_per_turn=120)
    frames, poses = run(scene, OracleModel(scene, flow_noise_px=0.1), 30, with_K=False)
    assert frames[-1].K[0, 0] == pytest.approx(160, rel=0.01)
    truth = np.stack([scene.world_from_cam(t) for t in range(30)])[:, :3, :3]
    error = transforms.so3_log(
        np.swapaxes(np.swapaxes(truth[:-1], 1, 2) @ truth[1:], 1, 2)
        @ (np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3])
    )
    assert np.degrees(np.linalg.norm(error, axis=1)).mean() < 0.05


@pytest.mark.parametrize(
    ("fov_deg", "path"), [(30, "orbit"), (35, "walk"), (50, "walk"), (100, "walk")]
)
def test_wide_and_long_lenses_are_found(fov_deg: float, path: Path) -> None:
    """The walk at 35° begins before a bare wall: the first map is the wrong reading of a plane, 30 % short."""
    focal = camera.focal_from_fov(fov_deg, 256)
    scene = Scene(path, width=256, height=192, focal=focal)
    frames, poses = run(scene, OracleModel(scene, flow_noise_px=0.1), 50, with_K=False)
    error, length = ate(scene, poses)
    assert frames[-1].K[0, 0] == pytest.approx(focal, rel=0.05)
    assert error < 0.025 * length  # a tenth, but for frames that left while the wall was misread


def test_frames_that_left_too_early_are_told_the_camera_that_was_found_later() -> None:
    """The map of this walk is first 30 % short. Stopped and resumed halfway, the same is told."""
    focal = camera.focal_from_fov(35, 256)
    scene = Scene("walk", width=256, height=192, focal=focal)
    n, half = 50, 26
    with OracleModel(scene, flow_noise_px=0.1).session(scene.info(n)) as session:
        seen = [(window, session.step(window)) for window in scene.windows(n, with_K=False)]
    told: list[Told] = [{}, {}]
    first: dict[int, PosedFrame] = {}

    def play(chain: PoseChain, part: list[Pair], out: Told) -> None:
        frames = [frame for pair in part for frame in chain.extend(*pair)]
        frames += list(chain.finish()) if part[-1] is seen[-1] else []
        for frame in frames:
            first[frame.index] = frame
            out[frame.index] = frame.K, frame.world_from_cam, 1.0
        for r in chain.revisions():
            assert r.K is not None
            for i, K, pose, scale in zip(
                r.indices.tolist(), r.K, r.world_from_cam, r.scale, strict=True
            ):
                out[i] = K, pose, out[i][2] * float(scale)

    play(PoseChain(ChainConfig(), scene.info(n)), seen, told[0])
    chains = [PoseChain(ChainConfig(), scene.info(n)) for _ in range(2)]
    play(chains[0], seen[:half], told[1])
    chains[1].restore({name: array.copy() for name, array in chains[0].state().items()})
    play(chains[1], seen[half:], told[1])
    for i in range(n):
        for a, b in zip(told[0][i], told[1][i], strict=True):
            np.testing.assert_array_equal(a, b)
    assert max(abs(first[i].K[0, 0] / focal - 1) for i in range(n)) > 0.2
    assert max(abs(told[0][i][0][0, 0] / focal - 1) for i in range(n)) < 0.02
    ratio = np.array([np.nanmedian(np.log(first[i].depth / scene.depth(i))) for i in range(n)])
    scale = np.log([told[0][i][2] for i in range(n)])
    assert np.std(ratio) > 0.2
    assert np.std(ratio + scale) < 0.1

"""The offline refinement on scenes whose answer is known, its kernels against slow twins, its store kept safe."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from stream4d.commands.refine import refine_store
from stream4d.config import ChainConfig
from stream4d.errors import StoreError
from stream4d.geometry import camera, transforms
from stream4d.packets import Array, PosedFrame
from stream4d.pose import _kernels_offline
from stream4d.pose.chain import PoseChain
from stream4d.pose.global_adjustment import Problem, settle_sites, solve
from stream4d.pose.offline import _is_surely_less, refine
from stream4d.pose.sites import Seen, cam_from_world
from stream4d.store import rewrite
from stream4d.store.reader import open_store
from stream4d.store.writer import StoreWriter
from tests import naive
from tests.disks import little_room
from tests.interpreted import run_without_compilation
from tests.oracle import OracleModel
from tests.posed import posed_frame
from tests.synthetic import Scene

SCALES = np.array([9.0, 4.0])
ORBIT = Scene("orbit")


def problem(
    *, keys: int = 5, sites: int = 60, noise: float = 0.0, off: float = 0.0, focal: float = 1.0
) -> Problem:
    """Make a random scene; ``off`` disturbs cameras and depths, ``focal`` multiplies the focal length."""
    rng = np.random.default_rng(3)
    scene = Scene("orbit")
    truth = cam_from_world(np.stack([scene.world_from_cam(4 * k) for k in range(keys)]))
    cam = np.array([scene.focal, scene.focal, scene.width / 2, scene.height / 2])
    host = np.sort(rng.integers(keys, size=sites))
    uv = rng.uniform((20, 20), (170, 120), (sites, 2))
    rho = rng.uniform(0.15, 0.4, sites)
    rays = camera.rays(uv, camera.make_K(*cam))
    site, frame = np.nonzero(host[:, None] != np.arange(keys))
    seen_uv = np.array([naive.patch_pixel(cam, rays[n], rho[n], truth[f], truth[host[n]])
                        for n, f in zip(site, frame, strict=True)])  # fmt: skip
    info = np.tile([25.0, 3.0, 16.0], (len(site), 1))
    logd = np.array([depth_in(rays[n], rho[n], truth[f], truth[host[n]])
                     for n, f in zip(site, frame, strict=True)])  # fmt: skip
    seen = Seen(
        site, frame, seen_uv + noise * rng.normal(size=seen_uv.shape), info, logd,
        rng.choice([0.0, 2.0], len(site)),
    )  # fmt: skip
    T, poses = transforms.square(truth), truth.copy()
    for k in range(1, keys):
        poses[k] = naive.moved(poses[k], off * rng.normal(size=6))
    start = cam * [focal, focal, 1, 1]
    return Problem(
        cam=start, poses=poses, host=host, uv=uv, rho=rho * np.exp(off * rng.normal(size=sites)),
        prior=rho.copy(), prior_info=np.full(sites, 0.5), seen=seen, start=seen.starts(sites),
        ties=T[1:] @ transforms.invert(T[:-1]), tie_info=np.full(6, 4.0), focal_is_free=focal != 1,
        held=np.zeros(keys, bool),
        map_scale=np.zeros(keys),
    )  # fmt: skip


def depth_in(ray: Array, rho: float, target: Array, host: Array) -> float:
    """Return the log depth of a site in another camera."""
    R = target[:, :3] @ host[:, :3].T
    return float(np.log((R @ (ray / rho) + target[:, 3] - R @ host[:, 3])[2]))


def naive_residuals(p: Problem, poses: Array, rho: Array, cam: Array) -> tuple[Array, Array]:
    """Return pixels (M, 2) and log depths (M,) of all observations less what was measured."""
    rays = camera.rays(p.uv, camera.make_K(*cam))
    pairs = list(zip(p.seen.site, p.seen.frame, strict=True))
    uv = [naive.patch_pixel(cam, rays[n], rho[n], poses[f], poses[p.host[n]]) for n, f in pairs]
    logd = [depth_in(rays[n], rho[n], poses[f], poses[p.host[n]]) for n, f in pairs]
    return np.array(uv) - p.seen.uv, np.array(logd) - p.seen.logd - p.map_scale[p.seen.frame]


def test_cost_is_what_it_says() -> None:
    p = problem(noise=0.3, off=0.02)
    out = np.empty(len(p.rho))
    cost = _kernels_offline.global_cost(*p.arguments(p.cam, p.poses, p.rho), SCALES, out)
    e, d = naive_residuals(p, p.poses, p.rho, p.cam)
    a, b, c = p.seen.info.T
    pixels = a * e[:, 0] ** 2 + 2 * b * e[:, 0] * e[:, 1] + c * e[:, 1] ** 2
    depths = p.seen.logd_info * d**2
    expected = (9 * pixels / (9 + pixels)).sum() + (4 * depths / (4 + depths)).sum()
    expected += (p.prior_info * np.log(p.rho / p.prior) ** 2).sum()
    assert cost == pytest.approx(expected, rel=1e-9)
    assert cost == pytest.approx(out.sum(), rel=1e-9)


def test_system_is_the_schur_complement_of_the_whole_jacobian() -> None:
    """Robust scales are huge, so that the cost is quadratic and differences give the Jacobian."""
    p = problem(keys=3, sites=12, noise=0.5, off=0.01, focal=1.05)
    D, N = 6 * 3 + 1, len(p.rho)

    def rows(x: Array) -> Array:
        cam = p.cam * np.array([np.exp(x[D - 1]), np.exp(x[D - 1]), 1, 1])
        poses = np.stack([naive.moved(p.poses[k], x[6 * k : 6 * k + 6]) for k in range(3)])
        rho = p.rho + x[D:]
        e, d = naive_residuals(p, poses, rho, cam)
        L = np.linalg.cholesky(p.seen.info[:, [[0, 1], [1, 2]]])
        white = np.einsum("mji,mj->mi", L, e).ravel()
        prior = np.sqrt(p.prior_info) * np.log(rho / p.prior)
        return np.concatenate([white, np.sqrt(p.seen.logd_info) * d, prior])

    J, r = naive.differences(rows, D + N), rows(np.zeros(D + N))
    H, g = J.T @ J, J.T @ r
    C = np.diag(1 / np.diag(H)[D:])
    expected = H[:D, :D] - H[:D, D:] @ C @ H[D:, :D]
    S, s = np.zeros((D, D)), np.zeros(D)
    scales = np.array([1e12, 1e12])
    _kernels_offline.global_system(*p.arguments(p.cam, p.poses, p.rho), scales, 0.0, S, s)
    S += np.triu(S, 1).T
    np.testing.assert_allclose(S, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    wanted = g[:D] - H[:D, D:] @ C @ g[D:]
    np.testing.assert_allclose(s, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    step = 1e-3 * np.random.default_rng(0).normal(size=D)
    rho, info = np.empty(N), np.empty(N)
    _kernels_offline.move_sites(*p.arguments(p.cam, p.poses, p.rho), scales, 0.0, step, rho, info)
    np.testing.assert_allclose(info, np.diag(H)[D:], rtol=1e-4)
    np.testing.assert_allclose(rho - p.rho, -C @ (g[D:] + H[D:, :D] @ step), rtol=1e-2, atol=1e-6)


def test_settling_equals_a_step_that_moves_no_camera() -> None:
    p = problem(noise=0.3, off=0.01)
    expected = p.moved(np.zeros(6 * len(p.poses) + 1), SCALES, 0.0)[2]
    settle_sites(p, SCALES[0], iterations=1)
    np.testing.assert_allclose(p.rho, expected, rtol=1e-9)


@pytest.mark.parametrize("focal", [1.0, 1.08])
def test_cameras_and_focal_length_are_found(focal: float) -> None:
    truth, p = problem(), problem(off=0.02, focal=focal)
    p.tie_info[:] = 1e-6
    for scale in (1e4, 100.0, 9.0):
        settle_sites(p, scale)
        solve(p, scale, iterations=30)
    np.testing.assert_allclose(p.cam, truth.cam, rtol=1e-3)
    np.testing.assert_allclose(p.poses, truth.poses, atol=3e-3)


def test_many_sites_are_solved_by_a_part_of_them() -> None:
    truth, p = problem(sites=2000), problem(sites=2000, off=0.005)
    solve(p, 100.0)
    np.testing.assert_allclose(p.poses, truth.poses, atol=3e-3)
    assert np.median(np.abs(p.rho / truth.rho - 1)) < 0.01


@dataclasses.dataclass
class Recording:
    """Frames of a scene as a run has left them."""

    frames: list[PosedFrame]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> PosedFrame:
        return self.frames[index]

    def __getattr__(self, name: str) -> Array:
        field = {"keyframe": "is_keyframe"}.get(name, name)
        return np.array([getattr(frame, field) for frame in self.frames])


def recording(*, drift: float, frames: int = 22, focal: float = 1.0) -> tuple[Scene, Recording]:
    """Take the truth and let the path drift: an error of ``drift`` per frame that never goes."""
    scene = ORBIT
    rng, error = np.random.default_rng(1), np.eye(4)
    out = []
    for t in range(frames):
        frame = posed_frame(scene, t)
        error = transforms.se3_exp(drift * rng.normal(size=6)) @ error if t else error
        K = frame.K * np.array([[focal, 1, 1], [1, focal, 1], [1, 1, 1]])
        out.append(
            dataclasses.replace(
                frame, K=K, world_from_cam=error @ frame.world_from_cam,
                is_keyframe=t % 3 == 0, depth=(1.05 * frame.depth).astype(np.float32),
            )
        )  # fmt: skip
    return scene, Recording(out)


def path_error(scene: Scene, poses: Array) -> float:
    truth = np.stack([scene.world_from_cam(t) for t in range(len(poses))])[:, :3, 3]
    T = naive.umeyama(poses[:, :3, 3], truth)
    return float(
        np.sqrt(((transforms.transform_points(T, poses[:, :3, 3]) - truth) ** 2).sum(1).mean())
    )


def test_drift_goes_and_the_focal_length_comes() -> None:
    scene, run = recording(drift=0.004, focal=1.04)
    steps: list[tuple[int, int]] = []
    result = refine(run, calibrated=False, on_step=lambda *at: steps.append(at))
    assert result.is_better
    before, after = (
        path_error(scene, run.world_from_cam),
        path_error(scene, result.cameras.world_from_cam),
    )
    assert before > 0.01
    assert after < 0.2 * before
    assert result.cameras.K[0, 0, 0] == pytest.approx(scene.focal, rel=0.005)
    assert steps[-1] == (steps[-1][1], steps[-1][1])
    assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))


def test_a_given_focal_length_stays() -> None:
    _, run = recording(drift=0.002, frames=10)
    result = refine(run, calibrated=True)
    assert result.is_better
    np.testing.assert_array_equal(result.cameras.K, run.K)


def test_what_cannot_be_better_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that makes things worse is found out by the held-out sites."""
    from stream4d.pose import offline

    def spoil(problem: Problem, scale: float) -> float:
        problem.poses[:, 0, 3] += 0.02 * np.arange(len(problem.poses)) ** 2
        return 0.0

    monkeypatch.setattr(offline, "solve", spoil)
    _, run = recording(drift=0.0, frames=13)
    result = refine(run, calibrated=True)
    assert not result.is_better
    assert result.parts[0].reason
    np.testing.assert_array_equal(result.cameras.world_from_cam, run.world_from_cam)


def test_a_refined_store_is_not_stirred_again() -> None:
    """What is left then is chance: it must not count as better."""
    _, run = recording(drift=0.004, frames=13)
    once = refine(run, calibrated=True).cameras
    refined = [
        dataclasses.replace(
            frame, world_from_cam=pose, depth=(scale * frame.depth).astype(np.float32)
        )
        for frame, pose, scale in zip(
            run.frames, once.world_from_cam, once.depth_scale, strict=True
        )
    ]
    again = refine(Recording(refined), calibrated=True)
    assert not again.is_better
    assert "chance" in again.parts[0].reason


def test_better_beyond_chance() -> None:
    rng = np.random.default_rng(5)
    before = rng.uniform(1, 9, 400)
    noise = rng.normal(size=400)
    noise -= noise.mean()
    assert _is_surely_less(before - 0.2 + noise, before)  # 4 standard errors
    assert not _is_surely_less(before - 0.05 + noise, before)  # 1
    assert not _is_surely_less(before + 0.2 + noise, before)
    assert not _is_surely_less(before, before)
    assert not _is_surely_less(before[:1] - 1, before[:1])
    # One bad keyframe put right shows too.
    assert _is_surely_less(before - 3 * (np.arange(400) // 16 == 7), before)


def test_too_few_keyframes_are_left_alone() -> None:
    _, run = recording(drift=0.001, frames=5)
    assert refine(run, calibrated=False).parts == ()


# --- stores --------------------------------------------------------------------------------------------------


def stored(path: Path, run: Recording, *, complete: bool = True) -> Path:
    H, W = run[0].depth.shape
    info = dataclasses.replace(Scene().info(), width=W, height=H)
    with StoreWriter(path, info=info, config={}) as writer:
        for frame in run.frames:
            writer.write(dataclasses.replace(frame, tracks=None))
        writer.commit()
        if not complete:
            writer.leave_unfinished()
    return path


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_better_store_out_same_store_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, run = recording(drift=0.004)
    path = stored(tmp_path / "a.zarr", run)
    before = listing(path)
    refine_store(path, tmp_path / "b.zarr")
    assert listing(path) == before
    assert "refined" in capsys.readouterr().out
    old, new = open_store(path), open_store(tmp_path / "b.zarr")
    assert path_error(scene, new.world_from_cam) < 0.3 * path_error(scene, old.world_from_cam)
    # The cameras' unit has shrunk by what the depth was too long.
    for t in (0, 16):
        true_depth = scene.depth(t) / naive_scale(scene, new.world_from_cam)
        assert np.nanmedian(new.depth(t) / true_depth) == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(old[7].rgb, new[7].rgb)
    assert np.isfinite(old.pose_covariance).all()
    assert np.isnan(new.pose_covariance).all(), "what was stated belongs to the path before"
    assert new.attrs["refined"][0]["is_better"]
    refine_store(path, None, quiet=True)
    assert listing(path).keys() == before.keys()
    np.testing.assert_array_equal(open_store(path).world_from_cam, new.world_from_cam)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def naive_scale(scene: Scene, poses: Array) -> float:
    truth = np.stack([scene.world_from_cam(t) for t in range(len(poses))])[:, :3, 3]
    return float(transforms.scale_of(naive.umeyama(poses[:, :3, 3], truth)))


@pytest.mark.parametrize("stage", ["replace_file", "move_into_place"])
def test_ctrl_c_while_writing_leaves_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    _, run = recording(drift=0.0, frames=4)
    path = stored(tmp_path / "a.zarr", run)
    before = listing(path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rewrite, stage, interrupt)
    rows = {"world_from_cam": np.zeros((4, 4, 4))}
    with pytest.raises(KeyboardInterrupt), rewrite.Rewrite(path) as new:
        new.write(rows, {})
    assert listing(path) == before
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_disk_full_while_writing_leaves_the_store(tmp_path: Path) -> None:
    _, run = recording(drift=0.0, frames=4)
    path = stored(tmp_path / "a.zarr", run)
    before = listing(path)
    with (
        little_room(1000),
        pytest.raises(StoreError, match=r"File too large; .* is as it was"),
        rewrite.Rewrite(path, tmp_path / "b.zarr") as new,
    ):
        new.write({}, {})
    assert listing(path) == before
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_what_must_not_be_rewritten(tmp_path: Path) -> None:
    _, run = recording(drift=0.0, frames=4)
    unfinished = stored(tmp_path / "a.zarr", run, complete=False)
    whole, taken = stored(tmp_path / "b.zarr", run), stored(tmp_path / "c.zarr", run)
    with pytest.raises(StoreError, match="--resume"):
        refine_store(unfinished, None)
    with pytest.raises(StoreError, match="--overwrite"):
        refine_store(whole, taken)
    with pytest.raises(StoreError, match="copy"):
        refine_store("s3://bucket/a.zarr", None)
    root = json.loads((whole / "zarr.json").read_text())
    assert "refined" not in root["attributes"]


def test_kernels_run_without_compilation() -> None:
    run_without_compilation(__file__, "cost_is or system_is or settling")


def test_a_problem_is_copied_whole() -> None:
    p = problem()
    part = p.thinned(3)
    assert len(part.rho) == 20
    kept = copy.deepcopy(p.poses)
    part.poses += 1
    np.testing.assert_array_equal(p.poses, kept)


def test_many_keyframes_are_refined_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is held by its neighbours: the path has no jump where one ends."""
    from stream4d.pose import offline

    monkeypatch.setattr(offline, "MAX_KEYS", 5)
    monkeypatch.setattr(offline, "HELD_KEYS", 2)
    scene, run = recording(drift=0.002, frames=28)
    result = refine(run, calibrated=False)
    assert [(part.first, part.stop) for part in result.parts] == [(0, 15), (15, 28)]
    assert path_error(scene, result.cameras.world_from_cam) < path_error(scene, run.world_from_cam)
    truth = np.stack([scene.world_from_cam(t) for t in range(28)])
    steps = [np.linalg.norm(np.diff(x[:, :3, 3], axis=0), axis=1)
             for x in (truth, result.cameras.world_from_cam)]  # fmt: skip
    ratio = steps[1] / steps[0]
    assert ratio[14] == pytest.approx(np.median(ratio), rel=0.1)


def test_pointmaps_without_flow_are_refined_too() -> None:
    """Windows of noisy pointmaps, placed one after the other: no flow, hardly a keyframe."""
    model = OracleModel(
        ORBIT, gives="pointmap", depth_noise=0.1, window_scale=1.3, knows_camera=False
    )
    chain, frames = PoseChain(ChainConfig(), ORBIT.info(24)), []
    session = model.session(ORBIT.info(24))
    for window in ORBIT.windows(24, 6, 3):
        frames += list(chain.extend(window, session.step(window)))
    run = Recording([*frames, *chain.finish()])
    assert all(frame.flow is None for frame in run.frames)
    result = refine(run, calibrated=True)
    before, after = (
        path_error(ORBIT, x) for x in (run.world_from_cam, result.cameras.world_from_cam)
    )
    assert after < 0.5 * before

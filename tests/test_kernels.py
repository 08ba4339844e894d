"""The pose chain's kernels against differences, dense algebra and known answers; once without compilation."""

from __future__ import annotations

import ast
from pathlib import Path

import cv2
import numpy as np
import pytest

import stream4d
from stream4d.geometry import transforms
from stream4d.packets import Array
from stream4d.pose import (
    _kernels_align,
    _kernels_bundle,
    _kernels_pose,
    patches,
    refine,
)
from stream4d.pose.map import world_rays
from tests import naive
from tests.interpreted import run_without_compilation

CAM = np.array([210.0, 205.0, 120.0, 90.0])


class Bundle:
    """Random cameras, patches and what they see; ``case`` makes it degenerate."""

    def __init__(
        self, case: str = "random", frames: int = 4, patches: int = 30, noise: float = 0.3
    ) -> None:
        rng = np.random.default_rng(5)
        n = 1 if case == "single" else patches
        self.rays = np.column_stack([rng.uniform(-0.5, 0.5, (n, 2)), np.ones(n)])
        if case == "collinear":
            self.rays[:, 1] = 0.3 * self.rays[:, 0]
        self.rho = rng.uniform(0.2, 1.0, n)
        self.host = rng.integers(0, frames, n)
        xi = 0.05 * rng.normal(size=(frames, 6))
        self.poses = transforms.se3_exp(xi)[:, :3]
        scale = 1e3 if case == "huge" else 1.0
        self.poses[:, :, 3] *= scale
        self.rho = self.rho / scale
        pairs = [(p, f) for p in range(n) for f in range(frames) if f != self.host[p]]
        if case == "masked":
            pairs = []
        self.patch = np.array([p for p, _ in pairs], np.int64)
        self.frame = np.array([f for _, f in pairs], np.int64)
        seen = [self.pixel(p, f) for p, f in pairs]
        self.uv = np.array(seen).reshape(-1, 2) + noise * rng.normal(size=(len(pairs), 2))
        a, b, c = (
            rng.uniform(1, 4, len(pairs)),
            rng.uniform(-0.5, 0.5, len(pairs)),
            rng.uniform(1, 4, len(pairs)),
        )
        self.info = np.stack([a, b, c], axis=-1)
        self.prior, self.prior_info = self.rho.copy(), np.full(n, 0.01 * scale**2)

    def pixel(self, p: int, f: int) -> Array:
        return naive.patch_pixel(
            CAM, self.rays[p], self.rho[p], self.poses[f], self.poses[self.host[p]]
        )

    def system(self, column: Array, D: int) -> tuple[Array, ...]:
        n = len(self.rho)
        out = np.zeros((D, D)), np.zeros(D), np.zeros((n, D)), np.zeros(n), np.zeros(n)
        _kernels_bundle.bundle_system(
            CAM, self.rays, self.host, self.poses, column, self.rho, self.patch, self.frame, self.uv, self.info,
            1e12, self.prior, self.prior_info, *out,
        )  # fmt: skip
        return out


@pytest.mark.parametrize("case", ["random", "collinear", "masked", "single", "huge"])
def test_bundle_system_is_the_gauss_newton_system(case: str) -> None:
    bundle = Bundle(case)
    n, frames, D = len(bundle.rho), 4, 6 * 3 + 1
    column = np.array([-1, 0, 6, 12])
    H, b, E, C, gr = bundle.system(column, D)
    whitened = [np.linalg.cholesky([[a, m], [m, c]]).T for a, m, c in bundle.info]

    def residuals(x: Array) -> Array:
        poses = [bundle.poses[0]] + [
            naive.moved(bundle.poses[f], x[6 * f - 6 : 6 * f]) for f in range(1, frames)
        ]
        zoom = np.exp(x[18])
        cam = CAM * [zoom, zoom, 1, 1]
        rays = bundle.rays * [1 / zoom, 1 / zoom, 1]
        rho = bundle.rho * (1 + x[19:])  # relative, so that one step suits all scales
        out = [
            L @ (naive.patch_pixel(cam, rays[p], rho[p], poses[f], poses[bundle.host[p]]) - uv)
            for p, f, uv, L in zip(bundle.patch, bundle.frame, bundle.uv, whitened, strict=True)
        ]
        return np.concatenate([*out, np.sqrt(bundle.prior_info) * (rho - bundle.prior)])

    J = naive.differences(residuals, D + n)
    r = residuals(np.zeros(D + n))
    J[:, D:] /= bundle.rho
    full, gradient = J.T @ J, J.T @ r
    scale = np.sqrt(np.maximum(np.diag(full), 1e-20))
    ours = np.block([[H, E.T], [E, np.diag(C)]])
    # central differences of pixels are good to about six digits
    np.testing.assert_allclose(
        ours / np.outer(scale, scale), full / np.outer(scale, scale), atol=2e-5
    )
    np.testing.assert_allclose(
        np.concatenate([b, gr]) / scale, gradient / scale, atol=2e-4 * (1 + np.abs(r).max())
    )


def test_schur_solves_the_whole_system() -> None:
    bundle = Bundle()
    D = 19
    H, b, E, C, gr = bundle.system(np.array([-1, 0, 6, 12]), D)
    S, s = refine.schur(H, b, E, C, gr)
    whole = np.block([[H + 1e-9 * np.eye(D), E.T], [E, np.diag(C)]])
    expected = np.linalg.solve(whole, np.concatenate([b, gr]))
    np.testing.assert_allclose(np.linalg.solve(S, s), expected[:D], rtol=1e-6, atol=1e-9)


def test_adjustment_recovers_poses_and_depths_up_to_scale() -> None:
    bundle = Bundle(noise=0.0, patches=80)
    truth_poses, truth_rho = bundle.poses.copy(), bundle.rho.copy()
    rng = np.random.default_rng(1)
    for f in range(1, 4):
        bundle.poses[f] = naive.moved(bundle.poses[f], 0.01 * rng.normal(size=6))
    bundle.rho *= np.exp(0.1 * rng.normal(size=80))
    obs = refine.Observations(bundle.patch, bundle.frame, bundle.uv, bundle.info)
    result = refine.adjust(
        CAM.copy(), bundle.rays, bundle.host, bundle.poses, np.arange(1, 4), bundle.rho, bundle.rho.copy(),
        np.full(80, 1e-9), obs, iterations=30, scales=(1000.0, 9.0),
    )  # fmt: skip
    assert result.cost < 1e-6
    scale = np.median(truth_rho / bundle.rho)
    np.testing.assert_allclose(bundle.rho * scale, truth_rho, rtol=1e-4)
    np.testing.assert_allclose(bundle.poses[:, :, :3], truth_poses[:, :, :3], atol=1e-5)


def test_pose_equations_equal_differences_with_uncertain_depth() -> None:
    rng = np.random.default_rng(2)
    n = 20
    dirs = np.column_stack([rng.uniform(-0.5, 0.5, (n, 2)), np.ones(n)])
    centres, rho = 0.1 * rng.normal(size=(n, 3)), rng.uniform(0.2, 1, n)
    rho_var = (0.2 * rho) ** 2
    pose = transforms.se3_exp(0.05 * rng.normal(size=6))[:3]
    info = np.stack([np.full(n, 4.0), np.full(n, 0.5), np.full(n, 2.0)], axis=-1)

    def pixels(xi: Array, r: Array) -> Array:
        P = naive.moved(pose, xi)
        q = (dirs + r[:, None] * centres) @ P[:, :3].T + r[:, None] * P[:, 3]
        return CAM[:2] * q[:, :2] / q[:, 2:] + CAM[2:]

    uv = pixels(np.zeros(6), rho) + rng.normal(size=(n, 2))
    A, g, errors = np.zeros((6, 6)), np.zeros(6), np.zeros(n)
    seen = _kernels_pose.columns(dirs, centres, rho, rho_var, uv, info)
    rows = np.empty((7, 2, n))
    _kernels_pose.pose_normal_equations(CAM, seen, pose, 1e12, rows, A, g, errors)
    J = naive.differences(lambda x: pixels(x, rho), 6)
    e = naive.differences(lambda x: pixels(np.zeros(6), rho + x[0]), 1)[..., 0]
    C = (
        np.linalg.inv(info[:, [[0, 1], [1, 2]]])
        + rho_var[:, None, None] * e[:, :, None] * e[:, None, :]
    )
    W, r = np.linalg.inv(C), pixels(np.zeros(6), rho) - uv
    np.testing.assert_allclose(errors, np.einsum("ni,nij,nj->n", r, W, r), rtol=1e-5)
    expected = np.einsum("nia,nij,njb->ab", J, W, J)
    np.testing.assert_allclose(A, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(
        g, np.einsum("nia,nij,nj->a", J, W, r), rtol=1e-3, atol=1e-3 * np.abs(g).max()
    )


def test_depths_are_found_with_poses_held() -> None:
    bundle = Bundle(noise=0.0)
    truth = bundle.rho.copy()
    rho, info = truth * 1.3, np.zeros(len(truth))
    _kernels_bundle.refine_depths(
        CAM, bundle.rays, bundle.host, bundle.poses, bundle.patch, bundle.frame, bundle.uv, bundle.info,
        rho, info, rho.copy(), np.full(len(truth), 1e-9),
    )  # fmt: skip
    np.testing.assert_allclose(rho, truth, rtol=1e-3)
    assert (info > 0).all()


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.4, -0.3), (1.6, 0.9)])
@pytest.mark.parametrize("light", [(1.0, 0.0), (0.7, 20.0)])
def test_patches_align_below_a_tenth_of_a_pixel_in_any_light(
    shift: tuple[float, float], light: tuple[float, float]
) -> None:
    y, x = np.mgrid[0:60, 0:60].astype(float)

    def scene(u: Array, v: Array) -> Array:
        return 120 + 40 * np.sin(u / 3.1) * np.cos(v / 2.7) + 30 * np.sin((u + v) / 5.3)

    image = (light[0] * scene(x - shift[0], y - shift[1]) + light[1]).astype(np.uint8)
    template, tensor = np.empty((_kernels_align.SIDE + 2,) * 2), np.zeros(3)
    assert _kernels_align.sample_template(
        scene(x, y).astype(np.uint8), 30.0, 30.0, np.eye(2), template
    )
    u, v, correlation, _ = _kernels_align.align_patch(template, image, 30.0, 30.0, 20, tensor)
    assert (u, v) == pytest.approx((30 + shift[0], 30 + shift[1]), abs=0.1)
    assert correlation > 0.98


@pytest.mark.parametrize("zoom", [1.0, 1.4, 2.0, 2.6])
def test_patches_are_found_where_they_look_smaller(zoom: float) -> None:
    """From farther away, where the host is read at a coarser level, positions stay unbiased."""
    cam = np.array([100.0, 100.0, 80.0, 60.0])
    y, x = np.mgrid[0:120, 0:160].astype(float)

    def scene(u: Array, v: Array) -> Array:
        texture = 40 * np.sin(u / 5.1) * np.cos(v / 4.7) + 30 * np.sin((u + v) / 6.3)
        return (120 + texture).astype(np.uint8)

    near = scene(x, y)
    far = scene(80 + zoom * (x - 80), 60 + zoom * (y - 60))
    hosts, target = (patches.pyramid(np.repeat(im[..., None], 3, -1)) for im in (near, far))
    uv0 = np.array([[60.0, 45.0], [100.0, 80.0], [75.0, 70.0], [95.0, 40.0]])
    n = len(uv0)
    rays = np.column_stack([(uv0 - cam[2:]) / cam[:2], np.ones(n)])
    pose = np.eye(3, 4)
    pose[2, 3] = zoom - 1  # all depths are 1
    truth = cam[2:] + (uv0 - cam[2:]) / zoom
    uv, quality = truth + np.array([0.6, -0.5]), np.zeros((n, 5))
    _kernels_align.align_patches(
        tuple(level[None] for level in hosts), target, np.arange(n), cam, uv0, rays, np.ones(n),
        np.zeros(n, np.int64), np.eye(3, 4)[None], pose, uv, quality,
    )  # fmt: skip
    assert (quality[:, 0] > 0.9).all()
    # half a pixel of the host, were its levels misread, is a fifth here
    np.testing.assert_allclose(uv, truth, atol=0.12)


def test_patches_are_found_where_the_slow_twin_finds_them() -> None:
    rng = np.random.default_rng(4)
    cam = np.array([100.0, 100.0, 80.0, 60.0])
    coarse = rng.uniform(0, 255, (32, 42)).astype(np.float32)
    near = cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    far = np.roll(near, (1, -2), (0, 1)) * 0.8 + 20
    hosts, target = (
        patches.pyramid(np.repeat(im[..., None], 3, -1).astype(np.uint8)) for im in (near, far)
    )
    n = 40
    uv0 = np.column_stack([rng.integers(0, 160, n), rng.integers(0, 120, n)]).astype(float)
    rays = np.column_stack([(uv0 - cam[2:]) / cam[:2], np.ones(n)])
    host = transforms.se3_exp(0.02 * rng.normal(size=6))[:3]
    rho = rng.uniform(0.5, 1.5, n)
    found = []
    for back in (0.0, 0.9, 30.0):  # as near, half as large, far beyond what looks alike
        pose = transforms.se3_exp(np.array([0.01, -0.01, back, 0.02, 0.01, 0.03]))[:3]
        uv = np.stack([naive.patch_pixel(cam, rays[k], rho[k], pose, host) for k in range(n)])
        fast, quality = uv.copy(), np.zeros((n, 5))
        _kernels_align.align_patches(
            tuple(level[None] for level in hosts), target, np.arange(n), cam, uv0, rays, rho,
            np.zeros(n, np.int64), host[None], pose, fast, quality,
        )  # fmt: skip
        for k in range(n):
            slow, correlation = naive.found_patch(
                hosts, target, cam, uv0[k], rho[k], host, pose, uv[k], _kernels_align.SIDE, _kernels_align.WEAK
            )  # fmt: skip
            np.testing.assert_allclose(
                fast[k], slow, atol=1e-4
            )  # the twin's warp is by differences
            assert quality[k, 0] == pytest.approx(correlation, abs=1e-4)
        found.append((quality[:, 0] > 0).sum())
    assert found[0] > n / 4
    assert found[2] == 0


def test_along_a_straight_edge_a_patch_stays_where_it_was() -> None:
    y, x = np.mgrid[0:60, 0:60].astype(float)

    def edge(shift: float) -> Array:
        noise = np.random.default_rng(int(10 * shift)).normal(size=x.shape)
        across = 0.8 * x + 0.6 * y - 42 - shift
        return (120 + 80 * np.tanh(across / 2) + noise).astype(np.uint8)

    template, tensor = np.empty((_kernels_align.SIDE + 2,) * 2), np.empty(3)
    assert _kernels_align.sample_template(edge(0.0), 30.0, 30.0, np.eye(2), template)
    u, v, correlation, _ = _kernels_align.align_patch(template, edge(1.0), 30.0, 30.0, 20, tensor)
    assert correlation > 0.95
    assert 0.8 * (u - 30) + 0.6 * (v - 30) == pytest.approx(1.0, abs=0.1)
    assert -0.6 * (u - 30) + 0.8 * (v - 30) == pytest.approx(0.0, abs=0.1)
    info = patches.flow_info(edge(1.0).astype(np.uint8), np.array([[u, v]]), np.ones(1))[0]
    along = 0.36 * info[0] - 0.96 * info[1] + 0.64 * info[2]
    across = 0.64 * info[0] + 0.96 * info[1] + 0.36 * info[2]
    assert across > 0.9
    assert along < 0.5


def test_strong_directions_are_inverted_alone() -> None:
    angle = np.array([[0.8, -0.6], [0.6, 0.8]])
    for strong, weak in ((5000.0, 900.0), (5000.0, 10.0), (100.0, 10.0)):
        a, b, _, c = (angle @ np.diag([strong, weak]) @ angle.T).ravel()
        kept = 1 / weak if weak > _kernels_align.WEAK else 0.0
        expected = angle @ np.diag([1 / strong, kept]) @ angle.T
        found = _kernels_align.inverse_of_strong(a, b, c)
        np.testing.assert_allclose(found, expected.ravel()[[0, 1, 3]], rtol=1e-9, atol=1e-12)


def test_flat_patches_and_borders_are_refused() -> None:
    flat = np.full((40, 40), 100, np.uint8)
    template, tensor = np.empty((_kernels_align.SIDE + 2,) * 2), np.zeros(3)
    assert not _kernels_align.sample_template(flat, 2.0, 20.0, np.eye(2), template)
    assert _kernels_align.sample_template(flat, 20.0, 20.0, np.eye(2), template)
    assert _kernels_align.align_patch(template, flat, 20.0, 20.0, 5, tensor)[2] == -1


def test_kernels_run_without_compilation() -> None:
    chosen = "pose_equations or strong or refused or schur or (system and (single or masked)) or depths_are"
    run_without_compilation(__file__, chosen)


def _kernel_files() -> list[Path]:
    return sorted(Path(stream4d.__file__).parent.rglob("_kernels*.py"))


def _imported_kernels(path: Path) -> set[Path]:
    """Files of kernels that a file of kernels imports, directly or not."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and "._kernels" in (node.module or ""):
            other = path.parents[2].joinpath(*str(node.module).split(".")).with_suffix(".py")
            found |= {other, *_imported_kernels(other)}
    return found


def test_the_kernels_that_share_code_are_known() -> None:
    """The test below would pass, too, if it found no imports."""
    shared = {
        path.name: {other.name for other in _imported_kernels(path)} for path in _kernel_files()
    }
    assert shared["_kernels_algebra.py"] == set()
    assert shared["_kernels_parts.py"] == {"_kernels_algebra.py"}
    assert {"_kernels_bundle.py", "_kernels_parts.py"} <= shared["_kernels_offline.py"]
    assert {"_kernels_similarity.py", "_kernels_algebra.py"} <= shared["_kernels_graph.py"]


def test_no_kernel_was_compiled_before_what_it_shares() -> None:
    """Numba's cache does not notice edits of a file that a kernel imports."""
    old = {
        str(index.parent)
        for path in _kernel_files()
        for index in path.parent.glob(f"__pycache__/{path.stem}.*.nbi")
        for other in _imported_kernels(path)
        if index.stat().st_mtime < other.stat().st_mtime
    }
    assert not old, f"compiled before what is shared has changed: delete {', '.join(old)}"


def test_kernels_do_without_scipy() -> None:
    """Numba's linear algebra (``@``, ``np.dot``, ``np.linalg``) needs scipy, which a plain install does not have."""
    found = []
    for path in _kernel_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_product = isinstance(node, ast.MatMult)
            is_call = isinstance(node, ast.Attribute) and node.attr in {"dot", "linalg", "vdot"}
            if is_product or is_call:
                found.append(path.name)
    assert not found


def test_flow_and_rays_are_read_as_their_slow_twins_read_them() -> None:
    rng = np.random.default_rng(5)
    flow, sigma = rng.normal(size=(20, 30, 2)), rng.random((20, 30))
    uv = rng.uniform((-3.0, -3.0), (33.0, 23.0), (60, 2))
    rows = np.arange(0, 60, 2)
    moved, spread = np.empty((30, 2)), np.empty(30)
    _kernels_align.follow(flow, sigma, uv, rows, moved, spread)
    expected = naive.followed(flow, sigma, uv[rows])
    np.testing.assert_allclose(moved, expected[0], atol=1e-9)
    np.testing.assert_allclose(spread, expected[1], atol=1e-9)
    assert 0 < np.isinf(spread).sum() < 20
    poses = transforms.se3_exp(rng.normal(size=(4, 6)))[:, :3]
    rays, host = rng.normal(size=(9, 3)), rng.integers(0, 4, 9)
    for fast, slow in zip(
        world_rays(rays, poses, host), naive.world_rays(rays, poses, host), strict=True
    ):
        np.testing.assert_allclose(fast, slow, atol=1e-12)


@pytest.mark.parametrize(
    ("sigma", "kept"), [((0.5, 4.0, 8.0), (1, 1, 0)), ((8.0, 9.0, 0.5), (1, 1, 1))]
)
def test_unsure_flow_is_followed_where_alignment_reaches_or_nothing_is_left(
    sigma: tuple[float, ...], kept: tuple[int, ...]
) -> None:
    uv = np.array([[20.0, 20.0], [60.0, 40.0], [100.0, 60.0]])
    spread = np.zeros((80, 120), np.float32)
    for (u, v), s in zip(uv.astype(int), sigma, strict=True):
        spread[v - 3 : v + 4, u - 3 : u + 4] = s
    flow = np.full((80, 120, 2), 2.0, np.float32)
    moved, var = patches.follow_flow(uv, np.full(3, 0.01), flow, spread)
    assert np.isfinite(var).tolist() == [bool(k) for k in kept]
    np.testing.assert_allclose(moved, uv + 2, atol=1e-6)

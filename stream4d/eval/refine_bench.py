"""The refinement's solver against a straightforward one: the same objective, the same start, one thread each.

    python -m stream4d.eval.refine_bench lady-running.zarr

The inputs are dense and as MonST3R's optimiser has them: for each frame of a stored run a pointmap (here every
``--step``-th pixel of the depth map), and optical flow over the pairs of its stride graph (frames 1, 3, 5, 7, 9 apart,
both ways), chained from the stored flow. Unknown are all poses, one focal length, a depth per pixel and a scale per
map. The objective is that of ``pose/global_adjustment.py``: flow of still pixels, alignment of the paired pointmaps,
smoothness. MonST3R's own has a similarity per *pair* as well, because its network gives a pointmap per pair; a store
has one per frame, and there is nothing for it to align. The reference writes the objective down in torch and runs Adam
with MonST3R's settings (300 steps, betas 0.9, rate falling from 0.01 to 0.001), and with lower rates, which suit a good
start better; the best iterate counts. Times are CPU seconds of the process. Where 300 steps would take longer than
``--limit-s``, the reference stops there: what was measured and what is extrapolated from it are told apart.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from stream4d import logs
from stream4d.errors import EvaluationError
from stream4d.geometry import camera, transforms
from stream4d.geometry.flow import sample
from stream4d.models.alignment import linear_rate, pose_matrices, pose_parameters
from stream4d.packets import Array, PosedFrame
from stream4d.pose.global_adjustment import ITERATIONS, MAP_SCALE, Problem, solve
from stream4d.pose.offline import TIE_SHARE
from stream4d.pose.sites import MOVING_FROM, PER_KEY, Seen, cam_from_world, read_log_depth
from stream4d.store.reader import Store, open_store

OFFSETS = (1, 3, 5, 7, 9)
GAINS = (1.0, 0.1, 0.01)
"""Rates of the reference, over MonST3R's."""
ROBUST_SCALE = 9.0
FLOOR_PX = 0.15
"""What reading the flow between pixels adds to its σ, per frame."""


def dense_problem(store: Store, step: int) -> Problem:
    """State the objective over every ``step``-th pixel of all frames.

    Raises:
        EvaluationError: the store holds no flow, or too few frames.
    """
    frames = list(store)
    if len(frames) < 2 or any(frame.flow is None for frame in frames[:-1]):
        raise EvaluationError(f"{store.path} needs two frames and the flow between all neighbours")
    H, W = frames[0].depth.shape
    u, v = np.meshgrid(np.arange(step // 2, W, step), np.arange(step // 2, H, step))
    grid = np.stack([u.ravel(), v.ravel()], axis=1).astype(np.float64)
    host, where, rho, info, seen, first = [], [], [], [], [], 0
    for t, frame in enumerate(frames):
        logd, known = read_log_depth(frame, grid)
        still = frame.motion_prob[grid[:, 1].astype(int), grid[:, 0].astype(int)] < MOVING_FROM
        chosen = np.flatnonzero(still & (known > 0))
        host.append(np.full(len(chosen), t))
        where.append(grid[chosen])
        rho.append(np.exp(-logd[chosen]))
        info.append(known[chosen])
        for sign in (1, -1):
            seen += _chained(frames, t, sign, grid[chosen], first)
        first += len(chosen)
    return _problem(store, [np.concatenate(x) for x in (host, where, rho, info)], seen)


def _problem(store: Store, sites: list[Array], parts: list[Seen]) -> Problem:
    host, where, rho, info = sites
    seen = Seen.gather(parts)
    # However many pixels a map has, its errors are alike: together they count as a keyframe's sites do.
    share = min(1.0, PER_KEY * len(store) / len(host))
    seen.logd_info[:] *= share
    T = transforms.square(cam_from_world(store.world_from_cam))
    sigma = np.array([TIE_SHARE / float(np.median(rho))] * 3 + [TIE_SHARE] * 3)
    K = np.median(store.K, axis=0)
    return Problem(
        cam=camera.split_K(K), poses=cam_from_world(store.world_from_cam),
        host=host, uv=where, rho=rho.copy(), prior=rho, prior_info=info * share, seen=seen,
        start=seen.starts(len(rho)), ties=T[1:] @ transforms.invert(T[:-1]), tie_info=sigma**-2,
        focal_is_free=True,
        held=np.zeros(len(store), bool), map_scale=np.zeros(len(store)),
    )  # fmt: skip


def _chained(frames: Sequence[PosedFrame], t: int, sign: int, uv: Array, first: int) -> list[Seen]:
    """Follow pixels of frame t along the stored flow, forwards or backwards, and note the paired frames."""
    H, W = frames[t].depth.shape
    at, var, out = uv.copy(), np.zeros(len(uv)), []
    for gap in range(1, OFFSETS[-1] + 1):
        f = t + sign * gap
        if not 0 <= f < len(frames):
            break
        flow = frames[f - sign].flow if sign > 0 else _inverse(frames[f].flow)
        sigma = frames[min(f, f - sign)].flow_uncertainty
        assert flow is not None
        assert sigma is not None
        spread = sample(sigma, at)
        at = at + sample(flow, at)
        var = var + spread**2 + FLOOR_PX**2
        if gap in OFFSETS:
            good = np.flatnonzero(camera.inside(at, H, W) & np.isfinite(var) & (var < 9.0))
            moving = sample(frames[f].motion_prob, at[good]) > MOVING_FROM
            good = good[~moving]
            logd, known = read_log_depth(frames[f], at[good])
            weight = np.zeros((len(good), 3))
            weight[:, 0] = weight[:, 2] = 1 / var[good]
            out.append(Seen(first + good, np.full(len(good), f), at[good], weight, logd, known))
    return out


def _inverse(flow: Array | None) -> Array:
    """Return the flow from the next frame back: b(x) = −f(x + b(x)), by fixed point."""
    assert flow is not None
    H, W = flow.shape[:2]
    grid = camera.pixel_grid(H, W).astype(np.float32)
    back = -flow
    for _ in range(8):
        x, y = np.moveaxis(grid + back, -1, 0)
        back = -cv2.remap(flow, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return back


class Reference:
    """The objective in torch, as one would write it down, and Adam on it."""

    def __init__(self, problem: Problem) -> None:
        def tensor(value: Array) -> Tensor:
            return torch.tensor(value, dtype=torch.float32)

        world = transforms.invert(transforms.square(problem.poses))
        parameters = pose_parameters(tensor(world[:, :3, :3]), tensor(world[:, :3, 3]))
        self.poses = parameters.requires_grad_()
        self.log_rho = tensor(np.log(problem.rho)).requires_grad_()
        self.log_focal = torch.zeros(1, requires_grad=True)
        self.map_scale = torch.zeros(len(problem.poses), requires_grad=True)
        self.cam, self.uv0 = tensor(problem.cam), tensor(problem.uv)
        self.host, self.site = torch.tensor(problem.host), torch.tensor(problem.seen.site)
        self.frame, self.uv = torch.tensor(problem.seen.frame), tensor(problem.seen.uv)
        self.info, self.logd = tensor(problem.seen.info), tensor(problem.seen.logd)
        self.logd_info, self.prior_info = tensor(problem.seen.logd_info), tensor(problem.prior_info)
        self.log_prior, self.ties = tensor(np.log(problem.prior)), tensor(problem.ties)
        self.tie_info = tensor(problem.tie_info)

    def objective(self) -> Tensor:
        """Return the cost, σ²."""
        R, t = pose_matrices(self.poses)  # world from camera
        f = self.cam[:2] * self.log_focal.exp()
        depth = (-self.log_rho).exp()[:, None]
        rays = torch.cat([(self.uv0 - self.cam[2:]) / f, torch.ones_like(depth)], dim=1)
        world = torch.einsum("nij,nj->ni", R[self.host], depth * rays) + t[self.host]
        there = world[self.site] - t[self.frame]
        q = torch.einsum("mji,mj->mi", R[self.frame], there)
        z = q[:, 2].clamp(min=1e-6)
        e = f * q[:, :2] / z[:, None] + self.cam[2:] - self.uv
        a, b, c = self.info.unbind(1)
        flow = _robust(
            a * e[:, 0] ** 2 + 2 * b * e[:, 0] * e[:, 1] + c * e[:, 1] ** 2, ROBUST_SCALE
        )
        apart = z.log() - self.logd - self.map_scale[self.frame]
        alignment = _robust(self.logd_info * apart**2, MAP_SCALE)
        off = self.log_rho - self.log_prior + self.map_scale[self.host]
        return (
            flow.sum() + alignment.sum() + (self.prior_info * off**2).sum() + self.smoothness(R, t)
        )

    def smoothness(self, R: Tensor, t: Tensor) -> Tensor:
        """Return how differently neighbours have changed."""
        turn = R[1:].transpose(1, 2) @ R[:-1]
        shift = torch.einsum("kji,kj->ki", R[1:], t[:-1] - t[1:])
        back = self.ties[:, :3, :3].transpose(1, 2)
        change = turn @ back
        moved = shift - torch.einsum("kij,kj->ki", change, self.ties[:, :3, 3])
        skew = change - change.transpose(1, 2)
        sine = 0.5 * torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=1)
        return (self.tie_info * torch.cat([moved, sine], dim=1) ** 2).sum()

    def run(self, iterations: int, gain: float, limit_s: float) -> tuple[int, float]:
        """Run Adam as MonST3R does, at ``gain`` times its rate; the best iterate is kept.

        Returns:
            steps done (fewer where the CPU seconds ran out), CPU seconds.
        """
        unknowns = [self.poses, self.log_rho, self.log_focal, self.map_scale]
        adam = torch.optim.Adam(unknowns, lr=0.0, betas=(0.9, 0.9))
        best, kept = np.inf, [x.detach().clone() for x in unknowns]
        began, done = time.process_time(), 0
        while done == 0 or (done < iterations and time.process_time() - began < limit_s):
            adam.param_groups[0]["lr"] = gain * linear_rate(done / iterations)
            adam.zero_grad()
            value = self.objective()
            value.backward()
            if value.item() < best:
                best = value.item()
                for copy_, x in zip(kept, unknowns, strict=True):
                    copy_.copy_(x.detach())
            adam.step()
            done += 1
        with torch.no_grad():
            for copy_, x in zip(kept, unknowns, strict=True):
                x.copy_(copy_)
        return done, time.process_time() - began

    def put_into(self, problem: Problem) -> None:
        """Write what was found where the cost is measured for both."""
        R, t = (x.detach().double().numpy() for x in pose_matrices(self.poses))
        problem.poses = cam_from_world(transforms.rigid(transforms.project_to_so3(R), t))
        problem.rho = np.exp(-(-self.log_rho).detach().double().numpy())
        problem.cam[:2] *= float(self.log_focal.detach().exp())
        problem.map_scale = self.map_scale.detach().double().numpy()


def _robust(square_error: Tensor, scale: float) -> Tensor:
    return scale * square_error / (scale + square_error)


def cost(problem: Problem) -> float:
    """Return the objective in float64."""
    scales = np.array([ROBUST_SCALE, MAP_SCALE])
    return problem.cost(problem.cam, problem.poses, problem.rho, scales)


def seconds_to_reach(problem: Problem, wanted: float) -> float:
    """Return the CPU seconds after which the structured solver is at or below a cost; infinite: never."""
    for iterations in range(1, ITERATIONS + 1):
        trial = copy.deepcopy(problem)
        began = time.process_time()
        solve(trial, ROBUST_SCALE, iterations)
        seconds = time.process_time() - began
        if cost(trial) <= wanted:
            return seconds
    return float("inf")


def compare(problem: Problem, iterations: int, limit_s: float) -> Iterator[str]:
    """Run both on a problem, which stays as it is; yield what to say, as it is known."""
    solve(copy.deepcopy(problem), ROBUST_SCALE, iterations=1)  # compile
    ours = copy.deepcopy(problem)
    began = time.process_time()
    solve(ours, ROBUST_SCALE)
    our_s = time.process_time() - began
    pairs, depths = len(problem.seen.site), len(problem.rho)
    yield f"{len(problem.poses)} frames, {depths} depths, {pairs} pairs of pixels"
    yield f"start              cost {cost(problem):.6g}"
    yield f"structured solver  cost {cost(ours):.6g} in {our_s:.2f} s"
    for gain in GAINS:
        reference, theirs = Reference(problem), copy.deepcopy(problem)
        done, their_s = reference.run(iterations, gain, limit_s)
        reference.put_into(theirs)
        reached_s = seconds_to_reach(problem, cost(theirs))
        yield (
            f"Adam, rate × {gain:<4g} cost {cost(theirs):.6g} after {done} steps in {their_s:.1f} s, measured; "
            f"the structured solver is there in {reached_s:.2f} s: {their_s / reached_s:.0f} times faster "
            f"(its own end: {their_s / our_s:.0f} times faster, {cost(ours) / cost(theirs):.2f} of the cost)"
        )
        if done < iterations:
            yield f"  all {iterations} steps would take {their_s / done * iterations:.0f} s, extrapolated"


def main(argv: Sequence[str] | None = None) -> int:
    """Run both and print costs and times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("store", help="a run with flow, e.g. of 65 frames")
    parser.add_argument("--step", type=int, default=4, help="every n-th pixel [4]")
    parser.add_argument("--iterations", type=int, default=300, help="of Adam [300]")
    parser.add_argument(
        "--limit-s", type=float, default=600.0, help="CPU seconds of Adam at one rate [600]"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for line in compare(
        dense_problem(open_store(args.store), args.step), args.iterations, args.limit_s
    ):
        logs.show(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

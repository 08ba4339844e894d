"""Pair graphs, single pairs, and global alignment, against the official code of DUSt3R and MonST3R."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import Golden, relative_error

from stream4d.errors import ModelError
from stream4d.models.alignment import (
    AlignmentWeights,
    PairSet,
    Scene,
    adaptor_factors,
    alignment_loss,
    cosine_rate,
    ego_flow,
    flow_loss,
    focals,
    linear_rate,
    objective,
    optimise,
    pair_scales,
    points_in_world,
    pose_matrices,
    principal_points,
    smoothness_loss,
)
from stream4d.models.monst3r import residual_motion
from stream4d.models.pair_graph import drop_distant, make_pairs
from stream4d.models.pairs import (
    Directed,
    initial_scene,
    lower_confidence_in_front,
    relative_motion,
    view_pair,
)

DUST3R = AlignmentWeights(smooth=0.0, flow=0.0)
SIZE = (12, 16)


@pytest.mark.parametrize("name", ["dust3r_preprocess", "monst3r"])
def test_pair_graphs_equal_the_official_ones(name):
    for key, wanted in Golden("post", name).info["pairs"].items():
        n, graph, *rest = key.split()
        options = dict(part.split("=") for part in rest)
        if name == "monst3r" and graph.startswith("oneref"):
            continue  # pairs the reference with itself, and falls back to frame 0 for a name it cannot read
        count = int(n.removeprefix("n="))
        pairs = make_pairs(count, graph, symmetric=options["symmetrize"] == "True")
        if "prefilter" in options:
            kind, distance = options["prefilter"][:3], int(options["prefilter"][3:])
            pairs = drop_distant(pairs, distance, count, cyclic=kind == "cyc")
        assert [list(p) for p in pairs] == wanted, key


def test_unknown_graph():
    with pytest.raises(ModelError, match="spiral"):
        make_pairs(4, "spiral-3")


def load_pairs(name):
    t = Golden("post", name).tensors
    prefix = "ga." if name.startswith("dust3r") else ""
    pairs = PairSet(
        edges=t[f"{prefix}edges"],
        points_i=t[f"{prefix}pred1_pts3d"],
        points_j=t[f"{prefix}pred2_pts3d_in_other_view"],
        confidence_i=t[f"{prefix}conf1"],
        confidence_j=t[f"{prefix}conf2"],
        flow_ij=t.get("flow_ij"),
        flow_ji=t.get("flow_ji"),
        is_moving=t.get("motion.dynamic_masks"),
    )
    return t, pairs


FIELDS = {
    "pw_poses": "pairs",
    "im_depthmaps": "log_depth",
    "im_poses": "poses",
    "im_focals": "focal",
    "im_pp": "principal",
    "pw_adaptors": "adaptors",
}


def load_scene(t, prefix, edges):
    focal = t[f"{prefix}im_focals"]
    zeros = {"im_pp": torch.zeros(len(focal), 2), "pw_adaptors": torch.zeros(len(edges), 2)}
    parts = {
        field: t.get(prefix + key, zeros.get(key)).clone().requires_grad_()
        for key, field in FIELDS.items()
    }
    return Scene(**parts)


def check_fields(scene, t, prefix, tolerance, *, gradients=False):
    for key, field in FIELDS.items():
        if prefix + key in t:
            got = getattr(scene, field)
            error = relative_error(got.grad if gradients else got, t[prefix + key])
            assert error < tolerance, (prefix, key, error)


class TestDust3r:
    def test_objective_and_gradients(self):
        t, pairs = load_pairs("dust3r_global_alignment")
        scene = load_scene(t, "ga.state0.", pairs.edges)
        loss = alignment_loss(scene, pairs)
        loss.backward()
        assert loss.item() == pytest.approx(t["ga.state0.loss"].item(), rel=1e-5)
        check_fields(scene, t, "ga.state0.grad.", 1e-5, gradients=True)
        R, translation = pose_matrices(scene.poses)
        pair_R, pair_t = pose_matrices(scene.pairs)
        scale = pair_scales(scene.pairs)
        for got, key in (
            (scale, "pw_scale"),
            (adaptor_factors(scene.adaptors), "adaptors"),
            (focals(scene), "focals"),
            (principal_points(scene, SIZE), "pp"),
            (points_in_world(scene, SIZE).view(3, *SIZE, 3), "pts3d"),
            (scene.log_depth.exp().view(3, *SIZE), "depth"),
            (torch.cat([R, translation[..., None]], -1), "im_poses_cam2world"),
            (scale[:, None, None] * torch.cat([pair_R, pair_t[..., None]], -1), "pw_poses_4x4"),
        ):
            wanted = t[f"ga.state0.{key}"]
            wanted = wanted[:, :3] if wanted.shape[-2:] == (4, 4) else wanted
            assert relative_error(got.detach(), wanted) < 1e-5, key

    def test_twenty_steps(self):
        t, pairs = load_pairs("dust3r_global_alignment")
        scene, steps = optimise(
            load_scene(t, "ga.state0.", pairs.edges),
            pairs,
            DUST3R,
            iterations=20,
            rate=cosine_rate,
            free=Scene._fields,
        )
        np.testing.assert_allclose(
            [(s.loss, s.rate) for s in steps], t["ga.adam20.loss_lr"].numpy(), rtol=1e-4
        )
        check_fields(scene, t, "ga.adam20.", 1e-4)

    def test_first_guess_and_result(self):
        t, pairs = load_pairs("dust3r_global_alignment")
        guess = initial_scene(pairs)
        # RANSAC draws differ: the guess is compared by its loss, the result by loss, poses and focal.
        assert alignment_loss(guess, pairs) == pytest.approx(t["ga.mst.loss"].item(), rel=0.01)
        scene, _ = optimise(
            guess, pairs, DUST3R, iterations=300, rate=lambda p: linear_rate(p, 0.01, 1e-6)
        )
        assert alignment_loss(scene, pairs) == pytest.approx(t["ga.final300.loss"].item(), rel=1e-3)
        np.testing.assert_allclose(focals(scene), t["ga.final300.focals"], rtol=3e-3)
        R, translation = pose_matrices(scene.poses)
        wanted = t["ga.final300.cam2world"]
        for i in (1, 2):
            torch.testing.assert_close(
                R[0].T @ R[i], wanted[0, :3, :3].T @ wanted[i, :3, :3], atol=1e-3, rtol=0
            )
            torch.testing.assert_close(
                R[0].T @ (translation[i] - translation[0]),
                wanted[0, :3, :3].T @ (wanted[i, :3, 3] - wanted[0, :3, 3]),
                atol=2e-3,
                rtol=0,
            )

    def test_known_cameras_fix_the_world(self):
        t, pairs = load_pairs("dust3r_global_alignment")
        truth = t["ga.true_cam2world"].double().numpy()
        depth = t["ga.known.depth"].double().numpy()
        known = {i: (truth[i], depth[i]) for i in range(3)}
        guess = initial_scene(pairs, given_focal=14.0, fixed=known)
        pairs = PairSet(
            **{k: getattr(pairs, k) for k in PairSet.__dataclass_fields__}
            | {"world_has_size": True}
        )
        scene, _ = optimise(
            guess, pairs, DUST3R, iterations=100, rate=cosine_rate, free=("pairs", "log_depth")
        )
        R, _ = pose_matrices(scene.poses)
        np.testing.assert_allclose(R, truth[:, :3, :3], atol=1e-6)
        assert alignment_loss(scene, pairs).item() < 1.02 * t["ga.known.loss"].item()
        scales = pair_scales(scene.pairs, normed=False)
        np.testing.assert_allclose(scales, t["ga.known.pw_scale"], rtol=0.03)

    def test_clean_up(self):
        t = {k: v.numpy() for k, v in Golden("post", "dust3r_global_alignment").tensors.items()}
        keys = ("pts3d", "depth", "K", "world2cam", "conf_in")
        got = lower_confidence_in_front(*(t[f"clean.{key}"] for key in keys))
        np.testing.assert_array_equal(got, t["clean.conf_out"])
        assert (got != t["clean.conf_in"]).any()

    def test_single_pair(self):
        t, pairs = load_pairs("dust3r_global_alignment")
        edges = pairs.edges.tolist()
        forward, backward = (
            Directed(
                *(
                    x[edges.index(edge)].numpy()
                    for x in (
                        pairs.points_i,
                        pairs.points_j,
                        pairs.confidence_i,
                        pairs.confidence_j,
                    )
                )
            )
            for edge in ([0, 1], [1, 0])
        )
        view = view_pair(forward, backward)
        np.testing.assert_allclose(view.focals, t["pair.focals"].ravel(), rtol=1e-5)
        np.testing.assert_allclose(view.world_from_cam, t["pair.cam2world"], atol=1e-3)
        np.testing.assert_allclose(np.stack(view.depth), t["pair.depth"], rtol=1e-3)
        np.testing.assert_allclose(np.stack(view.points), t["pair.pts3d"], atol=5e-3)


class TestMonst3r:
    def test_objective_terms_and_gradients(self):
        t, pairs = load_pairs("monst3r")
        scene, weights = load_scene(t, "state0.", pairs.edges), AlignmentWeights()
        assert smoothness_loss(scene).item() == pytest.approx(
            t["state0.smoothness"].item(), rel=1e-5
        )
        before, no_flow = objective(scene, pairs, weights, progress=0.0)
        assert no_flow == 0
        assert before.item() == pytest.approx(t["state0.before_flow.loss"].item(), rel=1e-5)
        loss, flow = objective(scene, pairs, weights, progress=0.1)
        assert flow.item() == pytest.approx(t["state0.with_flow.flow_loss"].item(), rel=1e-5)
        assert loss.item() == pytest.approx(t["state0.with_flow.loss"].item(), rel=1e-5)
        loss.backward()
        check_fields(scene, t, "state0.grad.", 1e-5, gradients=True)

    def test_forty_steps_with_flow_from_the_thirtieth(self):
        t, pairs = load_pairs("monst3r")
        scene, steps = optimise(
            load_scene(t, "state0.", pairs.edges),
            pairs,
            AlignmentWeights(),
            iterations=40,
            total=300,
        )
        np.testing.assert_allclose(steps, t["adam40.hist"].numpy(), rtol=1e-4)
        assert [s.flow > 0 for s in steps] == [False] * 30 + [True] * 10
        check_fields(scene, t, "adam40.", 1e-4)

    def test_motion_masks(self):
        t, pairs = load_pairs("monst3r")
        masks, cameras = relative_motion(pairs)
        np.testing.assert_array_equal(masks, t["motion.dynamic_masks"].numpy())
        focal = [K[0, 0] for K, _ in cameras.values()]
        # The official pairs run (j, i): its K is that of the other frame, of the same true camera.
        np.testing.assert_allclose(focal, t["motion.pair_K_i"][:, 0, 0], rtol=3e-3)

    def test_flow_far_off_is_left_out(self):
        t, pairs = load_pairs("monst3r")
        scene = load_scene(t, "state0.", pairs.edges)
        _, flow = objective(scene, pairs, AlignmentWeights(flow_limit=5.0))
        assert flow == 0
        assert flow_loss(scene, pairs, AlignmentWeights(pixel_limit=0.5)) < flow_loss(
            scene, pairs, AlignmentWeights()
        )

    def test_absolute_motion_finds_the_mover_and_nothing_in_a_still_scene(self):
        t, pairs = load_pairs("monst3r")
        guess = initial_scene(pairs, shared_focal=True)
        scene, _ = optimise(guess, pairs, AlignmentWeights(), iterations=100)
        moving = residual_motion(scene, pairs, noise_px=0.5) > 0.5
        truth = t["motion.moving_truth"].numpy()
        assert (moving & truth).sum() / truth.sum() > 0.8
        assert (moving & ~truth).sum() / (~truth).sum() < 0.05
        i, j = pairs.edges.unbind(1)
        still = PairSet(
            **{k: getattr(pairs, k) for k in PairSet.__dataclass_fields__}
            | {"flow_ij": ego_flow(scene, SIZE, i, j)}
        )
        assert not (residual_motion(scene, still, noise_px=0.5) > 0.5).any()

    def test_frozen_frames_stay(self):
        t, pairs = load_pairs("monst3r")
        start = load_scene(t, "state0.", pairs.edges)
        scene, _ = optimise(start, pairs, AlignmentWeights(), iterations=5, frozen_frames=2)
        assert torch.equal(scene.poses[:2], start.poses[:2])
        assert torch.equal(scene.log_depth[:2], start.log_depth[:2])
        assert not torch.equal(scene.poses[2:], start.poses[2:])

"""Adapters on networks that are right: what a perfect network says must come out as the true scene in our frames."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import TINY_OPTIONS, check_prediction, make_frames, video_info

from stream4d.geometry.camera import project, unproject
from stream4d.geometry.transforms import invert, se3_exp, transform_points
from stream4d.models.crop_table import fit_to_table
from stream4d.models.dust3r import Pair, anchored_prediction, fit_image
from stream4d.models.monst3r import Flows
from stream4d.models.must3r_net import Points
from stream4d.models.pose_encoding import encode_cameras
from stream4d.models.registry import create_model
from stream4d.models.resize import Fit
from stream4d.models.vggt import fit_image as fit_vggt
from stream4d.models.vggt import vggt_prediction
from stream4d.models.vggt_net import VggtConfig, VggtOutput
from stream4d.packets import Prediction, Window

SIZE = (150, 101)


@dataclass
class Truth:
    """Smooth depth maps and poses of four frames, seen by one camera."""

    fit: Fit
    focal: float = 80.0
    count: int = 4

    def __post_init__(self) -> None:
        w, h = self.fit.size
        self.K_net = np.array([[self.focal, 0, w / 2], [0, self.focal, h / 2], [0, 0, 1]])
        self.K = self.fit.K_to_frame(self.K_net)
        steps = np.arange(self.count)[:, None]
        motion = np.array([0.15, -0.05, 0.1, 0.01, 0.04, -0.02])
        self.poses = se3_exp(steps * motion)  # world = the first camera

    def depth_at(self, t: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the depth at network pixels."""
        return 4 + np.sin(u / 17 + t) + 0.8 * np.cos(v / 11 - t) + 0.01 * u

    def depth_net(self, t: int) -> np.ndarray:
        w, h = self.fit.size
        return self.depth_at(t, *np.meshgrid(np.arange(w), np.arange(h)))

    def depth_frame(self, t: int) -> np.ndarray:
        """Return the depth at the frame's pixels, whose centres lie between the network's."""
        (W, H), (sx, sy) = self.fit.source, self.fit.scale
        u = (np.arange(W) + 0.5) * sx - 0.5 - self.fit.left
        v = (np.arange(H) + 0.5) * sy - 0.5 - self.fit.top
        return self.depth_at(t, *np.meshgrid(u, v))

    def points(self, t: int) -> np.ndarray:
        """Return the network-size points of frame t in the first camera."""
        return transform_points(self.poses[t], unproject(self.depth_net(t), self.K_net))

    def pair(self, i: int, j: int, scale: float = 1.0) -> Pair:
        """Return what a perfect pair network says of frames i and j, in its own scale."""
        i_from_world = invert(self.poses[i])
        own = (transform_points(i_from_world, self.points(k)) * scale for k in (i, j))
        points_i, points_j = own
        confidence = 2 + np.zeros(points_i.shape[:2]) + 0.1 * np.cos(points_i[..., 0])
        return Pair(*(x.astype(np.float32) for x in (points_i, confidence, points_j, confidence)))

    def check(
        self, prediction: Prediction, scale: float, *, first: int = 0, rtol: float = 1e-3
    ) -> None:
        """Assert depth, K, poses and points of frames ``first`` … in the frames' own pixels."""
        count = len(prediction.depth)
        check_prediction(prediction, count, *self.fit.source)
        np.testing.assert_allclose(prediction.K, np.tile(self.K, (count, 1, 1)), rtol=2e-3 + rtol)
        reference = invert(self.poses[first])
        for k in range(count):
            t = first + k
            truth = reference @ self.poses[t]
            pose = prediction.window_from_cam[k]
            np.testing.assert_allclose(pose[:3, :3], truth[:3, :3], atol=5 * rtol)
            np.testing.assert_allclose(pose[:3, 3], scale * truth[:3, 3], atol=20 * rtol * scale)
            wanted = scale * self.depth_frame(t)
            known = np.isfinite(prediction.depth[k])
            assert known.mean() > 0.95
            np.testing.assert_allclose(prediction.depth[k][known], wanted[known], rtol=5 * rtol)
            points = transform_points(truth, unproject(wanted / scale, self.K)) * scale
            np.testing.assert_allclose(
                prediction.pointmap_in_window[k][known], points[known], atol=0.05 * scale
            )


def test_dust3r_pairs_of_different_scale_become_one_scene():
    truth = Truth(fit_image(*SIZE, 96))
    pairs = [truth.pair(0, j, scale) for j, scale in ((1, 0.7), (2, 1.3), (3, 0.9))]
    truth.check(anchored_prediction(truth.fit, pairs, [None] * 4), scale=0.7)


def test_dust3r_single_frame():
    truth = Truth(fit_image(*SIZE, 96))
    truth.check(anchored_prediction(truth.fit, [truth.pair(0, 0)], [None]), scale=1.0)


def session_of(name: str, **options):
    model = create_model(name, weights="random", **(TINY_OPTIONS[name] | options))
    return model.session(video_info(*SIZE))


def windows():
    frames = make_frames(6, *SIZE)
    return [
        Window(index=0, frames=frames[:4], overlap=0),
        Window(index=1, frames=frames[2:6], overlap=2),
    ]


@pytest.mark.parametrize("has_poses", [False, True])
def test_monst3r_window_is_the_scene_and_the_next_one_keeps_its_scale(has_poses, monkeypatch):
    session = session_of("monst3r", iterations=60)
    truth = Truth(session.fit, count=6)
    if has_poses:  # in a world of their own
        truth_in_given = np.linalg.inv(truth.poses[0]) @ truth.poses
        offset = se3_exp(np.array([3.0, 1.0, -2.0, 0.4, -0.2, 0.1]))
        given = list(offset @ truth_in_given)
    rng = np.random.default_rng(0)
    scales = {}

    def pair(f1, f2):
        i, j = f1, f2
        scales.setdefault((i, j), rng.uniform(0.7, 1.4))
        return truth.pair(i, j, scales[i, j])

    def flows(window, edges):
        index = [f.index for f in window.frames]
        n = len(index)
        return {
            (a, b): Flows(
                *(ego(truth, i, j) for i, j in ((index[a], index[b]), (index[b], index[a])))
            )
            for a in range(n)
            for b in range(a + 1, n)
        }

    monkeypatch.setattr(session, "encode", lambda window: [f.index for f in window.frames])
    monkeypatch.setattr(session, "pair", pair)
    monkeypatch.setattr(session, "_optical_flow", flows)
    first, second = windows()
    if has_poses:
        first, second = (
            dataclasses.replace(
                window,
                frames=tuple(
                    dataclasses.replace(f, world_from_cam=given[f.index]) for f in window.frames
                ),
            )
            for window in (first, second)
        )
    prediction = session.step(first)
    if has_poses:
        np.testing.assert_allclose(session.known[2].world_from_cam, given[2], atol=1e-5)
    scale = 1.0 if has_poses else np.nanmedian(prediction.depth[0] / truth.depth_frame(0))
    truth.check(prediction, scale, rtol=4e-3)
    assert (prediction.motion_prob > 0.5).mean() < 0.01
    truth.check(session.step(second), scale, first=2, rtol=6e-3)


def ego(truth: Truth, i: int, j: int) -> np.ndarray:
    """Return the true flow between two frames at the frames' resolution."""
    depth = truth.depth_frame(i)
    in_j = transform_points(invert(truth.poses[j]) @ truth.poses[i], unproject(depth, truth.K))
    H, W = depth.shape
    grid = np.stack(np.meshgrid(np.arange(W), np.arange(H)), axis=-1)
    return (project(in_j, truth.K) - grid).astype(np.float32)


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("source", ["depth", "points"])
def test_vggt_world_to_camera_becomes_window_from_camera(source, mode):
    truth = Truth(fit_vggt(*SIZE, 98, mode))
    w, h = truth.fit.size
    # The network's world is turned against its first camera, as nothing forbids.
    world_from_first = se3_exp(np.array([0.3, 0.2, -0.1, 0.05, -0.1, 0.2]))
    cam_from_world = invert(world_from_first @ truth.poses)
    K = torch.tensor(truth.K_net).expand(4, 3, 3)
    encoding = encode_cameras(torch.tensor(cam_from_world), K, (h, w))
    points = np.stack([transform_points(world_from_first, truth.points(t)) for t in range(4)])
    ones = torch.ones(1, 4, h, w) + 1
    out = VggtOutput(
        [encoding[None]],
        torch.tensor(np.stack([truth.depth_net(t) for t in range(4)]))[None],
        ones,
        torch.tensor(points)[None],
        ones,
    )
    config = VggtConfig(points_from=source)
    truth.check(vggt_prediction(truth.fit, out, config, [None] * 4), scale=1.0)
    wrong = encode_cameras(torch.tensor(cam_from_world), 1.3 * K, (h, w))
    out = out._replace(pose_encodings=[wrong[None]])
    if source == "depth":
        truth.check(vggt_prediction(truth.fit, out, config, [truth.K_net] * 4), scale=1.0)


def test_must3r_local_and_global_points_become_poses(monkeypatch):
    session = session_of("must3r")
    truth = Truth(session.fit, count=6)
    frames = make_frames(6, *SIZE)
    results = []
    for t in range(4):
        in_cam = unproject(truth.depth_net(t), truth.K_net)
        confidence = np.full(in_cam.shape[:2], 3.0)
        points = Points(*(torch.tensor(x) for x in (truth.points(t), in_cam, confidence)))
        results.append(session._place(frames[t], t, points))
    monkeypatch.setattr(session, "advance", lambda new: [results[f.index] for f in new])
    truth.check(session.step(windows()[0]), scale=1.0)
    # The second window begins with frames that are known already.
    window = Window(index=1, frames=frames[2:4], overlap=1)
    truth.check(session.step(window), scale=1.0, first=2)


def test_streamvggt_frames_become_poses(monkeypatch):
    session = session_of("streamvggt")
    truth = Truth(session.fit)
    w, h = truth.fit.size
    encoding = encode_cameras(
        torch.tensor(invert(truth.poses)), torch.tensor(truth.K_net).expand(4, 3, 3), (h, w)
    )
    seen = iter(range(4))

    def stream(image, caches):
        t = next(seen)
        depth = torch.tensor(truth.depth_net(t))[None, None]
        return VggtOutput([encoding[None, t : t + 1]], depth, depth * 0 + 2, None, None)

    session.model.net = SimpleNamespace(stream=stream)
    truth.check(session.step(windows()[0]), scale=1.0)


@pytest.mark.parametrize("size", [(512, 288), (640, 480), (101, 150), (333, 77), (96, 96)])
def test_intrinsics_go_to_the_network_and_back(size):
    for fit in (
        fit_image(*size),
        fit_vggt(*size),
        fit_vggt(*size, mode="pad"),
        fit_to_table(*size, 512),
    ):
        K = np.array([[400.0, 0, 200.5], [0, 410.0, 130.25], [0, 0, 1]])
        np.testing.assert_allclose(fit.K_to_frame(fit.K_to_network(K)), K, rtol=1e-12)


def test_maps_outside_the_crop_are_nan_and_edges_are_not_blended():
    fit = fit_image(300, 300, 96)  # a square, cropped to 4:3
    w, h = fit.size
    depth = np.where(np.arange(w)[None] < w // 2, 1.0, 5.0) * np.ones((h, 1))
    (mapped,) = fit.geometry_to_frame(depth)
    known = np.isfinite(mapped)
    rows = known.any(axis=1)
    assert 0.7 < rows.mean() < 0.8
    assert (known == rows[:, None]).all()
    assert set(np.unique(mapped[known])) == {1.0, 5.0}
    depth[3, 5] = -1.0
    (mapped,) = fit.geometry_to_frame(depth)
    assert np.isnan(mapped[known]).any()


def test_labels_come_back_as_labels():
    fit = fit_image(300, 300, 96)
    labels = np.arange(fit.size[0] * fit.size[1]).reshape(fit.size[1], fit.size[0]) % 7
    mapped = fit.labels_to_frame(labels)
    assert set(np.unique(mapped)) == {-1, *range(7)}
    assert mapped.dtype == np.int32


def test_same_size_is_left_alone():
    fit = fit_image(512, 288)
    rgb = np.random.default_rng(0).integers(0, 255, (288, 512, 3), np.uint8)
    np.testing.assert_array_equal(fit.image(rgb), rgb)
    depth = np.random.default_rng(0).uniform(1, 2, (288, 512)).astype(np.float32)
    np.testing.assert_array_equal(fit.geometry_to_frame(depth)[0], depth)
    np.testing.assert_array_equal(fit.flow_to_network(np.stack([depth, depth], -1))[..., 0], depth)

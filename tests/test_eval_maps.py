"""Depth, masks, flow, points and confidence against values worked out by hand or by other libraries."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LinearRegression
from sklearn.metrics import jaccard_score

from stream4d.errors import EvaluationError
from stream4d.eval.calibration import focal_error_percent, reliability
from stream4d.eval.depth import DepthSample, fit, score_depth
from stream4d.eval.flow import FlowScorer, dis_flow, read_flow
from stream4d.eval.motion import MotionScorer, boundary, boundary_f, region_similarity
from stream4d.eval.pointmap import PointSample, score_points
from stream4d.packets import PoseRevision
from tests.flow_files import write_flo, write_kitti


class TestDepth:
    def test_by_hand(self) -> None:
        """Prediction 1, 2, 4 of truth 2, 4, 4: median scale 2 gives 2, 4, 8."""
        score = score_depth(np.array([1.0, 2, 4]), np.array([2.0, 4, 4]))
        assert score is not None
        assert score.scale == 2
        assert score.abs_rel == pytest.approx((0 + 0 + 1) / 3)
        assert score.rmse_m == pytest.approx(np.sqrt(16 / 3))
        assert score.delta1 == pytest.approx(2 / 3)
        assert score.silog == pytest.approx(100 * np.std([0, 0, np.log(2)]))

    def test_pixels_without_truth_or_prediction_do_not_count(self) -> None:
        predicted = np.array([1.0, 2, np.nan, 0, 5, 1])
        truth = np.array([1.0, 2, 3, 4, 0, np.nan])
        score = score_depth(predicted, truth)
        assert score is not None
        assert score.pixels == 2
        assert score.abs_rel == 0
        assert score_depth(predicted[2:], truth[2:]) is None

    def test_least_squares_equals_scikit_learn(self) -> None:
        rng = np.random.default_rng(0)
        predicted = rng.uniform(1, 5, 500)
        truth = 3 * predicted + 0.7 + rng.normal(0, 0.2, 500)
        line = LinearRegression().fit(predicted[:, None], truth)
        scale, shift = fit(predicted, truth, "scale_shift")
        assert scale == pytest.approx(line.coef_[0])
        assert shift == pytest.approx(line.intercept_)

    @pytest.mark.parametrize("alignment", ["scale_l1", "scale_shift_l1"])
    def test_l1_alignment_is_the_minimum_and_ignores_outliers(self, alignment: str) -> None:
        rng = np.random.default_rng(0)
        predicted = rng.uniform(1, 5, 400)
        shift = 0.5 if "shift" in alignment else 0.0
        truth = 2 * predicted + shift + rng.normal(0, 0.05, 400)
        truth[:60] *= 4
        scale, offset = fit(predicted, truth, alignment)
        assert scale == pytest.approx(2, abs=0.05)
        assert offset == pytest.approx(shift, abs=0.15)

        def cost(x: np.ndarray) -> float:
            return float(np.abs(x[0] * predicted + (x[1] if len(x) > 1 else 0) - truth).sum())

        ours = np.array([scale, offset] if "shift" in alignment else [scale])
        best = minimize(cost, ours, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-8})
        assert cost(ours) <= best.fun * (1 + 1e-4)

    def test_unknown_alignment(self) -> None:
        with pytest.raises(ValueError, match="scale_shift"):
            fit(np.ones(3), np.ones(3), "affine")

    def test_sample_is_bounded_and_unbiased(self) -> None:
        rng = np.random.default_rng(0)
        small, whole = DepthSample(budget=20_000), DepthSample()
        for index in range(40):
            truth = rng.uniform(1, 10, (60, 80)).astype(np.float32)
            predicted = truth * rng.normal(1, 0.1, truth.shape).astype(np.float32)
            for sample in (small, whole):
                sample.add(index, predicted, truth, np.ones_like(truth))
        a, b = score_depth(*small.pooled()[:2]), score_depth(*whole.pooled()[:2])
        assert a is not None
        assert b is not None
        assert a.pixels <= 20_000
        assert b.pixels == 40 * 60 * 80
        # Standard error of the mean of |N(0, 0.1)| over 10,000 draws is 6e-4.
        assert a.abs_rel == pytest.approx(b.abs_rel, abs=2.5e-3)
        assert len(small.frames()) == 40

    def test_revision_scales_the_frames_it_names(self) -> None:
        sample = DepthSample()
        for index in range(3):
            sample.add(index, np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)))
        poses = np.tile(np.eye(4), (1, 1, 1))
        sample.revise(
            PoseRevision(indices=np.array([1]), world_from_cam=poses, scale=np.array([2.0]))
        )
        assert [float(d.mean()) for _, d, _ in sample.frames()] == [1, 2, 1]


class TestMotion:
    def test_j_equals_scikit_learn(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.random((2, 40, 50)) > 0.6
        assert region_similarity(a, b) == pytest.approx(jaccard_score(b.ravel(), a.ravel()))

    def test_empty_masks_are_right_when_nothing_moves(self) -> None:
        nothing, something = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
        something[5:9, 5:9] = True
        assert region_similarity(nothing, nothing) == 1
        assert boundary_f(nothing, nothing) == 1
        assert region_similarity(something, nothing) == 0
        assert boundary_f(something, nothing) == 0

    def test_boundary_is_one_pixel_wide(self) -> None:
        square = np.zeros((8, 8), bool)
        square[3:5, 3:5] = True
        edge = boundary(square)
        # Pixels that differ from their right, lower or lower-right neighbour.
        expected = np.zeros((8, 8), bool)
        expected[2:5, 2:5] = True
        expected[3, 3] = False
        np.testing.assert_array_equal(edge, expected)

    def test_boundary_within_tolerance_counts(self) -> None:
        """0.8 % of the diagonal of 480 × 854 is 8 px: a shift of 6 px is right, of 20 px is not."""
        truth = np.zeros((480, 854), bool)
        truth[100:300, 200:500] = True
        near, far = np.roll(truth, 6, axis=1), np.roll(truth, 20, axis=1)
        assert boundary_f(truth, truth) == 1
        assert boundary_f(near, truth) == 1
        # Horizontal edges still match except for their ends; vertical ones do not.
        assert 0.4 < boundary_f(far, truth) < 0.7

    def test_unknown_pixels_take_part_in_nothing(self) -> None:
        truth = np.zeros((50, 50), np.uint8)
        truth[10:30, 10:30] = 255
        truth[30:40, 10:30] = 128
        moving = (truth == 255) | (truth == 128)
        scorer = MotionScorer()
        scorer.add_prediction(moving)
        scorer.add(moving, truth)
        score = scorer.score()
        assert score is not None
        assert (score.j, score.f, score.j_recall) == (1, 1, 1)
        assert scorer.static_share == pytest.approx(1 - 600 / 2500)

    def test_recall_counts_frames_above_one_half(self) -> None:
        truth = np.full((10, 10), 255, np.uint8)
        scorer = MotionScorer()
        for share in (2, 4, 6, 8):
            moving = np.zeros((10, 10), bool)
            moving[:share] = True
            scorer.add(moving, truth)
        score = scorer.score()
        assert score is not None
        assert score.j == pytest.approx(0.5)
        assert score.j_recall == 0.5
        assert MotionScorer().score() is None
        assert MotionScorer().static_share is None


class TestFlow:
    def test_by_hand(self) -> None:
        truth = np.zeros((1, 4, 2), np.float32)
        truth[0, 2] = [100, 0]
        truth[0, 3] = np.nan
        predicted = np.zeros((1, 4, 2), np.float32)
        predicted[0, 0] = [3, 4]  # wrong by 5 px: an outlier
        predicted[0, 2] = [104, 0]  # wrong by 4 px, but only 4 %
        scorer = FlowScorer()
        scorer.add(predicted, truth)
        score = scorer.score()
        assert score is not None
        assert score.epe == pytest.approx(3)
        assert score.fl_percent == pytest.approx(100 / 3)
        assert score.px1_percent == pytest.approx(200 / 3)
        assert score.pixels == 3

    def test_missing_prediction_counts_as_no_motion(self) -> None:
        scorer = FlowScorer()
        scorer.add(np.full((2, 2, 2), np.nan, np.float32), np.full((2, 2, 2), 3.0, np.float32))
        score = scorer.score()
        assert score is not None
        assert score.epe == pytest.approx(np.sqrt(18))
        assert FlowScorer().score() is None

    def test_middlebury_file_equals_opencv(self, tmp_path: Path) -> None:
        flow = np.random.default_rng(0).normal(0, 20, (7, 5, 2)).astype(np.float32)
        path = tmp_path / "a.flo"
        cv2.writeOpticalFlow(str(path), flow)
        np.testing.assert_array_equal(read_flow(path), flow)
        flow[2, 3] = np.nan
        write_flo(path, flow)
        np.testing.assert_array_equal(read_flow(path), flow)
        opened = cv2.readOpticalFlow(str(path))
        np.testing.assert_array_equal(opened[0, 0], flow[0, 0])

    def test_kitti_file(self, tmp_path: Path) -> None:
        flow = np.random.default_rng(0).uniform(-300, 300, (7, 5, 2)).astype(np.float32)
        flow[1, 1] = np.nan
        write_kitti(tmp_path / "a.png", flow)
        back = read_flow(tmp_path / "a.png")
        np.testing.assert_allclose(back, flow, atol=1 / 128)
        raw = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
        assert raw[0, 0, 2] == pytest.approx(flow[0, 0, 0] * 64 + 32768, abs=0.5)  # R holds u
        assert raw[1, 1, 0] == 0  # B says invalid

    @pytest.mark.parametrize(
        ("name", "data"), [("a.flo", b"xxxx"), ("b.flo", b"PIEH" + bytes(8)), ("c.png", b"no")]
    )
    def test_damaged_files(self, tmp_path: Path, name: str, data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EvaluationError, match=name):
            read_flow(tmp_path / name)

    def test_unknown_format(self, tmp_path: Path) -> None:
        with pytest.raises(EvaluationError, match="Middlebury"):
            read_flow(tmp_path / "a.pfm")

    def test_dis_finds_a_shift(self) -> None:
        rng = np.random.default_rng(0)
        image = cv2.GaussianBlur(rng.integers(0, 255, (120, 160, 3), np.uint8), (0, 0), 2)
        flow = dis_flow(image, np.roll(image, (2, 3), axis=(0, 1)))
        np.testing.assert_allclose(np.median(flow, axis=(0, 1)), [3, 2], atol=0.2)


class TestPoints:
    def test_parallel_planes_by_hand(self) -> None:
        """A plane 0.1 m before the true one: every distance is 0.1, normals agree."""
        x, y = np.meshgrid(np.arange(20) / 20, np.arange(20) / 20)
        truth = np.stack([x.ravel(), y.ravel(), np.ones(400)], axis=1)
        near = truth - [0, 0, 0.1]
        score = score_points(near, truth, threshold_m=0.05)
        assert score.accuracy_m == pytest.approx(0.1)
        assert score.completeness_m == pytest.approx(0.1)
        assert score.chamfer_m == pytest.approx(0.1)
        assert score.f_score == 0
        assert score.normal_consistency == pytest.approx(1)
        assert score_points(near, truth, threshold_m=0.11).f_score == 1

    def test_half_a_cloud_is_accurate_but_not_complete(self) -> None:
        x = np.linspace(0, 1, 101)
        truth = np.stack([x, 0 * x, 0 * x + 1], axis=1)
        score = score_points(truth[:51], truth, threshold_m=0.001)
        assert score.accuracy_m == 0
        assert score.completeness_m == pytest.approx(np.arange(1, 51).sum() / 100 / 101)
        assert score.f_score == pytest.approx(2 * (51 / 101) / (1 + 51 / 101))

    def test_perpendicular_planes_have_no_normal_in_common(self) -> None:
        a, b = np.meshgrid(np.linspace(0, 1, 15), np.linspace(0, 1, 15))
        wall = np.stack([a.ravel(), b.ravel(), np.zeros(225)], axis=1)
        floor = np.stack([a.ravel(), np.zeros(225), b.ravel()], axis=1)
        score = score_points(wall, floor)
        assert score.normal_consistency == pytest.approx(0, abs=1e-6)

    def test_empty_cloud(self) -> None:
        with pytest.raises(ValueError, match="0 and 5"):
            score_points(np.zeros((0, 3)), np.zeros((5, 3)))

    def test_sample_places_frames_by_pose_and_scale(self) -> None:
        sample = PointSample(budget=100, per_frame=60)
        cloud = np.random.default_rng(0).normal(0, 1, (10, 12, 3))
        for index in range(4):
            sample.add(index, cloud, cloud * 2)
        poses = {i: np.eye(4) for i in range(4)}
        ours, theirs = sample.in_world(poses, poses, dict.fromkeys(range(4), 2.0))
        assert len(ours) <= 100
        assert len(ours) > 40
        np.testing.assert_allclose(ours, theirs)


class TestCalibration:
    def test_focal_error(self) -> None:
        truth = np.array([[500.0, 0, 0], [0, 400, 0], [0, 0, 1]])
        K = np.array([[550.0, 0, 0], [0, 380, 0], [0, 0, 1]])
        assert focal_error_percent(K, truth) == pytest.approx((10 + 5) / 2)

    def test_honest_confidence_has_no_error(self) -> None:
        rng = np.random.default_rng(0)
        confidence = rng.random(200_000)
        error = np.where(rng.random(200_000) < confidence, 0.05, 0.5)
        result = reliability(confidence, error)
        assert result is not None
        assert result.ece < 0.01
        np.testing.assert_allclose(result.stated, result.observed, atol=0.02)

    def test_boastful_confidence_shows(self) -> None:
        error = np.where(np.arange(1000) % 2 == 0, 0.05, 0.5)
        result = reliability(np.full(1000, 0.95), error)
        assert result is not None
        assert result.ece == pytest.approx(0.45)
        assert np.isnan(result.observed[0])
        assert reliability(np.zeros(0), np.zeros(0)) is None

    def test_order_of_confidence(self) -> None:
        """AUSE is 0 where confidence orders pixels by error, and largest where it orders them backwards."""
        error = np.random.default_rng(0).exponential(1, 5000)
        right, none, wrong = (
            reliability(confidence, error)
            for confidence in (1 / (1 + error), np.full(5000, 0.5), error / error.max())
        )
        assert right is not None
        assert none is not None
        assert wrong is not None
        assert right.ause == pytest.approx(0, abs=1e-9)
        assert 0 < none.ause < wrong.ause

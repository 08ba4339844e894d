"""Point tracks by TAP-Vid's rules and objects by the CLEAR measures, on cases small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.eval.tracks import score_objects, score_point_tracks

SIZE = (256, 256)


def still_tracks(count: int = 3, frames: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points = np.tile(np.arange(count, dtype=float)[:, None, None] * 20, (1, frames, 2))
    return points, np.ones((count, frames), bool), np.zeros(count, int)


def test_perfect_tracks() -> None:
    points, visible, query = still_tracks()
    score = score_point_tracks(points, visible, points, visible, query, SIZE)
    assert (score.average_jaccard, score.within, score.occlusion_accuracy) == (1, 1, 1)


def test_three_pixels_off_passes_the_wider_thresholds() -> None:
    """3 px is beyond 1 and 2, within 4, 8 and 16."""
    points, visible, query = still_tracks()
    score = score_point_tracks(points + np.array([3.0, 0]), visible, points, visible, query, SIZE)
    assert score.within == pytest.approx(3 / 5)
    # A miss is a false positive and a false negative at once: 0 of (n + n).
    assert score.average_jaccard == pytest.approx(3 / 5)


def test_thresholds_are_pixels_of_a_256_square() -> None:
    points, visible, query = still_tracks()
    score = score_point_tracks(
        points + np.array([3.0, 0]), visible, points, visible, query, (512, 512)
    )
    assert score.within == pytest.approx(4 / 5)  # 1.5 px there


def test_hidden_points_by_hand() -> None:
    """Four frames after the query. True: seen seen hidden hidden; said: seen hidden seen hidden."""
    points, _, query = still_tracks(1)
    truth = np.array([[True, True, True, False, False]])
    said = np.array([[True, True, False, True, False]])
    score = score_point_tracks(points, said, points, truth, query, SIZE)
    assert score.occlusion_accuracy == pytest.approx(2 / 4)
    assert score.within == 1
    # One true positive, one missed, one false: 1 / (2 + 1).
    assert score.average_jaccard == pytest.approx(1 / 3)


def test_frames_before_the_query_do_not_count() -> None:
    points, visible, _ = still_tracks(1)
    wrong = points.copy()
    wrong[0, :3] += 100
    score = score_point_tracks(wrong, visible, points, visible, np.array([2]), SIZE)
    assert score.average_jaccard == 1


def test_objects_that_swap_identity() -> None:
    left, right = np.array([0.0, 0]), np.array([10.0, 0])
    truth = [{1: left, 2: right}] * 4
    swapped = [{7: left, 8: right}] * 2 + [{8: left, 7: right}] * 2
    score = score_objects(swapped, truth, max_distance=2)
    assert score.switches == 2
    assert (score.misses, score.false_positives) == (0, 0)
    assert score.mota == pytest.approx(1 - 2 / 8)
    assert score.motp == 0


def test_missed_and_invented_objects() -> None:
    truth = [{1: np.array([0.0, 0])}, {1: np.array([0.0, 0])}]
    ours = [{5: np.array([0.5, 0]), 6: np.array([50.0, 0])}, {}]
    score = score_objects(ours, truth, max_distance=1)
    assert (score.misses, score.false_positives, score.switches) == (1, 1, 0)
    assert score.mota == pytest.approx(0)
    assert score.motp == pytest.approx(0.5)


def test_a_match_is_kept_while_it_holds() -> None:
    """A nearer newcomer does not steal the identity of a track that is still within reach."""
    truth = [{1: np.array([0.0])}, {1: np.array([1.0])}]
    ours = [{5: np.array([0.0])}, {5: np.array([0.2]), 6: np.array([1.0])}]
    score = score_objects(ours, truth, max_distance=2)
    assert score.switches == 0
    assert score.false_positives == 1

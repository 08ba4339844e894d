"""MonST3R: DUSt3R's names and shapes; the sliding window of pairs, flow and alignment."""

from __future__ import annotations

import numpy as np
import pytest
from families import check_prediction, make_frames, run_windows, video_info
from golden import check_manifest
from test_dust3r import TINY

from stream4d.errors import ModelError
from stream4d.models.dust3r_net import KEY_MAP, Dust3rNet
from stream4d.models.monst3r import Monst3rConfig
from stream4d.models.registry import create_model
from stream4d.packets import Window

FAST = {"resolution": 96, "iterations": 10, **TINY}


def test_manifest():
    check_manifest("dust3r_512_dpt", lambda: Dust3rNet(Monst3rConfig()), KEY_MAP)


@pytest.mark.parametrize("motion", ["absolute", "relative"])
def test_prediction(motion):
    model = create_model("monst3r", weights="random", motion=motion, **FAST)
    predictions = run_windows(model, 150, 101, count=6, size=4, overlap=2)
    assert len(predictions) == 2
    for prediction in predictions:
        check_prediction(prediction, 4, 150, 101)
        assert prediction.motion_prob.shape == (4, 101, 150)
        assert prediction.motion_prob.min() >= 0
        assert prediction.motion_prob.max() <= 1
        assert prediction.flow.shape == prediction.flow_backward.shape == (3, 101, 150, 2)
        assert np.isfinite(prediction.flow_uncertainty).all()


def test_flow_is_that_of_the_frames():
    model = create_model("monst3r", weights="random", **FAST)
    prediction = run_windows(model, 96, 64, count=3, size=3)[0]
    # The made-up frames drift by two pixels to the left.
    assert np.median(prediction.flow[..., 0]) == pytest.approx(-2, abs=0.2)
    assert np.median(prediction.flow_backward[..., 0]) == pytest.approx(2, abs=0.2)


def test_window_of_one_frame():
    model = create_model("monst3r", weights="random", **FAST)
    check_prediction(run_windows(model, 96, 64, count=1, size=1, overlap=0)[0], 1, 96, 64)


def test_memory_is_bounded_and_the_overlap_is_reused():
    model = create_model("monst3r", weights="random", **FAST)
    frames = make_frames(8, 96, 64)
    sizes = []
    with model.session(video_info(96, 64)) as session:
        for index, start in enumerate((0, 2, 4)):
            before = dict(session.decoded)
            part = frames[start : start + 4]
            known = {k: v.world_from_cam for k, v in session.known.items()}
            session.step(Window(index=index, frames=part, overlap=2 if index else 0))
            for key, pair in session.decoded.items():
                assert before.get(key, pair) is pair
            for key in known.keys() & session.known.keys():
                np.testing.assert_allclose(session.known[key].world_from_cam, known[key], atol=1e-5)
            sizes.append(
                [len(x) for x in (session.encoded, session.decoded, session.flows, session.known)]
            )
    assert sizes[0] == sizes[1] == sizes[2]


def test_given_focal_is_kept():
    K = np.array([[90.0, 0, 47.5], [0, 90.0, 31.5], [0, 0, 1]])
    model = create_model("monst3r", weights="random", **FAST)
    prediction = run_windows(model, 96, 64, count=3, size=3, K=K)[0]
    np.testing.assert_allclose(prediction.K, np.stack([K] * 3), rtol=1e-9)


def test_unknown_graph_is_refused_at_once():
    with pytest.raises(ModelError, match="spiral"):
        create_model("monst3r", weights="random", graph="spiral-3", **FAST)

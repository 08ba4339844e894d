"""The classical model: flow near the truth, an uncertainty that holds."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from stream4d.errors import ModelError
from stream4d.models.registry import create_model, model_card
from stream4d.packets import Frame, Prediction, Window
from tests.synthetic import Scene


def predict(scene: Scene, start: int = 5, size: int = 3, **options: object) -> Prediction:
    frames = tuple(scene.frame(t) for t in range(start, start + size))
    model = create_model("classical", **options)
    with model.session(scene.info()) as session:
        return session.step(Window(index=0, frames=frames, overlap=0))


def test_flow_is_near_the_truth_and_its_uncertainty_holds() -> None:
    scene = Scene("walk", width=256, height=192, focal=220)
    prediction = predict(scene)
    assert prediction.flow is not None
    assert prediction.flow_uncertainty is not None
    truth, visible = scene.flow(5, 6)
    error = np.abs(prediction.flow[0] - truth)[visible]
    sigma = prediction.flow_uncertainty[0][visible]
    assert np.median(error) < 0.15
    within = (error < sigma[:, None]).mean()
    # fitted on real-looking images; smooth noise textures are easier, hence the wide band around 68 %
    assert 0.5 < within < 0.95
    assert prediction.flow_uncertainty[0][~visible].mean() > 3 * np.median(sigma)


@pytest.mark.parametrize("size", [(1, 1), (20, 33), (40, 50)])
def test_tiny_and_flat_images_give_finite_maps(size: tuple[int, int]) -> None:
    frames = tuple(
        Frame(index=i, timestamp_ns=i, rgb=np.full((*size, 3), 128, np.uint8)) for i in range(2)
    )
    with create_model("classical").session(Scene().info()) as session:
        prediction = session.step(Window(index=0, frames=frames, overlap=0))
        single = session.step(Window(index=1, frames=frames[:1], overlap=0))
    assert prediction.flow is not None
    assert prediction.flow_uncertainty is not None
    assert np.isfinite(prediction.flow).all()
    assert (prediction.flow_uncertainty > 0).all()
    assert single.flow is None


def test_options_are_checked() -> None:
    assert not model_card("classical").needs_weights
    with pytest.raises(ModelError, match="no weights"):
        create_model("classical", weights="x.safetensors")
    with pytest.raises(ModelError, match="preset must be one of"):
        create_model("classical", preset="slow")
    with pytest.raises(ModelError, match="has the options preset"):
        create_model("classical", speed=3)


def test_a_run_without_a_network_does_not_load_torch() -> None:
    """It would take a second and 200 MB."""
    code = (
        "import sys, stream4d.pipeline, stream4d.models.classical; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

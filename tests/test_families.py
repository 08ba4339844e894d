"""Every family in the pipeline: frames in, a store out, memory bounded; and what `stream4d models` says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import TINY_OPTIONS, check_prediction, make_frames, run_windows, video_info
from PIL import Image

from stream4d.cli import main
from stream4d.config import ModelConfig, ReaderConfig, RunConfig, WindowConfig
from stream4d.models.family import ForeignModel
from stream4d.models.registry import MODELS, create_model, list_models, model_card
from stream4d.pipeline import reconstruct
from stream4d.store.reader import open_store

FAMILIES = sorted(TINY_OPTIONS)


def config(name: str, frames: int) -> RunConfig:
    return RunConfig(
        reader=ReaderConfig(resolution=128, max_frames=frames),
        window=WindowConfig(size=4, overlap=2),
        model=ModelConfig(name=name, weights="random", device="cpu", options=TINY_OPTIONS[name]),
    )


def check_run(name: str, source: Path, out: Path, frames: int) -> None:
    """Run a source into a store and check what every store must hold."""
    posed = list(reconstruct(source, config(name, frames), out=out))
    assert [frame.index for frame in posed] == list(range(frames))
    for frame in posed:
        assert np.isfinite(frame.world_from_cam).all()
        assert np.isfinite(frame.K).all()
    store = open_store(out)
    assert len(store) == frames
    assert store.attrs["model_card"]["name"] == name


def test_every_foreign_model_is_tested_here():
    for name in MODELS:
        module, _, attribute = MODELS[name].partition(":")
        cls = getattr(__import__(module, fromlist=[attribute]), attribute)
        if issubclass(cls, ForeignModel):
            family = name.split("-")[0]
            assert any(tested.split("-")[0] == family for tested in FAMILIES), name


@pytest.mark.parametrize("name", FAMILIES)
def test_made_up_frames_become_a_store(name, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for frame in make_frames(6, 128, 96):
        Image.fromarray(frame.rgb).save(folder / f"{frame.index:06d}.png")
    check_run(name, folder, tmp_path / "out.zarr", 6)


@pytest.mark.parametrize("name", FAMILIES)
def test_real_clip_becomes_a_store(name, shared_data, tmp_path):
    clip = shared_data / "wild_clips" / "monst3r__lady-running.mp4"
    check_run(name, clip, tmp_path / "out.zarr", 7)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_agrees_with_float32(name):

    exact, rough = (
        run_windows(
            create_model(name, weights="random", precision=precision, **TINY_OPTIONS[name]),
            96,
            64,
            count=2,
            size=2,
        )[0]
        for precision in ("float32", "bfloat16")
    )
    # bfloat16 has 8 bits: 0.4 % a step, grown by the exp of the heads.
    assert exact.depth.dtype == rough.depth.dtype == np.float32
    both = np.isfinite(exact.confidence) & np.isfinite(rough.confidence) & (exact.confidence > 0)
    ratio = rough.confidence[both] / exact.confidence[both]
    assert abs(np.median(ratio) - 1) < 0.1


@pytest.mark.parametrize("name", ["monst3r", "must3r", "streamvggt"])
def test_session_goes_on_from_its_state(name):

    from stream4d.packets import Window

    model = create_model(name, weights="random", **TINY_OPTIONS[name])
    frames = make_frames(8, 96, 64)
    windows = [
        Window(index=k, frames=frames[2 * k : 2 * k + 4], overlap=2 if k else 0) for k in range(3)
    ]
    with model.session(video_info(96, 64)) as session:
        for window in windows[:2]:
            session.step(window)
        state = {key: np.array(value) for key, value in session.state().items()}
        wanted = session.step(windows[2])
    with model.session(video_info(96, 64)) as session:
        session.restore(state)
        got = session.step(windows[2])
    np.testing.assert_allclose(got.depth, wanted.depth, rtol=1e-5)
    np.testing.assert_allclose(got.window_from_cam, wanted.window_from_cam, atol=1e-5)


def test_memory_too_large_to_save_is_begun_anew(monkeypatch):

    from stream4d.models import native
    from stream4d.packets import Window

    monkeypatch.setattr(native, "RESUME_BYTES", 100)
    model = create_model("must3r", weights="random", **TINY_OPTIONS["must3r"])
    frames = make_frames(4, 96, 64)
    with model.session(video_info(96, 64)) as session:
        session.step(Window(index=0, frames=frames[:3], overlap=0))
        assert session.state() == {}
    with model.session(video_info(96, 64)) as session:
        session.restore({})
        assert session.step(Window(index=1, frames=frames[2:], overlap=1)).depth.shape[0] == 2


def test_cards_are_complete():
    for name in list_models():
        card = model_card(name)
        assert card.name == name
        assert card.weights_licence
        assert card.resolution
        assert 0 <= card.overlap < card.window
        if card.needs_weights and card.weights_licence != "none needed":
            assert card.parameters_m > 0
            assert card.paper


def test_models_lists_all(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    for name in list_models():
        assert name in out
    assert "CC BY-NC-SA 4.0" in out


@pytest.mark.parametrize(("name", "option"), [("temporal", "max_side"), ("classical", "preset")])
def test_our_own_models_tell_their_options(
    name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", name]) == 0
    assert f"  {option} = " in capsys.readouterr().out


def test_models_describes_one(capsys):
    assert main(["models", "monst3r"]) == 0
    out = capsys.readouterr().out
    assert "FORBIDDEN" in out
    assert "graph = 'swinstride-3-noncyclic'" in out


def test_models_as_data(capsys):
    assert main(["models", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert [card["name"] for card in cards] == list_models()


def test_unknown_model_is_one_line(capsys):
    assert main(["models", "vggtt"]) == 1
    err = capsys.readouterr().err
    assert "Did you mean 'vggt'" in err
    assert err.count("\n") == 1


def test_models_page_knows_every_family():
    page = (Path(__file__).resolve().parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    for name in list_models():
        if name not in ("classical", "temporal"):
            assert f"`{name.split('-')[0]}" in page, name


@pytest.mark.parametrize("name", FAMILIES)
def test_odd_sizes_single_frames_and_given_intrinsics(name):
    model = create_model(name, weights="random", **TINY_OPTIONS[name])
    check_prediction(run_windows(model, 96, 64, count=1, size=1, overlap=0)[0], 1, 96, 64)
    K = np.array([[90.0, 0, 48], [0, 90.0, 30], [0, 0, 1]])
    prediction = run_windows(model, 97, 61, count=2, size=2, K=K)[0]
    check_prediction(prediction, 2, 97, 61)
    np.testing.assert_allclose(prediction.K, np.stack([K, K]), rtol=1e-9)

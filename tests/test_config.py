"""Settings: ranges, types, nearest keys, presets, and what flags override."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream4d import config as settings
from stream4d.cli import build_parser
from stream4d.commands.run import default_store_path, resolve_config
from stream4d.config import ChainConfig, ReaderConfig, RunConfig
from stream4d.errors import ConfigError


def resolve(*flags: str) -> RunConfig:
    return resolve_config(build_parser("run").parse_args(["video.mp4", *flags]))


def test_dump_and_merge_round_trip() -> None:
    config = RunConfig(reader=ReaderConfig(resolution=512, intrinsics=(1, 2, 3, 4)), seed=3)
    assert settings.merge(RunConfig(), settings.dump(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reader": {"resolutoin": 256}}, "Did you mean 'resolution'"),
        ({"chian": {}}, "Did you mean 'chain'"),
        ({"reader": {"stride": 0}}, "stride must be at least 1, got 0"),
        ({"reader": {"stride": "two"}}, "stride must be int, got 'two'"),
        ({"reader": {"stride": True}}, "stride must be int, got True"),
        ({"reader": {"fps": float("nan")}}, "fps must be between"),
        ({"reader": {"fps": float("inf")}}, "fps must be between"),
        ({"reader": {"start": float("inf")}}, "start must be between"),
        ({"seed": 2**32}, "seed must be between 0 and 4294967295"),
        ({"model": {"options": 3}}, "options must be a group of keys, got 3"),
        ({"model": {"options": {3: 3}}}, "options must be a group of keys"),
        ({"view": {"mode": "3d"}}, "mode must be one of none, native, web"),
        ({"reader": {"intrinsics": "517"}}, "intrinsics must be a list of numbers"),
        ({"reader": 3}, "reader must be a group of keys"),
    ],
)
def test_bad_values_name_the_culprit(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings.merge(RunConfig(), values)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("reader: {start: 1e-3}")
    assert settings.load(tmp_path / "a.yaml").reader.start == 0.001
    with pytest.raises(ConfigError, match="start must be float, got 'soon'"):
        settings.merge(RunConfig(), {"reader": {"start": "soon"}})


def test_whole_numbers_are_accepted_for_float_settings() -> None:
    assert settings.merge(RunConfig(), {"reader": {"start": 2}}).reader.start == 2.0


@pytest.mark.parametrize("preset", ["fast", "balanced", "quality"])
def test_presets_load(preset: str) -> None:
    assert isinstance(settings.load(preset), RunConfig)


def test_balanced_preset_is_the_default() -> None:
    assert settings.load("balanced") == RunConfig()


@pytest.mark.parametrize("text", ["reader: [", "- 1\n- 2\n", "\x00\x01"])
def test_broken_config_files_are_config_errors(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        settings.load(path)
    assert "\n" not in str(caught.value)


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="balanced, fast, quality"):
        settings.load("fats")


def test_flags_override_the_preset_which_overrides_defaults() -> None:
    config = resolve("--config", "fast", "--resolution", "320", "--set", "chain.lag=5")
    assert config.reader.resolution == 320
    assert config.chain == ChainConfig(keyframes=8, patches=64, lag=5)
    assert config.seed == RunConfig().seed


def test_intrinsics_flag_reaches_the_reader() -> None:
    config = resolve("--intrinsics", "517.3,516.5,318.6,255.3", "--distortion", "0.1,-0.2,0,0")
    assert config.reader.intrinsics == (517.3, 516.5, 318.6, 255.3)
    assert config.reader.distortion == (0.1, -0.2, 0.0, 0.0)


def test_distortion_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs --intrinsics"):
        resolve("--distortion", "0.1,0,0,0")


def test_assignment_needs_an_equals_sign() -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        resolve("--set", "chain.lag")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("clips/walk.mp4", "walk.zarr"),
        ("clips/walk.2024.mp4", "walk.2024.zarr"),
        ("shots/office/frames", "office.zarr"),
        ("shots/office/*.png", "office.zarr"),
        ("shots/office/frames/*.png", "office.zarr"),
        ("shots/office", "office.zarr"),
        ("shots/office/video.mp4", "office.zarr"),
        ("video.mp4", "video.zarr"),
        (300 * "a" + ".mp4", 300 * "a" + ".zarr"),
        ("webcam_2024.mp4", "webcam_2024.zarr"),
        ("file:///clips/walk.mp4", "walk.zarr"),
    ],
)
def test_store_is_named_after_the_source(source: str, name: str) -> None:
    assert default_store_path(source) == Path(name)


def test_a_video_with_brackets_in_its_name_is_no_glob(tmp_path: Path) -> None:
    video = tmp_path / "walk[1].mp4"
    video.touch()
    assert default_store_path(str(video)) == Path("walk[1].zarr")


def test_live_stores_are_stamped() -> None:
    assert default_store_path("webcam").name.startswith("webcam-")
    assert default_store_path("/dev/video0").name.startswith("webcam-")
    assert default_store_path("rtsp://10.0.0.1:554/live").name.startswith("10.0.0.1-")

"""The reader on video files: what comes out is what the container says, from whatever frame it begins."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from clips import number_of, red_corner, rotate_header, write_sound, write_video

from stream4d.config import ReaderConfig
from stream4d.errors import ConfigError, VideoError
from stream4d.packets import Frame
from stream4d.reader import open_video

FORMATS = {
    "mp4": {"codec": "libx264"},
    "mov": {"codec": "libx264"},
    "mkv": {"codec": "libx264", "options": {"g": "8", "bf": "3"}},
    "ts": {"codec": "libx264", "options": {"g": "8"}},
    "webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "avi": {"codec": "libx264"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=8"}},
    "10bit.mp4": {"codec": "libx264", "pixels": "yuv420p10le"},
    "gif": {"codec": "gif", "pixels": "rgb8"},
    "grey.mkv": {"codec": "ffv1", "pixels": "gray"},
    "odd.mkv": {"codec": "ffv1", "pixels": "bgr0", "size": (67, 51)},
    "alpha.mov": {"codec": "png", "pixels": "rgba"},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames at 25 fps, a keyframe every 12, with B-frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_video(path, frames=60, options={"g": "12", "bf": "2"})


def read(source: str | Path, **settings: object) -> list[Frame]:
    with open_video(source, ReaderConfig(**{"resolution": 64, **settings})) as reader:  # type: ignore[arg-type]
        return list(reader)


def numbers(frames: list[Frame]) -> list[int]:
    return [number_of(frame.rgb) for frame in frames]


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / f"clip.{name}", **FORMATS[name])  # type: ignore[arg-type]
    with open_video(path, ReaderConfig(resolution=64)) as reader:
        frames = list(reader)
        info = reader.info
    assert info.frame_count == 24
    assert info.backend == "pyav"
    assert info.reason
    assert info.fps == pytest.approx(25, rel=0.01)
    assert numbers(frames) == list(range(24))
    assert [f.index for f in frames] == [f.source_index for f in frames] == list(range(24))
    times = np.array([f.timestamp_ns for f in frames])
    # Matroska keeps whole milliseconds, GIF hundredths of a second.
    np.testing.assert_allclose(times, np.arange(24) * 40_000_000, atol=1_000_001)
    assert {f.rgb.shape for f in frames} == {(info.height, info.width, 3)}
    assert red_corner(frames[10].rgb) == "upper left" or name == "grey.mkv"


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate_keeps_its_times(tmp_path: Path, suffix: str) -> None:
    times = [0, 33, 66, 100, 600, 633, 640, 1700, 1733, 1800, 1900, 2000]
    path = write_video(tmp_path / f"v.{suffix}", frames=len(times), times_ms=times)
    assert [f.timestamp_ns for f in read(path)] == [t * 1_000_000 for t in times]


def test_times_begin_at_zero(tmp_path: Path) -> None:
    times = list(range(5000, 5480, 40))
    path = write_video(tmp_path / "late.mkv", frames=len(times), times_ms=times)
    assert read(path)[0].timestamp_ns == 0


@pytest.mark.parametrize(
    ("degrees", "corner"), [(90, "upper right"), (180, "lower right"), (270, "lower left")]
)
def test_rotation_metadata(tmp_path: Path, degrees: int, corner: str) -> None:
    path = write_video(tmp_path / "phone.mov", frames=30, size=(160, 120), options={"g": "5"})
    rotate_header(path, degrees)
    for backend, stride in (("pyav", 1), ("decord", 13)):
        with open_video(path, ReaderConfig(resolution=64, stride=stride)) as reader:
            frames = list(reader)
            info = reader.info
        assert info.backend == backend
        assert info.rotation_deg == degrees
        size = (120, 160) if degrees % 180 else (160, 120)
        assert (info.source_width, info.source_height) == size
        assert {red_corner(frame.rgb) for frame in frames} == {corner}


def test_decord_is_not_trusted_blindly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some processors it returns garbage for very small images: the automatic choice must notice."""

    class Garbled(decord.VideoReader):  # type: ignore[misc]
        def __getitem__(self, index: int) -> object:
            return decord.nd.array(255 - super().__getitem__(index).asnumpy())

    monkeypatch.setattr(decord, "VideoReader", Garbled)
    path = write_video(tmp_path / "clip.mp4", frames=40, size=(32, 32), options={"g": "5"})
    with open_video(path, ReaderConfig(resolution=64, stride=13)) as reader:
        assert reader.info.backend == "pyav"
        assert numbers(list(reader)) == [0, 13, 26, 39]
    with pytest.raises(VideoError, match="--backend pyav"):
        read(path, backend="decord")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stride": 7}, list(range(0, 60, 7))),
        ({"max_frames": 5}, [0, 1, 2, 3, 4]),
        ({"start": 0.4, "end": 0.6}, [10, 11, 12, 13, 14]),
        ({"start": 0.41, "stride": 20}, [11, 31, 51]),
        ({"fps": 5.0}, list(range(0, 60, 5))),
        ({"fps": 10.0, "max_frames": 5}, [0, 3, 5, 8, 10]),
        ({"fps": 100.0, "end": 0.2}, [0, 1, 2, 3, 4]),
        ({"start": 1.0, "fps": 2.5, "end": 2.0}, [25, 35, 45]),
        ({"stride": 16}, [0, 16, 32, 48]),
    ],
)
def test_selection(clip: Path, settings: dict[str, object], expected: list[int]) -> None:
    config = ReaderConfig(**{"resolution": 64, **settings})  # type: ignore[arg-type]
    with open_video(clip, config) as reader:
        frames = list(reader)
        assert reader.info.frame_count == len(expected)
    assert [f.source_index for f in frames] == numbers(frames) == expected
    assert [f.index for f in frames] == list(range(len(expected)))
    assert [f.timestamp_ns for f in frames] == [40_000_000 * i for i in expected]


def test_sparse_reading_picks_decord_and_says_so(clip: Path) -> None:
    choices = (({"stride": 20}, "decord"), ({"fps": 1.0}, "decord"), ({"stride": 9}, "pyav"))
    for settings, backend in choices:
        with open_video(clip, ReaderConfig(**settings)) as reader:  # type: ignore[arg-type]
            assert reader.info.backend == backend
            assert "seeking" in reader.info.reason or backend == "pyav"


def test_both_backends_give_the_same_pixels(clip: Path) -> None:
    pyav, decord = (read(clip, backend=name) for name in ("pyav", "decord"))
    assert len(pyav) == len(decord) == 60
    for a, b in zip(pyav, decord, strict=True):
        assert a.timestamp_ns == b.timestamp_ns
        # Same FFmpeg conversion, different versions of it: at most one level.
        assert np.abs(a.rgb.astype(int) - b.rgb).max() <= 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("clip.mp4", {}),
        ("clip.mp4", {"stride": 3, "start": 0.2}),
        ("clip.mp4", {"backend": "decord"}),
        ("clip.mp4", {"fps": 1.5}),
        ("clip.mkv", {}),
        ("clip.avi", {"stride": 2}),
        ("hevc.mp4", {}),
        ("clip.webm", {}),
    ],
)
def test_resuming_gives_identical_frames(
    tmp_path: Path, name: str, settings: dict[str, object]
) -> None:
    suffix = name if name in FORMATS else name.partition(".")[2]
    extra = {"options": {"g": "12", "bf": "3"}} if name.startswith("clip.m") else {}
    path = write_video(tmp_path / name, frames=130, size=(64, 48), **{**FORMATS[suffix], **extra})  # type: ignore[arg-type]
    with open_video(path, ReaderConfig(**{"resolution": 64, **settings})) as reader:  # type: ignore[arg-type]
        whole = list(reader)
        for index in {1, len(whole) // 2, len(whole) - 1}:
            rest = list(reader.frames_from(index))
            assert [f.index for f in rest] == list(range(index, len(whole)))
            for got, want in zip(rest, whole[index:], strict=True):
                np.testing.assert_array_equal(got.rgb, want.rgb)
                assert (got.timestamp_ns, got.source_index) == (
                    want.timestamp_ns,
                    want.source_index,
                )


def test_resuming_after_the_end_gives_nothing(clip: Path) -> None:
    with open_video(clip, ReaderConfig()) as reader:
        assert list(reader.frames_from(60)) == []


def test_leaving_early_ends_the_thread(clip: Path) -> None:
    with open_video(clip, ReaderConfig(queue=2)) as reader:
        for frame in reader:
            if frame.index == 3:
                break
    assert not [t for t in threading.enumerate() if t.name == "stream4d-decode"]


# ── bad input ──────────────────────────────────────────────────────────────────────────────────


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"no such file or folder: .*nothing.mp4"):
        open_video(tmp_path / "nothing.mp4")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="0 bytes"):
        open_video(tmp_path / "empty.mp4")


@pytest.mark.parametrize("content", [b"This is not a video.\n" * 200, b"\x00" * 5000, b"{}"])
def test_not_a_video(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"text.mp4 is not a video that FFmpeg can read"):
        open_video(tmp_path / "text.mp4")
    assert capfd.readouterr() == ("", "")


def test_audio_only(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no video stream"):
        open_video(write_sound(tmp_path / "sound.m4a"))


def test_file_cut_short_yields_what_decodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_video(tmp_path / "cut.mp4", frames=60, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.75)])
    with caplog.at_level(logging.WARNING, "stream4d"):
        frames = read(path)
    assert 10 < len(frames) < 60
    assert numbers(frames) == list(range(len(frames)))
    assert "cut short" in caplog.text
    assert "of the 2.4 s that it announces" in caplog.text
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4"])
def test_a_cut_between_two_frames_is_told_and_a_whole_file_is_not(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"movflags": "faststart"} if name == "cut.mp4" else {}
    path = write_video(tmp_path / name, frames=60, container_options=options)
    with caplog.at_level(logging.WARNING, "stream4d"):
        read(path)
        assert caplog.text == ""
        with av.open(str(path)) as container:
            packets = [p for p in container.demux(video=0) if p.size]
        path.write_bytes(path.read_bytes()[: packets[30].pos])
        frames = read(path)
    assert 25 < len(frames) < 35
    assert "was cut short: it holds 1" in caplog.text


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_damage_in_the_middle_is_passed_over(
    tmp_path: Path, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_video(tmp_path / "hurt.mp4", frames=90, size=(160, 120), options={"g": "10"})
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        hurt = [p.pos for p in packets if p.is_keyframe][4]
    data = bytearray(path.read_bytes())
    data[hurt : hurt + 40] = b"\xff" * 40
    path.write_bytes(data)
    frames = read(path, backend=backend)
    assert 75 <= len(frames) < 90
    assert [f.index for f in frames] == list(range(len(frames)))
    assert frames[-1].source_index == 89
    assert capfd.readouterr().err == ""


def test_file_cut_short_before_its_index(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.mp4", frames=60)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(VideoError, match="cut short"):
        open_video(path)


def test_video_without_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "none.mkv", frames=2)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(VideoError, match=r"none.mkv"):
        open_video(path)


@pytest.mark.parametrize("settings", [{"start": 99.0}, {"start": 2.0, "end": 1.0}, {"end": 0.0}])
def test_nothing_selected(clip: Path, settings: dict[str, float]) -> None:
    with pytest.raises(VideoError, match=r"2.36 s long.*choose an earlier --start"):
        open_video(clip, ReaderConfig(**settings))


def test_camera_settings_that_make_no_sense(clip: Path) -> None:
    for settings, message in (
        ({"intrinsics": (1.0, 2.0)}, "fx, fy, cx, cy"),
        ({"intrinsics": (-50.0, 50.0, 32.0, 24.0)}, "positive"),
        ({"distortion": (0.1, 0.0, 0.0, 0.0)}, "needs intrinsics"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_video(clip, ReaderConfig(**settings))  # type: ignore[arg-type]


def test_no_camera() -> None:
    with pytest.raises(VideoError, match="no camera answers"):
        open_video("webcam:97")


def test_nobody_at_the_url() -> None:
    with pytest.raises(VideoError, match=r"127\.0\.0\.1:9"):
        open_video("http://127.0.0.1:9/video.mp4")

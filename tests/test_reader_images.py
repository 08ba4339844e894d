"""Image folders, globs and sequence folders."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import number_of, picture, write_video

from stream4d.config import ReaderConfig
from stream4d.errors import VideoError
from stream4d.reader import open_video


def write_images(folder: Path, names: list[str], **size: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), picture(index, **size)[..., ::-1])
    return folder


def read(source: str | Path, **settings: object) -> list[int]:
    with open_video(source, ReaderConfig(**{"resolution": 64, **settings})) as reader:  # type: ignore[arg-type]
        return [number_of(frame.rgb) for frame in reader]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp", "bmp"])
def test_kinds_of_images(tmp_path: Path, suffix: str) -> None:
    folder = write_images(tmp_path / "in", [f"{i:03d}.{suffix}" for i in range(6)])
    assert read(folder) == list(range(6))


def test_natural_order(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", [f"img_{i}.png" for i in range(12)])
    (folder / ".hidden.png").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("not an image")
    assert read(folder) == list(range(12))
    assert read(folder, stride=5) == [0, 5, 10]
    assert read(folder, max_frames=2) == [0, 1]


def test_glob_takes_what_matches(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", ["a1.png", "a2.png", "a10.png", "b1.png"])
    with open_video(f"{folder}/a*.png", ReaderConfig(resolution=64)) as reader:
        assert reader.info.reason == "a glob of images"
        assert [number_of(frame.rgb) for frame in reader] == [0, 1, 2]
    with pytest.raises(VideoError, match="no images match"):
        open_video(f"{folder}/c*.png")


def test_single_image_is_a_short_video(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", ["a.png"])
    assert read(folder / "a.png") == [0]


@pytest.mark.parametrize("suffix", [".webp", ".tiff"])
def test_an_animation_is_not_cut_to_its_first_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"many{suffix}"
    assert cv2.imwritemulti(str(path), [picture(20 * i) for i in range(3)])
    with pytest.raises(VideoError, match="holds 3 pictures"):
        open_video(path)


def test_pixels_of_any_kind_become_rgb8(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    cv2.imwrite(str(folder / "0.png"), grey)
    cv2.imwrite(str(folder / "1.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "2.png"), np.dstack([grey, grey, grey, np.full_like(grey, 255)]))
    half = np.dstack([grey, grey, grey, np.full_like(grey, 128)])
    cv2.imwrite(str(folder / "3.png"), half)
    cv2.imwrite(str(folder / "4.tiff"), np.dstack([grey] * 3).astype(np.uint16) * 257)
    with open_video(folder, ReaderConfig(resolution=64)) as reader:
        images = [frame.rgb for frame in reader]
    rgb = np.dstack([grey] * 3)
    for index in (0, 1, 2, 4):
        np.testing.assert_array_equal(images[index], rgb)
    # Transparency is laid over black.
    np.testing.assert_array_equal(images[3], np.round(rgb * (128 / 255)))


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", ["0.jpg"])
    path = folder / "0.jpg"
    # EXIF with one entry: orientation 6, "turn clockwise".
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    app1 = b"Exif\x00\x00" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(app1) + 2).to_bytes(2, "big") + app1 + data[2:])
    with open_video(folder, ReaderConfig(resolution=64)) as reader:
        frame = next(iter(reader))
    assert frame.rgb.shape == (64, 48, 3)
    assert frame.rgb[3, -3, 0] > 200  # the red corner has moved to the upper right


@pytest.mark.parametrize("where", ["in", "."])
def test_times_beside_or_in_the_folder(tmp_path: Path, where: str) -> None:
    folder = write_images(tmp_path / "in", [f"{i}.png" for i in range(4)])
    times = [
        "# seconds",
        "1305031102.175304",
        "1305031102.211214 0.png",
        "1305031102.3",
        "1305031103",
    ]
    (tmp_path / where / "timestamps.txt").resolve().write_text("\n".join(times))
    (folder.parent / where / "timestamps.txt").write_text("\n".join(times))
    with open_video(folder, ReaderConfig(resolution=64)) as reader:
        got = [frame.timestamp_ns for frame in reader]
    assert got == [0, 35_910_000, 124_696_000, 824_696_000]


def test_times_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_images(tmp_path / "in", [f"{i}.png" for i in range(3)])
    times = folder / "timestamps.txt"
    times.write_text("0\n0.1\n")
    with open_video(folder, ReaderConfig(resolution=64)) as reader:
        assert reader.info.fps == pytest.approx(30)
    assert "2 lines for 3 images" in caplog.text
    for content, message in (("0\nsoon\n2", "line 2"), ("0\n2\n1", "must increase")):
        times.write_text(content)
        with pytest.raises(VideoError, match=message):
            open_video(folder)


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_sequence_folder(tmp_path: Path, kind: str) -> None:
    if kind == "video":
        write_video(tmp_path / "video.mp4", frames=5)
    else:
        write_images(tmp_path / "frames", [f"{i:06d}.png" for i in range(5)])
    camera = {"fx": 50.0, "fy": 50.0, "cx": 31.5, "cy": 23.5}
    (tmp_path / "sequence.json").write_text(json.dumps({"camera": camera}))
    (tmp_path / "timestamps.txt").write_text("10.0\n10.5\n11.0\n12.0\n20.0\n")
    with open_video(tmp_path, ReaderConfig(resolution=64)) as reader:
        frames = list(reader)
        assert reader.info.source == str(tmp_path)
    assert [number_of(frame.rgb) for frame in frames] == list(range(5))
    assert [frame.timestamp_ns for frame in frames] == [0, 5 * 10**8, 10**9, 2 * 10**9, 10**10]
    assert frames[0].K is None  # the camera is only taken where it is asked for


def test_folder_resumes_anywhere(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", [f"{i}.png" for i in range(9)])
    with open_video(folder, ReaderConfig(resolution=64, stride=2)) as reader:
        assert [f.source_index for f in reader.frames_from(3)] == [6, 8]


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(VideoError, match="no images in"):
        open_video(tmp_path)


def test_images_of_differing_sizes(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", ["0.png", "1.png"])
    cv2.imwrite(str(folder / "2.png"), picture(2, width=80))
    with pytest.raises(VideoError, match=r"0.png is 64×48 but 2.png is 80×48"):
        read(folder)


def test_unreadable_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "in", ["0.png", "1.png"])
    (folder / "1.png").write_bytes(b"")
    with pytest.raises(VideoError, match=r"1.png is not an image"):
        read(folder)
    cv2.imwrite(str(folder / "1.tiff"), np.zeros((48, 64), np.float32))
    with pytest.raises(VideoError, match=r"1.tiff holds float32 pixels"):
        read(folder / "1.tiff")
    assert capfd.readouterr().err == ""

"""Resizing, undistorting and the intrinsics that go with them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream4d.config import ReaderConfig
from stream4d.errors import ConfigError
from stream4d.reader.intrinsics import parse_distortion, parse_intrinsics
from stream4d.reader.preprocess import Preprocessor, processed_size

sides = st.integers(16, 5000)


@given(sides, sides, st.integers(64, 2048))
def test_processed_size(width: int, height: int, resolution: int) -> None:
    w, h = processed_size(width, height, resolution)
    assert w % 16 == h % 16 == 0
    assert 16 <= max(w, h) <= max(16, min(resolution, max(width, height)))
    assert (w >= h) == (width >= height) or w == h
    # The ratio is off by no more than rounding the short side to 16 costs.
    assert (
        abs(min(w, h) - max(w, h) * min(width, height) / max(width, height)) <= 8 or min(w, h) == 16
    )


@pytest.mark.parametrize(
    ("source", "resolution", "expected"),
    [
        ((640, 480), 384, (384, 288)),
        ((1920, 1080), 384, (368, 208)),  # 384 would be 4 % off the ratio
        ((1080, 1920), 384, (208, 368)),
        ((1920, 1080), 512, (512, 288)),
        ((1241, 376), 384, (368, 112)),
        ((320, 240), 384, (320, 240)),  # never enlarged
        ((384, 288), 384, (384, 288)),
    ],
)
def test_known_sizes(source: tuple[int, int], resolution: int, expected: tuple[int, int]) -> None:
    assert processed_size(*source, resolution) == expected


@pytest.mark.parametrize("size", [(384, 288), (368, 208), (640, 480), (160, 112)])
def test_resized_pixels_are_where_K_says(size: tuple[int, int]) -> None:
    """An image that holds its own source coordinates shows where each processed pixel came from."""
    width, height = 640, 480
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    ramp = np.dstack([u, v, 0 * u]).astype(np.float32)  # float keeps the fractions
    config = ReaderConfig(intrinsics=(500.0, 510.0, 300.0, 250.0))
    prepare = Preprocessor((width, height), size, config)
    got = prepare(ramp)
    K_source = np.array([[500.0, 0, 300], [0, 510, 250], [0, 0, 1]])
    for x, y in ((size[0] // 2, size[1] // 2), (5, 7), (size[0] - 9, size[1] - 6)):
        ray = np.linalg.inv(prepare.K) @ (x, y, 1)
        # A box filter over whole pixels is off by up to 0.07 px depending on phase; mistaking pixel
        # corners for centres would be off by (1 / scale - 1) / 2 = 0.33 px and more.
        np.testing.assert_allclose(got[y, x, :2], (K_source @ ray)[:2], atol=0.1)


DISTORTIONS = [
    (-0.28, 0.07, 0.0, 0.0, 0.0),  # barrel
    (0.2624, -0.9531, -0.0054, 0.0026, 1.1633),  # a Kinect
    (0.15, 0.02, 0.001, -0.002),  # pincushion
]


@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_undistorted_points_lie_where_the_pinhole_puts_them(
    distortion: tuple[float, ...],
) -> None:
    width, height = 640, 480
    K = np.array([[517.0, 0, 318.6], [0, 516.5, 255.3], [0, 0, 1]])
    rays = [(x, y, 1.0) for x in (-0.4, -0.1, 0.3) for y in (-0.3, 0.05, 0.25)]
    zero = np.zeros(3)
    seen = cv2.projectPoints(np.array(rays), zero, zero, K, np.array(distortion))[0][:, 0]
    v, u = np.mgrid[:height, :width]
    image = np.zeros((height, width))
    for x, y in seen:
        image = np.maximum(image, np.exp(-((u - x) ** 2 + (v - y) ** 2) / 18))
    config = ReaderConfig(intrinsics=(517.0, 516.5, 318.6, 255.3), distortion=distortion)
    prepare = Preprocessor((width, height), (320, 240), config)
    got = prepare(np.repeat((image * 255).astype(np.uint8)[..., None], 3, axis=2))[..., 0]
    v, u = np.mgrid[:240, :320]
    for ray in rays:
        x, y, _ = prepare.K @ ray
        near = np.where((u - x) ** 2 + (v - y) ** 2 < 64, got.astype(float), 0)
        centre = ((near * u).sum() / near.sum(), (near * v).sum() / near.sum())
        np.testing.assert_allclose(centre, (x, y), atol=0.1)


@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_undistorting_leaves_no_border(distortion: tuple[float, ...]) -> None:
    config = ReaderConfig(intrinsics=(517.0, 516.5, 318.6, 255.3), distortion=distortion)
    prepare = Preprocessor((640, 480), (384, 288), config)
    assert prepare.K is not None
    ratio = prepare.K[0, 0] / prepare.K[1, 1] / (517.0 / 516.5)
    assert ratio == pytest.approx(1)
    # Where the outermost pixels come from, computed without the reader's maps.
    K = np.array([[517.0, 0, 318.6], [0, 516.5, 255.3], [0, 0, 1]])
    corners = np.array([(x, y, 1.0) for x in (-0.5, 383.5) for y in (-0.5, 287.5)])
    rays = corners @ np.linalg.inv(prepare.K).T
    seen = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), K, np.array(distortion))[0][:, 0]
    assert (seen > -1.5).all()
    assert (seen < (640.5, 480.5)).all()


def test_folding_distortion_is_refused() -> None:
    config = ReaderConfig(intrinsics=(500.0, 500.0, 320.0, 240.0), distortion=(0, 0, 9.0, 9.0))
    with pytest.raises(ConfigError, match="leaves no usable image"):
        Preprocessor((640, 480), (320, 240), config)


# ── intrinsics on the command line ─────────────────────────────────────────────────────────────

CAMERA = (517.3, 516.5, 318.6, 255.3)
LENS = (0.26, -0.95, -0.005, 0.0026, 1.16)
NAMED_CAMERA = {"fx": 517.3, "fy": 516.5, "cx": 318.6, "cy": 255.3, "distortion": LENS}


def test_intrinsics_as_numbers() -> None:
    assert parse_intrinsics("517.3,516.5,318.6,255.3") == (CAMERA, None)
    assert parse_intrinsics("517.3 516.5 318.6 255.3") == (CAMERA, None)
    assert parse_intrinsics(",".join(map(str, CAMERA + LENS))) == (CAMERA, LENS)
    assert parse_distortion("0.26,-0.95,-0.005,0.0026,1.16") == LENS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sequence.json", json.dumps({"camera": NAMED_CAMERA})),
        ("cam.yaml", "fx: 517.3\nfy: 516.5\ncx: 318.6\ncy: 255.3\ndistortion: [0.26, -0.95, -0.005, 0.0026, 1.16]\n"),
        ("cam.txt", "# TUM\n517.3 516.5 318.6 255.3 0.26 -0.95 -0.005 0.0026 1.16\n"),
    ],
)  # fmt: skip
def test_intrinsics_from_a_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert parse_intrinsics(str(tmp_path / name)) == (CAMERA, LENS)


def test_intrinsics_from_a_matrix(tmp_path: Path) -> None:
    (tmp_path / "K.txt").write_text("517.3 0 318.6\n0 516.5 255.3\n0 0 1\n")
    assert parse_intrinsics(str(tmp_path / "K.txt")) == (CAMERA, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2 3", "3 numbers"),
        ("-5 5 1 1", "positive"),
        ("nan 5 1 1", "not finite"),
        ("focal: 500\n", "lacks fx, fy, cx, cy"),
        ("hello world", "something else than numbers"),
        ("fx: a\nfy: 1\ncx: 1\ncy: 1", "not numbers"),
    ],
)
def test_bad_intrinsics(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "cam.txt").write_text(content)
    with pytest.raises(ConfigError, match=message):
        parse_intrinsics(str(tmp_path / "cam.txt"))


def test_intrinsics_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match=r"cannot read intrinsics 'nothing.json'"):
        parse_intrinsics("nothing.json")
    with pytest.raises(ConfigError, match="got 2 numbers"):
        parse_distortion("1,2")
    with pytest.raises(ConfigError, match="distortion 'a,b' hold something else than numbers"):
        parse_distortion("a,b")


@pytest.mark.parametrize(
    ("camera", "is_odd"),
    [
        ((500.0, 500.0, 320.0, 240.0), False),
        ((2000.0, 2000.0, 1280.0, 960.0), True),  # of pictures four times as large
        ((0.8, 0.8, 0.5, 0.5), True),  # in units of the image's width
    ],
)
def test_odd_intrinsics_are_doubted(
    camera: tuple[float, ...], is_odd: bool, caplog: pytest.LogCaptureFixture
) -> None:
    Preprocessor((640, 480), (320, 240), ReaderConfig(intrinsics=camera))
    assert ("odd for images of 640×480" in caplog.text) == is_odd

"""Every layout that eval reads, written small by the test: frame selection, clocks, units, axes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from stream4d.errors import EvaluationError
from stream4d.eval.layouts_film import SINTEL_SEQUENCES
from stream4d.eval.layouts_indoor import BONN_SEQUENCES
from stream4d.eval.protocols import PROTOCOLS, load_dataset, load_named
from stream4d.eval.sequence import EvalSequence, load_folder
from stream4d.eval.trajectory import Trajectory, write_tum
from tests.flow_files import write_flo, write_kitti

H, W = 6, 8


def image(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((H, W, 3), value, np.uint8))
    return path


def depth(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((H, W), value, np.uint16))
    return path


def text(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def straight(times: np.ndarray) -> Trajectory:
    """A camera that moves one metre a second along x."""
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    poses[:, 0, 3] = times - times[0]
    return Trajectory(timestamps_s=times, world_from_cam=poses)


def load(name: str, root: Path) -> list[EvalSequence]:
    return list(load_dataset(name, root))


class TestFolder:
    def make(self, root: Path, **about: object) -> Path:
        for i in range(5):
            image(root / "frames" / f"{i:06d}.png")
        text(root / "timestamps.txt", [str(10 + i / 10) for i in range(5)])
        (root / "sequence.json").write_text(json.dumps({"name": "small", "fps": 10, **about}))
        return root

    def test_everything(self, tmp_path: Path) -> None:
        root = self.make(
            tmp_path,
            kind="dynamic",
            depth_scale=0.0002,
            camera={"fx": 10, "fy": 11, "cx": 4, "cy": 3, "distortion": [0.1, 0, 0, 0, 0]},
        )
        write_tum(root / "groundtruth.txt", straight(10 + np.arange(4) / 10))
        depth(root / "depth" / "000002.png", 5000)
        cv2.imwrite(str(image(root / "masks" / "000003.png")), np.full((H, W), 128, np.uint8))
        (root / "flow").mkdir()
        write_kitti(root / "flow" / "000001.png", np.ones((H, W, 2), np.float32))
        text(root / "gps.txt", [f"{10 + i / 10} 48.0 {11 + i / 1000} 500" for i in range(5)])
        sequence = load_folder(root)
        assert (sequence.name, sequence.kind, sequence.frame_count) == ("small", "dynamic", 5)
        assert sequence.source == root / "frames"
        assert sequence.truth is not None
        assert len(sequence.truth) == 4
        assert sequence.camera is not None
        assert sequence.camera.K[1, 1] == 11
        assert sequence.camera.distortion[0] == 0.1
        read = sequence.depth.get(2)
        assert read is not None
        assert read[0, 0] == pytest.approx(1.0)
        assert sequence.depth.get(0) is None
        mask, flow = sequence.masks.get(3), sequence.flow.get(1)
        assert mask is not None
        assert flow is not None
        assert set(np.unique(mask)) == {128}
        np.testing.assert_allclose(flow, 1)
        assert sequence.gps is not None
        assert sequence.gps[1].shape == (5, 3)

    def test_frames_alone_are_enough(self, tmp_path: Path) -> None:
        for i in range(3):
            image(tmp_path / f"{i}.jpg")
        sequence = load_folder(tmp_path)
        assert sequence.name == tmp_path.name
        assert sequence.frame_count == 3
        assert sequence.camera is None
        assert sequence.truth is None

    @pytest.mark.parametrize(
        ("file", "content", "said"),
        [
            ("sequence.json", "{", "not JSON"),
            ("sequence.json", "[1]", "must hold an object"),
            ("sequence.json", '{"camera": {"fx": 1}}', "fx, fy, cx, cy"),
            ("timestamps.txt", "a\nb\n", "one number a line"),
            ("groundtruth.txt", "1 2 3\n", "8 numbers"),
            ("gps.txt", "1 100 2 3\n", "latitude"),
            ("depth/000009.png", "", "has no frame"),
        ],
    )
    def test_malformed(self, tmp_path: Path, file: str, content: str, said: str) -> None:
        root = self.make(tmp_path)
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(content)
        with pytest.raises(EvaluationError, match=said):
            load_folder(root)

    def test_no_frames(self, tmp_path: Path) -> None:
        with pytest.raises(EvaluationError, match="neither a video"):
            load_folder(tmp_path)
        with pytest.raises(EvaluationError, match="not a folder"):
            load_folder(tmp_path / "absent")
        for name in ("a.mp4", "b.mp4"):
            (tmp_path / name).touch()
        with pytest.raises(EvaluationError, match="holds 2 videos"):
            load_folder(tmp_path)

    def test_flow_pairs(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            image(tmp_path / f"{name}-img0.png")
            image(tmp_path / f"{name}-img1.png")
        write_flo(tmp_path / "a-gt.flo", np.zeros((H, W, 2), np.float32))
        write_kitti(tmp_path / "b-gt.png", np.zeros((H, W, 2), np.float32))
        sequence = load_folder(tmp_path)
        assert sequence.kind == "flow"
        assert [pair[2].name for pair in sequence.pairs] == ["a-gt.flo", "b-gt.png"]
        (tmp_path / "b-img1.png").unlink()
        with pytest.raises(EvaluationError, match=r"b-img1\.png"):
            load_folder(tmp_path)


def make_tum(root: Path, name: str, count: int) -> Path:
    """Colour at 30 Hz from t = 1, depth 5 ms later, poses at 100 Hz but none before t = 1.1."""
    folder = root / f"rgbd_dataset_{name}"
    times = 1 + np.arange(count) / 30
    for i in range(count):
        image(folder / "rgb" / f"{times[i]:.6f}.png", i % 250)
        depth(folder / "depth" / f"{times[i] + 0.005:.6f}.png", 5000 + i)
    text(folder / "rgb.txt", ["# t file", *(f"{t:.6f} rgb/{t:.6f}.png" for t in times)])
    text(
        folder / "depth.txt", [f"{t + 0.005:.6f} depth/{t + 0.005:.6f}.png" for t in times.tolist()]
    )
    write_tum(folder / "groundtruth.txt", straight(np.arange(1.1, times[-1] + 0.1, 0.01)))
    return folder


def test_tum_freiburg1_takes_every_frame(tmp_path: Path) -> None:
    make_tum(tmp_path, "freiburg1_xyz", 12)
    make_tum(tmp_path, "freiburg3_walking_xyz", 4)
    (sequence,) = load("tum-fr1", tmp_path)
    assert sequence.name == "freiburg1_xyz"
    assert sequence.frame_count == 12
    assert sequence.camera is not None
    assert sequence.camera.K[0, 0] == 517.3
    assert len(sequence.camera.distortion) == 5
    read = sequence.depth.get(3)
    assert read is not None
    assert read[0, 0] == pytest.approx(5003 / 5000)


def test_tum_dynamics_takes_90_of_every_third_frame_with_a_pose(tmp_path: Path) -> None:
    make_tum(tmp_path, "freiburg3_walking_static", 300)
    (sequence,) = load("tum-dynamics", tmp_path)
    assert sequence.frame_count == 90
    assert sequence.camera is not None
    assert sequence.camera.distortion == ()
    # The first pose is at 1.1 s: frame 3 (1.1 s) is the first with a partner within 20 ms.
    np.testing.assert_allclose(sequence.timestamps_s[:2], [1.1, 1.2], atol=1e-5)
    read = sequence.depth.get(1)
    assert read is not None
    assert read[0, 0] == pytest.approx(5006 / 5000)


def test_bonn_takes_images_30_to_139(tmp_path: Path) -> None:
    for name in BONN_SEQUENCES:
        folder = tmp_path / f"rgbd_bonn_{name}"
        for i in range(145):
            image(folder / "rgb" / f"{100 + i / 30:.5f}.png")
            depth(folder / "depth" / f"{100 + i / 30:.5f}.png", 5000 + i)
        write_tum(folder / "groundtruth.txt", straight(100 + np.arange(0, 5, 0.01)))
    sequences = load("bonn", tmp_path)
    assert [s.name for s in sequences] == list(BONN_SEQUENCES)
    first = sequences[0]
    assert first.frame_count == 110
    assert first.timestamps_s[0] == pytest.approx(101, abs=1e-4)
    assert first.depth_alignments == ("scale_l1", "scale_shift_l1")
    read = first.depth.get(0)
    assert read is not None
    assert read[0, 0] == pytest.approx(5030 / 5000)


def test_scannet_takes_90_frames_at_stride_3(tmp_path: Path) -> None:
    folder = tmp_path / "scene0707_00"
    for i in range(300):
        image(folder / "color" / f"{i}.jpg")
        depth(folder / "depth" / f"{i}.png", 1000 + i)
        pose = np.eye(4)
        pose[0, 3] = i
        if i == 3:
            pose[:] = -np.inf
        text(folder / "pose" / f"{i}.txt", [" ".join(map(str, row)) for row in pose])
    np.savetxt(
        text(folder / "intrinsic" / "intrinsic_color.txt", [""]), np.diag([900.0, 901, 1, 1])
    )
    (sequence,) = load("scannet", tmp_path)
    assert sequence.frame_count == 90
    assert [p.name for p in sequence.frames[:3]] == ["0.jpg", "3.jpg", "6.jpg"]
    assert sequence.truth is not None
    assert len(sequence.truth) == 89  # frame 3 has no pose
    assert sequence.truth.positions[1, 0] == 6
    assert sequence.camera is not None
    assert sequence.camera.K[1, 1] == 901
    read = sequence.depth.get(2)
    assert read is not None
    assert read[0, 0] == pytest.approx(1.006)


@pytest.mark.parametrize("registered", [True, False])
def test_7scenes_takes_the_test_split(tmp_path: Path, registered: bool) -> None:
    scene = tmp_path / "chess"
    text(scene / "TestSplit.txt", ["sequence3"])
    suffix = "depth.proj.png" if registered else "depth.png"
    for i in range(90):
        stem = scene / "seq-03" / f"frame-{i:06d}"
        image(Path(f"{stem}.color.png"))
        depth(Path(f"{stem}.{suffix}"), 65535 if i == 40 else 2000)
        text(Path(f"{stem}.pose.txt"), [" ".join(map(str, row)) for row in np.eye(4)])
    (sequence,) = load("7scenes", tmp_path)
    assert sequence.name == "chess/seq-03"
    assert sequence.frame_count == 3  # frames 0, 40, 80
    first, invalid = sequence.depth.get(0), sequence.depth.get(1)
    assert first is not None
    assert invalid is not None
    assert first[0, 0] == pytest.approx(2.0)
    assert invalid.max() == 0
    assert ("not registered" in sequence.notes) is not registered
    assert load_named("7scenes", tmp_path, "chess/seq-03").frame_count == 3


def test_nrgbd_turns_opengl_axes(tmp_path: Path) -> None:
    folder = tmp_path / "whiteroom"
    lines = []
    for i in range(201):
        image(folder / "images" / f"img{i}.png")
        depth(folder / "depth" / f"depth{i}.png", 1500)
        pose = np.eye(4)
        pose[:3, 3] = [i, 0, 0]
        if i == 100:
            pose[:] = np.nan
        lines += [" ".join(map(str, row)) for row in pose]
    text(folder / "poses.txt", lines)
    (sequence,) = load("nrgbd", tmp_path)
    assert [p.name for p in sequence.frames] == ["img0.png", "img100.png", "img200.png"]
    assert sequence.truth is not None
    assert len(sequence.truth) == 2
    np.testing.assert_allclose(sequence.truth.world_from_cam[0], np.diag([1.0, -1, -1, 1]))
    np.testing.assert_allclose(sequence.truth.positions[1], [200, 0, 0])


def test_euroc_moves_body_poses_to_the_camera(tmp_path: Path) -> None:
    mav = tmp_path / "MH_01_easy" / "mav0"
    times = [1403636579763555584 + i * 50_000_000 for i in range(4)]
    for t in times:
        image(mav / "cam0" / "data" / f"{t}.png")
    text(mav / "cam0" / "data.csv", ["#timestamp [ns],filename", *(f"{t},{t}.png" for t in times)])
    text(
        mav / "cam0" / "sensor.yaml",
        [
            "T_BS:",
            "  cols: 4",
            "  rows: 4",
            "  data: [0, -1, 0, 0.5, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]",
            "intrinsics: [458.654, 457.296, 367.215, 248.375]",
            "distortion_coefficients: [-0.28, 0.07, 0.0002, 0.00002]",
        ],
    )
    # The body is turned by 180° about z: quaternion (w, x, y, z) = (0, 0, 0, 1).
    text(
        mav / "state_groundtruth_estimate0" / "data.csv",
        ["#timestamp, p, q, v", *(f"{t},{i},2,3,0,0,0,1,0,0,0" for i, t in enumerate(times))],
    )
    (sequence,) = load("euroc", tmp_path)
    assert sequence.name == "MH_01_easy"
    assert sequence.truth is not None
    # T_BS offset (0.5, 0, 0) turned by 180° about z is (-0.5, 0, 0).
    np.testing.assert_allclose(sequence.truth.positions[:2], [[-0.5, 2, 3], [0.5, 2, 3]], atol=1e-9)
    np.testing.assert_allclose(sequence.truth.timestamps_s, sequence.timestamps_s)
    assert sequence.camera is not None
    assert sequence.camera.distortion == (-0.28, 0.07, 0.0002, 0.00002)


def make_sintel(root: Path) -> None:
    tag = np.float32(202021.25).tobytes()
    for name in SINTEL_SEQUENCES:
        for i in (1, 2):
            stem = f"frame_{i:04d}"
            image(root / "training" / "final" / name / f"{stem}.png")
            # World x = 2 is where the camera of frame 2 stands: camera-from-world moves by -2.
            N = np.eye(4)[:3]
            N[0, 3] = -2.0 * (i - 1)
            K = np.diag([600.0, 601, 1])
            path = text(root / "training" / "camdata_left" / name / f"{stem}.cam", [])
            path.write_bytes(tag + K.astype("<f8").tobytes() + N.astype("<f8").tobytes())
            path = text(root / "training" / "depth" / name / f"{stem}.dpt", [])
            size = np.array([W, H], "<i4").tobytes()
            path.write_bytes(tag + size + np.full((H, W), 7, "<f4").tobytes())
        path = text(root / "training" / "flow" / name / "frame_0001.flo", [])
        write_flo(path, np.full((H, W, 2), 3, np.float32))


def test_sintel_has_its_14_sequences(tmp_path: Path) -> None:
    make_sintel(tmp_path)
    sequences = load("sintel", tmp_path)
    assert len(sequences) == 14
    first = sequences[0]
    assert first.name == "alley_2"
    assert first.truth is not None
    np.testing.assert_allclose(first.truth.positions[1], [2, 0, 0])
    assert first.camera is not None
    assert first.camera.K[1, 1] == 601
    read, flow = first.depth.get(1), first.flow.get(0)
    assert read is not None
    assert flow is not None
    assert read[0, 0] == 7
    assert flow[0, 0, 1] == 3
    assert first.flow.get(1) is None
    assert first.max_depth_m == 70


def test_sintel_with_a_damaged_camera(tmp_path: Path) -> None:
    make_sintel(tmp_path)
    path = tmp_path / "training" / "camdata_left" / "cave_2" / "frame_0002.cam"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(EvaluationError, match=r"frame_0002\.cam"):
        load("sintel", tmp_path)


def make_davis(root: Path) -> None:
    for i in range(4):
        image(root / "JPEGImages" / "480p" / "bear" / f"{i:05d}.jpg")
        mask = np.zeros((H, W, 3), np.uint8)
        mask[:2] = [0, 0, 128]  # object 1 in DAVIS's palette is dark red
        mask[2:4] = [0, 128, 0]  # object 2 is dark green
        path = image(root / "Annotations" / "480p" / "bear" / f"{i:05d}.png")
        cv2.imwrite(str(path), mask)


def test_davis_2016_leaves_out_first_and_last(tmp_path: Path) -> None:
    make_davis(tmp_path)
    text(
        tmp_path / "ImageSets" / "480p" / "val.txt",
        [f"/JPEGImages/480p/bear/{i:05d}.jpg /Annotations/480p/bear/{i:05d}.png" for i in range(4)],
    )
    (sequence,) = load("davis-16", tmp_path)
    assert sequence.frame_count == 4
    assert sorted(sequence.masks.paths) == [1, 2]


def test_davis_2017_joins_objects(tmp_path: Path) -> None:
    make_davis(tmp_path)
    text(tmp_path / "ImageSets" / "2017" / "val.txt", ["bear"])
    (sequence,) = load("davis-17", tmp_path)
    mask = sequence.masks.get(0)
    assert mask is not None
    np.testing.assert_array_equal(mask[:, 0], [255, 255, 255, 255, 0, 0])


def test_kitti_odometry_moves_poses_to_the_colour_camera(tmp_path: Path) -> None:
    folder = tmp_path / "sequences" / "05"
    for i in range(3):
        image(folder / "image_2" / f"{i:06d}.png")
    # P2 = K [I | t] with t = (0.06, 0, 0): camera 2 stands 0.06 m to the left of camera 0.
    P2 = np.diag([700.0, 700, 1]) @ np.hstack([np.eye(3), [[0.06], [0], [0]]])
    text(folder / "calib.txt", ["P0: 1 2 3", "P2: " + " ".join(map(str, P2.ravel()))])
    text(folder / "times.txt", ["0", "0.1", "0.2"])
    rows = [np.hstack([np.eye(3), [[0], [0], [i]]]).ravel() for i in range(3)]
    text(tmp_path / "poses" / "05.txt", [" ".join(map(str, row)) for row in rows])
    (sequence,) = load("kitti-odometry", tmp_path)
    assert sequence.name == "05"
    assert sequence.truth is not None
    np.testing.assert_allclose(sequence.truth.positions[1], [-0.06, 0, 1])
    assert sequence.camera is not None
    assert sequence.camera.K[0, 0] == pytest.approx(700)


@pytest.mark.parametrize("raw", ["{drive}", "2011_09_26/{drive}"])
def test_kitti_depth_takes_110_annotated_images(tmp_path: Path, raw: str) -> None:
    drive = "2011_09_26_drive_0002_sync"
    for i in range(5, 120):
        name = f"{i:010d}.png"
        depth(tmp_path / "val" / drive / "proj_depth" / "groundtruth" / "image_02" / name, 256 * 9)
        image(tmp_path / "raw" / raw.format(drive=drive) / "image_02" / "data" / name)
    (sequence,) = load("kitti-depth", tmp_path)
    assert sequence.frame_count == 110
    assert sequence.frames[0].name == "0000000005.png"
    read = sequence.depth.get(0)
    assert read is not None
    assert read[0, 0] == 9


def test_every_protocol_says_when_its_data_is_not_there(tmp_path: Path) -> None:
    for name in PROTOCOLS:
        with pytest.raises(EvaluationError, match=str(tmp_path)):
            load(name, tmp_path)


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(EvaluationError, match="Did you mean 'sintel'"):
        load("sintell", Path("."))


def test_unknown_sequence_of_a_protocol(tmp_path: Path) -> None:
    make_tum(tmp_path, "freiburg1_xyz", 4)
    with pytest.raises(EvaluationError, match="freiburg1_desk"):
        load_named("tum-fr1", tmp_path, "freiburg1_desk")


def test_shared_clips_load(shared_data: Path) -> None:
    """Every shared clip reads; truth, masks and depth have the size and range that they should."""
    folders = [p for p in sorted(shared_data.iterdir()) if (p / "sequence.json").is_file()]
    assert folders
    for folder in folders:
        sequence = load_folder(folder)
        about = json.loads((folder / "sequence.json").read_text())
        assert sequence.frame_count == about["frames"]
        assert (sequence.truth is not None) == bool(about["trajectory"])
        for maps in (sequence.depth, sequence.masks, sequence.flow):
            first = next(iter(sorted(maps.paths)), None)
            read = None if first is None else maps.get(first)
            assert read is None or read.shape[:2] == (about["height"], about["width"])
    assert len(load_folder(shared_data / "flow_pairs").pairs) == 6

"""Scoring of runs: a perfect run scores perfectly, each kind of failure is a row, resuming skips what is done."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from stream4d import cli
from stream4d.errors import EvaluationError
from stream4d.eval import runner
from stream4d.eval.grid import TruthGrid, resize_flow, resize_map
from stream4d.eval.html import html_page
from stream4d.eval.report import text_table
from stream4d.eval.row import ROW_FIELDS, empty_row
from stream4d.eval.runner import Results, code_digest, mean_row, read_results, run_worker
from stream4d.eval.scorer import SequenceScorer
from stream4d.eval.sequence import camera_from, load_folder
from stream4d.eval.trajectory import Trajectory, write_tum
from stream4d.eval.worker import RevisionSink, Spec, score_stream
from stream4d.packets import PosedFrame, PoseRevision
from tests.flow_files import write_flo, write_kitti
from tests.posed import posed_frames
from tests.synthetic import Scene

SCENE = Scene(width=96, height=72, focal=82.0)
COUNT = 8


def write_sequence(folder: Path, scene: Scene = SCENE, count: int = COUNT) -> Path:
    """Write the synthetic room in the layout of a sequence folder."""
    for name in ("frames", "depth", "masks", "flow"):
        (folder / name).mkdir(parents=True)
    times = np.arange(count) * 0.04
    for i in range(count):
        stem = f"{i:06d}.png"
        cv2.imwrite(str(folder / "frames" / stem), scene.rgb(i)[..., ::-1])
        millimetres = np.rint(scene.depth(i) * 1000).astype(np.uint16)
        cv2.imwrite(str(folder / "depth" / stem), millimetres)
        moving = np.where(scene.moving(i), 255, 0).astype(np.uint8)
        cv2.imwrite(str(folder / "masks" / stem), moving)
        if i + 1 < count:
            write_kitti(folder / "flow" / stem, scene.flow(i, i + 1)[0])
    poses = np.stack([scene.world_from_cam(i) for i in range(count)])
    write_tum(folder / "groundtruth.txt", Trajectory(timestamps_s=times, world_from_cam=poses))
    (folder / "timestamps.txt").write_text("\n".join(f"{t:.6f}" for t in times))
    K = scene.K
    about = {
        "name": folder.name,
        "kind": "dynamic",
        "fps": 25,
        "frames": count,
        "depth_scale": 0.001,
        "camera": {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "distortion": []},
    }
    (folder / "sequence.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequence(tmp_path_factory.mktemp("eval") / "room")


def score(folder: Path, frames: list[PosedFrame], sink: RevisionSink | None = None) -> tuple:  # type: ignore[type-arg]
    scorer = SequenceScorer(load_folder(folder), SCENE.info(COUNT), calibrated=True)
    score_stream(frames, scorer, sink or RevisionSink(), lambda n: None)
    return scorer.results()


def test_a_perfect_run_scores_perfectly(folder: Path) -> None:
    row, details = score(folder, posed_frames(COUNT, SCENE))
    assert set(row) == set(ROW_FIELDS)
    assert (row["status"], row["frames"], row["frames_with_pose"]) == ("ok", COUNT, COUNT)
    assert row["ate_m"] == pytest.approx(0, abs=1e-6)
    assert row["rpe_rot_deg"] == pytest.approx(0, abs=1e-3)
    assert row["focal_error_percent"] == pytest.approx(0, abs=1e-9)
    # Ground truth is stored in millimetres and 1/64 px.
    assert row["depth_abs_rel"] < 1e-3
    assert row["depth_delta1"] == 1
    assert row["mask_j"] == 1
    assert row["mask_f"] == 1
    assert row["flow_epe"] < 0.02
    assert row["flow_dis_epe"] > row["flow_epe"]
    assert 0.8 < row["static_share"] < 1
    assert details["metric_scale_error_percent"] == pytest.approx(0, abs=1e-3)
    assert details["depth"]["none"]["abs_rel"] < 1e-3
    assert details["points"]["chamfer_m"] < 2e-3
    assert details["points"]["f_score"] == 1
    # Chaining interpolates flow across edges of depth: a few of the 144 points slip.
    assert details["tracks"]["average_jaccard"] > 0.9


def spoil(frames: list[PosedFrame], how: str) -> list[PosedFrame]:
    """Return a run that is wrong in one way."""
    spoiled = []
    for frame in frames:
        pose = frame.world_from_cam.copy()
        if how == "mirrored":
            flip = np.diag([-1.0, 1, 1])
            pose[:3, 3] = flip @ pose[:3, 3]
            pose[:3, :3] = flip @ pose[:3, :3] @ flip
        changed = {
            "mirrored": {"world_from_cam": pose},
            "depth": {"depth": frame.depth[:, ::-1].copy()},
            "mask": {"motion_prob": 1 - frame.motion_prob},
            "flow": {"flow": None if frame.flow is None else -frame.flow},
            "focal": {"K": frame.K @ np.diag([1.2, 1.2, 1])},
        }[how]
        spoiled.append(dataclasses.replace(frame, **changed))
    return spoiled


@pytest.mark.parametrize(
    ("how", "figure", "least"),
    [
        ("mirrored", "rpe_rot_deg", 1.0),
        ("depth", "depth_abs_rel", 0.1),
        ("flow", "flow_epe", 1.0),
        ("focal", "focal_error_percent", 19.9),
    ],
)
def test_a_wrong_run_scores_as_wrong(folder: Path, how: str, figure: str, least: float) -> None:
    row, details = score(folder, spoil(posed_frames(COUNT, SCENE), how))
    assert row[figure] > least
    if how == "flow":
        assert details["tracks"]["average_jaccard"] < 0.5


def test_a_wrong_mask_scores_as_wrong(folder: Path) -> None:
    row, _ = score(folder, spoil(posed_frames(COUNT, SCENE), "mask"))
    assert row["mask_j"] < 0.05
    assert row["static_share"] < 0.2


def test_untracked_frames_and_cuts_cost_frames_with_pose(folder: Path) -> None:
    frames = posed_frames(COUNT, SCENE)
    frames[2] = dataclasses.replace(frames[2], is_tracked=False)
    frames[7] = dataclasses.replace(frames[7], segment=1)
    row, details = score(folder, frames)
    assert row["frames_with_pose"] == COUNT - 2
    assert details["segments"] == 2
    assert details["poses_compared"] == COUNT - 1


@pytest.mark.parametrize("broken", ["nan", "not rigid", "skipped"])
def test_broken_streams_are_errors(folder: Path, broken: str) -> None:
    frames = posed_frames(COUNT, SCENE)
    pose = frames[3].world_from_cam.copy()
    pose[0, 0] = np.nan if broken == "nan" else 2.0
    if broken == "skipped":
        del frames[3]
    else:
        frames[3] = dataclasses.replace(frames[3], world_from_cam=pose)
    with pytest.raises(EvaluationError, match="frame 3"):
        score(folder, frames)


def test_revisions_replace_poses_and_scale_depth(folder: Path) -> None:
    """A run whose second half came at double scale is mended by a revision."""
    sink = RevisionSink()
    true = posed_frames(COUNT, SCENE)
    doubled = []
    for frame in true:
        factor = 2 if frame.index >= COUNT // 2 else 1
        pose = frame.world_from_cam.copy()
        pose[:3, 3] *= factor
        doubled.append(dataclasses.replace(frame, world_from_cam=pose, depth=frame.depth * factor))
    row_before, _ = score(folder, doubled)
    late = np.arange(COUNT // 2, COUNT)

    def stream():  # type: ignore[no-untyped-def]
        yield from doubled
        sink.revise(
            PoseRevision(
                indices=late,
                world_from_cam=np.stack([true[i].world_from_cam for i in late]),
                scale=np.full(len(late), 0.5),
            )
        )

    scorer = SequenceScorer(load_folder(folder), SCENE.info(COUNT), calibrated=True)
    score_stream(stream(), scorer, sink, lambda n: None)
    row, details = scorer.results()
    assert row_before["ate_m"] > 0.05
    assert row_before["depth_abs_rel"] > 0.1
    assert row["ate_m"] == pytest.approx(0, abs=1e-6)
    assert row["depth_abs_rel"] < 1e-3
    assert details["points"]["chamfer_m"] < 2e-3
    assert details["ate_online_m"] > 0.05


def test_gps_error_in_metres(folder: Path, tmp_path: Path) -> None:
    """GPS of the exact path: no error. The same path with one fix 10 m off: an error of that order."""
    from stream4d.eval.geodesy import from_enu

    sequence = load_folder(folder)
    assert sequence.truth is not None
    times, positions = sequence.timestamps_s, sequence.truth.positions * 100
    errors = []
    for offset in (0.0, 10.0):
        moved = positions.copy()
        moved[4, 0] += offset
        gps = times, from_enu(moved, np.array([48.0, 11.0, 500.0]))
        scorer = SequenceScorer(
            dataclasses.replace(sequence, gps=gps), SCENE.info(COUNT), calibrated=True
        )
        score_stream(posed_frames(COUNT, SCENE), scorer, RevisionSink(), lambda n: None)
        errors.append(scorer.results()[1]["geodesic_error_m"])
    assert errors[0] < 0.01
    assert 1 < errors[1] < 10


class TestGrid:
    CAMERA = camera_from(500, 500, 319.5, 239.5, 0.25, -0.9, 0.0, 0.0, 1.1)

    def test_resizing_keeps_pixel_centres(self) -> None:
        u = np.tile(np.arange(40, dtype=np.float32), (30, 1))
        big = resize_map(u, (60, 80))
        # u_small = (u_big + 0.5) / 2 - 0.5 away from the border
        np.testing.assert_allclose(
            big[30, 2:-2], ((np.arange(80) + 0.5) / 2 - 0.5)[2:-2], atol=1e-5
        )

    def test_flow_scales_by_axis(self) -> None:
        flow = np.ones((30, 40, 2), np.float32)
        np.testing.assert_allclose(resize_flow(flow, (60, 120))[0, 0], [3, 2])

    def test_truth_moves_with_undistorted_frames(self) -> None:
        """What the reader does to an image, the grid does to ground truth, within half a pixel."""
        from stream4d.config import ReaderConfig
        from stream4d.reader.preprocess import Preprocessor

        y, x = np.mgrid[:480, :640]
        marks = np.where((x // 40 + y // 40) % 2 == 0, 255, 0).astype(np.uint8)
        K = self.CAMERA.K
        config = ReaderConfig(
            intrinsics=(K[0, 0], K[1, 1], K[0, 2], K[1, 2]), distortion=self.CAMERA.distortion
        )
        seen = Preprocessor((640, 480), (640, 480), config)(np.repeat(marks[..., None], 3, -1))
        grid = TruthGrid((640, 480), self.CAMERA, calibrated=True)
        moved = grid.truth(marks)
        assert grid.undistorts
        # The image is interpolated, the truth is not: they differ only on the edges of the squares.
        differs = (seen[..., 0] > 127) != (moved > 127)
        assert differs.mean() < 0.01
        assert ((seen[..., 0] > 127) != (marks > 127)).mean() > 0.1
        true_K = grid.truth_K((640, 480))
        reader_K = Preprocessor((640, 480), (640, 480), config).K
        assert true_K is not None
        assert reader_K is not None
        np.testing.assert_allclose(true_K, reader_K)

    def test_rays_follow_the_lens_where_frames_keep_it(self) -> None:
        grid = TruthGrid((640, 480), self.CAMERA, calibrated=False)
        rays = grid.truth_rays((120, 160))
        K = grid.truth_K((160, 120))
        assert rays is not None
        assert K is not None
        distortion = np.array(self.CAMERA.distortion)
        back, _ = cv2.projectPoints(
            rays[::15, ::20].reshape(-1, 1, 3), np.zeros(3), np.zeros(3), K, distortion
        )
        v, u = np.mgrid[:120:15, :160:20]
        expected = np.stack([u, v], axis=-1).reshape(-1, 2)
        np.testing.assert_allclose(back[:, 0], expected, atol=1e-3)

    def test_without_camera_there_are_no_rays(self) -> None:
        grid = TruthGrid((64, 48), None, calibrated=True)
        assert grid.truth_rays((48, 64)) is None
        assert grid.truth_K((64, 48)) is None


def spec(folder: Path, **changes: object) -> Spec:
    base = Spec(dataset=None, root=str(folder), name="room", calibrated=False, config={})
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


class TestProcesses:
    def run(
        self, monkeypatch: pytest.MonkeyPatch, program: str, timeout_s: float = 60
    ) -> dict[str, object]:
        monkeypatch.setattr(runner, "worker_command", lambda spec: [sys.executable, "-c", program])
        frames: list[int] = []
        row, _ = run_worker(
            spec(Path(".")), expected=5, timeout_s=timeout_s, on_frame=lambda: frames.append(1)
        )
        assert len(frames) == 5  # the bar moves on by what the sequence owed
        return row

    def test_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        row = self.run(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        assert row["status"] == "failed"
        assert "SIGKILL (out of memory?)" in str(row["reason"])

    def test_raised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        program = "print('{\"frames\": 1}', flush=True); raise RuntimeError('no luck')"
        row = self.run(monkeypatch, program)
        assert row["status"] == "failed"
        assert row["reason"] == "exit status 1: RuntimeError: no luck"
        assert row["frames"] == 1

    def test_timed_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        row = self.run(monkeypatch, "import time; time.sleep(60)", timeout_s=0.5)
        assert row["reason"] == "took longer than 0.5 s"

    def test_cut_off_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        row = self.run(monkeypatch, "print('{\"row\": {', end='')")
        assert row["status"] == "failed"

    def test_unreadable_video_is_a_failed_row(self, tmp_path: Path) -> None:
        (tmp_path / "video.mp4").write_bytes(b"no video")
        (tmp_path / "timestamps.txt").write_text("0\n1\n")
        row, details = run_worker(spec(tmp_path), expected=2, timeout_s=120)
        assert row["status"] == "failed"
        assert str(row["reason"]).startswith("VideoError")
        assert details == {}


class TestResults:
    def results(self, path: Path | None = None, **changes: object) -> Results:
        arguments: dict[str, object] = {"calibrated": False, "config": {"a": 1}} | changes
        return Results("classical", path=path, **arguments)  # type: ignore[arg-type]

    def test_json_has_the_agreed_form(self, tmp_path: Path) -> None:
        results = self.results(tmp_path / "deep" / "out.json")
        row = empty_row("a", "ok", frames=10) | {"ate_m": 0.5, "fps": float("nan")}
        results.add(row, {"x": {"y": float("inf")}})
        results.add(empty_row("b", "failed", "too bad", 3), {})
        data = json.loads((tmp_path / "deep" / "out.json").read_text())
        assert list(data)[:3] == ["model", "calibrated", "sequences"]
        assert list(data["sequences"][0]) == list(ROW_FIELDS)
        assert data["sequences"][0]["fps"] is None
        assert data["details"]["a"]["x"]["y"] is None
        assert (data["mean"]["sequences"], data["mean"]["failed"]) == (2, 1)
        assert data["mean"]["ate_m"] == 0.5
        assert read_results(tmp_path / "deep" / "out.json") == data

    def test_resume_keeps_finished_rows_of_equal_runs(self, tmp_path: Path) -> None:
        path = tmp_path / "out.json"
        first = self.results(path)
        first.add(empty_row("done", "ok", frames=1), {"k": 1})
        first.add(empty_row("broken", "failed", "x"), {})
        again = self.results(path)
        again.resume()
        assert list(again.rows) == ["done"]
        assert again.details["done"] == {"k": 1}
        for changed in ({"calibrated": True}, {"config": {"a": 2}}):
            other = self.results(path, **changed)
            other.resume()
            assert other.rows == {}

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "out.json"
        for text in ("[]", "{", '{"sequences": [{"name": "a"}]}'):
            path.write_text(text)
            with pytest.raises(EvaluationError, match=r"out\.json"):
                self.results(path).resume()

    def test_code_digest_is_stable(self) -> None:
        assert code_digest() == code_digest()

    def test_mean_of_failures_alone(self) -> None:
        mean = mean_row([empty_row("a", "failed", "x", 4)])
        assert (mean["failed"], mean["frames"], mean["frames_with_pose"]) == (1, 4, 0)
        assert mean["ate_m"] is None

    def test_reports_show_failures(self) -> None:
        results = self.results()
        results.add(empty_row("good", "ok", frames=4) | {"ate_m": 0.1234}, {})
        results.add(empty_row("<bad>", "failed", "killed & gone"), {})
        text = text_table(results.as_dict())
        assert "0.123" in text
        assert "<bad>: killed & gone" in text
        assert "mean of 1/2" in text
        page = html_page(results.as_dict(), "stream4d eval x")
        assert "&lt;bad&gt;: killed &amp; gone" in page
        assert "<bad>" not in page
        assert "http" not in page.split("</style>")[1]  # nothing is loaded from elsewhere


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_sequence(root / "orbit", Scene(), 16)
    pairs = root / "pairs"
    pairs.mkdir()
    for i in range(2):
        for j in range(2):
            cv2.imwrite(str(pairs / f"p{i}-img{j}.png"), Scene().rgb(4 * i + j)[..., ::-1])
        write_flo(pairs / f"p{i}-gt.flo", Scene().flow(4 * i, 4 * i + 1)[0])
    return root


class TestCommand:
    """The command end to end, on 16 rendered frames and two flow pairs, with the model without weights."""

    def test_table_json_plots_and_page(
        self,
        clips: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # Someone may edit the sources while tests run; resuming would then rightly begin anew.
        monkeypatch.setattr(runner, "code_digest", lambda: "fixed")
        out = tmp_path / "out.json"
        flags = ["--model", "classical", "--calibrated", "--json", str(out)]
        command = ["eval", str(clips / "orbit"), str(clips / "pairs"), *flags]
        files = ["--plot", str(tmp_path / "plots"), "--html", str(tmp_path / "page.html")]
        assert cli.main([*command, *files]) == 0
        assert "mean of 2/2" in capsys.readouterr().out
        data = read_results(out)
        orbit, pairs = data["sequences"]
        assert (orbit["status"], orbit["frames"]) == ("ok", 16)
        for figure in ("ate_m", "depth_abs_rel", "mask_j", "flow_epe", "fps", "latency_s"):
            assert orbit[figure] is not None
        assert orbit["focal_error_percent"] == pytest.approx(0, abs=1e-6)
        assert 50 < orbit["peak_rss_mb"] < 4000
        assert pairs["flow_epe"] < 1
        assert pairs["frames_with_pose"] is None
        names = {path.name for path in (tmp_path / "plots").iterdir()}
        assert {"orbit-trajectory.png", "orbit-error.png", "orbit.tum"} <= names
        assert (tmp_path / "page.html").read_text().count("data:image/png;base64,") >= 2

        before = out.read_text()
        assert cli.main([*command, "--resume"]) == 0
        assert out.read_text() == before  # nothing ran again: times would differ

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "nothing to measure"),
            (["absent"], "not a folder"),
            (["--dataset", "sintel"], "belong together"),
            (["--dataset", "sintl", "--root", "."], "Did you mean 'sintel'"),
            (["{orbit}", "--resume"], "--resume needs --json"),
            (["{orbit}", "--timeout", "-1"], "--timeout must be above 0"),
            (["{orbit}", "{orbit}"], "more than one sequence is called orbit"),
            (["{orbit}", "--model", "temporl"], "Did you mean 'temporal'"),
            (["{orbit}", "--json", "{orbit}/sequence.json/x"], "cannot write"),
            (["{orbit}", "--plot", "{orbit}/sequence.json"], "cannot make"),
        ],
    )
    def test_mistakes_are_said_in_one_line(
        self, clips: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [word.format(orbit=clips / "orbit") for word in words]
        assert cli.main(["eval", *words]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1

    def test_a_folder_that_cannot_be_read_is_a_failed_row(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "README.md").write_text("not a sequence")
        out = tmp_path / "out.json"
        paths = [str(tmp_path / name) for name in ("empty", "README.md")]
        assert cli.main(["eval", *paths, "--json", str(out)]) == 1  # nothing was measured
        (row,) = read_results(out)["sequences"]
        assert (row["name"], row["status"]) == ("empty", "failed")
        assert "neither a video nor" in row["reason"]
        assert "mean of 0/1" in capsys.readouterr().out

    def test_interruption_keeps_what_is_done(
        self, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupt(*args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(runner, "run_worker", interrupt)
        assert cli.main(["eval", str(clips / "orbit"), "--model", "classical"]) == 130
        assert "interrupted: 0 of 1 sequences" in capsys.readouterr().out

    def test_benchmarks_are_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["eval", "--list"]) == 0
        assert "kitti-odometry" in capsys.readouterr().out

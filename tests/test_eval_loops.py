"""The table of drift with and without loop closure: its figures on paths whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from stream4d.eval import loop_clips, loops
from stream4d.eval.report import aligned
from stream4d.geometry import transforms
from stream4d.packets import Frame
from tests.synthetic import Scene

SCENE = Scene("orbit", width=96, height=72, focal=82.0)


def clip(n: int = 6) -> loop_clips.LoopClip:
    frames = [SCENE.frame(i) for i in range(n)]
    return loop_clips.LoopClip(
        name="room", frames=frames, truth={i: SCENE.world_from_cam(i) for i in range(n)}
    )


def test_a_clip_comes_back_to_its_first_image() -> None:
    both = loop_clips.there_and_back(clip())
    assert [frame.index for frame in both.frames] == list(range(11))
    for i in range(11):
        np.testing.assert_array_equal(both.frames[i].rgb, both.frames[10 - i].rgb)
        np.testing.assert_array_equal(both.truth[i], both.truth[10 - i])
    assert both.info.frame_count == 11
    assert both.is_mirrored


def test_the_return_is_measured_in_percent_of_the_way_and_degrees() -> None:
    poses = np.tile(np.eye(4), (11, 1, 1))
    poses[:, 0, 3] = [0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0]
    assert loops.return_drift(poses) == (0.0, 0.0)
    turned = poses.copy()
    turned[6:, 1, 3] = 0.05  # all of the way back but its first image, a hundredth aside
    turned[6:, :3, :3] = transforms.so3_exp(np.radians([0.0, 2.0, 0.0]))
    way, turn = loops.return_drift(turned)
    assert way == pytest.approx(1.0 * np.sqrt(5 / 6))
    assert turn == pytest.approx(2.0 * np.sqrt(5 / 6))


def test_the_error_needs_truth_and_knows_no_scale() -> None:
    both = loop_clips.there_and_back(clip())
    poses = np.stack([both.truth[i] for i in range(11)])
    poses[:, :3, 3] *= 3
    assert loops.path_error(poses, both.truth) == pytest.approx(0, abs=1e-6)
    assert loops.path_error(poses, {}) is None


def test_a_run_gives_a_line_and_a_picture() -> None:
    short = loop_clips.there_and_back(clip(4))
    without, with_loops = (
        loops.outcome(short, "classical", loop_closure=on) for on in (False, True)
    )
    line = loops.row(short, without, with_loops)
    text = "\n".join(aligned([loops.HEADINGS, line]))
    assert "room-and-back" in text.splitlines()[1]
    assert without.closed == with_loops.closed == 0
    assert loops.picture(short, without, with_loops).startswith(b"\x89PNG")


def test_the_rendered_orbit_has_true_poses() -> None:
    made = loop_clips.rendered_orbit(frames=3)
    assert len(made.frames) == 3
    assert isinstance(made.frames[0], Frame)
    assert np.abs(made.truth[2][:3, 3]).max() > 0

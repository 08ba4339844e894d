"""What frames cost our own models, and what training data cost: the figures of docs/models.md and docs/training.md.

Processor time of all threads, without what is compiled first:

    OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_bench_models.py --benchmark-only \\
        --benchmark-timer=time.process_time --benchmark-columns=median,rounds
"""

from __future__ import annotations

from pytest_benchmark.fixture import BenchmarkFixture

from stream4d.eval.bench_parts import HEIGHT, WIDTH, clip_frames, dis_pair, model_step
from stream4d.models.dis import dis_flow, grey_image
from stream4d.models.epipolar_sweep import BothWays, mend_hard_pair
from tests.synthetic import Scene

SMALL = (128, 160)
"""Height and width of training data."""


def test_dis_one_way(benchmark: BenchmarkFixture) -> None:
    """OpenCV's DIS on one pair."""
    benchmark(dis_pair())


def test_look_at_an_easy_pair(benchmark: BenchmarkFixture) -> None:
    """DIS returns, so that nothing is searched."""
    first, second = map(grey_image, clip_frames(2))
    flows = BothWays(dis_flow(first, second, "medium"), dis_flow(second, first, "medium"))
    assert benchmark(mend_hard_pair, first, second, flows) is flows


def test_search_of_a_hard_pair(benchmark: BenchmarkFixture) -> None:
    """A walk of half a second at once: most of what DIS says is wrong."""
    scene = Scene("walk", balls=(), width=WIDTH, height=HEIGHT, focal=330.0)
    first, second = (grey_image(scene.rgb(t)) for t in (0, 16))
    flows = BothWays(dis_flow(first, second, "medium"), dis_flow(second, first, "medium"))
    assert benchmark(mend_hard_pair, first, second, flows) is not flows


def test_window_of_classical(benchmark: BenchmarkFixture) -> None:
    """Three new frames, 384×288."""
    benchmark(model_step("classical"))


def test_window_of_temporal(benchmark: BenchmarkFixture) -> None:
    """Three new frames, 384×288."""
    benchmark(model_step("temporal"))


def test_rendered_clip(benchmark: BenchmarkFixture) -> None:
    """Four frames of a training scene."""
    from stream4d.train.scenes import render_clips

    benchmark(render_clips, 0, batch=1, frames=4, size=SMALL)


def test_layered_pair(benchmark: BenchmarkFixture) -> None:
    """Shapes over a moving picture."""
    from stream4d.train.layers import LayeredClips

    clips = LayeredClips()
    benchmark(clips.pair, 0, SMALL)

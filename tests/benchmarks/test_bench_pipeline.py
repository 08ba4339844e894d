"""pytest-benchmark cases: ``make bench``. Skipped in ordinary runs (``--benchmark-skip``)."""

from __future__ import annotations

from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from stream4d.config import ReaderConfig, RunConfig, bundled
from stream4d.eval import bench, bench_parts

CLIP = bundled("recordings", "recordings") / "room_walker.mp4"


def test_decode(benchmark: BenchmarkFixture) -> None:
    """Decode and resize the bundled clip."""
    from stream4d.reader import open_video

    def decode() -> int:
        with open_video(str(CLIP), ReaderConfig()) as reader:
            return sum(1 for _ in reader)

    assert benchmark.pedantic(decode, rounds=3) == 72


def test_model_step(benchmark: BenchmarkFixture) -> None:
    """One window of the default model."""
    benchmark(bench_parts.model_step(RunConfig().model.name))


def test_dis_pair(benchmark: BenchmarkFixture) -> None:
    """DIS on one pair: the unit to compare machines by."""
    benchmark(bench_parts.dis_pair())


def test_bundle_step(benchmark: BenchmarkFixture) -> None:
    """One iteration over 10 keyframes × 96 patches."""
    benchmark(bench_parts.bundle_step())


def test_overlap_alignment(benchmark: BenchmarkFixture) -> None:
    """Robust Sim(3) over one overlap of two windows."""
    benchmark(bench_parts.overlap_alignment())


def test_store_append(benchmark: BenchmarkFixture) -> None:
    """96 frames with all arrays; the figure is for all of them."""
    benchmark.pedantic(bench.store_append_seconds, rounds=3)


def test_pipeline(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """The bundled clip through the whole pipeline, without a store."""
    from stream4d.pipeline import reconstruct

    assert benchmark.pedantic(lambda: sum(1 for _ in reconstruct(CLIP)), rounds=2) == 72

"""Times the whole pipeline, into a store, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stream4d import logs

WARM_UP = 200
"""Frames of the run before the one that is measured: the clip turns after 72, places come back and loops close."""
SPAN, LONG_SPAN = 100, 1000
"""Frames over which early and late ones are compared, in a short and in a long run."""


def run_pipeline(
    frames: int, model: str, resolution: int, *, is_long: bool = False
) -> dict[str, float]:
    """Run it in a process of its own, once, after a short run that compiles the kernels.

    Compiling happens once on a machine, and some of it only when the first loop closes: it would be counted as growth
    (100 MB of LLVM) and as the cost of late frames.
    """
    from stream4d.eval.bench_parts import write_long_video

    options = ["--resolution", str(resolution), *(["--model", model] if model else [])]
    with tempfile.TemporaryDirectory(prefix="stream4d-bench-") as folder:
        video = write_long_video(Path(folder) / "video", frames)
        warm_up = ["stream4d", str(video), "--quiet", "--max-frames", str(WARM_UP)]
        _run([*warm_up, "--out", f"{folder}/warm-up.zarr", *options])
        worker = ["stream4d.eval.bench_pipeline", str(video), model, str(resolution)]
        told = _run([*worker, str(LONG_SPAN if is_long else SPAN)])
    result: dict[str, float] = json.loads(told.splitlines()[-1])
    return result


def _run(module: list[str]) -> str:
    command = [sys.executable, "-m", *module]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure_pipeline(folder: str, model: str, resolution: int, span: int) -> dict[str, float]:
    """Run the whole pipeline into a store, in this process, and return rates and memory.

    Frames come in bursts of a window: times are read over spans of frames, the first from frame 100 on.
    """
    from numba.core import event

    from stream4d.config import ModelConfig, ReaderConfig, RunConfig
    from stream4d.eval.process import peak_rss_mb, rss_mb
    from stream4d.pipeline import Reconstruction

    config = RunConfig(reader=ReaderConfig(resolution=resolution))
    if model:
        config = dataclasses.replace(config, model=ModelConfig(name=model))
    wall: list[float] = []
    cpu: list[float] = []
    early_mb = 0.0
    out = Path(folder).with_name("store.zarr")
    compiling = event.RecordingListener()
    with (
        event.install_listener("numba:compile", compiling),
        Reconstruction(folder, config, out=out, overwrite=True) as run,
    ):
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
        for frame in run:
            wall.append(time.perf_counter())
            cpu.append(time.process_time())
            if frame.index == (100 if span == SPAN else 100 + span):
                early_mb = rss_mb()
    count = len(wall) - 1
    first, last = (100, 100 + span), (count - 10 - span, count - 10)
    return {
        "fps": count / (wall[-1] - wall[0]),
        "peak_mb": peak_rss_mb(),
        "early_mb": early_mb,
        "end_mb": rss_mb(),
        "early_s": wall[first[1]] - wall[first[0]],
        "late_s": wall[last[1]] - wall[last[0]],
        "early_cpu_s": cpu[first[1]] - cpu[first[0]],
        "late_cpu_s": cpu[last[1]] - cpu[last[0]],
        "compiled": sum(each.is_start for _, each in compiling.buffer),
    }


if __name__ == "__main__":
    video, name, pixels, frames = sys.argv[1:]
    logs.show(json.dumps(measure_pipeline(video, name, int(pixels), int(frames))))

"""Show again what was stored: frames of a store in the pace of the video, or a Rerun recording."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from stream4d.config import ViewConfig
from stream4d.errors import ConfigError, Stream4DError
from stream4d.packets import PosedFrame, VideoInfo
from stream4d.viz.rerun_sink import RerunSink
from stream4d.viz.viewer_process import start_native, start_web


def replay(
    frames: Iterable[PosedFrame],
    info: VideoInfo,
    config: ViewConfig,
    *,
    name: str = "",
    speed: float = 1.0,
    overwrite: bool = False,
    hold: bool = True,
) -> None:
    """Show every frame, at ``speed`` times the pace of the video (0: as fast as the viewer takes them).

    Writing only a recording (``config.mode`` "none") does not wait for the pace.

    Args:
        frames: in order of index.
        info: the source, for its name.
        config: where to show it.
        name: what the viewer calls it; default: the name of the source.
        speed: see above.
        overwrite: replace an existing recording file.
        hold: keep a web view up until the user interrupts; False ends it after the last frame.

    Raises:
        ConfigError: nothing to show on, or a negative speed.
        Stream4DError: the view cannot be opened, or the recording cannot be written.
    """
    if not 0 <= speed < float("inf"):
        raise ConfigError(f"speed must be 0 (as fast as possible) or more, got {speed}")
    if config.mode == "none" and not config.save_rrd:
        raise ConfigError("nothing to replay on: choose `--view native|web` or `--save-rrd FILE`")
    if config.mode != "none" and speed > 0:
        frames = paced(frames, speed)
    name = name or Path(info.source).stem or info.source
    with RerunSink(config, name, overwrite=overwrite, drop=False) as sink:
        for frame in frames:
            sink.write(frame)
    if hold:
        sink.wait()
    sink.close()


def paced(frames: Iterable[PosedFrame], speed: float) -> Iterator[PosedFrame]:
    """Yield each frame when its time has come; a late frame is yielded at once and moves the clock.

    A stall (a slow disk, a viewer that starts) so delays the rest instead of making it race.
    """
    start_ns: int | None = None
    for frame in frames:
        now_ns = time.monotonic_ns()
        offset_ns = int(frame.timestamp_ns / speed)
        if start_ns is None or start_ns + offset_ns < now_ns:
            start_ns = now_ns - offset_ns
        time.sleep((start_ns + offset_ns - now_ns) / 1e9)
        yield frame


def open_recording(
    path: str | Path, *, mode: str = "native", host: str = "127.0.0.1", port: int = 9090
) -> None:
    """Open an ``.rrd`` file in the native viewer, or serve it as a web page until the user interrupts.

    Raises:
        ConfigError: ``mode`` is neither "native" nor "web".
        Stream4DError: not a recording, no display, port taken, or the viewer cannot start.
    """
    path = Path(path)
    _check_recording(path)
    if mode == "native":
        start_native([path]).detach()
    elif mode == "web":
        viewer = start_web(host, port, [path])
        with contextlib.suppress(KeyboardInterrupt):
            viewer.wait()
        viewer.close()
    else:
        raise ConfigError(
            f"nothing to show the recording on: --view must be native or web, got {mode}"
        )


def _check_recording(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise Stream4DError(f"cannot open the recording {path}: {error.strerror}") from None
    if magic != b"RRF2":
        raise Stream4DError(f"{path} is not a Rerun recording (it begins with {magic!r})")

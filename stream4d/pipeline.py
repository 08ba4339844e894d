"""The whole program: reader → sliding window → model session → pose chain → sinks."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from threadpoolctl import threadpool_limits

from stream4d import config as settings
from stream4d.config import RunConfig
from stream4d.devices import usable
from stream4d.errors import ConfigError, StoreError
from stream4d.models.base import PointmapModel, Rehearses, Session
from stream4d.models.registry import create_model, model_card
from stream4d.packets import PosedFrame, Sink, State
from stream4d.pose.chain import PoseChain
from stream4d.pose.rehearsal import LOOP_STEPS
from stream4d.pose.tracks import PointTracker
from stream4d.predicting import predict
from stream4d.reader import open_video
from stream4d.reader.base import VideoReader
from stream4d.reader.windows import sliding_windows
from stream4d.rehearsal import Rehearsal
from stream4d.store.reader import open_store
from stream4d.store.writer import StoreWriter

if TYPE_CHECKING:
    from stream4d.viz.rerun_sink import RerunSink


class Reconstruction:
    """One run over one source: a context manager that yields posed frames as they are ready.

    ::

        with Reconstruction("video.mp4", out="video.zarr") as run:
            for frame in run:
                print(frame.index, frame.world_from_cam)

    Args:
        source: video file, folder or glob of images, ``webcam``, or a stream URL.
        config: settings; None takes the defaults.
        out: path of the zarr store to write, or None for no store.
        model: a model that is already built, or None to build ``config.model``.
        sinks: more receivers of the posed frames. They are opened and closed with the run.
        overwrite: replace an existing store at ``out``.
        resume: go on with an unfinished store at ``out``.

    Raises:
        VideoError, ModelError, StoreError, ConfigError: on entering or while iterating.
        StoreCompleteError: ``resume`` finds that there is nothing left to do.
    """

    def __init__(
        self,
        source: str | Path,
        config: RunConfig | None = None,
        *,
        out: str | Path | None = None,
        model: PointmapModel | None = None,
        sinks: Iterable[Sink] = (),
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        self.source = str(source)
        self.config = config or RunConfig()
        self.out = out
        self._given_model = model
        self._extra_sinks = tuple(sinks)
        self._overwrite, self._resume = overwrite, resume
        self.store: StoreWriter | None = None
        self.view: RerunSink | None = None
        self._stack = ExitStack()
        self._stopped = self._finished = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            _prepare_process(self.config)
            # The chain's matrices are small: a second BLAS thread mostly waits, and takes a core from the others.
            stack.enter_context(threadpool_limits(1, user_api="blas"))
            self.reader: VideoReader = stack.enter_context(
                open_video(self.source, self.config.reader)
            )
            self.info = self.reader.info
            # Before the model, which may take minutes to load: a target that is taken is told at once.
            self.store = self._new_store()
            self.model = self._given_model or _build_model(self.config)
            self.session: Session = stack.enter_context(self.model.session(self.info))
            self.chain = PoseChain(self.config.chain, self.info)
            self.tracker = PointTracker(self.config.tracks, self.info)
            self._rehearsal = Rehearsal(_late_steps(self.config, self.session))
            stack.callback(self._rehearsal.stop)
            self.size, self.overlap = _window_shape(self.config, self.model)
            self.sinks = [stack.enter_context(sink) for sink in self._open_sinks()]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.store is not None and not self._finished:
            self.store.leave_unfinished()
        self._stack.__exit__(exc_type, exc, traceback)

    def __iter__(self) -> Iterator[PosedFrame]:
        next_frame, next_window = self._restore()
        frames = self.reader.frames_from(next_frame)
        windows = sliding_windows(frames, self.size, self.overlap, first_window=next_window)
        steps = predict(self.session, windows)
        self._stack.callback(steps.close)
        for window, prediction, session_state in steps:
            self.tracker.follow(window, prediction)
            for frame in self._emit(self.chain.extend(window, prediction)):
                yield frame
                self._rehearsal.start()  # not before: what the first frame needs comes first
            next_frame = window.frames[-1].index + 1 - self.overlap
            self._commit(next_frame, window.index + 1, session_state)
            if self._stopped:
                break
        self._finished = not self._stopped or self.info.is_live
        if self._finished:
            yield from self._emit(self.chain.finish())

    def stop(self) -> None:
        """End after the window in hand. A live source finishes its store; a file's can be resumed."""
        self._stopped = True

    @property
    def is_finished(self) -> bool:
        """True once the source has ended, or a live one was stopped: nothing is left to resume."""
        return self._finished

    @property
    def first_frame(self) -> int:
        """Index of the first frame to be yielded: above 0 where a store is resumed from a snapshot."""
        point = self.store.resume_point if self.store else None
        return point.snapshot_frames if point else 0

    def _new_store(self) -> StoreWriter | None:
        if self.out is None:
            return None
        model = self._given_model
        card = model.card if model is not None else model_card(self.config.model.name)
        return StoreWriter(
            self.out,
            info=self.info,
            config=settings.dump(self.config),
            card=dataclasses.asdict(card),
            store_config=self.config.store,
            overwrite=self._overwrite,
            resume=self._resume,
        )

    def _open_sinks(self) -> Iterator[Sink]:
        if self.store is not None:
            yield self.store
        if self.config.view.mode != "none" or self.config.view.save_rrd:
            from stream4d.viz.rerun_sink import RerunSink

            start_ns = self.reader.clock_start_ns
            self.view = RerunSink(
                self.config.view,
                Path(self.source).stem or self.source,
                overwrite=self._overwrite,
                earlier=self._earlier_frames(),
                clock=None if start_ns is None else start_ns.__add__,
            )
            yield self.view
        yield from self._extra_sinks

    def _earlier_frames(self) -> Sequence[PosedFrame]:
        """Return the frames before the first to be yielded, as they were stored."""
        if self.out is None or not self.first_frame or self.config.store.maps == "none":
            return ()
        return open_store(self.out)[: self.first_frame]

    def _emit(self, frames: Iterable[PosedFrame]) -> Iterator[PosedFrame]:
        for frame in map(self.tracker.attach, frames):
            for sink in self.sinks:
                sink.write(frame)
            yield frame
        for revision in self.chain.revisions():
            for sink in self.sinks:
                sink.revise(revision)

    def _commit(
        self, next_frame: int, next_window: int, session_state: Callable[[], State]
    ) -> None:
        def resume_state() -> State:
            return {
                "next": np.array([next_frame, next_window]),
                **{f"session.{name}": value for name, value in session_state().items()},
                **{f"chain.{name}": value for name, value in self.chain.state().items()},
                **{f"tracks.{name}": value for name, value in self.tracker.state().items()},
            }

        for sink in self.sinks:
            sink.commit(resume_state)

    def _restore(self) -> tuple[int, int]:
        """Return the frame and window to begin with; on resume, those after the last snapshot.

        Raises:
            StoreError: the snapshot does not fit this version's memories.
        """
        point = self.store.resume_point if self.store else None
        if point is None:
            return 0, 0
        try:
            self.session.restore(_part(point.state, "session."))
            self.chain.restore(_part(point.state, "chain."))
            self.tracker.restore(_part(point.state, "tracks."))
            next_frame, next_window = (int(value) for value in point.state["next"])
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise StoreError(
                f"{self.out} was left by another version of stream4d, which remembered other things "
                f"({type(error).__name__}: {error}): finish it with that version, or give --overwrite"
            ) from error
        return next_frame, next_window


def reconstruct(
    source: str | Path,
    config: RunConfig | None = None,
    *,
    out: str | Path | None = None,
    model: PointmapModel | None = None,
    sinks: Sequence[Sink] = (),
    overwrite: bool = False,
    resume: bool = False,
) -> Iterator[PosedFrame]:
    """Yield every frame of ``source`` placed in the world, as soon as its pose is settled.

    Takes the arguments of ``Reconstruction`` and raises what it raises.
    """
    with Reconstruction(
        source, config, out=out, model=model, sinks=sinks, overwrite=overwrite, resume=resume
    ) as run:
        yield from run


def _prepare_process(config: RunConfig) -> None:
    """Seed what is random and set how many threads the libraries use."""
    random.seed(config.seed)
    np.random.seed(config.seed)
    import cv2

    cv2.setRNGSeed(config.seed)
    if config.threads:
        import numba
        import torch

        cv2.setNumThreads(config.threads)
        torch.set_num_threads(config.threads)
        numba.set_num_threads(min(config.threads, os.cpu_count() or 1))


def _build_model(config: RunConfig) -> PointmapModel:
    chosen = config.model
    for name in ("name", "weights", "device"):
        if name in chosen.options:
            raise ConfigError(f"model.options.{name} is no option of the model: set model.{name}")
    has_network = model_card(chosen.name).parameters_m > 0
    device = usable(chosen.device, has_network=has_network)
    return create_model(chosen.name, weights=chosen.weights, device=device, **chosen.options)


def _late_steps(config: RunConfig, session: Session) -> list[Callable[[], None]]:
    """Return what a run may come to need late, on the least of data."""
    steps = [session.rehearse] if isinstance(session, Rehearses) else []
    return [*steps, *(LOOP_STEPS if config.chain.loop_closure else ())]


def _window_shape(config: RunConfig, model: PointmapModel) -> tuple[int, int]:
    size = config.window.size or model.card.window
    overlap = config.window.overlap if config.window.overlap >= 0 else model.card.overlap
    if overlap >= size:
        raise ConfigError(
            f"window overlap {overlap} must be smaller than its size {size}: "
            f"give --window {overlap + 1} or more, or a smaller --overlap"
        )
    return size, overlap


def _part(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

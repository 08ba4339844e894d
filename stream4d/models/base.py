"""What every model offers: a card that describes it, and sessions that turn windows into predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from stream4d.packets import Prediction, State, VideoInfo, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a user should know of a model before running it."""

    name: str
    """Registry name, e.g. ``dust3r``."""
    summary: str
    """One line: what it is."""
    paper: str
    """Title, authors, year, or "" where there is none."""
    weights_licence: str
    """SPDX identifier or name of the licence of the *weights*; "none needed" where there are no weights."""
    is_commercial_ok: bool
    """False where the weights' licence forbids commercial use."""
    resolution: str
    """The rule for the size the network works at, e.g. "long side 512, multiples of 16"."""
    is_metric: bool
    """True where it predicts metres."""
    streaming: Literal["native", "windows", "pairs"]
    """How it streams: own memory, chunks aligned in Sim(3), or pairs."""
    window: int
    """Default frames per window."""
    overlap: int
    """Default frames shared by neighbouring windows."""
    parameters_m: float = 0.0
    """Millions of parameters."""
    hub_id: str | None = None
    """Hugging Face repository of the public weights."""
    needs_weights: bool = True
    """False for models without weights or with weights inside the package."""


class Session(Protocol):
    """The streaming memory of one run. Its size does not grow with the video."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def step(self, window: Window) -> Prediction:
        """Predict one window; windows come in order."""

    def state(self) -> State:
        """Return what ``restore`` needs to go on from here."""

    def restore(self, state: State) -> None:
        """Go on from an earlier ``state``."""


@runtime_checkable
class RunsAhead(Protocol):
    """A session that can keep its state at little cost while it goes on: the pipeline runs it a window ahead."""

    def snapshot(self) -> Callable[[], State]:
        """Return a function that gives the state as it is now, whatever the session does meanwhile."""


@runtime_checkable
class Rehearses(Protocol):
    """A session that may need kernels late in a run: the pipeline has them compiled early, in a thread."""

    def rehearse(self) -> None:
        """Call those kernels once, on little."""


class PointmapModel(Protocol):
    """Weights and architecture, shared by any number of sessions."""

    card: ModelCard

    def session(self, info: VideoInfo) -> Session:
        """Open the memory for one video."""

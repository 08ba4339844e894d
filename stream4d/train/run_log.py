"""What a run tells: means of the losses, to the log and to TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stream4d.errors import MissingDependencyError

logger = logging.getLogger(__name__)


class RunLog:
    """Averages terms between lines; writes them to the log and to TensorBoard. Other ranks stay silent."""

    def __init__(self, out: Path, rank: int) -> None:
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._writer = _tensorboard(out) if rank == 0 else None
        self._rank = rank
        self._since = time.monotonic()
        self.brief = ""
        """The means of the last line, in a few words."""

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name].append(float(value))

    def write(self, step: int, extra: Mapping[str, float]) -> None:
        means = {k: float(np.mean(v)) for k, v in self._sums.items()} | dict(extra)
        self._sums.clear()
        if self._rank != 0:
            return
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        line = "  ".join(f"{k} {v:.4g}" for k, v in means.items())
        logger.info("step %d (%.1f s): %s", step, seconds, line)
        if "total" in means:
            self.brief = f"loss {means['total']:.3g}, flow {means['epe']:.2f} px"
        if self._writer is not None:
            for name, value in means.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()


def _tensorboard(out: Path) -> Any:
    with contextlib.suppress(MissingDependencyError):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependencyError(
                "tensorboard", needed_for="the training log", extra="train"
            ) from None
        return SummaryWriter(str(out))
    logger.warning("tensorboard is not installed: losses go to the log only")
    return None

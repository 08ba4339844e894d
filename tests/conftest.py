"""Fixtures that every test can ask for."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from stream4d.train.clip import ClipBatch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared evaluation clips; skips where it is absent (a user's clone)."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the shared evaluation clips are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Folder of golden files of the foreign models; skips where it is absent."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("the golden files are not beside this checkout")
    return folder


@pytest.fixture(autouse=True)
def _restore_random_state() -> Iterator[None]:
    """Give every test the same randomness, and leave none behind."""
    random.seed(0)
    np.random.seed(0)
    yield
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Take back what the command line sets up for log lines, which would show in later tests."""
    logger = logging.getLogger("stream4d")
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], level = before
    logger.setLevel(level)


@pytest.fixture(scope="session")
def still_clip() -> ClipBatch:
    """A rendered clip in which nothing moves."""
    from tests.dataset_folders import render

    return render(1, static=True)


@pytest.fixture(scope="session")
def moving_clip() -> ClipBatch:
    """A rendered clip with movers."""
    from tests.dataset_folders import render

    return render(2, static=False)

"""Run chosen tests once more in plain Python: what numba's compiler hides (bounds, types) shows there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run_without_compilation(file: str, chosen: str) -> None:
    """Run the tests of ``file`` that ``pytest -k`` chooses with compilation off; fails as they fail.

    Skips inside that inner run, so that it does not start another.
    """
    if os.environ.get("NUMBA_DISABLE_JIT"):
        pytest.skip("this is the inner run")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, "-k", chosen],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:]

"""What the operating system says of this process."""

from __future__ import annotations

import sys
from pathlib import Path

KB = 1024 / 1e6
"""A kilobyte of the kernel's, in MB."""


def peak_rss_mb() -> float:
    """Return this process's peak resident memory, MB (10⁶ bytes).

    On Linux from ``VmHWM``: ``ru_maxrss`` would inherit the peak of the parent through fork and exec.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * KB
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * KB


def rss_mb() -> float:
    """Return this process's resident memory now, MB; its peak where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return float(line.split()[1]) * KB
    return peak_rss_mb()

"""What the operating system says of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_rss_mb() -> float:
    """Return this process's peak resident memory, MB.

    On Linux from ``VmHWM``: ``ru_maxrss`` would inherit the peak of the parent through fork and exec.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def rss_mb() -> float:
    """Return this process's resident memory now, MB; its peak where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return float(line.split()[1]) / 1024
    return peak_rss_mb()

"""The peak memory of this process. It imports no jax, so that a peer's process does not either."""

from __future__ import annotations

import pathlib
import resource
import sys


def peak_mb() -> float:
    """Returns the peak resident memory of this process in MB.

    On Linux, `ru_maxrss` includes the memory of the parent at the fork, so /proc is read first.
    """
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        kilobytes = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kilobytes = peak / 1024 if sys.platform == "darwin" else peak
    return kilobytes / 1024

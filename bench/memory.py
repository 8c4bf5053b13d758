"""How much memory a call takes at its peak: the kernel's own count (Linux), the same for every framework."""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["megabytes"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def megabytes(function: Callable[[], Any]) -> float:
    """Peak of resident memory during a call, less what was resident in front of it; NaN where the system has no count.

    Freed memory that the allocator keeps is given back first, or the next call would seem to need none.
    """
    if not sys.platform.startswith("linux"):
        return float("nan")
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # musl
        return float("nan")
    try:
        _CLEAR.write_text("5")  # resets the peak (proc(5))
    except OSError:
        return float("nan")
    before = _resident("VmRSS")
    result = function()
    peak = _resident("VmHWM")
    del result
    return max(peak - before, 0) / 1024


def _resident(name: str) -> int:
    """A line of /proc/self/status, in kilobytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1])

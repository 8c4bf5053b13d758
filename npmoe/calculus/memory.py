"""Keep freed memory: the one place where the C allocator is spoken to."""

import ctypes
import sys
from functools import cache

__all__ = ["keep_heap"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h


@cache
def keep_heap() -> bool:
    """Tell glibc's malloc, once a process, not to hand freed blocks back to the system.

    A layer of half a megabyte an array allocates and frees the same blocks at every step. By default glibc unmaps
    them, and touching them again costs a page fault for every 4 KB, which can be more than the arithmetic on it.
    ``fit`` and ``Factored.leading`` call this; other allocators are left alone.

    Returns
    -------
    bool : whether the allocator took both settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    # 32 MB is the largest mmap threshold that glibc takes
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20)) and bool(mallopt(_M_TRIM_THRESHOLD, 256 << 20))

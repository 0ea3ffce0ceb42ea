"""Memory that the kernel reads from end to end: whole lines, large pages.

With pages of 4 KB a processor looks up an address for every 64 lines; with pages of 2 MB a matrix of 60 MB is
read a tenth faster. So arrays are cut out of regions that ask the system for large pages.

    >>> memory = Memory(); memory.take(1000).ctypes.data % 64
    0
"""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Of every array, in bytes: a cache line, a register."""
REGION_BYTES = 64 << 20
"""Asked for at a time; a page of it counts once it is written."""


class Memory:
    """Hands out arrays of zeros; a region lives as long as any array in it."""

    def __init__(self) -> None:
        self._region: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used = 0

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Zeros, aligned.

        Raises:
            MemoryError: the system has no such room.
        """
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        if start + num_bytes > len(self._region):
            self._region, start = _region(max(num_bytes, REGION_BYTES)), 0
        self._used = start + num_bytes
        return self._region[start : self._used]


def _region(num_bytes: int) -> NDArray[np.uint8]:
    try:
        pages = mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"{num_bytes} bytes: {error}") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            pages.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a system without them
    return np.frombuffer(pages, np.uint8)  # writable, as the mapping is

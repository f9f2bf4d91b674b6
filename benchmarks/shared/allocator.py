"""Memory that stays with the process: one of the speed steps, which the book's own runs go without."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator

# Options of glibc's mallopt (malloc.h), each with the value that keeps memory and the usual one. The usual
# threshold is where glibc's own adjustment ends; the first call of mallopt stops that adjustment.
_KEEPING = {"M_TRIM_THRESHOLD": (-1, -1, 64 << 20), "M_MMAP_MAX": (-4, 0, 65_536)}
_keeping, _keeping_lock = 0, threading.Lock()


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """In the block, memory that is freed stays with the process; what is free goes back when it ends.

    A training step frees what the next one asks for. glibc gives large pieces back to the system at once, and
    each comes again as empty pages that must be cleared at their first touch. That costs a few per cent of a
    small model's step on a quiet CPU, and more where other processes clear pages too. Blocks may be nested.
    Without glibc, or with another allocator, nothing happens.
    """
    global _keeping
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        yield
        return
    with _keeping_lock:
        _keeping += 1
        for option, keep, _ in _KEEPING.values():
            library.mallopt(option, keep)
    try:
        yield
    finally:
        with _keeping_lock:
            _keeping -= 1
            if not _keeping:
                for option, _, usual in _KEEPING.values():
                    library.mallopt(option, usual)
                library.malloc_trim(0)

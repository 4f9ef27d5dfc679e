"""Keeps some of the memory that a training step frees for the next one.

A step of a convolutional network takes and frees tens of megabytes. The C library
hands such blocks back to the operating system at once, and the next step gets them
anew, page by page, each zeroed first: on a virtual machine that can take longer than
the arithmetic. PyTorch's tuning guide therefore has CPU users load another allocator;
glibc's own does as well, once it is told to keep some of what it has.

Keeping all of it is as fast and costs memory: texts of many lengths leave holes of many
sizes. One training of `recipes/bert.py` on PyTorch, 300 texts on one thread, took 91 s
and 5.5 GB keeping all, 94 s and 2.9 GB within the limits below, and 154 s and 2.3 GB by
glibc's own.
"""

import ctypes
import os
import sys

# Names and numbers from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# What is free at the end of the heap stays, up to this many bytes.
KEPT = 512 * 2**20
# Larger blocks are handed back at once. It is the most that glibc allows.
LARGEST_KEPT_BLOCK = 32 * 2**20


def keep_freed_memory() -> bool:
    """Has glibc keep half a gigabyte of freed memory, until the process ends.

    Recipes call it; call it yourself before a long training in your own program. Set
    any of glibc's environment variables for its allocator, such as
    `MALLOC_TRIM_THRESHOLD_`, to have it left as it is.

    Returns:
        Whether anything changed: `False` where the C library isn't glibc, or an
        environment variable says what its user wants.
    """
    if not sys.platform.startswith("linux") or any(
        name.startswith("MALLOC_") for name in os.environ
    ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(
        mallopt(M_TRIM_THRESHOLD, KEPT)
        and mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK)
    )

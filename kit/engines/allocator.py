"""Keeps the memory that a training step frees for the next one.

A step of a convolutional network takes and frees tens of megabytes. The C library
hands such blocks back to the operating system at once, and the next step gets them
anew, page by page, each zeroed first: on a virtual machine that can take longer than
the arithmetic. PyTorch's tuning guide therefore has CPU users load another allocator;
glibc's own does as well, once it is told to keep what it has.
"""

import ctypes
import os
import sys

# Names and numbers from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Has glibc keep freed memory for this process, until it ends.

    Recipes call it; call it yourself before a long training in your own program. The
    process holds on to the most that it ever needed. Set any of glibc's
    environment variables for its allocator, such as `MALLOC_TRIM_THRESHOLD_`, to
    have it left as it is.

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
    # Never give back the end of the heap; take large blocks from the heap too.
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT) and mallopt(M_MMAP_MAX, 0))

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the process asks of the machine: threads for compiled loops and linear algebra, and memory."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
LARGEST_INT = 2**31 - 1
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next allocation instead of giving it back to the system.

    Batches come and go as arrays of megabytes, each of which the system would clear page by page: a sixth of the
    processor time of a reconstruction. Nothing happens where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def available_cores() -> int:
    """Cores that this process may use, which on a cluster can be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def use_threads(count: int, sharers: int = 1) -> int:
    """Set the number of threads of Numba and of BLAS for the whole process.

    Parameters
    ----------
    count
        Threads; 0 takes all cores. More than there are cores is cut to the cores: it would only be slower.
    sharers
        Processes that share these cores alike.

    Returns
    -------
    int
        The number in use, to be passed on to what takes a number (``scipy.fft``'s workers).
    """
    import numba
    import threadpoolctl

    cores = available_cores()
    threads = min(count, cores) if count > 0 else max(1, cores // sharers)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    threadpoolctl.threadpool_limits(limits=threads)
    for variable in VARIABLES:  # for libraries that are loaded later
        os.environ[variable] = str(threads)
    return threads

# SPDX-License-Identifier: GPL-3.0-or-later
"""How many threads the compiled loops and the linear algebra use."""

from __future__ import annotations

import os

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def available_cores() -> int:
    """Cores that this process may use, which on a cluster can be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def use_threads(count: int) -> int:
    """Set the number of threads of Numba and of BLAS for the whole process.

    Parameters
    ----------
    count
        Threads; 0 takes all cores. More than there are cores is cut to the cores: it would only be slower.

    Returns
    -------
    int
        The number in use, to be passed on to what takes a number (``scipy.fft``'s workers).
    """
    import numba
    import threadpoolctl

    cores = available_cores()
    threads = min(count, cores) if count > 0 else cores
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    threadpoolctl.threadpool_limits(limits=threads)
    for variable in VARIABLES:  # for libraries that are loaded later
        os.environ[variable] = str(threads)
    return threads

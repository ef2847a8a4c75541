# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this process is one of several that a launcher (``mpirun``, ``srun``) has started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sparsecv.engine.errors import InputError
from sparsecv.engine.ranks.comm import ALONE, Comm

# Number of processes, as Open MPI, MPICH and its relatives, and MVAPICH tell them. Slurm sets its own for any batch
# script, too: it counts only beside PMIx or PMI2, by which srun starts MPI programs.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
OPEN_MPI = "libmpi.so.40"  # of versions 2 to 5; the launcher, or its module, has made it known to the loader
RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK")


def launched(environment: Mapping[str, str] = os.environ) -> int:
    """Number of processes that the launcher has started, 1 without a launcher."""
    found = [environment[name] for name in SIZES if environment.get(name, "").isdigit()]
    if "PMIX_RANK" in environment or "PMI_RANK" in environment:
        found.append(environment.get("SLURM_STEP_NUM_TASKS", ""))
    return max((int(text) for text in found if text.isdigit()), default=1)


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the process that speaks for all while they do not know of each other: rank 0, or the only one."""
    ranks = [environment[name] for name in RANKS if name in environment]
    return launched(environment) < 2 or not ranks or ranks[0] == "0"


def failure(status: int, line: str) -> None:
    """End this process, and all that it has joined, because of a failure here; returns where it has joined none."""
    if _JOINED:
        _JOINED[0].fail(status, line)


def join(environment: Mapping[str, str] = os.environ) -> Comm:
    """The ranks that were started together; the same one at each call.

    Raises
    ------
    InputError
        Where several processes were started that cannot find each other: each would do all of the work, and write the
        same files.
    """
    count = launched(environment)
    if count < 2:
        return ALONE
    if not _JOINED:
        _JOINED.append(_by_mpi(count))
    return _JOINED[0]


_JOINED: list[Comm] = []


def _by_mpi(count: int) -> Comm:
    remedy = "pip install 'mpi4py>=4' into sparsecv's environment, and 'mpich' where the system has no MPI"
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        # mpi4py prefers the MPICH of its own environment, which Open MPI's launcher cannot start
        os.environ.setdefault("MPI4PY_LIBMPI", OPEN_MPI)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(f"{count} processes were started, but mpi4py cannot be used ({error})", item="mpirun",
                         rule="mpi4py and the MPI of the launcher", remedy=remedy) from error
    from sparsecv.engine.ranks.mpi import MpiComm
    from sparsecv.engine.ranks.watch import Watch

    world: Any = MPI.COMM_WORLD
    if world.Get_size() != count:
        library = " ".join(MPI.Get_library_version().split()[:4]).rstrip(",")
        raise InputError(
            f"{count} processes were started, but mpi4py's MPI sees {world.Get_size()}", item="mpirun",
            value=library, rule="mpirun belongs to the MPI that mpi4py loads",
            remedy=f"start them with the mpirun of {library}, or name the other one in MPI4PY_MPIABI (openmpi, mpich)",
        )  # fmt: skip
    comm = MpiComm(MPI)
    comm.watch(Watch(comm.rank, comm.size, lambda value: comm.at_root(lambda: value)))
    return comm

# SPDX-License-Identifier: GPL-3.0-or-later
"""Sums over the memories of several GPUs by NCCL, which CuPy's wheels can bring along.

Not yet run on GPUs; the tests run it on a CuPy made of NumPy. Without NCCL, or with several ranks on one GPU, which it
refuses, sums go through the host.
"""

from __future__ import annotations

import importlib
from typing import Any


class DeviceSums:
    """Communicators between GPUs, made when a group of ranks first needs one."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], Any] = {}

    def reduce(self, group: Any, ranks: tuple[int, ...], root: int, array: Any) -> bool:
        """Sum a float32 or complex64 device array over a group in place at ``root``; False where NCCL cannot.

        Parameters
        ----------
        group
            MPI communicator of the ranks, by which they agree on NCCL's identifier.
        ranks
            Their numbers in the world, by which the communicator is found again.
        """
        communicator = self._communicator(group, ranks)
        if communicator is None:
            return False
        cupy, nccl = importlib.import_module("cupy"), importlib.import_module("cupy.cuda.nccl")
        flat = array.reshape(-1).view(cupy.float32)
        stream = cupy.cuda.get_current_stream()
        pointer = flat.data.ptr
        communicator.reduce(pointer, pointer, flat.size, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, root, stream.ptr)
        stream.synchronize()
        return True

    def _communicator(self, group: Any, ranks: tuple[int, ...]) -> Any:
        if ranks not in self._made:
            self._made[ranks] = self._make(group)
        return self._made[ranks]

    @staticmethod
    def _make(group: Any) -> Any:
        """A communicator, or None; all ranks of the group come to the same answer."""
        try:
            cupy, nccl = importlib.import_module("cupy"), importlib.import_module("cupy.cuda.nccl")
            device = cupy.cuda.runtime.deviceGetPCIBusId(cupy.cuda.Device().id)
            is_there = bool(getattr(nccl, "available", True))
        except (ImportError, AttributeError):
            device, is_there = "", False
        import socket

        places = group.allgather((is_there, socket.gethostname(), device))
        if not all(place[0] for place in places) or len(set(places)) < len(places):
            return None
        identifier = group.bcast(nccl.get_unique_id() if group.Get_rank() == 0 else None, 0)
        return nccl.NcclCommunicator(group.Get_size(), identifier, group.Get_rank())

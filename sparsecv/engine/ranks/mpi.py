# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranks by MPI (mpi4py). MPI is imported only where a launcher has started several processes."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sparsecv.engine.ranks.comm import Comm
from sparsecv.engine.ranks.watch import Watch
from sparsecv.kernels.cuda_sums import DeviceSums

T = TypeVar("T")
CHUNK = 2**28  # bytes of one message: MPI counts in int32, and buffers of gigabytes are slow in some networks
LONGEST_NAP = 0.005  # s between two looks at whether the others have come


class MpiComm(Comm):
    """Ranks of ``MPI.COMM_WORLD``.

    A rank that waits sleeps: MPI's own waiting would keep a core busy that other ranks, or threads, can use. So each
    collective call begins with a barrier that is looked at now and then; when all have come, the call itself is fast.
    """

    def __init__(self, mpi: Any) -> None:
        self._mpi, self._world = mpi, mpi.COMM_WORLD
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        local = self._world.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = local.Get_rank(), local.Get_size()
        cores = sorted(os.sched_getaffinity(0))
        self.core_sharers = local.allgather(cores).count(cores)
        local.Free()
        self._groups: dict[tuple[int, ...], Any] = {}
        self._device = DeviceSums()
        self._watch: Watch | None = None

    def at_root(self, make: Callable[[], T]) -> T:
        value = make() if self.is_root else None
        return self._broadcast(self._world, value, 0)

    def of_halves(self, make: Callable[[int], T]) -> tuple[T, T]:
        own = {number: make(number) for number in (0, 1) if self.owns(number)}
        if not self.is_root:
            if 1 in own:
                self._send(own[1], 0)
            return own.get(0), own.get(1)  # type: ignore[return-value]
        return own[0], own[1] if 1 in own else self._receive(self.owner(1))

    def from_owner(self, number: int, sharers: Sequence[int], make: Callable[[], T]) -> T:
        owner = self.owner(number)
        if self.rank != owner:
            found: T = self._receive(owner)
            return found
        value = make()
        for rank in sharers:
            if rank != owner:
                self._send(value, rank)
        return value

    def gathered(self, value: T) -> list[T]:
        if not self.is_root:
            self._send(value, 0)
            return []
        return [value, *(self._receive(rank) for rank in range(1, self.size))]

    def add_up(self, number: int, sharers: Sequence[int], arrays: Sequence[Any]) -> None:
        group = self._group(sharers)
        if group is None or len(sharers) == 1:
            return
        root = list(sharers).index(self.owner(number))
        self._meet(group)
        for array in arrays:
            if not isinstance(array, np.ndarray) and self._device.reduce(group, tuple(sharers), root, array):
                continue
            self._reduce(group, root, array)

    def _reduce(self, group: Any, root: int, array: Any) -> None:
        """Sum an array over a group by MPI, through the host where it is on a device."""
        is_root = group.Get_rank() == root
        flat = array.reshape(-1)
        host = flat if isinstance(flat, np.ndarray) else flat.get()
        for start in range(0, len(host), step := CHUNK // host.itemsize):
            part = host[start : start + step]
            group.Reduce(self._mpi.IN_PLACE if is_root else part, part if is_root else None, self._mpi.SUM, root)
        if is_root and host is not flat:
            flat.set(host)

    def at_root_from_owner(self, number: int, arrays: Sequence[Any]) -> Sequence[Any]:
        owner = self.owner(number)
        if owner == 0:
            return arrays
        if self.rank == owner:
            self._send([array if isinstance(array, np.ndarray) else array.get() for array in arrays], 0)
            return arrays
        return self._receive(owner) if self.is_root else arrays

    def watch(self, watch: Watch) -> None:
        """Have this rank watched, and ended when another one fails."""
        self._watch = watch

    def report_to(self, status_file: Path) -> None:
        if self._watch is not None:
            self._watch.report_to(status_file)

    def fail(self, status: int, line: str) -> None:
        if self._watch is not None:
            self._watch.fail(status, line)

    def close(self) -> None:
        self._meet(self._world)
        if self._watch is not None:
            self._watch.close()

    # ------------------------------------------------------------------------------------------------ messages
    def _group(self, ranks: Sequence[int]) -> Any:
        """Communicator of some ranks, None for ranks outside of it; all ranks ask for it together."""
        key = tuple(ranks)
        if key not in self._groups:
            is_member = self.rank in key
            self._meet(self._world)
            made = self._world.Split(0 if is_member else self._mpi.UNDEFINED, self.rank)
            self._groups[key] = made if is_member else None
        return self._groups[key]

    def _meet(self, comm: Any) -> None:
        self._wait(comm.Ibarrier())

    @staticmethod
    def _wait(request: Any) -> None:
        _sleep_until(request.Test)

    def _broadcast(self, comm: Any, value: Any, root: int) -> Any:
        self._meet(comm)
        is_root = comm.Get_rank() == root
        head, parts = _packed(value) if is_root else (b"", [])
        sizes = comm.bcast((len(head), [len(part) for part in parts]) if is_root else None, root)
        buffers = [np.frombuffer(part, dtype=np.uint8) for part in (head, *parts)] if is_root else [
            np.empty(size, dtype=np.uint8) for size in (sizes[0], *sizes[1])]  # fmt: skip
        for buffer in buffers:
            for start in range(0, len(buffer), CHUNK):
                comm.Bcast(buffer[start : start + CHUNK], root)
        return value if is_root else _unpacked(buffers)

    def _send(self, value: Any, rank: int) -> None:
        head, parts = _packed(value)
        sizes = (len(head), [len(part) for part in parts])
        self._wait(self._world.isend(sizes, rank))
        for part in (head, *parts):
            buffer = np.frombuffer(part, dtype=np.uint8)
            for start in range(0, len(buffer), CHUNK):
                self._wait(self._world.Isend(buffer[start : start + CHUNK], rank))

    def _receive(self, rank: int) -> Any:
        _sleep_until(lambda: self._world.Iprobe(rank))
        sizes = self._world.recv(source=rank)
        buffers = [np.empty(size, dtype=np.uint8) for size in (sizes[0], *sizes[1])]
        for buffer in buffers:
            for start in range(0, len(buffer), CHUNK):
                self._world.Recv(buffer[start : start + CHUNK], rank)
        return _unpacked(buffers)


def _sleep_until(is_there: Callable[[], bool]) -> None:
    nap = 1e-5
    while not is_there():
        time.sleep(nap)
        nap = min(2 * nap, LONGEST_NAP)


def _packed(value: Any) -> tuple[bytes, list[Any]]:
    """A pickle and the arrays in it, which are not copied; it goes to our own processes only, never into a file."""
    parts: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=parts.append)
    return head, [part.raw() for part in parts]


def _unpacked(buffers: Sequence[np.ndarray]) -> Any:
    return pickle.loads(buffers[0].tobytes(), buffers=[buffer.data for buffer in buffers[1:]])

# SPDX-License-Identifier: GPL-3.0-or-later
"""Images on their way to a GPU: two pinned buffers, one of which is filled while the other's images are worked on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.kernels.cuda_launch import import_cupy


@dataclass(frozen=True)
class _Buffer:
    """Room for a batch in pinned memory and on the device.

    ``copied`` has happened when the batch is on the device, and the pinned memory may be written to; ``used`` when all
    work on the batch is done, and the device's memory may be.
    """

    pinned: np.ndarray
    images: Any
    copied: Any
    used: Any

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> _Buffer:
        cupy, cupyx = import_cupy(), importlib.import_module("cupyx")
        images = cupy.empty(shape, np.float32)
        copied, used = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
        used.record(cupy.cuda.get_current_stream())  # what had this memory before may still be at work
        return cls(cupyx.empty_pinned(shape, np.float32), images, copied, used)


def prefetched(
    read: Callable[[np.ndarray], np.ndarray], batches: Sequence[np.ndarray], shape: tuple[int, ...]
) -> Iterator[Any]:
    """Batches of images on the device: see :func:`.reference.prefetched`.

    A thread reads the next batch and a stream of its own copies it, while the kernels of this one run.
    """
    if not batches:
        return
    cupy = import_cupy()
    device, copies = cupy.cuda.Device(), cupy.cuda.Stream(non_blocking=True)
    largest = max(map(len, batches))
    buffers = [_Buffer.of((largest, *shape)) for _ in batches[:2]]

    def bring(number: int) -> int:
        buffer, index = buffers[number % 2], batches[number]
        count = len(index)
        with device:  # the current device is the thread's own
            buffer.copied.synchronize()
            buffer.pinned[:count] = read(index)
            copies.wait_event(buffer.used)
            buffer.images[:count].set(buffer.pinned[:count], copies)
            buffer.copied.record(copies)
        return count

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
            waiting = reader.submit(bring, 0)
            for number in range(len(batches)):
                count, buffer = waiting.result(), buffers[number % 2]
                if number + 1 < len(batches):
                    waiting = reader.submit(bring, number + 1)
                stream = cupy.cuda.get_current_stream()
                stream.wait_event(buffer.copied)
                yield buffer.images[:count]
                buffer.used.record(stream)
    finally:
        copies.synchronize()  # the buffers go back to the pool now

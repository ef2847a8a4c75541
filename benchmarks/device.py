# SPDX-License-Identifier: GPL-3.0-or-later
"""The device that a GPU benchmark runs on: options, clocks, memory, and the ceilings that times are compared with.

Everything here also works on the CPU, so that the scripts can be tried where there is no GPU: times are CPU times then.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numba
import numpy as np
from common import HERE, machine

from sparsecv.engine.threads import keep_freed_memory, use_threads
from sparsecv.kernels import ops as kernels_of

# Additions to floats in memory that many threads share. In rows: neighbouring threads have neighbouring floats, which
# is as fast as it gets; spread: every addition goes somewhere else. The old value is not looked at. The mask, size - 1,
# is cheaper than a remainder.
ADDITIONS = """
#ifndef KERNEL
#define KERNEL extern "C" __global__
#endif
KERNEL void in_rows(float *sums, unsigned mask, unsigned each) {
    const unsigned threads = gridDim.x * blockDim.x, thread = blockIdx.x * blockDim.x + threadIdx.x;
    for (unsigned i = 0; i < each; ++i) atomicAdd(&sums[(thread + i * threads) & mask], 1.f);
}
KERNEL void spread(float *sums, unsigned mask, unsigned each) {
    unsigned state = 2654435761u * (blockIdx.x * blockDim.x + threadIdx.x) + 1u;
    for (unsigned i = 0; i < each; ++i) {
        state = 1664525u * state + 1013904223u;
        atomicAdd(&sums[(state >> 4) & mask], 1.f);
    }
}
"""
BLOCKS, THREADS = 4096, 256


@dataclass(frozen=True)
class Ceilings:
    """What the device can do, measured in this run.

    Attributes
    ----------
    bandwidth
        Bytes read and written per s by a copy within the device's memory.
    link
        Bytes per s from pinned host memory to the device; the bandwidth, on the CPU.
    flops
        Per s, of a large matrix product, by precision: fp32, tf32, bf16.
    adds, spread_adds
        Atomic additions of floats per s, neighbouring and spread over gigabytes.
    """

    bandwidth: float
    link: float
    flops: dict[str, float]
    adds: float
    spread_adds: float

    def rows(self) -> list[list[object]]:
        """For a table."""
        found: list[list[object]] = [["copy within memory, GB/s", self.bandwidth / 1e9],
                                     ["host to device, GB/s", self.link / 1e9]]  # fmt: skip
        found += [[f"matrix product in {name}, TFLOP/s", value / 1e12] for name, value in self.flops.items()]
        return [*found, ["float additions in rows, 1e9/s", self.adds / 1e9],
                ["float additions spread, 1e9/s", self.spread_adds / 1e9]]  # fmt: skip


class Device:
    """Kernels, clock and memory of a GPU, or of the CPU with some threads."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self.ops: Any = kernels_of(name)
        self.is_gpu = self.ops.name == "cuda"
        keep_freed_memory()  # as a refinement does: new pages from the system cost more than what is done with them
        self.threads = use_threads(threads) if not self.is_gpu else use_threads(0)

    @property
    def name(self) -> str:
        """Of the GPU, or of the processor and the threads used."""
        if self.is_gpu:
            properties = self.ops.xp.cuda.runtime.getDeviceProperties(self.ops.xp.cuda.Device().id)
            return str(properties["name"].decode())
        return f"{machine()['processor']}, {self.threads} thread(s), CPU time"

    def synchronize(self) -> None:
        """Wait until all that was asked for is done."""
        if self.is_gpu:
            self.ops.xp.cuda.Device().synchronize()

    def mark(self) -> Any:
        """A point in time: an event in the GPU's stream, which nobody waits for, or the CPU time of this thread.

        CPU time of one thread leaves out what a reading thread does beside it. With several threads it is wall time.
        """
        if self.is_gpu:
            event = self.ops.xp.cuda.Event()
            event.record()
            return event
        return time.thread_time() if self.threads == 1 else time.perf_counter()

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two marks; all of them must have happened."""
        if self.is_gpu:
            return float(self.ops.xp.cuda.get_elapsed_time(first, last)) / 1e3
        return float(last - first)

    def seconds(self, call: Callable[[], object], repeats: int = 20, least: float = 0.0) -> float:
        """Median time of a call, after three that compile and warm up.

        Parameters
        ----------
        least
            Seconds that all calls together take at least.
        """
        for _ in range(3 if self.is_gpu else 1):
            call()
        self.synchronize()
        marks, started = [], time.perf_counter()
        while len(marks) < repeats or time.perf_counter() - started < least:
            first = self.mark()
            call()
            marks.append((first, self.mark()))
        self.synchronize()
        return statistics.median(self.between(*pair) for pair in marks)

    def peak_bytes(self) -> int:
        """Most memory so far: what the pool of device arrays has taken, which it never gives back by itself, or the
        largest resident set of the process."""
        if self.is_gpu:
            return int(self.ops.xp.get_default_memory_pool().total_bytes())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def forget(self) -> None:
        """Give all unused memory back, so that the next peak is the next case's own."""
        self.ops.release_memory()


def ceilings(device: Device, *, is_tiny: bool = False) -> Ceilings:
    """Measure what the device can do."""
    xp, rng = device.ops.xp, np.random.default_rng(1)
    count = 1 << (20 if is_tiny else 28)
    first = xp.asarray(np.resize(rng.standard_normal(1 << 20, dtype=np.float32), count))
    second = xp.empty_like(first)
    bandwidth = 2 * first.nbytes / device.seconds(lambda: xp.copyto(second, first))
    side = 256 if is_tiny else 8192
    square = xp.asarray(rng.standard_normal((side, side), dtype=np.float32))
    flops = {kind: 2.0 * side**3 / device.seconds(lambda kind=kind: device.ops.product(square, square, kind))
             for kind in device.ops.product_precisions()}  # fmt: skip
    if "bf16" in flops:
        # Ours rounds float32 factors on the way. Factors of 16 bits in memory show what the tensor cores can do;
        # CuPy has no bfloat16, and float16 is multiplied at the same rate.
        small = square.astype(xp.float16)
        flops["bf16"] = max(flops["bf16"], 2.0 * side**3 / device.seconds(lambda: xp.matmul(small, small)))
    adds = [additions(device, first, kernel, is_tiny) for kernel in ("in_rows", "spread")]
    return Ceilings(bandwidth, link_bandwidth(device, first) or bandwidth, flops, *adds)


def link_bandwidth(device: Device, target: Any) -> float:
    """Bytes per s from pinned memory to the device; 0 on the CPU."""
    if not device.is_gpu:
        return 0.0
    cupyx = __import__("cupyx")
    pinned = cupyx.empty_pinned(target.shape, np.float32)
    pinned[:] = 1
    return float(target.nbytes / device.seconds(lambda: target.set(pinned), 5))


def additions(device: Device, sums: Any, kernel: str, is_tiny: bool) -> float:
    """Additions per s to floats in memory."""
    if not device.is_gpu:
        each = 1 << (16 if is_tiny else 22)
        return each / device.seconds(lambda: _add(sums, each, kernel == "spread"), 5)
    run = device.ops.xp.RawModule(code=ADDITIONS, options=("-std=c++17",), backend="nvrtc").get_function(kernel)
    blocks, each = (4, 4) if is_tiny else (BLOCKS, 64)
    arguments = (sums, np.uint32(sums.size - 1), np.uint32(each))
    return float(blocks * THREADS * each / device.seconds(lambda: run((blocks,), (THREADS,), arguments)))


@numba.njit(cache=False)
def _add(sums, count, is_spread):
    state, mask = np.uint64(1), np.uint64(len(sums) - 1)
    for i in range(count):
        state = np.uint64(1664525) * state + np.uint64(1013904223)
        sums[(state >> np.uint64(8)) & mask if is_spread else np.uint64(i) & mask] += np.float32(1)


def parse(
    description: str | None,
    arguments: Sequence[str] | None,
    *more: tuple[str, dict[str, Any]],
    is_of_gpu: bool = True,
) -> argparse.Namespace:
    """Options that the GPU benchmarks have in common, and ``more``; ``device`` is opened, the work folder made.

    Tables of tiny runs, and those of benchmarks of a GPU that run on the CPU (unless not ``is_of_gpu``), go to folders
    of their own: `document.py` must not take them for figures.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "gpu", "cpu"), default="auto",
                        help="default: a GPU if there is one")  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="sizes that show only that the script runs")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    parser.add_argument("--work", type=Path, default=HERE / "results" / "work", help="for data sets and runs")
    for name, options in more:
        parser.add_argument(name, **options)
    given = parser.parse_args(arguments)
    try:
        given.device = Device(given.device, given.threads)
    except RuntimeError as error:
        sys.exit(f"not run: {error}")
    apart = "tiny" if given.tiny else "cpu" if is_of_gpu and not given.device.is_gpu else ""
    common.RESULTS /= apart
    given.work = given.work / apart
    given.work.mkdir(parents=True, exist_ok=True)
    return given

# SPDX-License-Identifier: GPL-3.0-or-later
"""The tools that run CUDA sources without a GPU: they must find the faults that they are there for."""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_host import fake_cupy, host

from sparsecv.kernels import cuda_launch

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="g++ is not installed")

ADD = """
KERNEL void add(float *sum, double *wide, const float *values, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    atomicAdd(sum, values[i]);
    atomicAdd(wide, (double)values[i]);
}
"""
REVERSE = """
KERNEL void reverse(float *values, int by_hand) {
    __shared__ float copy[THREADS];
    copy[threadIdx.x] = values[threadIdx.x];
    if (!by_hand || threadIdx.x < 10) __syncthreads();
    values[threadIdx.x] = copy[THREADS - 1 - threadIdx.x];
}
"""


@pytest.fixture
def cupy() -> Iterator[ModuleType]:
    with fake_cupy.installed() as module:
        yield module


# ------------------------------------------------------------------------------------------------- the shim
def test_atomic_additions_of_several_threads_lose_nothing() -> None:
    module = host.HostModule(ADD)
    count = 1_000_000
    total, wide = np.zeros(1, np.float32), np.zeros(1)
    ctypes.CDLL(str(host.build(ADD))).omp_set_num_threads(4)
    try:
        arguments = (total, wide, np.ones(count, np.float32), np.int32(count))
        module.get_function("add")((-(-count // 128),), (128,), arguments)
    finally:
        ctypes.CDLL(str(host.build(ADD))).omp_set_num_threads(1)
    assert total[0] == count  # below 2^24: exact
    assert wide[0] == count


def test_barriers_hold_for_every_schedule() -> None:
    kernel = host.HostModule(REVERSE, ("-DTHREADS=64",)).get_function("reverse")
    for seed in range(5):
        values = np.arange(64, dtype=np.float32)
        kernel((1,), (64,), (values, np.int32(0)), seed=seed)
        np.testing.assert_array_equal(values, np.arange(64)[::-1])


def test_removed_barrier_changes_the_result() -> None:
    source = cuda_launch.source("shells")
    assert source.count("        __syncthreads();\n") == 1
    broken = source.replace("        __syncthreads();\n", "        if (half == THREADS / 2) __syncthreads();\n")
    values, offsets = np.ones((40, 700), np.float32), np.array([0, 700], np.int32)
    right = []
    for text in (source, broken):
        kernel = host.HostModule(text, cuda_launch.options()).get_function("sum_disc_shells")
        sums = np.zeros((40, 1))
        kernel((40, 1), (cuda_launch.THREADS,), (values, offsets, np.int32(700), np.int32(1), sums))
        right.append(int(np.sum(sums == 700)))
    assert right[0] == 40
    assert right[1] < 10


def test_barrier_that_some_threads_skip_is_refused() -> None:
    kernel = host.HostModule(REVERSE, ("-DTHREADS=64",)).get_function("reverse")
    with pytest.raises(host.HostError, match="barrier"):
        kernel((1,), (64,), (np.zeros(64, np.float32), np.int32(1)))
    values = np.arange(64, dtype=np.float32)
    kernel((1,), (64,), (values, np.int32(0)))  # and it works again afterwards
    np.testing.assert_array_equal(values, np.arange(64)[::-1])


@pytest.mark.parametrize(
    ("position", "wrong"),
    [(0, np.zeros(1)), (1, np.zeros(1, np.float32)), (2, np.ones((4, 4), np.float32)[:, ::2]), (3, np.int64(8))],
)
def test_arguments_of_another_type_are_refused(position: int, wrong: Any) -> None:
    arguments: list[Any] = [np.zeros(1, np.float32), np.zeros(1), np.ones(8, np.float32), np.int32(8)]
    arguments[position] = wrong
    with pytest.raises(TypeError, match=f"argument {position}"):
        host.HostModule(ADD).get_function("add")((1,), (128,), arguments)


def test_launches_that_no_gpu_would_take_are_refused() -> None:
    kernel = host.HostModule(ADD).get_function("add")
    arguments = (np.zeros(1, np.float32), np.zeros(1), np.ones(8, np.float32), np.int32(8))
    for grid, block in (((0,), (128,)), ((1,), (2048,)), ((1, 70000), (128,))):
        with pytest.raises(host.HostError, match="not launchable"):
            kernel(grid, block, arguments)


def test_compiler_messages_name_the_source() -> None:
    with pytest.raises(host.HostError, match=r"slices\.cu:2"):
        host.build('#line 1 "slices.cu"\n\nKERNEL void f(int *p) { p[0] = missing; }\n')


# ----------------------------------------------------------------------------------------- AddressSanitizer
def _sanitized(task: str) -> subprocess.CompletedProcess[str]:
    library = subprocess.run(
        [str(host.compiler()), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    if not Path(library.stdout.strip()).is_absolute():
        pytest.skip("libasan is not installed")
    settings = {"LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    script = Path(host.__file__).with_name("asan_run.py")
    environment = {**os.environ, **settings, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(script), task], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.reliability
def test_kernels_stay_within_their_arrays() -> None:
    done = _sanitized("kernels")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "finished" in done.stdout


def test_read_beyond_an_array_is_caught() -> None:
    done = _sanitized("overrun")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


# -------------------------------------------------------------------------------------------- the fake CuPy
def _numpy() -> np.ndarray:
    return np.ones(3)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda x, cupy: x + _numpy(),
        lambda x, cupy: _numpy() * x,
        lambda x, cupy: np.asarray(x),
        lambda x, cupy: np.fft.fft(x),
        lambda x, cupy: cupy.exp(_numpy()),
        lambda x, cupy: cupy.stack([x, _numpy()]),
        lambda x, cupy: x.__setitem__(slice(None), _numpy()),
        lambda x, cupy: _numpy().__setitem__(slice(None), x),
        lambda x, cupy: x.sum(where=x > 0),
        lambda x, cupy: cupy.sum(x, initial=1.0),
        lambda x, cupy: range(x.sum()),
        lambda x, cupy: cupy.insert(x, 0, 1.0),
        lambda x, cupy: cupy.maximum.reduce(x),
        lambda x, cupy: cupy.asarray(np.array(["text"])),
        lambda x, cupy: cupy.errstate(all="ignore"),
    ],
)
def test_what_cupy_refuses_is_refused(misuse: Callable[[Any, Any], Any], cupy: ModuleType) -> None:
    with pytest.raises((TypeError, ValueError, AttributeError, NotImplementedError)):
        misuse(cupy.arange(3.0), cupy)


def test_what_cupy_does_is_done(cupy: ModuleType) -> None:
    import cupyx.scipy.fft

    host_array = np.arange(6, dtype=np.float32).reshape(2, 3)
    x = cupy.asarray(host_array)
    host_array[:] = -1  # an upload is a copy
    np.testing.assert_array_equal(x.get(), np.arange(6).reshape(2, 3))
    assert isinstance(x.sum(), cupy.ndarray)
    assert float(x.sum()) == 15
    assert isinstance(np.exp(x), cupy.ndarray)
    assert (x * np.float32(2) + 1).dtype == np.float32
    view = x[:, 1]
    view += 10
    assert cupy.asnumpy(x)[1, 1] == 14
    x[x > 10] = 0
    assert int(cupy.count_nonzero(x)) == 3
    assert x.__array_namespace__() is cupy
    assert cupy.get_array_module(x) is cupy
    assert cupy.get_array_module(host_array) is np
    assert cupyx.scipy.fft.rfft2(x).dtype == np.complex64
    values, counts = cupy.unique(x, return_counts=True)
    assert isinstance(values, cupy.ndarray)
    assert isinstance(counts, cupy.ndarray)
    with np.errstate(all="raise"):
        assert not bool(cupy.isfinite(x / 0).any())  # a device does not warn
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(x)).get(), x.get())
    assert isinstance(cupy.random.default_rng(1).standard_normal(3, dtype=np.float32), cupy.ndarray)


def test_memory_runs_out_on_demand(cupy: ModuleType) -> None:
    fake_cupy.Allocations.fail_at = 3
    first = cupy.zeros(4) + 1
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        first * 2
    assert float(first.sum()) == 4


def test_the_real_modules_come_back() -> None:
    before = sys.modules.get("cupy")
    with fake_cupy.installed():
        assert sys.modules["cupy"] is not before
    assert sys.modules.get("cupy") is before

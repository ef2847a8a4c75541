# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs every kernel under AddressSanitizer; started by test_cuda_host.py with the sanitizer's library preloaded.

``python asan_run.py kernels`` compares all results with the definition; ``python asan_run.py overrun`` launches a
kernel that reads one element too many, which the sanitizer must report by ending the process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]

from cuda_host import fake_cupy, host, problem  # noqa: E402
from sparsecv.kernels import cuda, cuda_backproject, cuda_launch, reference  # noqa: E402

OVERRUN = """
KERNEL void copy(const float *from, float *to, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= count) to[i] = from[i];
}
"""


def _compare(run: Callable[..., dict[str, Any]], arguments: dict[str, np.ndarray], **options: bool) -> None:
    """All results of the CUDA sources with the definition's."""
    expected = run(reference, arguments, **options)
    with fake_cupy.installed(sanitize=True) as cupy:
        lifted = {n: cupy.asarray(array) if isinstance(array, np.ndarray) else array for n, array in arguments.items()}
        found = run(cuda, lifted, **options)
        for name, value in expected.items():
            error = np.linalg.norm(_on_host(found[name]) - value)
            if not error <= 1e-5 * np.linalg.norm(value):
                raise SystemExit(f"{name} differs by {error:.1e}")
    cuda_launch.compiled.cache_clear()


def _on_host(result: Any) -> Any:
    return np.asarray(result if isinstance(result, (float, np.ndarray)) else result.get(), complex)


def _gathered(ops: Any, p: dict[str, Any]) -> dict[str, Any]:
    """Backprojection tile by tile, and its definition."""
    names, results = ("images", "ctf2", "weights", "rotations", "owner", "kx", "ky"), {}
    for kernel in ("trilinear", "gaussian"):
        data, weight = p["data"].copy(), p["weight"].copy()
        call = cuda_backproject.gather if ops is cuda else ops.backproject
        call(*(p[name] for name in names), problem.PADDING, data, weight, kernel)
        results[f"{kernel} data"], results[f"{kernel} weight"] = data, weight
    return results


def _kernels() -> None:
    for sizes in ({"largest": 7, "candidates": 4}, {"largest": 5, "shifts": 19, "images": 1, "candidates": 3}):
        _compare(problem.run_all, problem.make_problem(**sizes))
        _compare(_gathered, problem.make_problem(**sizes))
    for side in (1, 5, 17):  # 17: one plane more than a block takes
        _compare(problem.run_sparse_tv, problem.make_sparse_tv_problem(side), positive=side == 5)
    for side, bin in ((1, 2), (7, 2), (12, 4)):
        _compare(problem.run_nonuniform, problem.make_nonuniform_problem(side, bin))


def _overrun() -> None:
    kernel = host.HostModule(OVERRUN, sanitize=True).get_function("copy")
    kernel((3,), (128,), (np.zeros(300, np.float32), np.zeros(300, np.float32), np.int32(300)))


if __name__ == "__main__":
    {"kernels": _kernels, "overrun": _overrun}[sys.argv[1]]()
    print("finished")

# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests share: quiet threads, no windows, seeded property tests, and skips for programs that are not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# before numpy is imported: tests measure results, not speed, and run beside each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from backends import Backend

settings.register_profile("seeded", derandomize=True, deadline=None, database=None)
settings.load_profile("seeded")

PROJECT = Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a program or a device that this machine lacks."""
    if item.get_closest_marker("relion") and shutil.which("relion_refine") is None:
        pytest.skip("RELION is not installed")
    if item.get_closest_marker("gpu"):
        from backends import has_gpu

        if not has_gpu():
            pytest.skip("there is no CUDA device with CuPy")


@pytest.fixture(params=["reference", "cpu", "cuda-host", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each back end of the kernels in turn."""
    from backends import opened

    with opened(request.param) as found:
        yield found


@pytest.fixture
def imitation() -> Iterator[None]:
    """A CuPy made of NumPy in place of a GPU's."""
    from backends import opened

    with opened("cuda-host"):
        yield


@pytest.fixture(scope="session")
def project() -> Path:
    """Return the root of the checkout."""
    return PROJECT


@pytest.fixture(scope="module")
def threads_as_before() -> Iterator[None]:
    """Refinements set the threads of the whole process."""
    import numba
    import threadpoolctl

    before = numba.get_num_threads()
    with threadpoolctl.threadpool_limits():
        yield
    numba.set_num_threads(before)

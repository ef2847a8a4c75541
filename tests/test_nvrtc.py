# SPDX-License-Identifier: GPL-3.0-or-later
"""Every CUDA source compiles with NVRTC for every architecture, silently, without spills and within its registers."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path

import pytest

from sparsecv.kernels import cuda, cuda_launch

ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
REGISTERS = 64  # with 128 threads per block: half of the threads that a multiprocessor can hold, or more
FAMILIES = sorted(path.stem for path in cuda_launch.SOURCES.glob("*.cu"))
# An sm_70 build is announced as the last of its kind, ptxas -v reports what it uses: neither is a fault.
EXPECTED = re.compile(r"ptxas info|Function properties|bytes stack frame|Architectures prior to|^\s*$")


def _library() -> ctypes.CDLL | None:
    """NVRTC 12 from NVIDIA's wheel (13 no longer knows sm_70); None where it is not installed."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        return None
    folders = (spec.submodule_search_locations or ()) if spec else ()
    paths = [path for folder in folders for path in sorted(Path(folder).glob("lib/libnvrtc.so.12"))]
    return ctypes.CDLL(str(paths[0])) if paths else None


NVRTC = _library()
pytestmark = pytest.mark.skipif(NVRTC is None, reason="the wheel nvidia-cuda-nvrtc-cu12 is not installed")


def _compile(source: str, options: tuple[str, ...]) -> tuple[int, str, bytes]:
    """Status, log and machine code of a source."""
    assert NVRTC is not None
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    status = NVRTC.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    assert status == 0
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = NVRTC.nvrtcCompileProgram(program, len(options), encoded)
    NVRTC.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    NVRTC.nvrtcGetProgramLog(program, log)
    code = b""
    if status == 0:
        NVRTC.nvrtcGetCUBINSize(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        NVRTC.nvrtcGetCUBIN(program, buffer)
        code = buffer.raw
    NVRTC.nvrtcDestroyProgram(ctypes.byref(program))
    return status, log.value.decode(), code


def _check(family: str, architecture: int, **macros: int) -> None:
    options = (*cuda_launch.options(**macros), f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v")
    status, log, code = _compile(cuda_launch.source(family), options)
    assert status == 0, log
    assert len(code) > 0
    remarks = [line for line in log.splitlines() if not EXPECTED.search(line)]
    assert not remarks, log
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    kernels = cuda_launch.source(family).count("\nKERNEL void")
    assert len(registers) == kernels, log
    assert max(registers) <= REGISTERS, log
    spills = [int(count) for count in re.findall(r"(\d+) bytes (?:spill \w+|stack frame)", log)]
    assert len(spills) >= 3 * kernels, log
    assert not any(spills), log


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_source_compiles_clean_and_within_budget(family: str, architecture: int) -> None:
    _check(family, architecture, TILE=max(cuda.TILES), SHELLS=256)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_backprojection_of_curved_slices(architecture: int) -> None:
    _check("backproject", architecture, CURVED=1)


@pytest.mark.parametrize("tile", cuda.TILES)
def test_every_tile_of_the_scores(tile: int) -> None:
    _check("score", 80, TILE=tile)


@pytest.mark.parametrize("shells", (64, cuda.MAX_SHELLS))
def test_shell_histogram_fits_into_shared_memory(shells: int) -> None:
    _check("shells", 80, SHELLS=shells)


def test_a_fault_would_be_seen() -> None:
    options = (*cuda_launch.options(), "--gpu-architecture=sm_80")
    status, log, _ = _compile(
        '#line 7 "slices.cu"\nextern "C" __global__ void f(int *p) { undeclared = p[0]; }', options
    )
    assert status != 0
    assert "slices.cu(7)" in log
    status, log, _ = _compile('extern "C" __global__ void f(int *p) { int unused; p[0] = 1; }', options)
    assert status == 0
    assert "unused" in log

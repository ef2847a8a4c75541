# SPDX-License-Identifier: GPL-3.0-or-later
"""The hot loops on NVIDIA GPUs: CuPy around the CUDA sources in ``cuda/``; definitions in :mod:`.reference`.

The sources are compiled by NVRTC at the first use on a device (CuPy keeps the result on disk), so that neither nvcc nor
a compiler is needed. CuPy is imported at the first use of this module's functions, not with it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sparsecv.kernels.contract import check_candidates, check_kernel, check_reach, check_shifts, half_width

SOURCES = Path(__file__).with_name("cuda")
THREADS = 128  # per block
TILES = (1, 2, 4, 8, 16)  # shifts that a block scores at once; each costs a register
MAX_SHELLS = 2048  # 48 KB of shared memory
name = "cuda"


def __getattr__(attribute: str) -> Any:
    """``xp``, the array module, is found at the first use."""
    if attribute == "xp":
        return _cupy()
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(
            "CuPy, which the GPU needs, cannot be imported: install cupy-cuda12x or cupy-cuda13x, or choose the CPU"
        ) from error
    return cupy


def to_host(array: Any) -> np.ndarray:
    """The array in host memory."""
    return array.get()


# -------------------------------------------------------------------------------------------------- compilation
def source(family: str) -> str:
    """Text of ``cuda/<family>.cu`` with the common part put in place, and line marks for messages and debuggers."""
    include = '#include "common.cuh"\n'
    common, text = ((SOURCES / file).read_text() for file in ("common.cuh", f"{family}.cu"))
    before, after = text.split(include)
    next_line = before.count("\n") + 2
    return f'#line 1 "{family}.cu"\n{before}#line 1 "common.cuh"\n{common}\n#line {next_line} "{family}.cu"\n{after}'


def options(**macros: int) -> tuple[str, ...]:
    """Compiler options that every kernel is built with, and its macros."""
    return ("-std=c++17", *(f"-D{key}={value}" for key, value in {"THREADS": THREADS, **macros}.items()))


@functools.cache
def _module(device: int, family: str, flags: tuple[str, ...]) -> Any:
    return _cupy().RawModule(code=source(family), options=flags, backend="nvrtc")


def _launch(family: str, kernel: str, grid: tuple[int, ...], arguments: tuple[Any, ...], **macros: int) -> None:
    """Run a kernel with THREADS threads per block; integers go as int32, real numbers as float32."""
    if 0 in grid:
        return
    scalars = {int: np.int32, float: np.float32}
    typed = tuple(scalars.get(type(argument), lambda a: a)(argument) for argument in arguments)
    module = _module(_cupy().cuda.Device().id, family, options(**macros))
    module.get_function(kernel)(grid, (THREADS,), typed)


def _blocks(items: int) -> int:
    return -(-items // THREADS)


def _as(dtype: type, *arrays: Any) -> list[Any]:
    """Contiguous arrays of a type; nothing is copied where they already are."""
    return [_cupy().ascontiguousarray(array, dtype=dtype) for array in arrays]


def _check_accumulators(data: Any, weight: Any) -> None:
    """The accumulators are changed in place, so they cannot be converted: ValueError where that would be needed."""
    half_width(data.shape)
    if data.shape != weight.shape:
        raise ValueError(f"data {data.shape} and weight {weight.shape} differ in shape")
    for array, dtype in ((data, np.complex64), (weight, np.float32)):
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(f"accumulators are contiguous complex64 and float32 arrays, not {array.dtype}")


# --------------------------------------------------------------------------------------------- Fourier transforms
def rfft2(images: Any) -> Any:
    """Transforms of a stack of images, complex64: see :func:`.reference.rfft2`. CuPy keeps the plans per shape."""
    (images,) = _as(np.float32, images)
    return _fft().rfft2(images, axes=(1, 2))


def rfftn(volume: Any) -> Any:
    """Transform of a volume, complex64: see :func:`.reference.rfftn`."""
    (volume,) = _as(np.float32, volume)
    return _fft().rfftn(volume)


def irfftn(transform: Any, box: int) -> Any:
    """Volume of a half transform, which may be overwritten, float32: see :func:`.reference.irfftn`."""
    (transform,) = _as(np.complex64, transform)
    return _fft().irfftn(transform, s=(box, box, box), overwrite_x=True)


def _fft() -> Any:
    _cupy()  # explains itself where there is no CuPy
    return importlib.import_module("cupyx.scipy.fft")


# --------------------------------------------------------------------------------------------------- operations
def extract_slices(volume: Any, rotations: Any, kx: Any, ky: Any, padding: float) -> Any:
    """Central slices, (C, J) complex64: see :func:`.reference.extract_slices`."""
    check_reach(volume.shape, kx, ky, padding)
    (volume,) = _as(np.complex64, volume)
    rotations, kx, ky = _as(np.float32, rotations, kx, ky)
    slices = _cupy().empty((len(rotations), len(kx)), np.complex64)
    arguments = (volume, half_width(volume.shape), rotations, kx, ky, len(kx), float(padding), slices)
    _launch("slices", "extract_slices", (len(rotations), _blocks(len(kx))), arguments)
    return slices


def score_candidates(
    volume: Any, rotations: Any, owner: Any, images: Any, ctf2: Any, kx: Any, ky: Any, padding: float
) -> tuple[Any, Any]:
    """Cross (C, T) and norm (C,) terms, float32: see :func:`.reference.score_candidates`."""
    check_reach(volume.shape, kx, ky, padding)
    check_candidates(rotations, owner, images, ctf2, None, kx)
    volume, images = _as(np.complex64, volume, images)
    rotations, ctf2, kx, ky = _as(np.float32, rotations, ctf2, kx, ky)
    (owner,) = _as(np.int32, owner)
    cupy, shifts = _cupy(), images.shape[1]
    tile = next((tile for tile in TILES if tile >= shifts), TILES[-1])
    cross = cupy.empty((len(owner), shifts), np.float32)
    norm = cupy.empty(len(owner), np.float32)
    inputs = (volume, half_width(volume.shape), rotations, owner, images, ctf2, kx, ky, len(kx), shifts, float(padding))
    _launch("score", "score_candidates", (len(owner), -(-shifts // tile)), (*inputs, cross, norm), TILE=tile)
    return cross, norm


def shift_images(images: Any, shifts: Any, kx: Any, ky: Any, box: int) -> Any:
    """Images moved by several shifts each, (I, T, J) complex64: see :func:`.reference.shift_images`."""
    check_shifts(images, shifts, kx)
    (images,) = _as(np.complex64, images)
    shifts, kx, ky = _as(np.float32, shifts, kx, ky)
    count, pixels = shifts.shape[1], len(kx)
    moved = _cupy().empty((len(images), count, pixels), np.complex64)
    arguments = (images, shifts, kx, ky, pixels, count, float(box), moved)
    _launch("shift", "shift_images", (len(images), _blocks(pixels)), arguments)
    return moved


def backproject(
    images: Any,
    ctf2: Any,
    weights: Any,
    rotations: Any,
    owner: Any,
    kx: Any,
    ky: Any,
    padding: float,
    data: Any,
    weight: Any,
    kernel: str = "trilinear",
) -> None:
    """Add weighted images to data (complex64) and weight (float32) in place: see :func:`.reference.backproject`."""
    check_reach(data.shape, kx, ky, padding)
    check_candidates(rotations, owner, images, ctf2, weights, kx)
    check_kernel(kernel)
    _check_accumulators(data, weight)
    (images,) = _as(np.complex64, images)
    ctf2, weights, rotations, kx, ky = _as(np.float32, ctf2, weights, rotations, kx, ky)
    (owner,) = _as(np.int32, owner)
    sizes = (len(kx), images.shape[1], float(padding), half_width(data.shape))
    arguments = (images, ctf2, weights, rotations, owner, kx, ky, *sizes, data, weight)
    _launch("backproject", f"backproject_{kernel}", (len(owner), _blocks(len(kx))), arguments)


@contextmanager
def backprojection(data: Any, weight: Any, kernel: str = "trilinear") -> Iterator[Callable[..., None]]:
    """Backproject many batches: see :func:`.reference.backprojection`."""
    check_kernel(kernel)
    yield functools.partial(backproject, data=data, weight=weight, kernel=kernel)


def complete_hermitian(data: Any, weight: Any) -> None:
    """Add the Friedel mates on the plane x = 0, in place: see :func:`.reference.complete_hermitian`."""
    data[:, :, 0] += data[::-1, ::-1, 0].conj()  # conj makes a copy: CuPy does not look for overlap
    weight[:, :, 0] += weight[::-1, ::-1, 0].copy()


def symmetrise(data: Any, weight: Any, matrices: Any) -> tuple[Any, Any]:
    """Sum over a point group, new complex64 and float32 arrays: see :func:`.reference.symmetrise`."""
    _check_accumulators(data, weight)
    (matrices,) = _as(np.float32, matrices)
    new_data, new_weight = _cupy().empty_like(data), _cupy().empty_like(weight)
    arguments = (data, weight, half_width(data.shape), matrices, len(matrices), new_data, new_weight)
    _launch("symmetrise", "symmetrise", (_blocks(data.size),), arguments)
    return new_data, new_weight


def sum_disc_shells(values: Any, offsets: Any) -> Any:
    """Sums per shell of each row, (N, S) float64: see :func:`.reference.sum_disc_shells`."""
    (values,) = _as(np.float32, values)
    (offsets,) = _as(np.int32, offsets)
    rows, shells = len(values), len(offsets) - 1
    sums = _cupy().empty((rows, shells), np.float64)
    _launch("shells", "sum_disc_shells", (rows, shells), (values, offsets, values.shape[1], shells, sums))
    return sums


def sum_volume_shells(first: Any, second: Any, padding: float, n_shells: int) -> Any:
    """Cross and auto power per shell, (S, 3) float64: see :func:`.reference.sum_volume_shells`.

    Raises
    ------
    ValueError
        For more than MAX_SHELLS shells, or volumes of different shapes.
    """
    c = half_width(first.shape)
    if second.shape != first.shape:
        raise ValueError(f"the volumes differ in shape: {first.shape} and {second.shape}")
    if n_shells > MAX_SHELLS:
        raise ValueError(f"at most {MAX_SHELLS} shells fit into shared memory, not {n_shells}")
    first, second = _as(np.complex64, first, second)
    sums = _cupy().zeros((n_shells, 3), np.float64)
    capacity = max(64, 1 << (n_shells - 1).bit_length())  # few values, so that few modules are built
    arguments = (first, second, c, float(padding), n_shells, sums)
    _launch("shells", "sum_volume_shells", (2 * c + 1,), arguments, SHELLS=capacity)
    return sums

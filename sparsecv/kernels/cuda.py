# SPDX-License-Identifier: GPL-3.0-or-later
"""The hot loops on NVIDIA GPUs: CuPy around the CUDA sources in ``cuda/``; definitions in :mod:`.reference`.

CuPy is imported at the first use of this module's functions, not with it. The stencils and proximal steps of the
sparse + TV prior stand in ``cuda_sparse_tv.py``.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from sparsecv.kernels.contract import (
    LEAST_DENOMINATOR,
    PRECISIONS,
    check_candidates,
    check_product,
    check_quotient,
    check_shifts,
    half_width,
)
from sparsecv.kernels.cuda_backproject import backproject as backproject
from sparsecv.kernels.cuda_backproject import backprojection as backprojection
from sparsecv.kernels.cuda_backproject import check_accumulators, check_reach
from sparsecv.kernels.cuda_launch import blocks, contiguous, import_cupy, launch
from sparsecv.kernels.cuda_nonuniform import butterworth as butterworth
from sparsecv.kernels.cuda_nonuniform import filtered_error as filtered_error
from sparsecv.kernels.cuda_nonuniform import take_better as take_better
from sparsecv.kernels.cuda_nonuniform import window as window
from sparsecv.kernels.cuda_posterior import grid_maxima as grid_maxima
from sparsecv.kernels.cuda_posterior import leaders as leaders
from sparsecv.kernels.cuda_posterior import mark_best as mark_best
from sparsecv.kernels.cuda_posterior import normalise_runs as normalise_runs
from sparsecv.kernels.cuda_posterior import run_maxima as run_maxima
from sparsecv.kernels.cuda_posterior import run_sums as run_sums
from sparsecv.kernels.cuda_sparse_tv import penalties as penalties
from sparsecv.kernels.cuda_sparse_tv import penalty_weights as penalty_weights
from sparsecv.kernels.cuda_sparse_tv import relax_step as relax_step
from sparsecv.kernels.cuda_sparse_tv import smoothed_variation_gradient as smoothed_variation_gradient
from sparsecv.kernels.cuda_sparse_tv import sparse_prox as sparse_prox
from sparsecv.kernels.cuda_sparse_tv import split_step as split_step
from sparsecv.kernels.cuda_stream import prefetched as prefetched

TILES = (1, 2, 4, 8, 16)  # shifts that a block scores at once; each costs a register
SUMS = np.complex64, np.float32  # of accumulators: atomic additions come in any order, whatever the precision
OUT_OF_MEMORY = ("ALLOC_FAILED", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")
CUDA_R_32F = 0  # cudaDataType_t of library_types.h
LEAST_CAPABILITY = 80  # of a device that has bfloat16 and TF32
MAX_SHELLS = 2048  # 48 KB of shared memory
name = "cuda"


def __getattr__(attribute: str) -> Any:
    """``xp``, the array module, is found at the first use."""
    if attribute == "xp":
        return import_cupy()
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def to_host(array: Any) -> np.ndarray:
    """The array in host memory; one that is there already stays where it is."""
    host: np.ndarray = import_cupy().asnumpy(array)
    return host


# ------------------------------------------------------------------------------------------------------ memory
def free_memory() -> tuple[int, int]:
    """Free and total bytes of the GPU: see :func:`.reference.free_memory`. What CuPy keeps unused counts as free."""
    cupy = import_cupy()
    free, total = cupy.cuda.runtime.memGetInfo()
    return free + cupy.get_default_memory_pool().free_bytes(), total


def devices() -> int:
    """Number of GPUs on this machine, over which its processes are spread."""
    return max(1, int(import_cupy().cuda.runtime.getDeviceCount()))


def limit_memory(size: int) -> None:
    """Ask for more than ``size`` bytes in all to fail: see the reference."""
    import_cupy().get_default_memory_pool().set_limit(size=size)


def release_memory() -> None:
    """Give back unused blocks, and the work areas of FFT plans: see the reference."""
    cupy = import_cupy()
    cupy.fft.config.clear_plan_cache()
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out, CuPy's, cuBLAS's, cuFFT's or CUDA's: see the reference."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


# --------------------------------------------------------------------------------------------- Fourier transforms
def rfft2(images: Any) -> Any:
    """Transforms of a stack of images, complex64: see :func:`.reference.rfft2`. CuPy keeps the plans per shape."""
    (images,) = contiguous(np.float32, images)
    return _fft().rfft2(images, axes=(1, 2))


def rfftn(volume: Any) -> Any:
    """Transform of a volume, complex64: see :func:`.reference.rfftn`."""
    (volume,) = contiguous(np.float32, volume)
    return _fft().rfftn(volume)


def irfftn(transform: Any, box: int) -> Any:
    """Volume of a half transform, which may be overwritten, float32: see :func:`.reference.irfftn`."""
    (transform,) = contiguous(np.complex64, transform)
    return _fft().irfftn(transform, s=(box, box, box), overwrite_x=True)


def rfft(values: Any) -> Any:
    """Half transforms of real values along the last axis, complex64: see :func:`.reference.rfft`."""
    (values,) = contiguous(np.float32, values)
    return _fft().rfft(values)


def fft(values: Any, axis: int) -> Any:
    """Transform along one axis, complex64; may overwrite the values: see :func:`.reference.fft`."""
    (values,) = contiguous(np.complex64, values)
    return _fft().fft(values, axis=axis, overwrite_x=True)


def ifft(values: Any, axis: int) -> Any:
    """Inverse transform along one axis, complex64; may overwrite the values: see :func:`.reference.ifft`."""
    (values,) = contiguous(np.complex64, values)
    return _fft().ifft(values, axis=axis, overwrite_x=True)


def irfft(values: Any, size: int) -> Any:
    """Real values of half transforms along the last axis, float32: see :func:`.reference.irfft`."""
    (values,) = contiguous(np.complex64, values)
    return _fft().irfft(values, n=size)


def _fft() -> Any:
    import_cupy()  # explains itself where there is no CuPy
    return importlib.import_module("cupyx.scipy.fft")


# ----------------------------------------------------------------------------------------------- matrix products
def product(rows: Any, columns: Any, precision: str = "fp32") -> Any:
    """Matrix product rows @ columns^T by cuBLAS, (M, N) float32: see :func:`.reference.product`.

    CuPy's own product of float32 arrays knows TF32 but no bfloat16, so that cublasGemmEx is called as CuPy does it.
    The factors stay in float32 and cuBLAS rounds them on the way to the tensor cores.
    """
    check_product(rows, columns, precision)
    rows, columns = contiguous(np.float32, rows, columns)
    cupy = import_cupy()
    cublas, (m, k), n = cupy.cuda.cublas, rows.shape, len(columns)
    out = cupy.empty((m, n), np.float32)
    if 0 in (m, n, k):
        out[...] = 0
        return out
    kinds = {"tf32": cublas.CUBLAS_COMPUTE_32F_FAST_TF32, "bf16": cublas.CUBLAS_COMPUTE_32F_FAST_16BF}
    kind = kinds.get(precision if precision in product_precisions() else "fp32", cublas.CUBLAS_COMPUTE_32F)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    left, right = (columns.data.ptr, CUDA_R_32F, k), (rows.data.ptr, CUDA_R_32F, k)
    # cuBLAS counts along columns: what it takes for (n, m) = columns (n, k) times rows^T (k, m) is our (m, n).
    cublas.gemmEx(
        cupy.cuda.get_cublas_handle(), cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, n, m, k, one.ctypes.data, *left, *right,
        zero.ctypes.data, out.data.ptr, CUDA_R_32F, n, kind, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return out


def product_precisions() -> tuple[str, ...]:
    """All, from compute capability 8.0 on: see the reference."""
    capability = int(import_cupy().cuda.Device().compute_capability)
    return PRECISIONS if capability >= LEAST_CAPABILITY else PRECISIONS[:1]


# --------------------------------------------------------------------------------------------------- operations
def extract_slices(volume: Any, rotations: Any, kx: Any, ky: Any, padding: float) -> Any:
    """Central slices, (C, J) complex64: see :func:`.reference.extract_slices`."""
    check_reach(volume.shape, kx, ky, padding)
    (volume,) = contiguous(np.complex64, volume)
    rotations, kx, ky = contiguous(np.float32, rotations, kx, ky)
    slices = import_cupy().empty((len(rotations), len(kx)), np.complex64)
    arguments = (volume, half_width(volume.shape), rotations, kx, ky, len(kx), float(padding), slices)
    launch("slices", "extract_slices", (len(rotations), blocks(len(kx))), arguments)
    return slices


def score_candidates(
    volume: Any, rotations: Any, owner: Any, images: Any, ctf2: Any, kx: Any, ky: Any, padding: float
) -> tuple[Any, Any]:
    """Cross (C, T) and norm (C,) terms, float32: see :func:`.reference.score_candidates`."""
    check_reach(volume.shape, kx, ky, padding)
    check_candidates(rotations, owner, images, ctf2, None, kx)
    volume, images = contiguous(np.complex64, volume, images)
    rotations, ctf2, kx, ky = contiguous(np.float32, rotations, ctf2, kx, ky)
    (owner,) = contiguous(np.int32, owner)
    cupy, shifts = import_cupy(), images.shape[1]
    tile = next((tile for tile in TILES if tile >= shifts), TILES[-1])
    cross = cupy.empty((len(owner), shifts), np.float32)
    norm = cupy.empty(len(owner), np.float32)
    inputs = (volume, half_width(volume.shape), rotations, owner, images, ctf2, kx, ky, len(kx), shifts, float(padding))
    launch("score", "score_candidates", (len(owner), -(-shifts // tile)), (*inputs, cross, norm), TILE=tile)
    return cross, norm


def shift_images(images: Any, shifts: Any, kx: Any, ky: Any, box: int) -> Any:
    """Images moved by several shifts each, (I, T, J) complex64: see :func:`.reference.shift_images`."""
    check_shifts(images, shifts, kx)
    (images,) = contiguous(np.complex64, images)
    shifts, kx, ky = contiguous(np.float32, shifts, kx, ky)
    count, pixels = shifts.shape[1], len(kx)
    moved = import_cupy().empty((len(images), count, pixels), np.complex64)
    arguments = (images, shifts, kx, ky, pixels, count, float(box), moved)
    launch("shift", "shift_images", (len(images), blocks(pixels)), arguments)
    return moved


def complete_hermitian(data: Any, weight: Any) -> None:
    """Add the Friedel mates on the plane x = 0, in place: see :func:`.reference.complete_hermitian`."""
    data[:, :, 0] += data[::-1, ::-1, 0].conj()  # conj makes a copy: CuPy does not look for overlap
    weight[:, :, 0] += weight[::-1, ::-1, 0].copy()


def symmetrise(data: Any, weight: Any, matrices: Any) -> tuple[Any, Any]:
    """Sum over a point group, new complex64 and float32 arrays: see :func:`.reference.symmetrise`."""
    check_accumulators(data, weight)
    (matrices,) = contiguous(np.float32, matrices)
    new_data, new_weight = import_cupy().empty_like(data), import_cupy().empty_like(weight)
    arguments = (data, weight, half_width(data.shape), matrices, len(matrices), new_data, new_weight)
    launch("symmetrise", "symmetrise", (blocks(data.size),), arguments)
    return new_data, new_weight


def sum_disc_shells(values: Any, offsets: Any) -> Any:
    """Sums per shell of each row, (N, S) float64: see :func:`.reference.sum_disc_shells`."""
    (values,) = contiguous(np.float32, values)
    (offsets,) = contiguous(np.int32, offsets)
    rows, shells = len(values), len(offsets) - 1
    sums = import_cupy().empty((rows, shells), np.float64)
    launch("shells", "sum_disc_shells", (rows, shells), (values, offsets, values.shape[1], shells, sums))
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
    capacity = _shell_capacity(n_shells)
    first, second = contiguous(np.complex64, first, second)
    sums = import_cupy().zeros((n_shells, 3), np.float64)
    arguments = (first, second, c, float(padding), n_shells, sums)
    launch("shells", "sum_volume_shells", (2 * c + 1,), arguments, SHELLS=capacity)
    return sums


def _shell_capacity(n_shells: int) -> int:
    """Shells that a histogram in shared memory has room for: few values, so that few modules are built."""
    if n_shells > MAX_SHELLS:
        raise ValueError(f"at most {MAX_SHELLS} shells fit into shared memory, not {n_shells}")
    return max(64, 1 << (n_shells - 1).bit_length())


def mean_volume_shells(values: Any, padding: float, n_shells: int) -> Any:
    """Mean of a real half volume per shell, float64: see :func:`.reference.mean_volume_shells`.

    Raises
    ------
    ValueError
        For more than MAX_SHELLS shells.
    """
    c, capacity = half_width(values.shape), _shell_capacity(n_shells)
    (values,) = contiguous(np.float32, values)
    sums = import_cupy().zeros((n_shells, 2), np.float64)
    launch("shells", "sum_real_shells", (2 * c + 1,), (values, c, float(padding), n_shells, sums), SHELLS=capacity)
    return sums[:, 0] / import_cupy().maximum(sums[:, 1], 1)


def quotient(data: Any, weight: Any, floor: Any, prior: Any, padding: float) -> Any:
    """B / (N + prior) per shell, complex64: see :func:`.reference.quotient`."""
    c = check_quotient(data, weight, floor, prior)
    (data,) = contiguous(np.complex64, data)
    weight, floor, prior = contiguous(np.float32, weight, floor, prior)
    out = import_cupy().empty_like(data)
    arguments = (data, weight, c, float(padding), floor, prior, len(floor), LEAST_DENOMINATOR, out)
    launch("shells", "quotient", (blocks(c + 1), 2 * c + 1, 2 * c + 1), arguments)
    return out

# SPDX-License-Identifier: GPL-3.0-or-later
"""The hot loops on the CPU, compiled by Numba; definitions and shapes are those of :mod:`sparsecv.kernels.reference`.

Numba has no atomic additions, so loops that deposit into a volume run over a few private copies of it that are summed
afterwards: one for each thread, fewer where they would be large (:data:`PRIVATE_BYTES`), and always one.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
import scipy.fft

from sparsecv.kernels import host_memory
from sparsecv.kernels.contract import (
    LEAST_DENOMINATOR,
    PRECISIONS,
    check_candidates,
    check_curvature,
    check_kernel,
    check_product,
    check_quotient,
    check_reach,
)
from sparsecv.kernels.cpu_compile import compiled, compiled_parallel
from sparsecv.kernels.cpu_nonuniform import butterworth as butterworth
from sparsecv.kernels.cpu_nonuniform import filtered_error as filtered_error
from sparsecv.kernels.cpu_nonuniform import take_better as take_better
from sparsecv.kernels.cpu_nonuniform import window as window
from sparsecv.kernels.cpu_posterior import grid_maxima as grid_maxima
from sparsecv.kernels.cpu_posterior import leaders as leaders
from sparsecv.kernels.cpu_posterior import mark_best as mark_best
from sparsecv.kernels.cpu_posterior import normalise_runs as normalise_runs
from sparsecv.kernels.cpu_posterior import run_maxima as run_maxima
from sparsecv.kernels.cpu_posterior import run_sums as run_sums
from sparsecv.kernels.cpu_sparse_tv import penalties as penalties
from sparsecv.kernels.cpu_sparse_tv import penalty_weights as penalty_weights
from sparsecv.kernels.cpu_sparse_tv import relax_step as relax_step
from sparsecv.kernels.cpu_sparse_tv import smoothed_variation_gradient as smoothed_variation_gradient
from sparsecv.kernels.cpu_sparse_tv import sparse_prox as sparse_prox
from sparsecv.kernels.cpu_sparse_tv import split_step as split_step
from sparsecv.kernels.cpu_stream import prefetched as prefetched

xp = np
name = "cpu"
# Memory that private accumulators may take together, but for the one that there must be. Each is as large as the sums
# themselves, with twofold padding 0.8 GiB at 200 pixels, 1.6 GiB at 256, 5.9 GiB at 400: beyond 216 pixels there is one
# only, and one thread deposits; several processes have one each.
PRIVATE_BYTES = 2 << 30
# Of accumulators: in double precision, sums do not depend, once rounded to single, on the order of their parts. So
# results are the same with any number of threads and processes; in single precision a refinement multiplies the last
# bits, from iteration to iteration, to per cents.
SUMS = np.complex128, np.float64


def to_host(array: Any) -> np.ndarray:
    """The array in host memory (here: itself)."""
    return array


def free_memory() -> tuple[int, int]:
    """Free and total bytes of the host: see the reference."""
    return host_memory.free_memory()


def devices() -> int:
    """One: the memory of the machine, which all processes on it share."""
    return 1


def limit_memory(size: int) -> None:
    """Nothing: the memory of a host is not limited."""


def release_memory() -> None:
    """Give freed memory back to the system, which `keep_freed_memory` keeps otherwise."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out: see the reference."""
    return isinstance(error, MemoryError)


def rfft2(images: Any) -> Any:
    """Transforms of a stack of images (n, box, box) -> (n, box, box // 2 + 1)."""
    return scipy.fft.rfft2(images, axes=(1, 2), workers=numba.get_num_threads())


def rfftn(volume: Any) -> Any:
    """Transform of a volume."""
    return scipy.fft.rfftn(volume, workers=numba.get_num_threads())


def irfftn(transform: Any, box: int) -> Any:
    """Volume (box, box, box) of a half transform."""
    return scipy.fft.irfftn(transform, s=(box, box, box), workers=numba.get_num_threads(), overwrite_x=True)


def rfft(values: Any) -> Any:
    """Half transforms of real values along the last axis."""
    return scipy.fft.rfft(values, workers=numba.get_num_threads())


def fft(values: Any, axis: int) -> Any:
    """Transform along one axis."""
    return scipy.fft.fft(values, axis=axis, workers=numba.get_num_threads(), overwrite_x=True)


def ifft(values: Any, axis: int) -> Any:
    """Inverse transform along one axis."""
    return scipy.fft.ifft(values, axis=axis, workers=numba.get_num_threads(), overwrite_x=True)


def irfft(values: Any, size: int) -> Any:
    """Real values of half transforms along the last axis."""
    return scipy.fft.irfft(values, n=size, workers=numba.get_num_threads())


def product(rows: Any, columns: Any, precision: str = "fp32") -> Any:
    """Matrix product rows @ columns^T in float32, whatever the precision: see the reference."""
    check_product(rows, columns, precision)
    return rows @ columns.T


def product_precisions() -> tuple[str, ...]:
    """Float32 only: see the reference."""
    return PRECISIONS[:1]


# ---------------------------------------------------------------------------------------------- slices and scores
@compiled
def _axes(a, padding):
    """Steps in x, y and z of the volume per step of kx and of ky: v = padding A^T k."""
    return (
        padding * a[0, 0], padding * a[1, 0], padding * a[0, 1], padding * a[1, 1], padding * a[0, 2], padding * a[1, 2]
    )  # fmt: skip


@compiled
def _place(voxel, part, ny, nx, a, kx, ky, padding):
    """Where the pixels of a slice lie in the half volume.

    voxel (J,) is the flat index of the lower neighbour, part (4, J) how far beyond it in x, y and z, and the sign: -1
    where the Friedel mate was taken. A loop of its own, which the compiler turns into vector instructions.
    """
    c = np.float32((ny - 1) // 2)
    xx, xy, yx, yy, zx, zy = _axes(a, padding)
    one = np.float32(1)
    row, plane = np.int64(nx), np.int64(nx) * ny
    for j in range(kx.shape[0]):
        u, v = kx[j], ky[j]
        x = xx * u + xy * v
        sign = -one if x < 0 else one
        x *= sign
        y = sign * (yx * u + yy * v) + c
        z = sign * (zx * u + zy * v) + c
        x0, y0, z0 = np.int32(x), np.int32(y), np.int32(z)  # all are >= 0 here: truncation is the floor
        voxel[j] = z0 * plane + y0 * row + x0
        part[0, j], part[1, j], part[2, j] = x - np.float32(x0), y - np.float32(y0), z - np.float32(z0)
        part[3, j] = sign


@compiled
def _place_curved(voxel, part, ny, nx, a, kx, ky, padding, bend):
    """`_place` for a slice curved by kz = bend k^2: a loop of its own, so that flat slices do without."""
    c = np.float32((ny - 1) // 2)
    xx, xy, yx, yy, zx, zy = _axes(a, padding)
    xz, yz, zz = padding * a[2, 0], padding * a[2, 1], padding * a[2, 2]
    one = np.float32(1)
    row, plane = np.int64(nx), np.int64(nx) * ny
    for j in range(kx.shape[0]):
        u, v = kx[j], ky[j]
        w = bend * (u * u + v * v)
        x = xx * u + xy * v + xz * w
        sign = -one if x < 0 else one
        x *= sign
        y = sign * (yx * u + yy * v + yz * w) + c
        z = sign * (zx * u + zy * v + zz * w) + c
        x0, y0, z0 = np.int32(x), np.int32(y), np.int32(z)
        voxel[j] = z0 * plane + y0 * row + x0
        part[0, j], part[1, j], part[2, j] = x - np.float32(x0), y - np.float32(y0), z - np.float32(z0)
        part[3, j] = sign


@compiled
def _slice_into(out, voxel, part, volume, ny, nx, a, kx, ky, padding):
    """Trilinear slice of one rotation into out (2J,), real and imaginary parts interleaved.

    ``volume`` is flat, real and imaginary parts interleaved too. Its indices are unsigned: Numba lets signed ones count
    from the end, which takes as long as the sums.
    """
    _place(voxel, part, ny, nx, a, kx, ky, padding)
    one, im, far, far_im = np.float32(1), np.uint64(1), np.uint64(2), np.uint64(3)
    row, plane = np.uint64(2 * nx), np.uint64(2 * nx * ny)
    for j in range(kx.shape[0]):
        fx, fy, fz = part[0, j], part[1, j], part[2, j]
        gx, gy, gz = one - fx, one - fy, one - fz
        p = np.uint64(2 * voxel[j])
        q, r = p + row, p + plane
        s = r + row
        wp, wq, wr, ws = gz * gy, gz * fy, fz * gy, fz * fy
        near_re = wp * volume[p] + wq * volume[q] + wr * volume[r] + ws * volume[s]
        near_im = wp * volume[p + im] + wq * volume[q + im] + wr * volume[r + im] + ws * volume[s + im]
        far_re = wp * volume[p + far] + wq * volume[q + far] + wr * volume[r + far] + ws * volume[s + far]
        other = wp * volume[p + far_im] + wq * volume[q + far_im] + wr * volume[r + far_im] + ws * volume[s + far_im]
        out[2 * j] = gx * near_re + fx * far_re
        out[2 * j + 1] = part[3, j] * (gx * near_im + fx * other)


@compiled_parallel
def _extract(out, volume, ny, nx, rotations, kx, ky, padding):
    for c in numba.prange(rotations.shape[0]):
        voxel, part = np.empty(kx.shape[0], dtype=np.int64), np.empty((4, kx.shape[0]), dtype=np.float32)
        _slice_into(out[c], voxel, part, volume, ny, nx, rotations[c], kx, ky, padding)


def extract_slices(volume: Any, rotations: Any, kx: Any, ky: Any, padding: int) -> Any:
    """Central slices by trilinear interpolation: see :func:`sparsecv.kernels.reference.extract_slices`."""
    check_reach(volume.shape, kx, ky, padding)
    out = np.empty((len(rotations), len(kx)), dtype=np.complex64)
    _extract(out.view(np.float32), *_flat(volume), _f32(rotations), _f32(kx), _f32(ky), np.float32(padding))
    return out


@compiled_parallel
def _score(cross, norm, volume, ny, nx, rotations, owner, images, ctf2, kx, ky, padding):
    for c in numba.prange(rotations.shape[0]):
        scratch = np.empty(2 * kx.shape[0], dtype=np.float32)
        voxel, part = np.empty(kx.shape[0], dtype=np.int64), np.empty((4, kx.shape[0]), dtype=np.float32)
        _slice_into(scratch, voxel, part, volume, ny, nx, rotations[c], kx, ky, padding)
        i = owner[c]
        power = np.float32(0)
        for j in range(kx.shape[0]):
            re, im = scratch[2 * j], scratch[2 * j + 1]
            power += ctf2[i, j] * (re * re + im * im)
        norm[c] = power
        for t in range(images.shape[1]):
            row = images[i, t]
            dot = np.float32(0)
            for j in range(scratch.shape[0]):
                dot += row[j] * scratch[j]
            cross[c, t] = dot


def score_candidates(
    volume: Any, rotations: Any, owner: Any, images: Any, ctf2: Any, kx: Any, ky: Any, padding: int
) -> tuple[Any, Any]:
    """Cross and norm terms of candidates: see :func:`sparsecv.kernels.reference.score_candidates`."""
    check_reach(volume.shape, kx, ky, padding)
    check_candidates(rotations, owner, images, ctf2, None, kx)
    cross = np.empty((len(rotations), images.shape[1]), dtype=np.float32)
    norm = np.empty(len(rotations), dtype=np.float32)
    pairs = np.ascontiguousarray(images, dtype=np.complex64).view(np.float32)
    places = _f32(rotations), _i32(owner)
    _score(cross, norm, *_flat(volume), *places, pairs, _f32(ctf2), _f32(kx), _f32(ky), np.float32(padding))
    return cross, norm


# ---------------------------------------------------------------------------------------------------------- shifts
@compiled_parallel
def _shift(out, pairs, shifts, kx, ky, box):
    reach = 0
    for j in range(kx.shape[0]):
        reach = max(reach, abs(kx[j]), abs(ky[j]))
    step = np.float32(-2 * np.pi / box)
    for i in numba.prange(pairs.shape[0]):
        # Phases factorise over x and y: two small tables replace a sine and a cosine for every pixel.
        table = np.empty((2, 2 * reach + 1, 2), dtype=np.float32)
        for t in range(shifts.shape[1]):
            for axis in range(2):
                for k in range(-reach, reach + 1):
                    angle = step * shifts[i, t, axis] * k
                    table[axis, k + reach, 0] = np.cos(angle)
                    table[axis, k + reach, 1] = np.sin(angle)
            for j in range(kx.shape[0]):
                a, b = table[0, kx[j] + reach], table[1, ky[j] + reach]
                c, s = a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]
                re, im = pairs[i, 2 * j], pairs[i, 2 * j + 1]
                out[i, t, 2 * j] = re * c - im * s
                out[i, t, 2 * j + 1] = re * s + im * c


def shift_images(images: Any, shifts: Any, kx: Any, ky: Any, box: int) -> Any:
    """Images moved by several shifts each: see :func:`sparsecv.kernels.reference.shift_images`."""
    out = np.empty((len(images), shifts.shape[1], len(kx)), dtype=np.complex64)
    pairs = np.ascontiguousarray(images, dtype=np.complex64).view(np.float32)
    _shift(out.view(np.float32), pairs, _f32(shifts), _i32(kx), _i32(ky), float(box))
    return out


# ------------------------------------------------------------------------------------------------- backprojection
@compiled
def _weighted_slice(pairs, total, images, ctf2, i, weights):
    """Sum over shifts of weight x image into pairs (2J,), and total weight x CTF^2 into total (J,).

    Where all weights are 0, which is so for the candidates that thinning has left out, neither is written.
    """
    mass = np.float32(0)
    if not weights.any():
        return mass
    pairs[:] = 0
    for t in range(weights.shape[0]):
        w = weights[t]
        if w != 0:
            mass += w
            row = images[i, t]
            for j in range(pairs.shape[0]):
                pairs[j] += w * row[j]
    for j in range(total.shape[0]):
        total[j] = mass * ctf2[i, j]
    return mass


@compiled
def _deposit_trilinear(volume, voxel, part, ny, nx, pairs, total):
    """Adjoint of the slice at these places; a voxel of the flat volume is (real, imaginary, weight), float64."""
    one = 1.0
    row, plane = np.uint64(3 * nx), np.uint64(3 * nx * ny)
    for j in range(voxel.shape[0]):
        fx, fy, fz = np.float64(part[0, j]), np.float64(part[1, j]), np.float64(part[2, j])
        gy, gz = one - fy, one - fz
        re, im, w = np.float64(pairs[2 * j]), np.float64(part[3, j] * pairs[2 * j + 1]), np.float64(total[j])
        far_re, far_im, far_w = fx * re, fx * im, fx * w
        near_re, near_im, near_w = re - far_re, im - far_im, w - far_w
        first = np.uint64(3 * voxel[j])
        for corner in range(4):
            p, g = first, gz * gy
            if corner == 1:
                p, g = first + row, gz * fy
            elif corner == 2:
                p, g = first + plane, fz * gy
            elif corner == 3:
                p, g = first + plane + row, fz * fy
            volume[p] += g * near_re
            volume[p + np.uint64(1)] += g * near_im
            volume[p + np.uint64(2)] += g * near_w
            volume[p + np.uint64(3)] += g * far_re
            volume[p + np.uint64(4)] += g * far_im
            volume[p + np.uint64(5)] += g * far_w


@compiled
def _deposit_gaussian(volume, ny, nx, pairs, total, a, kx, ky, padding, bend):
    """27 neighbours weighted by exp(-d^2 / 2); a neighbour at x = -1 is folded onto its Friedel mate."""
    centre = np.int64((ny - 1) // 2)
    row, plane = np.int64(3 * nx), np.int64(3 * nx) * ny
    xx, xy, yx, yy, zx, zy = _axes(a, padding)
    xz, yz, zz = padding * a[2, 0], padding * a[2, 1], padding * a[2, 2]
    one, half = np.float32(1), np.float32(0.5)
    ex, ey, ez = np.empty(3, np.float32), np.empty(3, np.float32), np.empty(3, np.float32)
    for j in range(kx.shape[0]):
        u, v = kx[j], ky[j]
        w = bend * (u * u + v * v)  # 27 voxels take so long that flat slices do not notice
        x = xx * u + xy * v + xz * w
        sign = -one if x < 0 else one
        x *= sign
        y, z = sign * (yx * u + yy * v + yz * w), sign * (zx * u + zy * v + zz * w)
        x0, y0, z0 = np.int32(np.rint(x)), np.int32(np.rint(y)), np.int32(np.rint(z))
        for d in range(3):
            ex[d] = np.exp(-half * (x0 + d - 1 - x) ** 2)
            ey[d] = np.exp(-half * (y0 + d - 1 - y) ** 2)
            ez[d] = np.exp(-half * (z0 + d - 1 - z) ** 2)
        re, im, w = pairs[2 * j], sign * pairs[2 * j + 1], total[j]
        for dz in range(3):
            for dy in range(3):
                coefficient = ez[dz] * ey[dy]
                iz, iy = z0 + dz - 1, y0 + dy - 1
                p = (centre + iz) * plane + (centre + iy) * row
                for dx in range(3):
                    ix, q, mate = x0 + dx - 1, p + 3 * (x0 + dx - 1), one
                    if ix < 0:
                        q, mate = (centre - iz) * plane + (centre - iy) * row + 3, -one
                    g = coefficient * ex[dx]
                    volume[q] += g * re
                    volume[q + 1] += mate * g * im
                    volume[q + 2] += g * w


@compiled_parallel
def _backproject(private, ny, nx, images, ctf2, weights, rotations, owner, kx, ky, padding, bends, is_gaussian):
    count, is_curved = private.shape[0], bends.shape[0] > 0
    for k in numba.prange(count):
        pairs = np.empty(2 * kx.shape[0], dtype=np.float32)
        total = np.empty(kx.shape[0], dtype=np.float32)
        voxel, part = np.empty(kx.shape[0], dtype=np.int64), np.empty((4, kx.shape[0]), dtype=np.float32)
        for c in range(k, rotations.shape[0], count):
            if _weighted_slice(pairs, total, images, ctf2, owner[c], weights[c]) == 0:
                continue
            bend = bends[owner[c]] if is_curved else np.float32(0)
            if is_gaussian:
                _deposit_gaussian(private[k], ny, nx, pairs, total, rotations[c], kx, ky, padding, bend)
                continue
            if is_curved:
                _place_curved(voxel, part, ny, nx, rotations[c], kx, ky, padding, bend)
            else:
                _place(voxel, part, ny, nx, rotations[c], kx, ky, padding)
            _deposit_trilinear(private[k], voxel, part, ny, nx, pairs, total)


@compiled_parallel
def _merge(data, weight, private):
    for z in numba.prange(data.shape[0]):
        for y in range(data.shape[1]):
            for x in range(data.shape[2]):
                re, im, w = 0.0, 0.0, 0.0
                for k in range(private.shape[0]):
                    voxel = private[k, z, y, x]
                    re += voxel[0]
                    im += voxel[1]
                    w += voxel[2]
                data[z, y, x] += complex(re, im)
                weight[z, y, x] += w


@contextmanager
def backprojection(data: Any, weight: Any, kernel: str = "trilinear") -> Iterator[Callable[..., None]]:
    """Add batches to a volume: see :func:`sparsecv.kernels.reference.backprojection`.

    The private copies are made and summed once for all the batches: at large boxes that costs more than a batch.
    """
    check_kernel(kernel)
    copies = max(1, min(numba.get_num_threads(), PRIVATE_BYTES // (24 * data.size)))
    private = np.zeros((copies, 3 * data.size))
    ny, nx = data.shape[1:]

    def add(images: Any, ctf2: Any, weights: Any, rotations: Any, owner: Any, kx: Any, ky: Any, padding: int,
            curvature: Any = None) -> None:
        bends = check_curvature(curvature, images)
        check_reach(data.shape, kx, ky, padding, bends)
        check_candidates(rotations, owner, images, ctf2, weights, kx)
        pairs = np.ascontiguousarray(images, dtype=np.complex64).view(np.float32)
        arguments = (_f32(ctf2), _f32(weights), _f32(rotations), _i32(owner), _f32(kx), _f32(ky))
        bends = np.empty(0, np.float32) if bends is None else _f32(bends)
        _backproject(private, ny, nx, pairs, *arguments, np.float32(padding), bends, kernel == "gaussian")

    yield add
    _merge(data, weight, private.reshape(copies, *data.shape, 3))


def backproject(
    images: Any,
    ctf2: Any,
    weights: Any,
    rotations: Any,
    owner: Any,
    kx: Any,
    ky: Any,
    padding: int,
    data: Any,
    weight: Any,
    kernel: str = "trilinear",
    curvature: Sequence[float] | None = None,
) -> None:
    """Add one batch of weighted images to a volume: see :func:`sparsecv.kernels.reference.backproject`."""
    with backprojection(data, weight, kernel) as add:
        add(images, ctf2, weights, rotations, owner, kx, ky, padding, curvature)


# ------------------------------------------------------------------------------------------------ whole volumes
@compiled_parallel
def _symmetrise(out_data, out_weight, data, weight, ny, nx, matrices):
    """``data`` and ``weight`` are flat, data with real and imaginary parts interleaved, and the results are alike."""
    c = (ny - 1) // 2
    centre, reach = np.float32(c), np.float32((c - 2) ** 2)
    one, next_re, next_im, im_part = np.float32(1), np.uint64(2), np.uint64(3), np.uint64(1)
    step, plane = np.uint64(nx), np.uint64(nx * ny)
    for iz in numba.prange(ny):
        for iy in range(ny):
            for ix in range(nx):
                vx, vy, vz = np.float32(ix), np.float32(iy) - centre, np.float32(iz) - centre
                if vx * vx + vy * vy + vz * vz > reach:
                    continue
                re, im, w = np.float32(0), np.float32(0), np.float32(0)
                for g in range(matrices.shape[0]):
                    m = matrices[g]
                    x = m[0, 0] * vx + m[0, 1] * vy + m[0, 2] * vz
                    sign = -one if x < 0 else one
                    x *= sign
                    y = sign * (m[1, 0] * vx + m[1, 1] * vy + m[1, 2] * vz) + centre
                    z = sign * (m[2, 0] * vx + m[2, 1] * vy + m[2, 2] * vz) + centre
                    x0, y0, z0 = np.int32(x), np.int32(y), np.int32(z)
                    fx, fy, fz = x - np.float32(x0), y - np.float32(y0), z - np.float32(z0)
                    first = np.uint64((np.int64(z0) * ny + y0) * nx + x0)  # unsigned: see _slice_into
                    # About the z axis fz is exactly 0: half of the neighbours have no part in it.
                    for dz in range(2 if fz > 0 else 1):
                        cz = fz if dz else one - fz
                        for dy in range(2):
                            cy = cz * (fy if dy else one - fy)
                            near, far = cy * (one - fx), cy * fx
                            p = first + np.uint64(dz) * plane + np.uint64(dy) * step
                            q = p + p
                            re += near * data[q] + far * data[q + next_re]
                            im += sign * (near * data[q + im_part] + far * data[q + next_im])
                            w += near * weight[p] + far * weight[p + np.uint64(1)]
                place = np.uint64((np.int64(iz) * ny + iy) * nx + ix)
                out_data[place + place] = re
                out_data[place + place + im_part] = im
                out_weight[place] = w


def symmetrise(data: Any, weight: Any, matrices: Any) -> tuple[Any, Any]:
    """Sum of a volume over a point group: see :func:`sparsecv.kernels.reference.symmetrise`."""
    out_data, out_weight = np.zeros(data.shape, dtype=np.complex64), np.zeros(weight.shape, dtype=np.float32)
    mass = np.ascontiguousarray(weight, dtype=np.float32).ravel()
    pairs, ny, nx = _flat(data)
    _symmetrise(out_data.view(np.float32).ravel(), out_weight.ravel(), pairs, mass, ny, nx, _f32(matrices))
    return out_data, out_weight


def complete_hermitian(data: Any, weight: Any) -> None:
    """Sum the two Friedel mates on the plane x = 0, in place: see the reference."""
    data[:, :, 0] = data[:, :, 0] + data[::-1, ::-1, 0].conj()
    weight[:, :, 0] = weight[:, :, 0] + weight[::-1, ::-1, 0]


@compiled_parallel
def _disc_shells(out, values, offsets):
    for i in numba.prange(values.shape[0]):
        for s in range(offsets.shape[0] - 1):
            total = 0.0
            for j in range(offsets[s], offsets[s + 1]):
                total += values[i, j]
            out[i, s] = total


def sum_disc_shells(values: Any, offsets: Any) -> Any:
    """Sum per shell of each row: see the reference."""
    out = np.empty((len(values), len(offsets) - 1), dtype=np.float64)
    _disc_shells(out, _f32(values), _i32(offsets))
    return out


@compiled_parallel
def _volume_shells(partial, first, second, padding):
    c = (first.shape[0] - 1) // 2
    for iz in numba.prange(first.shape[0]):
        sums = partial[iz]
        for iy in range(first.shape[1]):
            for ix in range(first.shape[2]):
                radius = np.sqrt(float((iz - c) ** 2 + (iy - c) ** 2 + ix**2)) / padding
                s = int(np.rint(radius))
                if s < sums.shape[0]:
                    a, b = first[iz, iy, ix], second[iz, iy, ix]
                    twice = 2.0 if ix > 0 else 1.0
                    sums[s, 0] += twice * (float(a.real) * b.real + float(a.imag) * b.imag)
                    sums[s, 1] += twice * (float(a.real) ** 2 + float(a.imag) ** 2)
                    sums[s, 2] += twice * (float(b.real) ** 2 + float(b.imag) ** 2)


def sum_volume_shells(first: Any, second: Any, padding: int, n_shells: int) -> Any:
    """Cross and own power per shell of two volumes: see the reference."""
    partial = np.zeros((first.shape[0], n_shells, 3), dtype=np.float64)
    _volume_shells(partial, first, second, float(padding))
    return partial.sum(axis=0)


def _shell_table(c: int, padding: int) -> np.ndarray:
    """Shell round(|v| / padding) by |v|^2, int32: a table is faster than a root for every voxel."""
    return np.rint(np.sqrt(np.arange(3 * c**2 + 1, dtype=np.float32)) / np.float32(padding)).astype(np.int32)


@compiled_parallel
def _real_shells(partial, values, shells):
    c = (values.shape[0] - 1) // 2
    for iz in numba.prange(values.shape[0]):
        sums = partial[iz]
        for iy in range(values.shape[1]):
            across = np.int64((iz - c) ** 2 + (iy - c) ** 2)
            for ix in range(values.shape[2]):
                s = shells[across + ix * ix]
                if s < sums.shape[0]:
                    twice = 2.0 if ix > 0 else 1.0
                    sums[s, 0] += twice * values[iz, iy, ix]
                    sums[s, 1] += twice


def mean_volume_shells(values: Any, padding: int, n_shells: int) -> Any:
    """Mean of a real half volume per shell: see the reference."""
    partial = np.zeros((values.shape[0], n_shells, 2), dtype=np.float64)
    _real_shells(partial, values, _shell_table(values.shape[2] - 1, padding))
    sums = partial.sum(axis=0)
    return sums[:, 0] / np.maximum(sums[:, 1], 1)


@compiled_parallel
def _quotient(out, data, weight, floor, prior, shells):
    c = (data.shape[0] - 1) // 2
    last, least = floor.shape[0], np.float32(LEAST_DENOMINATOR)
    for iz in numba.prange(data.shape[0]):
        for iy in range(data.shape[1]):
            across = np.int64((iz - c) ** 2 + (iy - c) ** 2)
            row, values, weights = out[iz, iy], data[iz, iy], weight[iz, iy]
            for ix in range(data.shape[2]):
                shell = shells[across + ix * ix]
                if shell < last:
                    denominator = max(max(weights[ix], floor[shell]) + prior[shell], least)
                    row[ix] = values[ix] * (np.float32(1) / denominator)
                else:
                    row[ix] = 0


def quotient(data: Any, weight: Any, floor: Any, prior: Any, padding: int) -> Any:
    """B / (N + prior) per shell: see :func:`sparsecv.kernels.reference.quotient`."""
    c = check_quotient(data, weight, floor, prior)
    out = np.empty_like(data)
    _quotient(out, data, weight, _f32(floor), _f32(prior), _shell_table(c, padding))
    return out


def _flat(volume: Any) -> tuple[np.ndarray, int, int]:
    """A complex half volume as a flat list of real and imaginary parts, and its rows and row length."""
    pairs = np.ascontiguousarray(volume, dtype=np.complex64).reshape(-1).view(np.float32)
    return pairs, volume.shape[1], volume.shape[2]


def _f32(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def _i32(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.int32)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Stencils and proximal steps of the sparse + TV prior on the CPU; definitions in :mod:`.reference_sparse_tv`.

Loops run along x without a branch, so that the compiler makes vector instructions of them; what a row needs of the row
and of the plane before is kept in small buffers. Chunks of planes have a fixed size: the result does not depend on the
number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from sparsecv.kernels.contract import check_volumes
from sparsecv.kernels.cpu_compile import compiled, compiled_parallel

CHUNK = 8  # planes that one thread takes at once; one plane in CHUNK is computed twice


@compiled
def _soft(w, threshold, negative):
    """Soft threshold of one voxel; ``negative`` is -1, or 0 where only positive values are allowed."""
    size = abs(w) - threshold
    kept = size if size > 0 else np.float32(0)
    return kept if w > 0 else negative * kept


@compiled
def _shrunk(squared, threshold):
    """Factor that shortens a vector of this squared length by ``threshold``."""
    kept = np.float32(1) - threshold / np.sqrt(squared + np.float32(1e-30))
    return kept if kept > 0 else np.float32(0)


@compiled
def _close(closed, row):
    """The row into closed (nx + 1,), its first voxel also at the end: differences along x then need no branch."""
    for i in range(row.shape[0]):
        closed[i] = row[i]
    closed[row.shape[0]] = row[0]


@compiled
def _flux_row(ux, uy, uz, wx, wy, wz, c, step, reflect):
    """reflect z2 - w2 of one row; thresholds are step c."""
    for i in range(c.shape[0]):
        gx, gy, gz = wx[i], wy[i], wz[i]
        factor = reflect * _shrunk(gx * gx + gy * gy + gz * gz, step * c[i]) - np.float32(1)
        ux[i], uy[i], uz[i] = factor * gx, factor * gy, factor * gz


@compiled_parallel
def _split(out, b, w1, w2, a, c, rho1, rho2, reflect, negative):
    nz, ny, nx = w1.shape
    step1, step2 = np.float32(1) / rho1, np.float32(1) / rho2
    for chunk in numba.prange((nz + CHUNK - 1) // CHUNK):
        below = np.empty((ny, nx), np.float32)  # uz of the plane before
        rows = np.empty((4, nx), np.float32)
        ux, uy, uz, before = rows[0], rows[1], rows[2], rows[3]  # before: uy of the row before
        first, last = chunk * CHUNK, min(nz, (chunk + 1) * CHUNK)
        z = (first - 1) % nz
        for y in range(ny):
            _flux_row(ux, uy, below[y], w2[0, z, y], w2[1, z, y], w2[2, z, y], c[z, y], step2, reflect)
        for z in range(first, last):
            _flux_row(ux, before, uz, w2[0, z, -1], w2[1, z, -1], w2[2, z, -1], c[z, -1], step2, reflect)
            for y in range(ny):
                _flux_row(ux, uy, uz, w2[0, z, y], w2[1, z, y], w2[2, z, y], c[z, y], step2, reflect)
                row, under, linear, w, sparse = out[z, y], below[y], b[z, y], w1[z, y], a[z, y]
                for i in range(nx):
                    z1 = _soft(w[i], step1 * sparse[i], negative)
                    flux = before[i] - uy[i] + under[i] - uz[i] - ux[i]
                    row[i] = linear[i] + rho1 * (reflect * z1 - w[i]) + rho2 * flux
                row[0] += rho2 * ux[nx - 1]
                for i in range(1, nx):
                    row[i] += rho2 * ux[i - 1]
                for i in range(nx):
                    before[i], under[i] = uy[i], uz[i]


def split_step(
    b: Any, w1: Any, w2: Any, a: Any, c: Any, rho1: float, rho2: float, reflect: float, positive: bool = False
) -> Any:
    """b + rho1 (f z1 - w1) + rho2 D^T (f z2 - w2): see :func:`.reference_sparse_tv.split_step`."""
    check_volumes(w1.shape, b=b, w1=w1, w2=w2, a=a, c=c)
    out = np.empty_like(w1)
    _split(out, b, w1, w2, a, c, np.float32(rho1), np.float32(rho2), np.float32(reflect), _negative(positive))
    return out


@compiled_parallel
def _relax(x, w1, w2, a, c, rho1, rho2, relaxation, negative):
    nz, ny, nx = w1.shape
    step1, step2 = np.float32(1) / rho1, np.float32(1) / rho2
    for z in numba.prange(nz):
        here = np.empty(nx + 1, np.float32)
        for y in range(ny):
            _close(here, x[z, y])
            right, above = x[z, (y + 1) % ny], x[(z + 1) % nz, y]
            w, sparse = w1[z, y], a[z, y]
            for i in range(nx):
                w[i] += relaxation * (here[i] - _soft(w[i], step1 * sparse[i], negative))
            wx, wy, wz, variation = w2[0, z, y], w2[1, z, y], w2[2, z, y], c[z, y]
            for i in range(nx):
                gx, gy, gz = wx[i], wy[i], wz[i]
                factor = _shrunk(gx * gx + gy * gy + gz * gz, step2 * variation[i])
                wx[i] = gx + relaxation * (here[i + 1] - here[i] - factor * gx)
                wy[i] = gy + relaxation * (right[i] - here[i] - factor * gy)
                wz[i] = gz + relaxation * (above[i] - here[i] - factor * gz)


def relax_step(
    x: Any, w1: Any, w2: Any, a: Any, c: Any, rho1: float, rho2: float, relaxation: float, positive: bool = False
) -> None:
    """Move w1 and w2 on, in place: see :func:`.reference_sparse_tv.relax_step`."""
    check_volumes(w1.shape, x=x, w1=w1, w2=w2, a=a, c=c)
    _relax(x, w1, w2, a, c, np.float32(rho1), np.float32(rho2), np.float32(relaxation), _negative(positive))


@compiled_parallel
def _sparse(out, w1, a, step, negative):
    for z in numba.prange(w1.shape[0]):
        for y in range(w1.shape[1]):
            row, w, sparse = out[z, y], w1[z, y], a[z, y]
            for i in range(w1.shape[2]):
                row[i] = _soft(w[i], step * sparse[i], negative)


def sparse_prox(w1: Any, a: Any, rho1: float, positive: bool = False) -> Any:
    """soft(w1, a / rho1): see :func:`.reference_sparse_tv.sparse_prox`."""
    check_volumes(w1.shape, w1=w1, a=a)
    out = np.empty_like(w1)
    _sparse(out, w1, a, np.float32(1 / rho1), _negative(positive))
    return out


def _negative(positive: bool) -> Any:
    return np.float32(0 if positive else -1)


@compiled_parallel
def _penalties(sums, x, a, c):
    nz, ny, nx = x.shape
    for z in numba.prange(nz):
        sparse, variation = 0.0, 0.0
        here = np.empty(nx + 1, np.float32)
        for y in range(ny):
            _close(here, x[z, y])
            right, above = x[z, (y + 1) % ny], x[(z + 1) % nz, y]
            l1, tv = a[z, y], c[z, y]
            row_sparse, row_variation = np.float32(0), np.float32(0)
            for i in range(nx):
                row_sparse += l1[i] * abs(here[i])
                dx, dy, dz = here[i + 1] - here[i], right[i] - here[i], above[i] - here[i]
                row_variation += tv[i] * np.sqrt(dx * dx + dy * dy + dz * dz)
            sparse += float(row_sparse)
            variation += float(row_variation)
        sums[z, 0], sums[z, 1] = sparse, variation


def penalties(x: Any, a: Any, c: Any) -> tuple[float, float]:
    """sum a |x| and sum c |D x|: see :func:`.reference_sparse_tv.penalties`."""
    check_volumes(x.shape, x=x, a=a, c=c)
    sums = np.empty((len(x), 2))
    _penalties(sums, x, a, c)
    sparse, variation = sums.sum(axis=0)
    return float(sparse), float(variation)


@compiled_parallel
def _weights(a, c, x, eps, eps_gradient):
    nz, ny, nx = x.shape
    for z in numba.prange(nz):
        here = np.empty(nx + 1, np.float32)
        for y in range(ny):
            _close(here, x[z, y])
            right, above = x[z, (y + 1) % ny], x[(z + 1) % nz, y]
            for i in range(nx):
                a[z, y, i] = np.float32(1) / (abs(here[i]) + eps)
                dx, dy, dz = here[i + 1] - here[i], right[i] - here[i], above[i] - here[i]
                c[z, y, i] = np.float32(1) / (np.sqrt(dx * dx + dy * dy + dz * dz) + eps_gradient)


def penalty_weights(x: Any, eps: float, eps_gradient: float) -> tuple[Any, Any]:
    """1 / (|x| + eps) and 1 / (|D x| + eps'): see :func:`.reference_sparse_tv.penalty_weights`."""
    check_volumes(x.shape, x=x)
    a, c = np.empty_like(x), np.empty_like(x)
    _weights(a, c, x, np.float32(eps), np.float32(eps_gradient))
    return a, c


@compiled
def _smooth_row(ux, uy, uz, here, row, right, above, c, mu):
    """c u_mu(D x) of one row (equation 16); ``here`` (nx + 1,) is overwritten."""
    _close(here, row)
    for i in range(c.shape[0]):
        dx, dy, dz = here[i + 1] - here[i], right[i] - here[i], above[i] - here[i]
        factor = c[i] / max(np.sqrt(dx * dx + dy * dy + dz * dz), mu)
        ux[i], uy[i], uz[i] = factor * dx, factor * dy, factor * dz


@compiled_parallel
def _smoothed(out, x, c, mu):
    nz, ny, nx = x.shape
    for chunk in numba.prange((nz + CHUNK - 1) // CHUNK):
        below = np.empty((ny, nx), np.float32)
        rows = np.empty((4, nx), np.float32)
        ux, uy, uz, before = rows[0], rows[1], rows[2], rows[3]
        here = np.empty(nx + 1, np.float32)
        first, last = chunk * CHUNK, min(nz, (chunk + 1) * CHUNK)
        z = (first - 1) % nz
        for y in range(ny):
            _smooth_row(ux, uy, below[y], here, x[z, y], x[z, (y + 1) % ny], x[first, y], c[z, y], mu)
        for z in range(first, last):
            up = (z + 1) % nz
            _smooth_row(ux, before, uz, here, x[z, -1], x[z, 0], x[up, -1], c[z, -1], mu)
            for y in range(ny):
                _smooth_row(ux, uy, uz, here, x[z, y], x[z, (y + 1) % ny], x[up, y], c[z, y], mu)
                row, under = out[z, y], below[y]
                row[0] = ux[nx - 1] - ux[0] + before[0] - uy[0] + under[0] - uz[0]
                for i in range(1, nx):
                    row[i] = ux[i - 1] - ux[i] + before[i] - uy[i] + under[i] - uz[i]
                for i in range(nx):
                    before[i], under[i] = uy[i], uz[i]


def smoothed_variation_gradient(x: Any, c: Any, mu: float) -> Any:
    """Gradient of the smoothed TV norm: see :func:`.reference_sparse_tv.smoothed_variation_gradient`."""
    check_volumes(x.shape, x=x, c=c)
    out = np.empty_like(x)
    _smoothed(out, x, c, np.float32(mu))
    return out

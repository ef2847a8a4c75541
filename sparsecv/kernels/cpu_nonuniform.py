# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters, held-out errors and windows of non-uniform filtering on the CPU: see :mod:`.reference_nonuniform`.

Each plane (of voxels or of bins) is one thread's: the result does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from sparsecv.kernels.contract import bin_places, bins_of, check_chosen, check_shapes, check_taps, check_volumes
from sparsecv.kernels.cpu_compile import compiled, compiled_parallel


@compiled_parallel
def _butterworth(out, transform, gains):
    side, half = transform.shape[0], transform.shape[2]
    for z in numba.prange(side):
        kz = min(z, side - z)
        for y in range(side):
            ky = min(y, side - y)
            row, values, across = out[z, y], transform[z, y], np.int64(kz * kz + ky * ky)
            for x in range(half):
                row[x] = values[x] * gains[across + x * x]


def butterworth(transform: Any, cutoff: float, order: int) -> Any:
    """A half transform times a low-pass filter: see :func:`.reference_nonuniform.butterworth`."""
    out, nyquist = np.empty_like(transform), transform.shape[0] // 2
    squares = np.arange(3 * nyquist**2 + 1, dtype=np.float64)  # |k|^2 is a whole number: the gains are a table
    with np.errstate(over="ignore"):
        gains = 1 / np.sqrt(1 + (squares / cutoff**2) ** order)
    _butterworth(out, transform, gains.astype(np.float32))
    return out


@compiled
def _add_row(sums, m1, m2, f1, f2, weight, correction, size):
    """Errors of one row of voxels, added to its row of bins."""
    for i in range(m1.shape[0]):
        one, two, between = f1[i] - m2[i], f2[i] - m1[i], f1[i] - f2[i]
        sums[i // size] += weight[i] * (one * one + two * two - correction * between * between)


@compiled_parallel
def _errors(out, m1, m2, f1, f2, weight, correction, size):
    side = m1.shape[0]
    for plane in numba.prange(out.shape[0]):
        out[plane] = np.float32(0)
        for z in range(plane * size, min(side, (plane + 1) * size)):
            for y in range(side):
                _add_row(out[plane, y // size], m1[z, y], m2[z, y], f1[z, y], f2[z, y], weight[z, y], correction, size)


def filtered_error(
    first: Any, second: Any, filtered1: Any, filtered2: Any, weight: Any, correction: float, bin: int
) -> Any:
    """Errors against the other raw map, in bins: see :func:`.reference_nonuniform.filtered_error`."""
    check_volumes(first.shape, first=first, second=second, filtered1=filtered1, filtered2=filtered2, weight=weight)
    out = np.empty((bins_of(len(first), bin),) * 3, np.float32)
    _errors(out, first, second, filtered1, filtered2, weight, np.float32(correction / 2), bin)
    return out


@compiled_parallel
def _window_rows(out, values, taps):
    """Along x and then along y, plane by plane."""
    side, radius = values.shape[0], taps.shape[0] // 2
    for z in numba.prange(side):
        rows = np.zeros((side, side), np.float32)
        for y in range(side):
            for t in range(-radius, radius + 1):
                tap = taps[t + radius]
                for x in range(max(0, -t), min(side, side - t)):
                    rows[y, x] += tap * values[z, y, x + t]
        out[z] = np.float32(0)
        for y in range(side):
            for t in range(max(-radius, -y), min(radius, side - 1 - y) + 1):
                tap = taps[t + radius]
                for x in range(side):
                    out[z, y, x] += tap * rows[y + t, x]


@compiled_parallel
def _window_planes(out, values, taps):
    side, radius = values.shape[0], taps.shape[0] // 2
    for plane in numba.prange(side):
        z = np.int64(plane)  # Numba's own counter has no sign
        out[z] = np.float32(0)
        for t in range(max(-radius, -z), min(radius, side - 1 - z) + 1):
            tap = taps[t + radius]
            for y in range(side):
                for x in range(side):
                    out[z, y, x] += tap * values[z + t, y, x]


def window(errors: Any, taps: Any) -> Any:
    """Convolution along each axis: see :func:`.reference_nonuniform.window`."""
    check_taps(taps)
    check_volumes(errors.shape, errors=errors)
    weights = np.asarray(taps, np.float32)
    across, out = np.empty_like(errors), np.empty_like(errors)
    _window_rows(across, errors, weights)
    _window_planes(out, across, weights)
    return out


@compiled
def _mixed(out, near, far, part):
    for i in range(out.shape[0]):
        out[i] = near[i] + part * (far[i] - near[i])


@compiled_parallel
def _take(advantage, lower, part, weight, number, value, chosen, best):
    side, count = weight.shape[0], advantage.shape[0]
    for z in numba.prange(side):
        plane, row = np.empty((count, count), np.float32), np.empty(count, np.float32)
        found = np.empty(side, np.float32)
        for y in range(count):
            _mixed(plane[y], advantage[lower[z], y], advantage[min(lower[z] + 1, count - 1), y], part[z])
        for y in range(side):
            _mixed(row, plane[lower[y]], plane[min(lower[y] + 1, count - 1)], part[y])
            for x in range(side):
                left = row[lower[x]]
                found[x] = left + part[x] * (row[min(lower[x] + 1, count - 1)] - left)
            inside, picked, kept, new = weight[z, y], chosen[z, y], best[z, y], value[z, y]
            for x in range(side):
                if found[x] < 0 and inside[x] > 0:
                    picked[x] = number
                    kept[x] = new[x]


def take_better(advantage: Any, bin: int, weight: Any, number: int, value: Any, chosen: Any, best: Any) -> None:
    """Keep the new filter where it is better, in place: see :func:`.reference_nonuniform.take_better`."""
    check_volumes(weight.shape, weight=weight, value=value, best=best)
    check_shapes(weight.shape, chosen=chosen)
    check_chosen(chosen)
    side, count = len(weight), bins_of(len(weight), bin)
    check_volumes((count,) * 3, advantage=advantage)
    _take(advantage, *bin_places(side, bin), weight, np.uint8(number), value, chosen, best)

# SPDX-License-Identifier: GPL-3.0-or-later
"""From scores to posteriors on the CPU: see :mod:`.reference_posterior`. Each image is one thread's."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from sparsecv.kernels.contract import HOPELESS, check_grid, check_runs
from sparsecv.kernels.cpu_compile import compiled, compiled_parallel

LANES = 64  # maxima that are kept side by side, so that the compiler can turn them into vector instructions
# fastmath lets the compiler assume that there is no NaN; here there may be.
_with_nan = numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})


@_with_nan
def _grid_maxima(best_r, best_t, cross, norm, prior):
    hopeless, beyond = np.float32(HOPELESS), np.float32(-HOPELESS)
    shifts, orientations = cross.shape[1:]
    for i in numba.prange(cross.shape[0]):
        half = np.float32(0.5) * norm[i]
        lanes = np.empty(LANES, dtype=np.float32)
        best = best_r[i]
        best[:] = hopeless
        for t in range(shifts):
            lanes[:] = hopeless
            row, here = cross[i, t], prior[i, t]
            for start in range(0, orientations, LANES):
                for k in range(min(LANES, orientations - start)):
                    value = row[start + k] + here - half[start + k]
                    value = value if abs(value) < beyond else hopeless  # false for what is no number
                    lanes[k] = max(lanes[k], value)
                    best[start + k] = max(best[start + k], value)
            best_t[i, t] = lanes.max()


def grid_maxima(cross: Any, norm: Any, prior: Any) -> tuple[Any, Any]:
    """Best scores over shifts (I, R) and over orientations (I, T): see :func:`.reference_posterior.grid_maxima`."""
    check_grid(cross, norm, prior)
    images, shifts, orientations = cross.shape
    best = np.empty((images, orientations), np.float32), np.empty((images, shifts), np.float32)
    _grid_maxima(*best, *(np.ascontiguousarray(array, np.float32) for array in (cross, norm, prior)))
    return best


def run_maxima(values: Any, offsets: Any) -> Any:
    """Largest value of each column within each run: see :func:`.reference_posterior.run_maxima`."""
    check_runs(values, offsets, 2)
    return np.maximum.reduceat(values, offsets[:-1], axis=0)


def run_sums(values: Any, offsets: Any) -> Any:
    """Sum of each column within each run: see :func:`.reference_posterior.run_sums`."""
    check_runs(values, offsets, 2)
    return np.add.reduceat(values, offsets[:-1], axis=0, dtype=np.float64)


@compiled_parallel
def _leaders(rows, values, offsets):
    most = rows.shape[1]
    for i in numba.prange(rows.shape[0]):
        start = offsets[i]
        found = 0  # so far, largest first
        for row in range(start, offsets[i + 1]):
            value = values[row]
            if found == most and value <= values[rows[i, most - 1]]:
                continue
            place = min(found, most - 1)
            while place > 0 and values[rows[i, place - 1]] < value:
                rows[i, place] = rows[i, place - 1]
                place -= 1
            rows[i, place] = row
            found = min(found + 1, most)


def leaders(values: Any, offsets: Any, most: int) -> Any:
    """Rows of the largest values of each run: see :func:`.reference_posterior.leaders`."""
    check_runs(values, offsets, 1)
    rows = np.full((len(offsets) - 1, most), -1, np.int32)
    _leaders(rows, np.asarray(values), np.asarray(offsets))
    return rows


@compiled
def _cut(run, least, most):
    """Largest values of a run: the smallest of the ``most`` largest, and how many equal to it are among them."""
    alive = np.sort(run[run >= least])
    cut = alive[len(alive) - most]
    equal = most
    for value in alive[len(alive) - most :]:
        equal -= value > cut
    return cut, equal


@compiled_parallel
def _mark_best(marks, values, offsets, margin, most):
    for i in numba.prange(len(offsets) - 1):
        run = values[offsets[i] : offsets[i + 1]]
        own = marks[offsets[i] : offsets[i + 1]]
        least, alive = run.max() - margin, 0
        for value in run:
            alive += value >= least
        equal = len(run)
        if alive > most:
            least, equal = _cut(run, least, most)
        for k in range(len(run)):
            own[k] = run[k] > least or (run[k] == least and equal > 0)
            equal -= run[k] == least


def mark_best(values: Any, offsets: Any, margin: float, most: int) -> Any:
    """Which rows are near the best of their run: see :func:`.reference_posterior.mark_best`."""
    check_runs(values, offsets, 1)
    marks = np.zeros(len(values), np.bool_)
    _mark_best(marks, np.asarray(values, np.float32), np.asarray(offsets), np.float32(margin), most)
    return marks


@compiled_parallel
def _normalise(weights, top, mass, significant, score, offsets, margin):
    for i in numba.prange(len(offsets) - 1):
        own, out = score[offsets[i] : offsets[i + 1]], weights[offsets[i] : offsets[i + 1]]
        best = own.max()
        least, total = best - margin, np.float64(0)
        for c in range(own.shape[0]):
            for t in range(own.shape[1]):
                value = np.exp(own[c, t] - best) if own[c, t] >= least else np.float32(0)
                out[c, t] = value
                total += value
        top[i], mass[i] = best, total
        factor = np.float32(1 / total) if best > np.float32(HOPELESS / 2) else np.float32(0)
        count = 0
        for c in range(own.shape[0]):
            for t in range(own.shape[1]):
                out[c, t] *= factor
                count += out[c, t] > 0
        significant[i] = count


def normalise_runs(score: Any, offsets: Any, margin: float) -> tuple[Any, Any, Any, Any]:
    """Posterior probabilities from scores: see :func:`.reference_posterior.normalise_runs`."""
    check_runs(score, offsets, 2)
    count = len(offsets) - 1
    weights, top = np.empty(score.shape, np.float32), np.empty(count, np.float32)
    mass, significant = np.empty(count), np.empty(count, np.int32)
    scores = np.ascontiguousarray(score, np.float32)
    _normalise(weights, top, mass, significant, scores, np.asarray(offsets), np.float32(margin))
    return weights, top, mass, significant

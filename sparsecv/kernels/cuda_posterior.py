# SPDX-License-Identifier: GPL-3.0-or-later
"""From scores to posteriors on NVIDIA GPUs: see :mod:`.reference_posterior`. One block per image, or more."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.kernels.contract import HOPELESS, check_grid, check_runs
from sparsecv.kernels.cuda_launch import blocks, contiguous, import_cupy, launch

FAMILY = "posterior"


def grid_maxima(cross: Any, norm: Any, prior: Any) -> tuple[Any, Any]:
    """Best scores over shifts (I, R) and over orientations (I, T): see :func:`.reference_posterior.grid_maxima`."""
    check_grid(cross, norm, prior)
    cross, norm, prior = contiguous(np.float32, cross, norm, prior)
    cupy, (images, shifts, orientations) = import_cupy(), cross.shape
    of_orientations = cupy.empty((images, orientations), np.float32)
    of_shifts = cupy.empty((images, shifts), np.float32)
    inputs = (cross, norm, prior, shifts, orientations, HOPELESS)
    launch(FAMILY, "best_of_orientations", (images, blocks(orientations)), (*inputs, of_orientations))
    launch(FAMILY, "best_of_shifts", (images, shifts), (*inputs, of_shifts))
    return of_orientations, of_shifts


def run_maxima(values: Any, offsets: Any) -> Any:
    """Largest value of each column within each run, float32: see :func:`.reference_posterior.run_maxima`."""
    check_runs(values, offsets, 2)
    (values,), (offsets,) = contiguous(np.float32, values), contiguous(np.int32, offsets)
    runs, columns = len(offsets) - 1, values.shape[1]
    out = import_cupy().empty((runs, columns), np.float32)
    launch(FAMILY, "run_maxima", (runs,), (values, offsets, columns, out))
    return out


def run_sums(values: Any, offsets: Any) -> Any:
    """Sum of each column within each run, float64: see :func:`.reference_posterior.run_sums`."""
    check_runs(values, offsets, 2)
    (values,), (offsets,) = contiguous(np.float64, values), contiguous(np.int32, offsets)
    runs, columns = len(offsets) - 1, values.shape[1]
    out = import_cupy().empty((runs, columns), np.float64)
    launch(FAMILY, "run_sums", (runs,), (values, offsets, columns, out))
    return out


def leaders(values: Any, offsets: Any, most: int) -> Any:
    """Rows of the largest values of each run, int32: see :func:`.reference_posterior.leaders`."""
    check_runs(values, offsets, 1)
    (values,), (offsets,) = contiguous(np.float32, values), contiguous(np.int32, offsets)
    rows = import_cupy().empty((len(offsets) - 1, most), np.int32)
    launch(FAMILY, "leaders", (len(rows),), (values, offsets, int(most), rows))
    return rows


def mark_best(values: Any, offsets: Any, margin: float, most: int) -> Any:
    """Which rows are near the best of their run, bool: see :func:`.reference_posterior.mark_best`."""
    check_runs(values, offsets, 1)
    (values,), (offsets,) = contiguous(np.float32, values), contiguous(np.int32, offsets)
    marks = import_cupy().empty(len(values), np.bool_)
    launch(FAMILY, "mark_best", (len(offsets) - 1,), (values, offsets, float(margin), int(most), marks))
    return marks


def normalise_runs(score: Any, offsets: Any, margin: float) -> tuple[Any, Any, Any, Any]:
    """Posterior probabilities from scores: see :func:`.reference_posterior.normalise_runs`."""
    check_runs(score, offsets, 2)
    (score,), (offsets,) = contiguous(np.float32, score), contiguous(np.int32, offsets)
    cupy, runs = import_cupy(), len(offsets) - 1
    weights, top = cupy.empty(score.shape, np.float32), cupy.empty(runs, np.float32)
    mass, significant = cupy.empty(runs, np.float64), cupy.empty(runs, np.int32)
    inputs = (score, offsets, score.shape[1], float(margin), HOPELESS / 2)
    launch(FAMILY, "normalise_runs", (runs,), (*inputs, weights, top, mass, significant))
    return weights, top, mass, significant

# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters, held-out errors and windows of non-uniform filtering on NVIDIA GPUs; see :mod:`.reference_nonuniform`."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.kernels.contract import bins_of, check_chosen, check_shapes, check_taps, check_volumes
from sparsecv.kernels.cuda_launch import blocks, contiguous, import_cupy, launch

FAMILY = "nonuniform"


def butterworth(transform: Any, cutoff: float, order: int) -> Any:
    """A half transform times a low-pass filter: see :func:`.reference_nonuniform.butterworth`."""
    (transform,) = contiguous(np.complex64, transform)
    out = import_cupy().empty_like(transform)
    side, half = transform.shape[0], transform.shape[2]
    arguments = (transform, side, half, 1 / float(cutoff), int(order), out)
    launch(FAMILY, "butterworth", (blocks(half), side, side), arguments)
    return out


def filtered_error(
    first: Any, second: Any, filtered1: Any, filtered2: Any, weight: Any, correction: float, bin: int
) -> Any:
    """Errors against the other raw map, in bins: see :func:`.reference_nonuniform.filtered_error`."""
    check_volumes(first.shape, first=first, second=second, filtered1=filtered1, filtered2=filtered2, weight=weight)
    side = len(first)
    count = bins_of(side, bin)
    out = import_cupy().empty((count,) * 3, np.float32)
    arguments = (first, second, filtered1, filtered2, weight, side, int(bin), float(correction / 2), count, out)
    launch(FAMILY, "filtered_error", (blocks(count), count, count), arguments)
    return out


def window(errors: Any, taps: Any) -> Any:
    """Convolution along each axis: see :func:`.reference_nonuniform.window`."""
    radius = check_taps(taps)
    check_volumes(errors.shape, errors=errors)
    cupy, side = import_cupy(), len(errors)
    (taps,) = contiguous(np.float32, taps)
    for stride in (1, side, side * side):
        out = cupy.empty_like(errors)
        launch(FAMILY, "window", (blocks(side), side, side), (errors, taps, radius, side, stride, out))
        errors = out
    return errors


def take_better(advantage: Any, bin: int, weight: Any, number: int, value: Any, chosen: Any, best: Any) -> None:
    """Keep the new filter where it is better, in place: see :func:`.reference_nonuniform.take_better`."""
    check_volumes(weight.shape, weight=weight, value=value, best=best)
    check_shapes(weight.shape, chosen=chosen)
    check_chosen(chosen)
    side, count = len(weight), bins_of(len(weight), bin)
    check_volumes((count,) * 3, advantage=advantage)
    arguments = (advantage, float(bin), count, weight, side, int(number), value, chosen, best)
    launch(FAMILY, "take_better", (blocks(side), side, side), arguments)

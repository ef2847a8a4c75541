# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done with a map of band limits: the mean of two, their disagreement, a map filtered by them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.engine.refine.regularisers.nonuniform.bank import Bank


def mean_band_limit(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Wavelength of the mean cut-off frequency at each voxel, A, float32: banks are equispaced in frequency."""
    mean: np.ndarray = 2 / (1 / first + 1 / second)
    return mean.astype(np.float32)


def disagreement(first: np.ndarray, second: np.ndarray) -> float | None:
    """Root mean square of log2(theta_1 / theta_2), over the voxels that either half does not leave to the coarsest.

    None where both leave all to the coarsest filter.
    """
    coarsest = max(float(first.max()), float(second.max())) * (1 - 1e-6)
    used = (first < coarsest) | (second < coarsest)
    if not used.any():
        return None
    return float(np.sqrt(np.mean(np.log2(first[used] / second[used]) ** 2)))


def filter_locally(ops: Any, density: np.ndarray, band_limit: np.ndarray, pixel_size: float, bank: Bank) -> np.ndarray:
    """A map through the filter of the bank that is nearest to the band limit at each voxel, float32 on the host.

    Parameters
    ----------
    density, band_limit
        (box, box, box) on the host; A.
    bank
        Number and order of the filters; they reach from the largest to the smallest band limit.
    """
    xp, length = ops.xp, len(density) * pixel_size
    wanted = length / band_limit  # shells
    cutoffs = np.linspace(float(wanted.min()), float(wanted.max()), bank.filters)
    step = max((cutoffs[-1] - cutoffs[0]) / max(bank.filters - 1, 1), 1e-6)
    number = xp.asarray(np.rint((wanted - cutoffs[0]) / step).astype(np.uint8))
    transform = ops.rfftn(xp.asarray(density.astype(np.float32)))
    result = xp.zeros(density.shape, dtype=xp.float32)
    for index, cutoff in enumerate(cutoffs):
        filtered = ops.irfftn(ops.butterworth(transform, float(cutoff), bank.order), len(density))
        xp.copyto(result, filtered, where=number == index)
    found: np.ndarray = ops.to_host(result)
    return found

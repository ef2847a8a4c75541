# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done with a map of band limits: the mean of two, their disagreement, a map filtered by them."""

from __future__ import annotations

from typing import Any

import numpy as np


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


def filter_locally(
    ops: Any, density: np.ndarray, band_limit: np.ndarray, pixel_size: float, order: int, cutoffs: np.ndarray
) -> np.ndarray:
    """A map through the Butterworth filter that is nearest to the band limit at each voxel, float32 on the host.

    Parameters
    ----------
    density, band_limit
        (box, box, box) on the host; A.
    order, cutoffs
        Of the filters; cut-offs in shells, ascending, at most 256.
    """
    xp = ops.xp
    wanted = len(density) * pixel_size / band_limit  # shells
    number = xp.asarray(np.searchsorted((cutoffs[1:] + cutoffs[:-1]) / 2, wanted).astype(np.uint8))
    transform = ops.rfftn(xp.asarray(density.astype(np.float32)))
    result = xp.zeros(density.shape, dtype=xp.float32)
    for index, cutoff in enumerate(cutoffs):
        filtered = ops.irfftn(ops.butterworth(transform, float(cutoff), order), len(density))
        xp.copyto(result, filtered, where=number == index)
    found: np.ndarray = ops.to_host(result)
    return found

# SPDX-License-Identifier: GPL-3.0-or-later
"""The definition of the kernels of non-uniform filtering, in float64 NumPy: what the others are tested against.

Filtered maps r_i(m1), r_i(m2) of a bank are compared, each with the other raw map [Punjani2020, eq. 4]; the errors are
added up in bins of a few voxels, smoothed by a window, and at each voxel the filter is kept whose error is smaller.

Arrays shared by the functions
------------------------------
first, second, filtered1, filtered2, weight, value, best
    (G, G, G) real, indexed [z, y, x].
errors, advantage
    (B, B, B) real, one value for each bin of ``bin`` voxels along a side, B = ceil(G / bin); the last may be partial.

This back end computes in float64 throughout and takes any real type; the others take contiguous float32 arrays only
(and uint8 for the filters chosen), and return float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.kernels.contract import bins_of, check_shapes, check_taps

Array = Any  # numpy.ndarray; the shapes and types stand in each docstring


def butterworth(transform: Array, cutoff: float, order: int) -> Array:
    """A half transform times H(k) = 1 / sqrt(1 + (|k| / cutoff)^(2 order)), amplitude 0.71 at the cut-off.

    Parameters
    ----------
    transform
        (G, G, G // 2 + 1) complex, layout of `rfftn`; it stays as it is.
    cutoff
        Positive, in units of frequency indices.
    order
        Positive.

    Returns
    -------
    (G, G, G // 2 + 1) complex128.
    """
    box = transform.shape[0]
    k2 = (np.fft.fftfreq(box) * box) ** 2
    radius2 = k2[:, None, None] + k2[:, None] + np.arange(transform.shape[2]) ** 2
    return transform / np.sqrt(1 + (radius2 / cutoff**2) ** order)


def filtered_error(
    first: Array, second: Array, filtered1: Array, filtered2: Array, weight: Array, correction: float, bin: int
) -> Array:
    """Errors of two filtered maps against the other raw map each, added up in bins.

    e(x) = weight (|f1 - m2|^2 + |f2 - m1|^2 - correction |f1 - f2|^2 / 2)     [Punjani2020, eq. 4, correction = 0]

    With a correction of 1, e is but for a constant the error of the mean (f1 + f2) / 2, which has half of the noise.

    Parameters
    ----------
    weight
        Not negative; 0 outside of the mask.
    bin
        Voxels along the side of a bin.

    Returns
    -------
    (B, B, B) float64.

    Raises
    ------
    ValueError
        When the shapes do not belong together.
    """
    check_shapes(first.shape, second=second, filtered1=filtered1, filtered2=filtered2, weight=weight)
    m1, m2, f1, f2 = (np.asarray(volume, np.float64) for volume in (first, second, filtered1, filtered2))
    error = weight * ((f1 - m2) ** 2 + (f2 - m1) ** 2 - correction / 2 * (f1 - f2) ** 2)
    missing = bins_of(len(error), bin) * bin - len(error)
    error = np.pad(error, [(0, missing)] * 3)
    count = len(error) // bin
    return error.reshape(count, bin, count, bin, count, bin).sum(axis=(1, 3, 5))


def window(errors: Array, taps: Array) -> Array:
    """Convolution along each axis with the same taps, w * e [Punjani2020, eq. 5]; beyond the volume there is nothing.

    Parameters
    ----------
    taps
        (2 r + 1,), symmetric about its middle.

    Returns
    -------
    (B, B, B) float64.

    Raises
    ------
    ValueError
        When taps are not an odd number of values.
    """
    radius = check_taps(taps)
    out = np.asarray(errors, np.float64)
    for axis in range(3):
        side = out.shape[axis]
        padded = np.pad(out, [(radius, radius) if a == axis else (0, 0) for a in range(3)])
        out = sum(taps[t] * np.take(padded, np.arange(t, t + side), axis) for t in range(2 * radius + 1))
    return out


def take_better(
    advantage: Array, bin: int, weight: Array, number: int, value: Array, chosen: Array, best: Array
) -> None:
    """Where the windowed error has become smaller: ``chosen`` = number and ``best`` = value, in place.

    The advantage (new error less that of the filter chosen so far) is interpolated linearly from the bins' centres to
    the voxels, and constant beyond the outermost centres. Voxels without weight stay as they are.

    Parameters
    ----------
    chosen
        (G, G, G) uint8.

    Raises
    ------
    ValueError
        When the shapes do not belong together.
    """
    check_shapes(weight.shape, value=value, chosen=chosen, best=best)
    side, count = len(weight), len(advantage)
    if count != bins_of(side, bin):
        raise ValueError(f"{side} voxels have {bins_of(side, bin)} bins of {bin} along a side, not {count}")
    found = np.asarray(advantage, np.float64)
    position = np.clip((np.arange(side) + 0.5) / bin - 0.5, 0, count - 1)
    lower = np.minimum(position.astype(int), max(count - 2, 0))
    part = position - lower
    for axis in range(3):
        shape = [-1 if a == axis else 1 for a in range(3)]
        near, far = np.take(found, lower, axis), np.take(found, np.minimum(lower + 1, count - 1), axis)
        found = near + part.reshape(shape) * (far - near)
    is_better = (found < 0) & (np.asarray(weight) > 0)
    chosen[is_better] = number
    best[is_better] = np.asarray(value)[is_better]

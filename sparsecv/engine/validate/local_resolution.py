# SPDX-License-Identifier: GPL-3.0-or-later
"""Local resolution: the FSC of two half maps inside a soft sphere about each point, as Blocres [Cardone2013].

An estimate for comparison: it depends on the size of the sphere, and its shells hold few coefficients each.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from scipy import ndimage

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.fourier import shell_indices
from sparsecv.engine.physics.masks import sphere
from sparsecv.engine.validate.fsc import GOLD_STANDARD, HALF, check_same_box, fsc, resolution

WAVES = 7.0  # diameter of the sphere in units of the global resolution
SMALLEST_PX, LARGEST_PX = 14, 48  # of the sphere
EDGE = 0.5  # of the radius: where the sphere fades; a sharper edge spreads low frequencies into higher shells
BATCH_VALUES = 1 << 22  # voxels of blocks that are transformed at once


def window_size(half1: np.ndarray, half2: np.ndarray, pixel_size: float, *, workers: int = 1) -> int:
    """Diameter of the sphere in pixels, even: seven times the resolution of the whole box at FSC 0.143."""
    found = resolution(fsc(half1, half2, workers=workers), GOLD_STANDARD, len(half1), pixel_size).angstrom
    size = int(np.clip(np.ceil(WAVES * found / pixel_size / 2) * 2, SMALLEST_PX, LARGEST_PX))
    return min(size, len(half1) // 2 * 2)


def local_resolution(
    half1: np.ndarray,
    half2: np.ndarray,
    pixel_size: float,
    *,
    mask: np.ndarray | None = None,
    size: int | None = None,
    step: int = 3,
    threshold: float = HALF,
    workers: int = 1,
) -> np.ndarray:
    """Resolution at which the FSC about each voxel first falls below a threshold.

    Parameters
    ----------
    half1, half2
        Independent, unfiltered and unmasked, shape (box, box, box).
    pixel_size
        A.
    mask
        Points with a mask above 1/2 are estimated; shape (box, box, box); None: all.
    size
        Diameter of the sphere, pixels, even; None: `window_size`.
    step
        Estimated at every so many voxels along each axis, and interpolated between them.
    threshold
        Of the correlation.

    Returns
    -------
    numpy.ndarray
        A, float32, shape of the halves: between two pixels and the sphere's diameter, which is also the value outside
        of the mask.

    Raises
    ------
    InputError
        If the boxes differ, or the sphere does not fit into them.
    """
    box = check_same_box(half1, half2)
    size = size or window_size(half1, half2, pixel_size, workers=workers)
    if not (4 <= size <= box) or size % 2:
        raise InputError("the sphere of the local resolution does not fit", value=size,
                         rule=f"an even number of pixels from 4 to {box}")
    points = np.stack(np.meshgrid(*[np.arange(0, box, step)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    known = np.ones(len(points), bool)
    if mask is not None:  # and a step beyond, between whose points the voxels at its rim are interpolated
        known = ndimage.maximum_filter(mask > 0.5, 2 * step + 1)[tuple(points.T)]
    frequency = np.full(len(points), 1 / (size * pixel_size))
    frequency[known] = _frequencies(half1, half2, points[known], size, threshold, workers) / pixel_size
    coarse = frequency.reshape((len(range(0, box, step)),) * 3)
    axis = np.minimum(np.arange(box) / step, len(coarse) - 1)
    grid = np.meshgrid(axis, axis, axis, indexing="ij")
    found = 1 / ndimage.map_coordinates(coarse, grid, order=1, mode="nearest")
    if mask is not None:
        found = np.where(mask > 0.5, found, size * pixel_size)
    result: np.ndarray = found.astype(np.float32)
    return result


def _frequencies(
    half1: np.ndarray, half2: np.ndarray, points: np.ndarray, size: int, threshold: float, workers: int
) -> np.ndarray:
    """Frequency in cycles per pixel of the crossing about each point (n, 3), float64 (n,)."""
    edge = EDGE * size / 2
    window = sphere(size, size / 2 - edge, edge)
    padded = [np.pad(half.astype(np.float32, copy=False), size // 2) for half in (half1, half2)]
    views = [np.lib.stride_tricks.sliding_window_view(half, (size,) * 3) for half in padded]
    shells = _shell_matrix(size)
    batch = max(1, BATCH_VALUES // size**3)
    crossings = []
    for start in range(0, len(points), batch):
        where = tuple(points[start : start + batch].T)
        first, second = (
            scipy.fft.rfftn(view[where] * window, axes=(1, 2, 3), workers=workers).reshape(len(where[0]), -1)
            for view in views
        )
        cross = (first.real * second.real + first.imag * second.imag) @ shells
        power = ((first.real**2 + first.imag**2) @ shells) * ((second.real**2 + second.imag**2) @ shells)
        curves = cross / np.sqrt(np.maximum(power, 1e-30))
        crossings.append(_crossing(curves, threshold) / size)
    return np.concatenate(crossings) if crossings else np.empty(0)


def _shell_matrix(size: int) -> np.ndarray:
    """Sums over the shells 0 ... size / 2 of a flattened half transform, (coefficients, shells) float32."""
    shell, x = shell_indices(size), np.arange(size // 2 + 1)
    twice = np.where((x == 0) | (x == size // 2), 1.0, 2.0)
    matrix = (shell[..., None] == np.arange(size // 2 + 1)) * np.broadcast_to(twice[:, None], (*shell.shape, 1))
    found: np.ndarray = matrix.reshape(shell.size, -1).astype(np.float32)
    return found


def _crossing(curves: np.ndarray, threshold: float) -> np.ndarray:
    """Shell at which each curve (n, shells) first falls below the threshold, interpolated; from 1 to the last."""
    below = curves[:, 1:] < threshold
    first = np.where(below.any(axis=1), below.argmax(axis=1) + 1, curves.shape[1] - 1)
    rows = np.arange(len(curves))
    after, before = curves[rows, first], np.where(first == 1, 1.0, curves[rows, first - 1])
    part = np.clip((before - threshold) / np.maximum(before - after, 1e-12), 0, 1)
    found: np.ndarray = np.where(below.any(axis=1), np.maximum(first - 1 + part, 1.0), float(curves.shape[1] - 1))
    return found

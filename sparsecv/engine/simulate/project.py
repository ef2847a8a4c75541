# SPDX-License-Identifier: GPL-3.0-or-later
"""Exact projections: non-uniform Fourier transforms of the map itself.

A refinement program samples a padded transform by interpolation; here the sum over the voxels is evaluated at every
Fourier pixel, to 1e-5, so that a refinement tested on these images is not tested against its own approximation.
"""

from __future__ import annotations

from functools import lru_cache

import finufft
import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray

TOLERANCE = 1e-5  # relative, of the non-uniform FFT


@lru_cache(maxsize=4)
def half_plane(box: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Integer frequencies (kx, ky) with kx >= 0 inside the Nyquist circle, DC included, each of shape (J,)."""
    ky, kx = np.meshgrid(np.arange(-(box // 2), (box + 1) // 2), np.arange(box // 2 + 1), indexing="ij")
    inside = np.hypot(kx, ky) < box / 2
    return kx[inside].astype(np.int32), ky[inside].astype(np.int32)


def central_slices(
    volume: NDArray[np.float32], rotations: ArrayLike, kx: ArrayLike, ky: ArrayLike, *, threads: int = 1
) -> NDArray[np.complex64]:
    """Fourier transforms of projections along the view directions.

    Parameters
    ----------
    volume
        Shape (n, n, n), axes (z, y, x), centre at voxel n//2.
    rotations
        ``A`` of every projection, map to image coordinates, shape (p, 3, 3).
    kx, ky
        Cycles per pixel, shape (J,).

    Returns
    -------
    Shape (p, J), complex64: sums of voxels times exp(-2 pi i k . x), with x from the centre of the box. A projection
    is the sum of the voxels along z.
    """
    matrices = np.asarray(rotations, dtype=np.float64)
    plane = 2 * np.pi * np.stack([np.asarray(kx, dtype=np.float64), np.asarray(ky, dtype=np.float64)])
    # k in the map's frame is A^T (kx, ky, 0).
    in_map = np.einsum("pci,cj->ipj", matrices[:, :2], plane).reshape(3, -1).astype(np.float32)
    x, y, z = np.ascontiguousarray(in_map)
    modes = np.asarray(volume, dtype=np.complex64)
    values = finufft.nufft3d2(z, y, x, modes, isign=-1, eps=TOLERANCE, nthreads=threads)
    return values.reshape(len(matrices), -1)


def images_of(slices: NDArray[np.complex64], padded_box: int, box: int) -> NDArray[np.float32]:
    """Images of Fourier values on `half_plane(padded_box)`, cropped about the centre index.

    Parameters
    ----------
    slices
        Shape (p, J).
    padded_box, box
        The box that the values stand for, and the box that is wanted.

    Returns
    -------
    Shape (p, box, box), float32, axes (y, x), centre at index box//2.
    """
    kx, ky = half_plane(padded_box)
    planes = np.zeros((len(slices), padded_box, padded_box // 2 + 1), dtype=np.complex64)
    planes[:, ky, kx] = slices
    images = scipy.fft.fftshift(scipy.fft.irfft2(planes, s=(padded_box, padded_box)), axes=(1, 2))
    start = padded_box // 2 - box // 2
    return images[:, start : start + box, start : start + box]


def project(
    volume: NDArray[np.float32], rotations: ArrayLike, origins_px: ArrayLike | None = None, *, threads: int = 1
) -> NDArray[np.float32]:
    """Projections of a map without CTF.

    Parameters
    ----------
    volume
        Shape (n, n, n), axes (z, y, x), centre at voxel n//2.
    rotations
        ``A`` of every projection, shape (p, 3, 3).
    origins_px
        RELION's origins (x, y) in pixels, shape (p, 2): the particle lies at minus the origin from the centre.

    Returns
    -------
    Shape (p, n, n), float32, sums of voxels along z.
    """
    box = volume.shape[0]
    kx, ky = half_plane(box)
    slices = central_slices(volume, rotations, kx / box, ky / box, threads=threads)
    if origins_px is not None:
        slices = slices * shift_phases(kx / box, ky / box, -np.asarray(origins_px, dtype=np.float64))
    return images_of(slices, box, box)


def shift_phases(kx: ArrayLike, ky: ArrayLike, displacement_px: NDArray[np.float64]) -> NDArray[np.complex64]:
    """Factors that move images by (x, y) pixels; kx, ky in cycles per pixel. Shapes (J,), (p, 2) -> (p, J)."""
    turns = np.outer(displacement_px[:, 0], np.asarray(kx)) + np.outer(displacement_px[:, 1], np.asarray(ky))
    return np.exp(-2j * np.pi * turns).astype(np.complex64)

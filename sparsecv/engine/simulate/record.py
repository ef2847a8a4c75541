# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of a map as a microscope records them whose optics are not ideal.

    X(k) = exp(i odd(M k)) C(M k) P(M k) exp(-2 pi i k.d)

with the exact projections of :mod:`.project`, in a plane of twice the box that is cropped afterwards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.physics.aberrations import monomials
from sparsecv.engine.physics.ctf import CtfParameters, ctf
from sparsecv.engine.simulate.project import central_slices, half_plane, images_of, shift_phases

PLANE = 2  # times the box: delocalised signal leaves the box


def recorded(
    volume: NDArray[np.float32],
    rotations: NDArray[np.float64],
    displacement: NDArray[np.float64],
    optics: CtfParameters,
    pixel_size: float,
    *,
    odd: NDArray[np.float64] | None = None,
    matrix: NDArray[np.float64] | None = None,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Images without noise.

    Parameters
    ----------
    volume
        Shape (n, n, n), axes (z, y, x).
    rotations, displacement
        A, (p, 3, 3), and where the particles lie in the images, (p, 2), A from the centre.
    optics
        Of the CTFs, even aberrations among them.
    pixel_size
        A.
    odd
        Coefficients of the odd monomials of the phase, radians.
    matrix
        M, (2, 2).

    Returns
    -------
    Shape (p, n, n), float32.
    """
    box = volume.shape[0]
    plane = PLANE * box
    kx, ky = half_plane(plane)
    x, y = (np.eye(2) if matrix is None else matrix) @ np.stack([kx, ky])
    slices = central_slices(volume, rotations, x / plane, y / plane, threads=threads)
    slices *= ctf(optics, x, y, plane, pixel_size)
    if odd is not None:
        length = plane * pixel_size
        phase = odd @ monomials(x / length, y / length, len(odd), odd=True)
        slices *= np.exp(1j * phase).astype(np.complex64)
    slices *= shift_phases(kx / plane, ky / plane, displacement / pixel_size)
    return images_of(slices, plane, box)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The curvature of the Ewald sphere: an image as two sidebands, on two slices that curve to either side.

Layers of a particle at different heights z have different defoci. An image is then no slice of the particle's transform
V but the sum of two sidebands [DeRosier2000; Wolf2006; Russo2018]: with k in 1/A, z along the view, and gamma of
:mod:`.ctf`::

    X(k) = E / 2i ( exp(i gamma) V(k, c k^2) - exp(-i gamma) V(k, -c k^2) ),   c = hand lambda / 2

For c = 0 this is the usual E sin(gamma) V(k, 0). The hand, +1 or -1, says whether defocus falls or grows with z::

    defocus(z) = defocus - hand z

It is that of the map together with that of the microscope's images, and not known beforehand.

Least squares put X, times the complex conjugate of its factor, at either place::

    B(k, +-c k^2) += +-i E / 2 exp(-+i gamma) X,   N(k, +-c k^2) += E^2 / 4 (1 - rho cos 2 gamma)

B holds of the other sideband -+ exp(-+2i gamma) V / 4. Where the slices lie close together it is the same signal again,
where they are far apart it is noise; in between it has the part rho of the signal, by which the transforms of a body as
large as the particle are correlated at such a distance. The sums of both sidebands are thus those of the usual
reconstruction, E sin(gamma) X and E^2 sin^2(gamma), where curvature does not matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.physics.ctf import wavelength

HANDS = (1, -1)


def curvature(voltage_kv: NDArray[np.float64], hand: int, length: float) -> NDArray[np.float64]:
    """Curvature b of slices in Fourier pixels, kz = b k^2, as of ``voltage_kv``.

    Parameters
    ----------
    hand
        +1 or -1; see above. RELION's default is +1, its ``--reverse_curvature`` -1.
    length
        Side of the images, A.
    """
    return hand * wavelength(voltage_kv) / (2 * length)


def coherence(distance: Any, diameter: float) -> NDArray[np.float64]:
    """Correlation rho of a particle's transform with itself at a distance in 1/A, float64, shape of ``distance``.

    Of a ball of the diameter, in A, that is filled with noise: 3 (sin u - u cos u) / u^3, u = pi diameter distance.
    """
    u = np.maximum(np.pi * diameter * np.abs(np.asarray(distance, dtype=np.float64)), 1e-2)
    found: NDArray[np.float64] = 3 * (np.sin(u) - u * np.cos(u)) / u**3
    return found


def kept_amplitude(resolution: float, diameter: float, voltage_kv: float) -> float:
    """Part of a particle's amplitude at a resolution in A that a reconstruction keeps which ignores the curvature.

    Sidebands go half of their distance, lambda k^2 / 2, too far in or out of the plane.
    """
    return float(coherence(wavelength(np.array(voltage_kv)) / (2 * resolution**2), diameter))


def sideband_weight(envelope: Any, gamma: Any, rho: Any, precision: Any, xp: Any = np) -> tuple[Any, Any]:
    """Factor of a refocused image, i exp(-i gamma) X, in B, and what is added to N: of either sideband.

    Parameters
    ----------
    envelope, gamma, rho
        (I, J) float32: E, gamma, and the `coherence` of the two slices.
    precision
        1 / sigma^2, by which both sums are multiplied: (I, J) or a number.

    Returns
    -------
    E / (2 sigma^2) and E^2 / (4 sigma^2) (1 - rho cos 2 gamma), (I, J) float32.
    """
    factor = xp.float32(0.5) * envelope * precision
    return factor, xp.float32(0.5) * envelope * factor * (1 - rho * xp.cos(2 * gamma))

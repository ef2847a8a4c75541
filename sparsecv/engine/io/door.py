# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to images as they are read, so that all that follows sees one kind of image.

An image of RELION's model is X = exp(i odd) C P: the phase of odd aberrations is taken out here, once, and the even
ones are left to the CTF. Most optics groups have nothing to be taken out, and their images pass as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from sparsecv.engine.io.optics import OpticsGroup
from sparsecv.engine.physics.aberrations import monomials


@dataclass(frozen=True, eq=False)
class Door:
    """How the images of one optics group come in.

    Attributes
    ----------
    box
        Of the images, pixels.
    phase
        exp(-i odd) at the pixels of a half transform, complex64, shape (box, box // 2 + 1), or None.
    """

    box: int
    phase: NDArray[np.complex64] | None

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (k, box, box) as the refinement takes them; each is worked on by itself."""
        if self.phase is None:
            return images
        # The image's centre need not be brought to pixel 0 and back: a product with a phase commutes with a shift.
        transforms = scipy.fft.rfft2(images)
        transforms *= self.phase
        found: NDArray[np.float32] = scipy.fft.irfft2(transforms, s=images.shape[1:], overwrite_x=True)
        return found


@lru_cache(maxsize=64)
def door_of(group: OpticsGroup) -> Door | None:
    """The door of an optics group; None where images pass as they are."""
    odd = group.odd_polynomial()
    if not odd.any():
        return None
    return Door(group.box, np.exp(-1j * _odd_phase(odd, group.box, group.pixel_size)).astype(np.complex64))


def _odd_phase(odd: NDArray[np.float64], box: int, pixel_size: float) -> NDArray[np.float64]:
    """Phase of odd aberrations at the pixels of a half transform, radians, (box, box // 2 + 1)."""
    ky, kx = np.meshgrid(np.fft.fftfreq(box, pixel_size), np.fft.rfftfreq(box, pixel_size), indexing="ij")
    phase = odd @ monomials(kx.ravel(), ky.ravel(), len(odd), odd=True)
    return phase.reshape(kx.shape)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to images as they are read, so that all that follows sees one kind of image.

An image of RELION's model is X = exp(i odd) C P: the phase of odd aberrations is taken out here, once, and the even
ones are left to the CTF. Images that were multiplied by their CTF are divided by it. Most optics groups have nothing to
be done, and their images pass as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from sparsecv.engine.io.optics import OpticsGroup
from sparsecv.engine.physics.aberrations import monomials
from sparsecv.engine.physics.ctf import CtfParameters, ctf, unmultiplied


@dataclass(frozen=True, eq=False)
class Door:
    """How the images of one optics group come in.

    Attributes
    ----------
    group
        The group; its box is known.
    kx, ky
        Integer frequencies of the half transform, raveled, (J,).
    phase
        exp(-i odd) there, complex64, shape (box, box // 2 + 1), or None.
    """

    group: OpticsGroup
    kx: NDArray[np.float64]
    ky: NDArray[np.float64]
    phase: NDArray[np.complex64] | None

    def __call__(self, images: NDArray[np.float32], parameters: CtfParameters) -> NDArray[np.float32]:
        """Images (k, box, box) as the refinement takes them; each is worked on by itself.

        Parameters
        ----------
        parameters
            Of the CTFs that the images were made with.
        """
        # The image's centre need not be brought to pixel 0 and back: real factors and phases commute with a shift.
        transforms = scipy.fft.rfft2(images)
        if self.phase is not None:
            transforms *= self.phase
        if self.group.is_premultiplied:
            values = ctf(parameters, self.kx, self.ky, self.group.box, self.group.pixel_size)
            transforms = unmultiplied(transforms, values.reshape(transforms.shape))
        found: NDArray[np.float32] = scipy.fft.irfft2(transforms, s=images.shape[1:], overwrite_x=True)
        return found


@lru_cache(maxsize=64)
def door_of(group: OpticsGroup) -> Door | None:
    """The door of an optics group; None where images pass as they are."""
    odd, box = group.odd_polynomial(), group.box
    if not odd.any() and not group.is_premultiplied:
        return None
    ky, kx = (k.ravel() for k in np.meshgrid(np.fft.fftfreq(box, 1 / box), np.arange(box // 2 + 1.0), indexing="ij"))
    phase = None
    if odd.any():
        side = box * group.pixel_size
        angle = odd @ monomials(kx / side, ky / side, len(odd), odd=True)
        phase = np.exp(-1j * angle).astype(np.complex64).reshape(box, box // 2 + 1)
    return Door(group, kx, ky, phase)

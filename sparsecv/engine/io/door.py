# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to images as they are read, so that all that follows sees one kind of image.

An image of RELION's model is X(k) = exp(i odd(M k)) C(M k) P(M k), with the matrix M of anisotropic magnification. Here
it becomes C P at the pixel size and box of the refinement, in this order: X at M^-1 k; with the MTF of one detector for
all; without the phase of odd aberrations (even ones are left to the CTF); divided by a CTF that it was multiplied by;
and resampled. Most optics groups have nothing to be done, and their images pass as they are.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import finufft
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from sparsecv.engine.io.mtf import curve_of
from sparsecv.engine.io.optics import OpticsGroup
from sparsecv.engine.physics.aberrations import monomials
from sparsecv.engine.physics.ctf import CtfParameters, ctf, unmultiplied
from sparsecv.engine.physics.fourier import resample_images, without_border

TOLERANCE = 1e-5  # relative, of the non-uniform FFT
LEAST_MTF = 0.02  # that images are divided by: where a detector passes less, there is nothing to be had


class Undistortion:
    """Transforms of images at the frequencies M^-1 k: those that their particles have at k.

    Exact but for `TOLERANCE`: sums over the pixels, one image after another, so that neighbours in a batch do not show.

    Parameters
    ----------
    matrix
        M, (2, 2).
    box
        Of the images.
    """

    def __init__(self, matrix: NDArray[np.float64], box: int) -> None:
        x, y = np.linalg.inv(matrix) @ np.stack(_half_plane(box))
        self._known = np.maximum(np.abs(x), np.abs(y)) < box / 2
        self._box, self._count = box, len(x)
        self._plan = finufft.Plan(2, (box, box), eps=TOLERANCE, isign=-1, dtype="complex64", nthreads=1)
        self._plan.setpts(*(np.float32(2 * np.pi / box) * k[self._known].astype(np.float32) for k in (y, x)))
        self._lock = threading.Lock()  # a plan has memory of its own to work in

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.complex64]:
        """Half transforms (k, box, box // 2 + 1), phases about the images' centres; 0 where images know nothing."""
        found = np.zeros((len(images), self._count), dtype=np.complex64)
        with self._lock:
            for row, image in enumerate(without_border(images)):
                found[row, self._known] = self._plan.execute(np.ascontiguousarray(image, dtype=np.complex64))
        return found.reshape(len(images), self._box, -1)


@dataclass(frozen=True, eq=False)
class Door:
    """How the images of one optics group come in.

    Attributes
    ----------
    group
        The group; its box is known.
    box, pixel_size
        Of the images that come out; pixels and A.
    factor
        exp(-i odd) times the `mtf_ratio`, at the pixels of a half transform, complex64 or float32, shape
        (box, box // 2 + 1) of the group, or None.
    undistortion
        Of anisotropic magnification, or None.
    """

    group: OpticsGroup
    box: int
    pixel_size: float
    factor: NDArray[Any] | None
    undistortion: Any = field(default=None)

    def __call__(self, images: NDArray[np.float32], parameters: CtfParameters) -> NDArray[np.float32]:
        """Images (k, box, box) of the group as the refinement takes them; each is worked on by itself.

        Parameters
        ----------
        parameters
            Of the CTFs that the images were made with.
        """
        if self.undistortion is not None or self.factor is not None or self.group.is_premultiplied:
            images = self._filtered(images, parameters)
        if images.shape[1] == self.box and self.group.pixel_size == self.pixel_size:
            return images
        return resample_images(images, self.group.pixel_size, self.box, self.pixel_size)

    def _filtered(self, images: NDArray[np.float32], parameters: CtfParameters) -> NDArray[np.float32]:
        """All that is done at the group's own pixel size."""
        # Phases about the centre or about pixel 0: what they are multiplied by here commutes with a shift.
        transforms = scipy.fft.rfft2(images) if self.undistortion is None else self.undistortion(images)
        if self.factor is not None:
            transforms *= self.factor
        if self.group.is_premultiplied:
            values = ctf(parameters, *_half_plane(self.group.box), self.group.box, self.group.pixel_size)
            transforms = unmultiplied(transforms, values.reshape(transforms.shape))
        found: NDArray[np.float32] = scipy.fft.irfft2(transforms, s=images.shape[1:], overwrite_x=True)
        return found if self.undistortion is None else np.fft.fftshift(found, axes=(1, 2))


# Hundreds of optics groups, one for each shift of the beam, are usual: what they share is kept apart.
@lru_cache(maxsize=256)
def door_of(group: OpticsGroup, common: OpticsGroup) -> Door | None:
    """The door of an optics group to images as of the common one; None where they pass as they are."""
    odd, own = group.odd_polynomial(), group.box
    is_alike, factor = group.is_alike(common), mtf_ratio(group, common)
    if is_alike and factor is None and not odd.any() and not group.is_premultiplied and not group.is_distorted:
        return None
    if odd.any():
        angle = odd @ _odd_monomials(own, group.pixel_size, len(odd))
        phase = np.exp(-1j * angle.astype(np.complex64)).reshape(own, own // 2 + 1)
        factor = phase if factor is None else phase * factor
    undistortion = Undistortion(group.matrix, own) if group.is_distorted else None
    return Door(group, common.box, group.pixel_size if is_alike else common.pixel_size, factor, undistortion)


def mtf_ratio(group: OpticsGroup, common: OpticsGroup) -> NDArray[np.float32] | None:
    """MTF of the common group's detector over that of the own, at the pixels of a half transform of the group's images.

    Each curve is taken at its own detector's pixel size. A map of all images then has one MTF, which is divided out
    when it is sharpened. Noise is divided as well: its spectrum, which each group has for itself, knows it.

    Returns
    -------
    float32, shape (box, box // 2 + 1); None where both are the same, or one of the curves is not there.
    """
    pixels = group.mtf_pixel_size, common.mtf_pixel_size
    if group.mtf == common.mtf and abs(pixels[0] / pixels[1] - 1) <= 1e-4:
        return None
    own, other = curve_of(group.mtf), curve_of(common.mtf)
    if own is None or other is None:
        return None
    plane = np.stack(_half_plane(group.box)) / (group.box * group.pixel_size)
    outside, inside = (np.hypot(*frequency) for frequency in (np.linalg.inv(group.matrix) @ plane, plane))
    ratio = other.at(inside, pixels[1]) / np.maximum(own.at(outside, pixels[0]), LEAST_MTF)
    return ratio.astype(np.float32).reshape(group.box, -1)


@lru_cache(maxsize=4)
def _half_plane(box: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Integer frequencies (kx, ky) of a half transform, raveled, (J,) each."""
    ky, kx = np.meshgrid(np.fft.fftfreq(box, 1 / box), np.arange(box // 2 + 1.0), indexing="ij")
    return kx.ravel(), ky.ravel()


@lru_cache(maxsize=4)
def _odd_monomials(box: int, pixel_size: float, count: int) -> NDArray[np.float64]:
    """Odd monomials of the frequencies in 1/A of a half transform, (count, J)."""
    kx, ky = _half_plane(box)
    return monomials(kx / (box * pixel_size), ky / (box * pixel_size), count, odd=True)


def known_shell(group: OpticsGroup, box: int, pixel_size: float) -> int:
    """Highest shell, of images of a box and pixel size in A, of which images of a group know every pixel."""
    last = (box - 1) // 2
    if not group.is_distorted and group.box == box and abs(group.pixel_size / pixel_size - 1) <= 1e-4:
        return last
    least = float(np.linalg.svd(group.matrix, compute_uv=False).min())  # |M^-1 k| is at most |k| / least
    reach = ((group.box - 1) // 2 + 0.5) / (group.box * group.pixel_size) * least  # 1/A
    return min(last, int(reach * box * pixel_size - 0.5 + 1e-6))

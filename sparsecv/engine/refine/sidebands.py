# SPDX-License-Identifier: GPL-3.0-or-later
"""From images to what they add to the sums on the two slices of the Ewald sphere: :mod:`..physics.ewald`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.optics_terms import FLIPPED, PREMULTIPLIED
from sparsecv.engine.io.particles import ParticleTable
from sparsecv.engine.physics.ctf import CtfParameters, ctf_parts, frequency_powers
from sparsecv.engine.physics.disc import Disc
from sparsecv.engine.physics.ewald import coherence, curvature, sideband_weight
from sparsecv.engine.refine.images import about_origin, centred, mean_outside
from sparsecv.engine.refine.volumes import PADDING, half_width
from sparsecv.kernels.contract import curved_radius

SIDEBAND_BYTES = 80  # of a pixel of an image while its sidebands are made: phases, complex images, copies


@dataclass(frozen=True, eq=False)
class EwaldSlices:
    """Where the two sidebands of images go, and how they are made.

    Attributes
    ----------
    box
        Of the images, pixels.
    chosen
        (J,) pixels of the disc, by their place in it, of which both slices stay within the volume; on the host.
    kx, ky
        (J,) these pixels, on the device.
    pixels, mates
        (J,) places of k and -k in a raveled transform (box, box), on the device.
    bends
        (optics groups,) curvature of the first sideband's slice: kz = bend k^2, in Fourier pixels.
    kinds
        (optics groups,) row of each group in ``rho``.
    rho
        (curvatures, J) float32 on the device: `coherence` of the two slices, of curvatures that differ.
    powers
        `frequency_powers` of a whole transform, on the device.
    mask
        (box, box) of refocused images, about pixel 0, on the device.
    """

    box: int
    chosen: np.ndarray
    kx: Any
    ky: Any
    pixels: Any
    mates: Any
    bends: np.ndarray
    kinds: np.ndarray
    rho: Any
    powers: Any
    mask: Any

    @classmethod
    def of(cls, ops: Any, table: ParticleTable, parameters: CtfParameters, disc: Disc, circle: Any, diameter: float,
           hand: int) -> EwaldSlices:  # fmt: skip
        """The slices of a table's images.

        Parameters
        ----------
        parameters
            Terms of the images' CTFs.
        disc
            Pixels up to the last shell of the accumulator. The few at its edge that curvature would carry out of the
            volume are left away.
        circle
            (box, box) soft mask about the centre of images, on the device.
        diameter
            Of the particle, A.
        hand
            +1 or -1.
        """
        xp, box, length = ops.xp, table.box, table.box * table.pixel_size
        bends = curvature(np.array([group.voltage_kv for group in table.optics]), hand, length)
        radius = np.sqrt(disc.kx.astype(np.float64) ** 2 + disc.ky.astype(np.float64) ** 2)
        chosen = np.flatnonzero(PADDING * curved_radius(radius, np.abs(bends).max()) + 2 <= half_width(disc.last))
        unlike, kinds = np.unique(bends, return_inverse=True)
        rho = coherence(2 * unlike[:, None] * radius[chosen] ** 2 / length, diameter)
        kx, ky = disc.kx[chosen].astype(np.int64), disc.ky[chosen].astype(np.int64)
        axis = np.fft.fftfreq(box, 1 / box)
        every = np.tile(axis, box), np.repeat(axis, box)
        even = 0 if parameters.even is None else parameters.even.shape[1]
        powers = frequency_powers(*every, box, table.pixel_size, xp, even)
        pixels, mates = (xp.asarray((sign * ky) % box * box + (sign * kx) % box) for sign in (1, -1))
        return cls(box, chosen, xp.asarray(kx), xp.asarray(ky), pixels, mates, bends, kinds,
                   xp.asarray(rho.astype(np.float32)), powers, about_origin(xp, circle))  # fmt: skip

    def sums(
        self, ops: Any, images: Any, centre_px: np.ndarray, parameters: CtfParameters, groups: np.ndarray,
        precision: Any = 1,
    ) -> tuple[Any, Any]:  # fmt: skip
        """What images add to B and N, (2 I, J) each: first sidebands, then, in the order of the images, second ones.

        An image times i exp(-i gamma) is a complex image in which the first sideband is back in focus, and the other
        one, twice out of it, lies spread out, most of it beyond the mask.

        Parameters
        ----------
        images
            (I, box, box) on the device.
        centre_px
            (I, 2) whole pixels (x, y) that bring the particles to the centre; what is left has to be done to the sums.
        parameters, groups
            Terms of their CTFs, and their optics groups, (I,).
        precision
            1 / sigma^2 at the pixels, (I, J), or a number.
        """
        xp, count = ops.xp, len(images)
        envelope, gamma = ctf_parts(parameters, self.powers, xp)
        moved = centred(ops, images, centre_px)
        moved = moved - mean_outside(xp, moved, self.mask)[:, None, None]
        # For real images the transform is the conjugate of the inverse one, but for a factor.
        focused = _inverse(ops, moved.astype(xp.complex64)).conj()
        focused *= (xp.sin(gamma) + np.complex64(1j) * xp.cos(gamma)).reshape(focused.shape)
        focused = _inverse(ops, focused)
        focused *= self.mask * xp.float32(self.box**3)
        focused = _inverse(ops, focused.conj()).conj().reshape(count, -1)
        envelope, gamma = envelope.take(self.pixels, axis=1), gamma.take(self.pixels, axis=1)
        data = xp.concatenate([focused.take(self.pixels, axis=1), focused.take(self.mates, axis=1).conj()])
        factor, weight = sideband_weight(envelope, gamma, self.rho[xp.asarray(self.kinds[groups])], precision, xp)
        data *= twice(xp, factor)
        return data, twice(xp, weight)

    def deposit(
        self, ops: Any, add: Callable[..., None], sums: tuple[Any, Any], groups: np.ndarray, shifts: Any, weights: Any,
        rotations: Any, owner: Any,
    ) -> None:  # fmt: skip
        """Backproject what `sums` gives for I images, in one call: it adds all of it, or none where memory runs out.

        Parameters
        ----------
        add
            Of the accumulator: see :meth:`.Accumulator.adding`.
        groups
            (I,) optics group of each image.
        shifts
            (I, T, 2) pixels by which images are moved.
        weights, rotations, owner
            (C, T), (C, 3, 3) and (C,): candidates as of the kernels.
        """
        xp, count = ops.xp, len(groups)
        data, weight = sums
        moved = ops.shift_images(data, twice(xp, shifts), self.kx, self.ky, self.box)
        bends = np.concatenate([self.bends[groups], -self.bends[groups]])
        places = twice(xp, weights), twice(xp, rotations), xp.concatenate([owner, owner + count])
        add(moved, weight, *places, self.kx, self.ky, PADDING, curvature=bends)


def _inverse(ops: Any, values: Any) -> Any:
    """Inverse transforms of complex images (I, box, box)."""
    return ops.ifft(ops.ifft(values, 1), 2)


def twice(xp: Any, array: Any) -> Any:
    """The rows of an array for first sidebands, and again for second ones."""
    return xp.concatenate([array, array])


def ctf_corrected(table: ParticleTable) -> str:
    """Column by which, and optics group of which, images were corrected for their CTF; empty where none were.

    They are no sum of two sidebands any more. A CTF's zeros are none of a sideband: what images lost there by being
    multiplied with the CTF does not come back. Flipping phases has turned one side of each zero round, and is undone
    only where it was done with this very CTF.
    """
    for number in np.unique(table.optics_index).tolist():
        group = table.optics[number]
        for column, is_done in ((PREMULTIPLIED, group.is_premultiplied), (FLIPPED, group.is_flipped)):
            if is_done:
                return f"{column} of {group.name}"
    return ""


def check_ewald(table: ParticleTable) -> None:
    """Refuse, with InputError, images that are `ctf_corrected`."""
    done = ctf_corrected(table)
    if done:
        raise InputError("images that were corrected for their CTF cannot be corrected for the Ewald sphere",
                         file=table.path, item=done, rule="images as they were recorded",
                         remedy="extract the particles without CTF correction, or leave --ewald away")

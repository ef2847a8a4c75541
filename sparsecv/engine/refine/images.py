# SPDX-License-Identifier: GPL-3.0-or-later
"""From image stacks to the lists of Fourier pixels that the expectation step works on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sparsecv.engine.physics.ctf import CtfParameters, ctf, frequency_powers
from sparsecv.engine.physics.disc import Disc


@dataclass
class ImageBatch:
    """Transforms of I images on the device.

    Attributes
    ----------
    index
        (I,) rows of the particle table.
    centre_px
        (I, 2) whole pixels (x, y) by which the images were moved; shifts of the search are relative to it.
    masked
        (I, J) complex64, inside the circular mask: compared with projections.
    unmasked
        (I, J) complex64: backprojected.
    ctf
        (I, J) float32, times the scale of the particle's group.
    inverse_noise
        (I, J) float32, 1 / sigma^2.
    """

    index: np.ndarray
    centre_px: np.ndarray
    masked: Any
    unmasked: Any
    ctf: Any
    inverse_noise: Any


def transform_images(ops: Any, images: Any, centre_px: np.ndarray, circle: Any, disc: Disc) -> tuple[Any, Any]:
    """Disc pixels of images, masked and unmasked.

    Parameters
    ----------
    images
        (I, box, box) float32 on the device.
    centre_px
        (I, 2) whole pixels (x, y) that bring the particles to the centre.
    circle
        (box, box) float32 soft circular mask; outside it an image is replaced by its mean there.

    Returns
    -------
    masked, unmasked
        (I, J) complex64, transforms divided by box, phases relative to pixel box // 2.
    """
    xp, box = ops.xp, disc.box
    # Moving the image and bringing its centre to pixel 0 is one gather.
    start = np.arange(box)[None, :] + box // 2
    rows = xp.asarray((start - centre_px[:, 1:2]) % box)
    columns = xp.asarray((start - centre_px[:, 0:1]) % box)
    moved = images[xp.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
    mask = xp.roll(circle, (-(box // 2), -(box // 2)), axis=(0, 1))
    outside = 1 - mask
    background = (moved * outside).sum(axis=(1, 2)) / xp.maximum(outside.sum(), xp.float32(1e-6))
    flat = disc.on(xp).flat
    scale = xp.float32(1 / box)
    # take, as x[:, flat] would lay the pixels of different images side by side
    unmasked = ops.rfft2(moved).reshape(len(images), -1).take(flat, axis=1) * scale
    moved = moved * mask + background[:, None, None] * outside
    masked = ops.rfft2(moved).reshape(len(images), -1).take(flat, axis=1) * scale
    return masked.astype(xp.complex64), unmasked.astype(xp.complex64)


@lru_cache(maxsize=4)
def powers_of(disc: Disc, pixel_size: float, xp: Any, even: int) -> Any:
    """`frequency_powers` of a disc, uploaded once: they are megabytes, and the same for every batch."""
    return frequency_powers(disc.kx, disc.ky, disc.box, pixel_size, xp, even)


def ctf_images(
    ops: Any, parameters: CtfParameters, scale: np.ndarray, disc: Disc, pixel_size: float, **options: bool
) -> Any:
    """CTF of each image at the disc's pixels times the scale of its group, (I, J) float32."""
    even = 0 if parameters.even is None else parameters.even.shape[1]
    powers = powers_of(disc, pixel_size, ops.xp, even)
    values = ctf(parameters, disc.kx, disc.ky, disc.box, pixel_size, xp=ops.xp, powers=powers, **options)
    if np.any(scale != 1):
        values = values * ops.xp.asarray(scale.astype(np.float32))[:, None]
    return values


def shell_table(ops: Any, table: np.ndarray, rows: np.ndarray, disc: Disc) -> Any:
    """Rows of a (groups, shells) table spread over the disc's pixels, (I, J) float32."""
    xp = ops.xp
    return xp.asarray(table.astype(np.float32))[xp.asarray(rows)].take(disc.on(xp).shell, axis=1)

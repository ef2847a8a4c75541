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
    moved = centred(ops, images, centre_px)
    mask = about_origin(xp, circle)
    outside = 1 - mask
    background = mean_outside(xp, moved, mask)
    flat = disc.on(xp).flat
    scale = xp.float32(1 / box)
    # take, as x[:, flat] would lay the pixels of different images side by side
    unmasked = ops.rfft2(moved).reshape(len(images), -1).take(flat, axis=1) * scale
    moved = moved * mask + background[:, None, None] * outside
    masked = ops.rfft2(moved).reshape(len(images), -1).take(flat, axis=1) * scale
    return masked.astype(xp.complex64), unmasked.astype(xp.complex64)


def centred(ops: Any, images: Any, centre_px: np.ndarray) -> Any:
    """Images moved by whole pixels (x, y), with their centre at pixel 0: one gather, (I, box, box)."""
    xp, box = ops.xp, images.shape[1]
    start = np.arange(box)[None, :] + box // 2
    rows = xp.asarray((start - centre_px[:, 1:2]) % box)
    columns = xp.asarray((start - centre_px[:, 0:1]) % box)
    return images[xp.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def about_origin(xp: Any, circle: Any) -> Any:
    """A mask (box, box) about box // 2 as `centred` images need it."""
    half = len(circle) // 2
    return xp.roll(circle, (-half, -half), axis=(0, 1))


def mean_outside(xp: Any, images: Any, mask: Any) -> Any:
    """Mean of images (I, box, box) outside a mask, (I,); 0 for a mask without an outside."""
    outside = 1 - mask
    return (images * outside).sum(axis=(1, 2)) / xp.maximum(outside.sum(), xp.float32(1e-6))


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


def image_power(ops: Any, batch: ImageBatch) -> Any:
    """1/2 sum_j |X_j|^2 / sigma_j^2 of each image, (I,) float32: minus the log-likelihood of noise, but for a norm.

    An image's log-likelihood is the log evidence of its posterior, minus this, minus `noise_norms`.
    """
    images = batch.masked
    return (0.5 * (images.real**2 + images.imag**2) * batch.inverse_noise).sum(axis=1)


def noise_norms(noise: np.ndarray, disc: Disc, known_shells: np.ndarray) -> np.ndarray:
    """sum_j log(2 pi sigma_j^2) of each optics group, (groups,): the norm of a complex Gaussian at each pixel.

    Parameters
    ----------
    noise
        (groups, shells) sigma^2 of transforms divided by box; the norm is that of transforms divided by box^2, as
        RELION's are.
    known_shells
        (groups,) highest shell that the images of each group reach; beyond it there is nothing to be likely.
    """
    shells = np.arange(1, disc.last + 1)  # shell 0 is empty
    each = np.log(2 * np.pi * noise[:, shells] / disc.box**2)
    norms: np.ndarray = np.where(shells <= known_shells[:, None], each, 0.0) @ np.diff(disc.offsets)[shells]
    return norms


def shell_table(ops: Any, table: np.ndarray, rows: np.ndarray, disc: Disc) -> Any:
    """Rows of a (groups, shells) table spread over the disc's pixels, (I, J) float32."""
    xp = ops.xp
    return xp.asarray(table.astype(np.float32))[xp.asarray(rows)].take(disc.on(xp).shell, axis=1)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps in Fourier space on the host: shells, low-pass filters, change of pixel size and of box.

A map is cubic, (box, box, box) as (z, y, x), with its centre at index ``box // 2``. Its half transform is
``rfftn(ifftshift(map))``, shape (box, box, box // 2 + 1), so phases refer to the centre. A shell is the rounded length
of the frequency index; frequency in 1/A is shell / (box * pixel_size).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft

from sparsecv.engine.errors import InputError

IMAGE_AXES = (1, 2)  # of a stack


def check_cubic(volume: np.ndarray, what: str = "map") -> int:
    """Box size in pixels of a cubic map.

    Raises
    ------
    InputError
        If the array is not three-dimensional with three equal sides.
    """
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise InputError(f"{what} is not a cube", value=volume.shape, rule="three equal sides, (z, y, x)",
                         remedy="pad or crop it to a cube")
    return int(volume.shape[0])


@lru_cache(maxsize=2)
def shell_indices(box: int) -> np.ndarray:
    """Shell of every coefficient of a half transform.

    Returns
    -------
    numpy.ndarray
        round(|k|), shape (box, box, box // 2 + 1), int16, read-only (cached). The corners go beyond ``box // 2``.
    """
    k2 = (np.fft.fftfreq(box) * box).round() ** 2
    kx2 = np.arange(box // 2 + 1, dtype=np.float64) ** 2
    plane = k2[:, None] + kx2
    shells = np.empty((box, box, box // 2 + 1), dtype=np.int16)
    for z, kz2 in enumerate(k2):  # plane by plane: one float64 volume less
        shells[z] = np.rint(np.sqrt(plane + kz2))
    shells.setflags(write=False)
    return shells


def shell_sums(values: np.ndarray) -> np.ndarray:
    """Sum over whole shells of a quantity that is the same at k and -k, from its half transform.

    Parameters
    ----------
    values
        Real, shape (box, box, box // 2 + 1): |X|^2, Re(X Y*), ones. Complex is not accepted.

    Returns
    -------
    numpy.ndarray
        Shape (box // 2 + 1,), float64. Each pair k, -k counts twice, also on the planes kx = 0 and (even box)
        kx = box / 2, of which the half transform holds both members.
    """
    box = values.shape[0]
    shells, size = shell_indices(box), box // 2 + 1

    def plain(part: tuple[slice | int, ...]) -> np.ndarray:
        return np.bincount(shells[part].ravel(), weights=values[part].ravel(), minlength=size)[:size]

    sums: np.ndarray = 2.0 * plain((slice(None),)) - plain((slice(None), slice(None), 0))
    if box % 2 == 0:
        sums -= plain((slice(None), slice(None), box // 2))
    return sums


@lru_cache(maxsize=8)
def shell_counts(box: int) -> np.ndarray:
    """Number of coefficients of the whole transform in each shell 0 ... box // 2, float64, read-only."""
    counts = shell_sums(np.ones((box, box, box // 2 + 1), dtype=np.float32))
    counts.setflags(write=False)
    return counts


def forward(volume: np.ndarray, *, workers: int = 1) -> np.ndarray:
    """``rfftn(ifftshift(volume))``: half transform with phases about the map's centre; complex64 for float32."""
    transform: np.ndarray = scipy.fft.rfftn(scipy.fft.ifftshift(volume), workers=workers, overwrite_x=True)
    return transform


def backward(transform: np.ndarray, *, workers: int = 1) -> np.ndarray:
    """Inverse of :func:`forward`: the centred map, shape (box, box, box)."""
    box = transform.shape[0]
    volume: np.ndarray = scipy.fft.fftshift(scipy.fft.irfftn(transform, s=(box, box, box), workers=workers))
    return volume


def low_pass_weights(box: int, shell: float, edge_shells: float = 2.0) -> np.ndarray:
    """Radial low-pass filter with a raised-cosine edge, on the half transform.

    Parameters
    ----------
    shell
        Middle of the edge, where the weight is 1/2.
    edge_shells
        Full width of the edge; 2 in RELION (``lowPassFilterMap``).

    Returns
    -------
    numpy.ndarray
        float32, shape (box, box, box // 2 + 1), from exact (not rounded) radii.
    """
    k2 = ((np.fft.fftfreq(box) * box) ** 2).astype(np.float32)
    kx2 = np.arange(box // 2 + 1, dtype=np.float32) ** 2
    radius: np.ndarray = np.sqrt(k2[:, None, None] + k2[:, None] + kx2)
    low = max(0.0, shell - edge_shells / 2)
    radius -= np.float32(low)
    radius /= np.float32(max(shell + edge_shells / 2 - low, 1e-6))
    np.clip(radius, 0.0, 1.0, out=radius)
    radius *= np.float32(np.pi)
    np.cos(radius, out=radius)
    radius += 1
    radius *= 0.5
    return radius


def low_pass(
    volume: np.ndarray, pixel_size: float, resolution: float, edge_shells: float = 2.0, *, workers: int = 1
) -> np.ndarray:
    """Low-pass filter a map.

    Parameters
    ----------
    volume
        Shape (box, box, box).
    pixel_size, resolution
        A. The filter falls from 1 to 0 over ``edge_shells`` shells about the shell nearest to ``resolution``,
        as RELION's.

    Returns
    -------
    numpy.ndarray
        float32, shape of ``volume``. A resolution beyond Nyquist leaves all but the corners of the transform as it is.
    """
    box = check_cubic(volume)
    if not resolution > 0:
        raise InputError("low-pass resolution must be positive", value=resolution, rule="Angstrom, > 0")
    shell = round(box * pixel_size / resolution)
    transform = forward(volume.astype(np.float32, copy=False), workers=workers)
    transform *= low_pass_weights(box, shell, edge_shells)
    return backward(transform, workers=workers)


def crop_or_pad(
    volume: np.ndarray, box: int, fill: float = 0.0, *, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    """Change the box of a map about its centre, index n // 2, without touching the densities.

    Parameters
    ----------
    volume
        Any number of dimensions; each side becomes ``box``.
    fill
        Density of what is added.
    axes
        Which sides; None: all. Of a stack of images, (1, 2).

    Returns
    -------
    numpy.ndarray
        A new array of the same dtype, those sides ``box`` long.
    """
    changed = range(volume.ndim) if axes is None else axes
    shape = [box if axis in changed else size for axis, size in enumerate(volume.shape)]
    result = np.full(shape, fill, dtype=volume.dtype)
    source, target = [slice(None)] * volume.ndim, [slice(None)] * volume.ndim
    for axis in changed:
        size = volume.shape[axis]
        start = size // 2 - box // 2  # index in the source of element 0 of the result
        first, last = max(start, 0), min(start + box, size)
        source[axis] = slice(first, last)
        target[axis] = slice(first - start, last - start)
    result[tuple(target)] = volume[tuple(source)]
    return result


def resize_transform(transform: Any, box: int, xp: Any = np) -> Any:
    """Crop or zero-pad a half transform, corner DC, to another box; of the array module ``xp``.

    The Nyquist plane of the smaller even box is dropped when the box changes: it has no partner at the other sign,
    and keeping one side of it would move the map.
    """
    old = transform.shape[0]
    if box == old:
        return transform.copy()
    small = min(old, box)
    reach = (small - 1) // 2  # largest frequency kept, Nyquist excluded
    result = xp.zeros((box, box, box // 2 + 1), dtype=transform.dtype)
    positive, negative = slice(0, reach + 1), slice(-reach, None)
    for z in (positive, negative) if reach else (positive,):
        for y in (positive, negative) if reach else (positive,):
            result[z, y, : reach + 1] = transform[z, y, : reach + 1]
    return result


def resample(
    volume: np.ndarray, pixel_size: float, box: int, new_pixel_size: float, *, workers: int = 1
) -> np.ndarray:
    """Give a map another pixel size and box, by cropping or padding its transform.

    Parameters
    ----------
    volume
        Shape (n, n, n).
    pixel_size, new_pixel_size
        A.
    box
        Side of the result in pixels.

    Returns
    -------
    numpy.ndarray
        float32, shape (box, box, box), same centre, same densities (not the same sums). What the old box did not
        hold is zero.

    Notes
    -----
    A transform of p pixels cropped to m has the pixel p * pixel_size / m. When no m is exact for p = n, the map is
    first padded with zeros to the smallest p that keeps every voxel within 0.02 pixel of its place.
    """
    size = check_cubic(volume)
    if not (pixel_size > 0 and new_pixel_size > 0):
        raise InputError("pixel size must be positive", value=(pixel_size, new_pixel_size), rule="Angstrom, > 0")
    padded, cropped = _commensurate(size, pixel_size / new_pixel_size)
    source = crop_or_pad(volume.astype(np.float32, copy=False), padded)
    transform = resize_transform(forward(source, workers=workers), cropped)
    transform *= np.float32((cropped / padded) ** 3)
    return crop_or_pad(backward(transform, workers=workers), box)


def resample_images(images: np.ndarray, pixel_size: float, box: int, new_pixel_size: float) -> np.ndarray:
    """Give images another pixel size and box, by cropping or padding their transforms; each by itself.

    Parameters
    ----------
    images
        Shape (k, n, n).
    pixel_size, new_pixel_size
        A.
    box
        Side of the result in pixels.

    Returns
    -------
    numpy.ndarray
        float32, shape (k, box, box), same centres. The mean of an image's border is subtracted, and what the old box
        did not hold is zero. Values are multiplied by new_pixel_size / pixel_size.

    Notes
    -----
    With that factor white noise of variance v has the power v at every Fourier pixel before and after, which is what
    images are normalised to. It is that of their signal, too: exposed alike, it is larger in larger pixels when the
    noise of both is 1. As in `resample`, every pixel is kept within 0.02 pixel of its place.
    """
    size = images.shape[1]
    images = without_border(images.astype(np.float32, copy=False))
    if abs(pixel_size / new_pixel_size - 1) * size / 2 < 0.02:
        return crop_or_pad(images, box, axes=IMAGE_AXES)
    padded, cropped = _commensurate(size, pixel_size / new_pixel_size)
    transforms = scipy.fft.rfft2(np.fft.ifftshift(crop_or_pad(images, padded, axes=IMAGE_AXES), axes=(1, 2)))
    reach = (min(padded, cropped) - 1) // 2  # largest frequency kept, Nyquist excluded
    kept = np.zeros((len(images), cropped, cropped // 2 + 1), dtype=np.complex64)
    for y in (slice(0, reach + 1), slice(-reach, None)):
        kept[:, y, : reach + 1] = transforms[:, y, : reach + 1]
    kept *= np.float32((cropped / padded) ** 2 * new_pixel_size / pixel_size)
    small = np.fft.fftshift(scipy.fft.irfft2(kept, s=(cropped, cropped)), axes=(1, 2))
    return crop_or_pad(small, box, axes=IMAGE_AXES)


def without_border(images: np.ndarray) -> np.ndarray:
    """Images (k, n, n) less the mean of their outermost pixels, so that what is around them can be 0."""
    border = np.concatenate([images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1)
    less: np.ndarray = images - border.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)[:, :, None]
    return less


def _commensurate(size: int, ratio: float) -> tuple[int, int]:
    """Padded size p >= size and m with m / p = ratio to 0.02 pixel over half the map; else the best p <= 1.5 size."""
    best = (np.inf, size, max(1, round(size * ratio)))
    for padded in range(size, size + size // 2 + 1):
        cropped = max(1, round(padded * ratio))
        displacement = abs(cropped / padded / ratio - 1) * size / 2
        if displacement < 0.02:
            return padded, cropped
        best = min(best, (displacement, padded, cropped))
    return best[1], best[2]

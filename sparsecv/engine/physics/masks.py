# SPDX-License-Identifier: GPL-3.0-or-later
"""Soft masks: the circle of a particle image, the sphere of a reference, and the solvent mask of a map."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecv.engine.errors import InputError
from sparsecv.engine.physics.fourier import check_cubic
from sparsecv.engine.physics.fourier import low_pass as low_pass_filter

SMALLEST_COMPONENT = 0.1  # of the largest: keeps detached domains, drops blobs of noise
CORNER_EDGE_PX = 3.0
SMALLEST_EDGE_PX = 5.0  # a sharper edge convolves the transform widely enough to correlate noise of half maps


def raised_cosine(distance: np.ndarray, edge: float) -> np.ndarray:
    """1 up to distance 0, then half a cosine period down to 0 at ``edge``; float32, shape and unit of ``distance``."""
    if edge <= 0:
        return (distance <= 0).astype(np.float32)
    return (0.5 + 0.5 * np.cos(np.pi * np.clip(distance / edge, 0.0, 1.0))).astype(np.float32)


def image_circle(box: int, radius_px: float, edge_px: float = 5.0) -> np.ndarray:
    """Soft circle about the centre, index box // 2, of an image.

    Parameters
    ----------
    radius_px
        Within it the mask is 1, pixels.
    edge_px
        Width of the raised-cosine edge outside the radius, pixels.

    Returns
    -------
    numpy.ndarray
        float32, shape (box, box), in [0, 1].

    Notes
    -----
    1/2 + 1/2 cos(pi (r - radius) / edge) in the edge: RELION's ``softMaskOutsideMap``.
    """
    return _ball(box, radius_px, edge_px, 2)


def sphere(box: int, radius_px: float, edge_px: float = 5.0) -> np.ndarray:
    """Soft sphere about the centre of a map: :func:`image_circle` in three dimensions, shape (box, box, box)."""
    return _ball(box, radius_px, edge_px, 3)


def _ball(box: int, radius_px: float, edge_px: float, dimensions: int) -> np.ndarray:
    if not radius_px > 0 or edge_px < 0:
        raise InputError("mask radius must be positive and its edge not negative", value=(radius_px, edge_px),
                         rule="pixels", remedy="check the particle diameter and the pixel size")
    x2 = (np.arange(box, dtype=np.float32) - box // 2) ** 2
    r2 = x2[:, None] + x2 if dimensions == 2 else x2[:, None, None] + x2[:, None] + x2
    return raised_cosine(np.sqrt(r2) - np.float32(radius_px), edge_px)


def fade_corners(density: Any, xp: Any = np) -> Any:
    """A map whose corners, beyond the sphere that the box just holds, are their own mean.

    Images show the corners in some views only: there is nothing but noise in them, and they are half of a box's volume.
    The sphere fades over 3 pixels, as RELION's reconstructions do.

    Parameters
    ----------
    density
        Shape (box, box, box), of the array module ``xp``.
    """
    box = density.shape[0]
    inside = xp.asarray(sphere(box, box / 2, CORNER_EDGE_PX))
    outside = 1 - inside
    level = (density * outside).sum() / outside.sum()
    return density * inside + level * outside


def otsu(values: np.ndarray, bins: int = 512) -> float:
    """Threshold between two classes of largest between-class variance (Otsu 1979, eq. 18), of a sample of any shape.

    Raises
    ------
    InputError
        If all values are equal.
    """
    low, high = float(values.min()), float(values.max())
    if not high > low:
        raise InputError("map is flat: nothing separates particle from solvent", value=low)
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    moment = np.cumsum(counts * centres)
    weight = below / below[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] / below[-1] * weight - moment / below[-1]) ** 2 / (weight * (1 - weight))
    return float(edges[1:][np.nanargmax(np.where(np.isfinite(between), between, -1.0))])


def solvent_level(values: np.ndarray, bins: int = 512) -> tuple[float, float]:
    """Most frequent density and the spread below it: solvent and its noise, untouched by the brighter particle.

    Parameters
    ----------
    values
        Densities, any shape.

    Returns
    -------
    level, spread
        The mode of the smoothed histogram, and 1.4826 times the median distance of what lies below it.
    """
    from scipy import ndimage  # takes as long to import as a small reconstruction takes

    low, high = (float(v) for v in np.quantile(values, (0.001, 0.999)))
    if not high > low:  # nearly every voxel is the same: no noise
        return low, 0.0
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    peak = int(np.argmax(ndimage.gaussian_filter1d(counts.astype(np.float64), bins / 100)))
    level = float(edges[peak] + edges[peak + 1]) / 2
    below = values[values < level]
    spread = 1.4826 * float(np.median(level - below)) if below.size else 0.0
    return level, spread


def solvent_threshold(values: np.ndarray) -> tuple[float, bool]:
    """Density at which particle begins in a low-passed map, white on dark, and whether noise lies clearly below it.

    Parameters
    ----------
    values
        Densities of the voxels that may hold particle, any shape.

    Notes
    -----
    Otsu's threshold lies half-way between solvent and protein, which would cut off weak domains. With the solvent's
    level m and spread s (:func:`solvent_level`), the threshold is m + 5 s, but no lower than 30 % of the way from m to
    Otsu's (a noiseless map has s near 0) and no higher than Otsu's. Noise is clearly below if Otsu's is at least
    m + 3 s: otherwise it split the noise, not solvent from particle, and m + 3 s is returned.
    """
    middle = otsu(values)
    level, spread = solvent_level(values)
    if middle < level + 3 * spread:
        return level + 3 * spread, False
    return float(np.clip(level + 5 * spread, level + 0.3 * (middle - level), middle)), True


def solvent_mask(
    volume: np.ndarray,
    pixel_size: float,
    *,
    low_pass: float = 15.0,
    threshold: float | None = None,
    extend: float = 6.0,
    edge: float = 10.0,
    radius_px: float | None = None,
    workers: int = 1,
) -> np.ndarray:
    """Soft mask around the particle of a map.

    Parameters
    ----------
    volume
        Shape (box, box, box), particle brighter than solvent. Inside refinement, a map of one half only.
    pixel_size
        A.
    low_pass
        Resolution at which the map is thresholded, A. Coarser than the features that should not shape the mask. The
        automatic threshold goes up to 3 times coarser where noise would hide the particle.
    threshold
        Density, in the low-passed map; None chooses it (:func:`solvent_threshold`).
    extend
        Distance by which the thresholded volume grows, A.
    edge
        Width of the raised-cosine edge outside that, A, and at least 5 pixels.
    radius_px
        Only voxels within it can seed the mask, pixels; None takes the largest sphere that leaves room for the edge.

    Returns
    -------
    numpy.ndarray
        float32, shape of ``volume``, in [0, 1].

    Raises
    ------
    InputError
        If the map is not a cube, is flat, holds values that are not finite, or nothing lies above the threshold.

    Notes
    -----
    Components of at least a tenth of the largest one are kept and their cavities filled.
    """
    box = check_cubic(volume)
    if not np.isfinite(volume).all():
        raise InputError("map holds values that are not finite", remedy="look for a failed reconstruction")
    edge_px = max(edge / pixel_size, SMALLEST_EDGE_PX)
    extend_px = max(extend / pixel_size, 0.0)
    radius_px = radius_px or max(box / 2 - extend_px - edge_px, box / 4)
    inside = sphere(box, radius_px, 0) > 0
    for coarser in (1.0, 1.5, 2.0, 3.0) if threshold is None else (1.0,):
        smooth = volume
        if coarser * low_pass > 2 * pixel_size:
            smooth = low_pass_filter(volume, pixel_size, coarser * low_pass, workers=workers)
        level, clear = (threshold, True) if threshold is not None else solvent_threshold(smooth[inside])
        if clear:
            break
    core = large_components(inside & (smooth > level))
    if not core.any():
        raise InputError("no density above the mask threshold", value=level,
                         remedy="lower the threshold, or check that particles are white")
    return soft_edge(core, extend_px, edge_px)


def large_components(core: np.ndarray) -> np.ndarray:
    """The connected parts that are not small against the largest, with their cavities filled."""
    from scipy import ndimage  # takes as long to import as a small reconstruction takes

    labels, count = ndimage.label(core)
    if count == 0:
        return core
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = sizes >= SMALLEST_COMPONENT * sizes.max()
    filled: np.ndarray = ndimage.binary_fill_holes(keep[labels])
    return filled


def soft_edge(core: np.ndarray, extend_px: float, edge_px: float) -> np.ndarray:
    """Grow a binary volume and surround it by a raised cosine, working only in the box that the result can reach.

    Parameters
    ----------
    core
        bool, (z, y, x), not empty.
    extend_px, edge_px
        By how much it grows, and the width of the cosine outside that, pixels.

    Returns
    -------
    numpy.ndarray
        float32, shape of ``core``, in [0, 1].
    """
    from scipy import ndimage  # takes as long to import as a small reconstruction takes

    reach = int(np.ceil(extend_px + edge_px)) + 1
    window = []
    for axis in range(3):
        filled = np.flatnonzero(core.any(axis=tuple(a for a in range(3) if a != axis)))
        window.append(slice(max(filled[0] - reach, 0), filled[-1] + reach + 1))
    mask = np.zeros(core.shape, dtype=np.float32)
    distance = ndimage.distance_transform_edt(~core[tuple(window)])
    mask[tuple(window)] = raised_cosine(distance - extend_px, edge_px)
    return mask


def check_mask(
    mask: np.ndarray,
    shape: tuple[int, ...],
    pixel_size: float,
    *,
    mask_pixel_size: float | None = None,
    file: str | None = None,
) -> list[str]:
    """Check that a mask fits a map; what is odd but usable comes back as text.

    Parameters
    ----------
    mask
        Values in [0, 1] (to 1e-4), 1 = particle.
    shape
        Of the map, (z, y, x).
    pixel_size, mask_pixel_size
        Of the map and of the mask's header, A; None: the mask's is unknown.
    file
        Named in errors and warnings.

    Returns
    -------
    list of str
        Warnings: no solvent at all, a hard edge, or a mask that reaches the face of the box.

    Raises
    ------
    InputError
        If shape or pixel size differ, values lie outside [0, 1] or are not finite, or the mask is empty.
    """
    if mask.shape != tuple(shape):
        raise InputError("mask and map differ in box size", file=file, value=mask.shape, rule=f"shape {tuple(shape)}",
                         remedy="resample the mask to the map's box")
    if mask_pixel_size is not None and abs(mask_pixel_size / pixel_size - 1) > 0.01:
        raise InputError("mask and map differ in pixel size", file=file, value=mask_pixel_size,
                         rule=f"{pixel_size:g} A within 1 %", remedy="resample the mask, or correct its header")
    low, high = float(mask.min()), float(mask.max())
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise InputError("mask values outside [0, 1]", file=file, value=(low, high), rule="0 = solvent, 1 = particle",
                         remedy="make a mask of the map; a density map is not a mask")
    if high < 0.5:
        raise InputError("mask is empty", file=file, value=high, rule="reaches 1 inside the particle",
                         remedy="make a mask of the map")
    return _mask_warnings(mask, file or "mask")


def _mask_warnings(mask: np.ndarray, name: str) -> list[str]:
    warnings = []
    if mask.min() > 0.5:
        return [f"{name}: covers the whole box, so masked and unmasked curves are the same"]
    if not np.any((mask > 0.02) & (mask < 0.98)):
        warnings.append(f"{name}: has a hard edge, which raises the FSC of the mask itself; use a soft one")
    faces = [mask.take(index, axis=axis).max() for axis in range(3) for index in (0, -1)]
    if max(faces) > 0.5:
        warnings.append(f"{name}: reaches the face of the box")
    return warnings

# SPDX-License-Identifier: GPL-3.0-or-later
"""Priors on two half maps that a program holds as arrays: nothing is read and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.io.mrc import Map
from sparsecv.engine.physics.masks import check_mask, sphere
from sparsecv.engine.refine.evidence import check_independent, evidence_of_half_maps
from sparsecv.engine.refine.nu_filter import choose_filters
from sparsecv.engine.refine.prepare import particle_diameter
from sparsecv.engine.refine.regularise import settled
from sparsecv.engine.refine.regularisers import Regulariser, make_nonuniform, make_regulariser
from sparsecv.engine.refine.settings import NonUniformSettings, RegulariserSettings
from sparsecv.engine.threads import use_threads
from sparsecv.kernels import ops


@dataclass(frozen=True)
class RegularisedMap:
    """A map made of two half maps, to be looked at or aligned against: it has seen both, and no FSC may be made of it.

    Attributes
    ----------
    map
        (box, box, box) float32.
    shown
        What the regulariser says of its choices, plain numbers.
    volumes
        Further maps by name, such as band limits, A.
    """

    map: NDArray[np.float32]
    shown: dict[str, Any]
    volumes: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FilteredMap:
    """A map filtered at each voxel as far as two half maps predict each other there; no FSC may be made of it.

    Attributes
    ----------
    map
        (box, box, box) float32, the mean of the half maps through the chosen filters; not sharpened.
    chosen
        (box, box, box) float32: the band limit, A, or, of the family sparse-tv, the factor of both strengths.
    is_band_limit
        Which of the two it is.
    """

    map: NDArray[np.float32]
    chosen: NDArray[np.float32]
    is_band_limit: bool


def nu_filter(
    half1: ArrayLike, half2: ArrayLike, pixel_size: float, options: NonUniformSettings | None = None, *,
    mask: ArrayLike | None = None, diameter: float | None = None, device: str = "auto", threads: int = 0,
) -> FilteredMap:  # fmt: skip
    """Filter the mean of two half maps locally, by what they say about each other.

    Parameters
    ----------
    half1, half2
        (box, box, box), unfiltered, unmasked, independent.
    pixel_size
        A.
    options
        Which filters, and how they are chosen; None: the defaults.
    mask
        (box, box, box) in [0, 1]: where filters are chosen; outside it the coarsest holds. None: a sphere.
    diameter
        Of that sphere, A; None: 90 % of the box.
    device, threads
        As the options of ``sparsecv nu-filter``; threads are those of the whole process.

    Raises
    ------
    InputError
        Half maps that are equal, flat or not finite, or a mask that cannot be used.
    """
    first, second, support, round_mask = _checked(half1, half2, pixel_size, mask, diameter)
    use_threads(threads)
    regulariser = make_nonuniform(options or NonUniformSettings())
    origin = (0.0, 0.0, 0.0)
    maps = Map(first, pixel_size, origin), Map(second, pixel_size, origin)
    chosen = choose_filters(ops(device), regulariser, *maps, support, round_mask)
    return FilteredMap(chosen.filtered, chosen.theta, regulariser.shows_band_limits)


def regularise(
    half1: ArrayLike, half2: ArrayLike, pixel_size: float, prior: RegulariserSettings | Regulariser, *,
    mask: ArrayLike | None = None, diameter: float | None = None, previous: ArrayLike | None = None,
    device: str = "auto", threads: int = 0,
) -> RegularisedMap:  # fmt: skip
    """Regularise two half maps as a refinement regularises the two quarters of a half.

    Parameters
    ----------
    half1, half2, pixel_size, mask, diameter, device, threads
        As of :func:`nu_filter`; the result is 0 outside the mask.
    prior
        Settings of one that the program has, or any object with the methods of ``regularisers.base.Regulariser``.
    previous
        (box, box, box): the map to which some regularisers pull; None: an empty one.

    Raises
    ------
    InputError
        As :func:`nu_filter`.
    """
    first, second, support, round_mask = _checked(half1, half2, pixel_size, mask, diameter)
    use_threads(threads)
    kernels = ops(device)
    regulariser = make_regulariser(prior) if isinstance(prior, RegulariserSettings) else prior
    pulled_to = None if previous is None else np.asarray(previous, dtype=np.float32)
    evidence = evidence_of_half_maps(kernels, first, second, pixel_size, support, round_mask, pulled_to)
    found = settled(kernels, regulariser, evidence)
    return RegularisedMap(kernels.to_host(found.reference), found.shown, found.volumes)


def _checked(
    half1: ArrayLike, half2: ArrayLike, pixel_size: float, mask: ArrayLike | None, diameter: float | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Half maps, support and sphere, (box, box, box) float32 each; InputError for what cannot be used."""
    first, second = (np.asarray(half, dtype=np.float32) for half in (half1, half2))
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise InputError("pixel size must be positive", value=pixel_size, rule="Angstrom, > 0")
    check_independent(first, second)
    box = len(first)
    round_mask = sphere(box, particle_diameter(diameter, box * pixel_size) / 2 / pixel_size)
    if mask is None:
        return first, second, round_mask, round_mask
    given = np.asarray(mask, dtype=np.float32)
    check_mask(given, first.shape, pixel_size, file="the mask")
    return first, second, given, round_mask

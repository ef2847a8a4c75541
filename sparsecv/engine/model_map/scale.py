# SPDX-License-Identifier: GPL-3.0-or-later
"""How a map falls off against a model: scale and B-factor that bring the one to the other.

    D(s) = Re sum F_o F_c* / sum |F_c|^2 = k exp(-B s^2 / 4)          s = 1 / resolution
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsecv.engine.errors import InputError
from sparsecv.engine.model_map.atoms import ModelAtoms
from sparsecv.engine.model_map.curves import around_mask, masked
from sparsecv.engine.model_map.density import model_transform, to_map
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.physics.fourier import shell_counts, shell_sums

COARSEST = 8.0  # A: below that bulk solvent, which no model holds, changes the amplitudes
LEAST_CORRELATION = 0.15  # of a shell that says something about the fall-off
FEWEST_SHELLS = 4


@dataclass(frozen=True)
class FallOff:
    """k and B of a map against a model, and the resolutions between which they were fitted, A."""

    scale: float
    b_factor: float
    coarsest: float
    finest: float


def fall_off(observed: NDArray[np.complex64], calculated: NDArray[np.complex64], grid: Grid) -> FallOff | None:
    """Fit ln D(s) by a line in s^2, weighted by what each shell knows; None where too few shells correlate.

    Parameters
    ----------
    observed, calculated
        Half transforms of the map and of the model on the grid.

    Notes
    -----
    With n coefficients and correlation m the variance of ln D is (1 - m^2) / (n m^2). Shells finer than 8 A count, all
    of them where those are too few.
    """
    cross = shell_sums(observed.real * calculated.real + observed.imag * calculated.imag)
    power = shell_sums(calculated.real**2 + calculated.imag**2)
    total = shell_sums(observed.real**2 + observed.imag**2)
    known = (cross > 0) & (power > 0) & (total > 0)
    correlation = np.where(known, cross / np.sqrt(np.where(known, power * total, 1)), 0.0)
    shells = np.arange(len(cross))
    usable = known & (correlation > LEAST_CORRELATION) & (shells > 0)
    beyond = np.flatnonzero(~(correlation > LEAST_CORRELATION) & (shells > grid.length / COARSEST))
    if len(beyond):  # what comes up again behind the first gap is noise
        usable[beyond[0]:] = False
    fine = usable & (shells >= grid.length / COARSEST)
    if fine.sum() >= FEWEST_SHELLS:
        usable = fine
    if usable.sum() < FEWEST_SHELLS:
        return None
    m2 = np.minimum(correlation[usable] ** 2, 0.999)
    weight = shell_counts(grid.box)[usable] * m2 / (1 - m2)
    slope, intercept = np.polyfit((shells[usable] / grid.length) ** 2, np.log(cross[usable] / power[usable]), 1,
                                  w=np.sqrt(weight))  # fmt: skip
    used = np.flatnonzero(usable)
    coarsest, finest = (float(grid.length / used[end]) for end in (0, -1))
    return FallOff(float(np.exp(intercept)), float(-4 * slope), coarsest, finest)


def mean_fall_off(
    weights: NDArray[np.float64], b_factors: NDArray[np.float64], coarsest: float, finest: float
) -> float:
    """The one B-factor that falls off like atoms of different ones do between two resolutions (A), A^2."""
    s2 = np.linspace(1 / coarsest**2, 1 / finest**2, 20)
    part = weights / weights.sum()
    values = np.exp(-np.outer(s2, b_factors - b_factors.min()) / 4) @ part
    slope = np.polyfit(s2, np.log(values), 1)[0]
    return float(-4 * slope + b_factors.min())


def refit_b_factors(
    observed: NDArray[np.complex64], atoms: ModelAtoms, grid: Grid,
    mask_of: Callable[[str], NDArray[np.float32] | None], workers: int = 1,
) -> tuple[ModelAtoms, dict[str, float], list[str]]:  # fmt: skip
    """Add to all B-factors of a chain what makes its density fall off like the map around it.

    Parameters
    ----------
    observed
        Half transform of the map.
    mask_of
        Mask of a chain by name, or None for one of a few atoms.

    Returns
    -------
    The model, the mean B-factor of each chain in A^2, and sentences about chains that are shifted like the whole. No
    B-factor is below 0, as those of a sharpened map might be. The scale of a map against a model is one number, and
    in no correlation.

    Notes
    -----
    To give all atoms of a chain one B-factor instead was measured to lose correlation where the model's own are good.
    """
    calculated = model_transform(atoms, grid, workers=workers)
    whole = fall_off(observed, calculated, grid)
    if whole is None:
        raise InputError("the B-factors cannot be refitted: map and model hardly correlate", item="bfactors",
                         remedy="--fit rigid, or --bfactors model")  # fmt: skip
    maps = [to_map(transform, workers=workers) for transform in (observed, calculated)]
    said = []
    shifts = np.zeros(len(atoms))
    for number, name in enumerate(atoms.chains):
        mask = mask_of(name)
        own = None
        if mask is not None:
            window, cube = around_mask(mask, grid)
            first, second = (masked(volume[window], mask[window], workers) for volume in maps)
            own = fall_off(first, second, cube)
        if own is None:
            said.append(f"the B-factors of chain {name} could not be fitted: they are shifted like the whole model's")
        which = atoms.chain_of == number
        shifts[which] = (own or whole).b_factor
    shifted = atoms.shifted_b_factors(shifts)
    clipped = int((atoms.b_factors + shifts < 0).sum())
    if clipped:
        said.append(f"the B-factors of {clipped} atoms would be below 0 to fit this map: they are 0")
    found = {name: float(shifted.b_factors[atoms.chain_of == k].mean()) for k, name in enumerate(atoms.chains)}
    return shifted, found, said

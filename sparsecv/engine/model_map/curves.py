# SPDX-License-Identifier: GPL-3.0-or-later
"""Fourier shell correlations of a map with a model: bands of uncertainty, crossings, controls, half maps, chains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from sparsecv.engine.model_map.density import debye_waller, to_map, to_transform
from sparsecv.engine.model_map.frame import Grid
from sparsecv.engine.validate.fsc import (
    GOLD_STANDARD,
    HALF,
    Resolution,
    correct_for_mask,
    fsc,
    phase_randomise,
    resolution,
)
from sparsecv.engine.validate.fsc_bands import LEVELS, ConeSums, band, cone_sums, draws_of_cones

RUN = 3  # shells that must lie above a threshold in a row before the curve counts as above it
RANDOMISE_BELOW = 0.8
CONTROL_DRAWS = 3
BEYOND_MARGIN = 0.02  # above the ceiling
STANDARD_ERRORS = 5.0  # measured: with tight masks three are reached by chance


@dataclass(frozen=True)
class Crossing:
    """Where a curve of map against model falls through a threshold.

    Attributes
    ----------
    threshold
        0.5 or 0.143.
    resolution
        None: the curve is never above the threshold for three shells in a row.
    interval
        A, coarsest and finest: 95 % of the resampled curves; None where it does not cross.
    rises_from
        A; resolution from which on the curve is above, where it is below at coarser ones. Low frequencies miss what no
        model holds: solvent, disordered parts.
    above_again_to
        A; finest resolution to which it is above once more, for three shells at least; None: it is not.
    """

    threshold: float
    resolution: Resolution | None
    interval: tuple[float, float] | None = None
    rises_from: float | None = None
    above_again_to: float | None = None

    def __str__(self) -> str:
        if self.resolution is None:
            return f"never above {self.threshold:g}"
        text = str(self.resolution)
        if self.interval is not None and self.resolution.crossed:
            text += f" ({self.interval[0]:.2f} to {self.interval[1]:.2f})"
        return text


@dataclass(frozen=True)
class Curve:
    """A curve with its band of 95 % (each float64, one value per shell from 0) and crossings at 0.5 and 0.143."""

    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    at_05: Crossing
    at_0143: Crossing


@dataclass(frozen=True)
class ChainCurve:
    """The curve of one chain inside its own mask, on the grid of a cube around it."""

    curve: Curve
    grid: Grid


def curve_of(sums: ConeSums, grid: Grid, draws: NDArray[np.float64]) -> Curve:
    """Curve, band and crossings from the sums of two transforms."""
    samples = sums.resampled(draws)
    low, high = band(samples)
    return Curve(sums.curve, low, high, *(crossing(sums.curve, t, grid, samples) for t in (HALF, GOLD_STANDARD)))


def crossing(
    values: NDArray[np.float64], threshold: float, grid: Grid, samples: NDArray[np.float64] | None = None
) -> Crossing:
    """Where a curve of map against model falls through a threshold, after it has first risen above it.

    Parameters
    ----------
    values
        Per shell from shell 0, (shells,).
    samples
        Resampled curves, (draws, shells), for the interval.
    """
    first = _first_run(values, threshold)
    if first is None:
        return Crossing(threshold, None)
    risen = values.copy()
    risen[:first] = 1.0
    found = resolution(risen, threshold, grid.box, grid.pixel_size)
    again = None
    if found.crossed:
        behind = int(np.ceil(found.shell))
        rest = _first_run(values[behind:], threshold, after_zero=False)
        if rest is not None:
            above = np.flatnonzero(values[behind:] >= threshold)
            again = grid.length / (behind + int(above[-1]))
    interval = None
    if samples is not None:
        near = [_nearest_fall(sample, threshold, found.shell) for sample in samples]
        finest, coarsest = np.quantile(grid.length / np.array(near), LEVELS)
        interval = (float(coarsest), float(finest))
    return Crossing(threshold, found, interval, grid.length / first if first > 1 else None, again)


def _nearest_fall(values: NDArray[np.float64], threshold: float, shell: float) -> float:
    """Where a curve falls through a threshold, interpolated, nearest to a shell; the last shell if it never does.

    Resampled curves are rougher than the one they come from: their first fall may be a dent far before its own.
    """
    falls = np.flatnonzero((values[:-1] >= threshold) & (values[1:] < threshold))
    if not len(falls):
        return float(len(values) - 1)
    places = falls + (values[falls] - threshold) / (values[falls] - values[falls + 1])
    return max(float(places[np.argmin(np.abs(places - shell))]), 0.5)


def _first_run(values: NDArray[np.float64], threshold: float, *, after_zero: bool = True) -> int | None:
    """First shell (from 1 on) that begins a run of shells above a threshold; runs may end with the curve."""
    start = 1 if after_zero else 0
    above = values[start:] >= threshold
    if not above.any():
        return None
    padded = np.append(above, np.full(RUN - 1, bool(above[-1])))
    runs = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(padded, RUN).all(axis=1))
    return int(runs[0]) + start if len(runs) else None


@dataclass(frozen=True)
class Sharpening:
    """exp(B s^2 / 4), growing no further beyond a resolution (A; None: up to Nyquist), where there is only noise.

    The corners of a transform, beyond Nyquist's sphere, are in no shell, and would be sharpened most: they are removed.
    """

    b_factor: float
    finest: float | None

    def weights(self, grid: Grid) -> NDArray[np.float32] | None:
        """On the half transform of a grid; None for no sharpening."""
        if not self.b_factor:
            return None
        weights = debye_waller(grid, -self.b_factor)
        if self.finest is not None:
            limit = np.float32(np.exp(self.b_factor / 4 / self.finest**2))
            weights = np.minimum(weights, limit) if self.b_factor > 0 else np.maximum(weights, limit)
        k = np.fft.fftfreq(grid.box) ** 2
        weights[k[:, None, None] + k[:, None] + np.fft.rfftfreq(grid.box) ** 2 > 0.25] = 0.0
        return weights


def sharpened(
    transform: NDArray[np.complex64], sharpening: Sharpening, grid: Grid, workers: int = 1
) -> NDArray[np.float32]:
    """The map of a half transform, sharpened so that a mask cuts no blur off."""
    weights = sharpening.weights(grid)
    return to_map(transform if weights is None else transform * weights, workers=workers)


def masked(density: NDArray[np.float32], mask: NDArray[np.float32], workers: int = 1) -> NDArray[np.complex64]:
    """Half transform of a map under a mask.

    To take sharpening back afterwards, as a map would need it, changes no correlation within a shell, and is left out.
    """
    return to_transform(density * mask, workers=workers)


def control(
    density: NDArray[np.float32], model: NDArray[np.float32], mask: NDArray[np.float32], values: NDArray[np.float64],
    seed: int, workers: int = 1,
) -> tuple[NDArray[np.float64], int]:  # fmt: skip
    """What the mask alone gives: the masked curve of a map with random phases, and the first shell that has them.

    Parameters
    ----------
    density, model
        As they go under the mask, (box, box, box).
    values
        The masked curve: phases are random from where it falls below 0.8 beyond its highest value on.

    Returns
    -------
    The mean of three draws, (shells,), and the shell; the last one where the curve stays above 0.8.
    """
    top = 1 + int(np.argmax(values[1 : max(2, len(values) // 2)]))
    below = np.flatnonzero(values[top:] < RANDOMISE_BELOW)
    start = top + int(below[0]) if len(below) else len(values) - 1
    rng = np.random.default_rng(seed)
    under = model * mask
    curves = [
        fsc(phase_randomise(density, start, rng, workers=workers) * mask, under, workers=workers)
        for _ in range(CONTROL_DRAWS)
    ]
    return np.mean(curves, axis=0), start


def corrected(values: NDArray[np.float64], randomised: NDArray[np.float64], start: int) -> NDArray[np.float64]:
    """The masked curve without what the mask contributes [Chen2013]; a control below 0 takes nothing away."""
    found: NDArray[np.float64] = correct_for_mask(values, np.maximum(randomised, 0), start)
    return found


def ceiling(half_fsc: NDArray[np.float64]) -> NDArray[np.float64]:
    """C_ref = sqrt(2 FSC / (1 + FSC)): what a perfect model can reach against the mean of the halves."""
    positive = np.clip(half_fsc, 0, 1)
    found: NDArray[np.float64] = np.sqrt(2 * positive / (1 + positive))
    return found


def beyond_ceiling(
    model: ConeSums, halves: ConeSums, draws: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Shells at which a model agrees with a map better than half maps allow, beyond doubt and three in a row.

    Parameters
    ----------
    model, halves
        Sums of map and model, and of the halves, all in one mask: neither curve is corrected for it, so that what it
        brings is in both.
    """
    difference = model.resampled(draws) - ceiling(halves.resampled(draws)) - BEYOND_MARGIN
    sure = np.quantile(difference, LEVELS[0], axis=0) > 0
    sure[0] = False
    found: NDArray[np.bool_] = ndimage.binary_opening(sure, np.ones(RUN, dtype=bool))
    return found


@dataclass(frozen=True)
class OverFit:
    """Model against half 1 less model against half 2, averaged over the shells down to a resolution.

    Attributes
    ----------
    difference, error
        Of the correlation, weighted by the number of coefficients; and its standard error by resampling.
    finest
        A.
    """

    difference: float
    error: float
    finest: float

    @property
    def is_significant(self) -> bool:
        """More than five standard errors and more than a hundredth."""
        return abs(self.difference) > max(STANDARD_ERRORS * self.error, 0.01)


def over_fit(
    half1: ConeSums, half2: ConeSums, counts: NDArray[np.float64], last: int, grid: Grid, draws: NDArray[np.float64]
) -> OverFit:
    """Compare a model's curves against two half maps over the shells 1 to ``last``."""
    weights = np.where((np.arange(len(counts)) > 0) & (np.arange(len(counts)) <= last), counts, 0.0)
    weights = weights / weights.sum()
    samples = (half1.resampled(draws) - half2.resampled(draws)) @ weights
    return OverFit(float((half1.curve - half2.curve) @ weights), float(samples.std()), grid.length / last)


def chain_curve(
    density: NDArray[np.float32], model: NDArray[np.float32], mask: NDArray[np.float32], grid: Grid, seed: int,
    workers: int = 1,
) -> ChainCurve:  # fmt: skip
    """Curve of map against model inside the mask of a chain, from a cube that just holds the mask.

    A smaller cube has fewer, thicker shells; nothing is lost, as there is nothing outside of the mask.
    """
    window, cube = around_mask(mask, grid)
    first, second = (masked(volume[window], mask[window], workers) for volume in (density, model))
    return ChainCurve(curve_of(cone_sums(first, second), cube, draws_of_cones(seed)), cube)


def around_mask(mask: NDArray[np.float32], grid: Grid) -> tuple[tuple[slice, ...], Grid]:
    """The smallest cube that holds a mask and transforms fast: its slices (z, y, x) of a grid, and itself as one."""
    filled = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    side = max(int(part[-1] - part[0]) + 1 for part in filled)
    side = min(int(scipy.fft.next_fast_len(side + side % 2, real=True)), grid.box)
    starts = [min(int(part[0]), grid.box - side) for part in filled]
    cube = Grid(side, grid.pixel_size, grid.origin + np.array(starts[::-1]) * grid.pixel_size)
    return tuple(slice(start, start + side) for start in starts), cube

# SPDX-License-Identifier: GPL-3.0-or-later
"""Which candidate is kept where: the smallest windowed error against the held-out map [Punjani2020, eq. 5, 6].

    theta(x) = argmin_theta (w_rho * e_theta)(x),       rho = window factor x theta

Equation 6 taken literally compares errors that were averaged over windows of different width: wide ones dilute the
error of a smoothed core with solvent, narrow ones win by chance in solvent. Like for like, candidates come from coarse
to fine, and each is compared with the one kept so far within the same window, its own; see docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecv.engine.refine.regularisers.nonuniform.maps import RawMaps

SIGMAS = 4.0  # of the Gaussian window: its width rho
CUT = 2.5  # standard deviations at which it ends
NARROWEST = 0.15  # bins: below that a window is its bin
BIN = 2  # voxels along a side
LEAST_SHARE = 1e-4  # of a window that lies inside the mask


@dataclass(frozen=True)
class Rule:
    """How candidates are compared.

    Attributes
    ----------
    window_factor
        rho / theta, the paper's adaptive window factor.
    is_literal
        Equation 6 as it stands, or like for like.
    correction
        Of the error, like for like: 0 takes that of the raw maps, 1 that of their mean, which has half of the noise.
        Less than 1 keeps chance from choosing in solvent (docs/decisions.md).
    """

    window_factor: float = 2.5
    is_literal: bool = False
    correction: float = 0.75


@dataclass(frozen=True)
class Candidate:
    """What one member of a family makes of the raw maps.

    Attributes
    ----------
    wavelength
        theta, A: sets the window.
    first, second
        Of the two raw maps, each to be compared with the other: (side, side, side) float32.
    whole
        Of their mean.
    """

    wavelength: float
    first: Any
    second: Any
    whole: Any


@dataclass
class Selection:
    """What was kept.

    Attributes
    ----------
    chosen
        (side, side, side) uint8: number of the candidate, from 0; 0 outside the support.
    whole
        (side, side, side) float32: the candidates' maps, each where it was chosen.
    predictions
        The same of the two raw maps, where asked for.
    """

    chosen: Any
    whole: Any
    predictions: tuple[Any, Any] | None = None


def select(
    ops: Any, maps: RawMaps, candidates: Iterator[Candidate], rule: Rule, *, keep_predictions: bool = False
) -> Selection:
    """Go through the candidates, which come from coarse to fine, and keep the best of them at each voxel."""
    xp, errors = ops.xp, _Errors(ops, maps, rule)
    found: Selection | None = None
    for number, candidate in enumerate(candidates):
        if found is None:
            errors.start(candidate)
            chosen = xp.zeros(maps.first.shape, dtype=xp.uint8)
            kept = (candidate.first.copy(), candidate.second.copy()) if keep_predictions else None
            found = Selection(chosen, candidate.whole, kept)
            del candidate  # gigabytes, at the largest boxes: before the next one is made
            continue
        advantage = errors.advantage(candidate)
        ops.take_better(advantage, BIN, maps.weight, number, candidate.whole, found.chosen, found.whole)
        if found.predictions is not None:
            for kept_map, new in zip(found.predictions, (candidate.first, candidate.second), strict=True):
                xp.copyto(kept_map, new, where=found.chosen == number)
        del candidate
    assert found is not None, "a family has at least one candidate"
    return found


class _Errors:
    """Windowed errors of the candidates, in bins."""

    def __init__(self, ops: Any, maps: RawMaps, rule: Rule) -> None:
        self.ops, self.maps, self.rule = ops, maps, rule
        self.kept: Any = None  # error of what was kept so far, in bins; literally: its windowed mean
        self.bin_weights = self._bin_weights() if rule.is_literal else None

    def start(self, candidate: Candidate) -> None:
        """The error of the first candidate."""
        error = self._error(candidate)
        self.kept = self._windowed_mean(error, candidate.wavelength) if self.rule.is_literal else error

    def advantage(self, candidate: Candidate) -> Any:
        """Windowed error of a candidate less that of what was kept so far, per bin; moves the latter on."""
        xp, error = self.ops.xp, self._error(candidate)
        if self.rule.is_literal:
            mean = self._windowed_mean(error, candidate.wavelength)
            advantage = mean - self.kept
            self.kept = xp.minimum(mean, self.kept)
            return advantage
        # Divided by the window's share of the mask it would have the same sign.
        advantage = self.ops.window(error - self.kept, self._taps(candidate.wavelength))
        self.kept = xp.where(advantage < 0, error, self.kept)
        return advantage

    def _error(self, candidate: Candidate) -> Any:
        """Held-out error per bin; but for the literal equation that of the mean of both, which has half the noise."""
        correction = 0.0 if self.rule.is_literal else self.rule.correction
        maps = self.maps
        return self.ops.filtered_error(maps.first, maps.second, candidate.first, candidate.second, maps.weight,
                                       correction, BIN)

    def _windowed_mean(self, error: Any, wavelength: float) -> Any:
        """Mean of the error over the part of the window that lies inside the mask."""
        xp, taps = self.ops.xp, self._taps(wavelength)
        share = self.ops.window(self.bin_weights, taps)
        # far from the mask there is nothing to compare
        return xp.where(share > LEAST_SHARE * BIN**3, self.ops.window(error, taps) / xp.maximum(share, 1e-12), 0)

    def _bin_weights(self) -> Any:
        """Sum of the weights in each bin: the error of a map of ones against an empty one."""
        xp, weight = self.ops.xp, self.maps.weight
        zero, one = xp.zeros_like(weight), xp.ones_like(weight)
        return self.ops.filtered_error(zero, zero, one, zero, weight, 0.0, BIN)

    def _taps(self, wavelength: float) -> Any:
        return taps_of(self.ops, self.maps, self.rule, wavelength)


def taps_of(ops: Any, maps: RawMaps, rule: Rule, wavelength: float) -> Any:
    """Taps of the window of a wavelength, on the device."""
    bin_length = maps.length / maps.side * BIN
    return ops.xp.asarray(window_taps(rule.window_factor * wavelength / SIGMAS / bin_length))


def window_taps(sigma: float) -> np.ndarray:
    """Taps of a Gaussian window of a standard deviation in bins, sum 1, float32 (2 r + 1,)."""
    if sigma < NARROWEST:
        return np.ones(1, dtype=np.float32)
    radius = max(int(np.ceil(CUT * sigma)), 1)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (taps / taps.sum()).astype(np.float32)

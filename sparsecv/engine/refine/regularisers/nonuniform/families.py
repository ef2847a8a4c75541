# SPDX-License-Identifier: GPL-3.0-or-later
"""Families of regularisers that a space-varying choice can be made from [Punjani2020, section 3].

Each makes candidates of the two raw maps, from coarse to fine, for the one selection (:mod:`.selection`); the local
Wiener filter has its held-out optimum in closed form and needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from sparsecv.engine.refine.regularisers.base import Evidence
from sparsecv.engine.refine.regularisers.nonuniform.bank import Bank
from sparsecv.engine.refine.regularisers.nonuniform.maps import RawMaps
from sparsecv.engine.refine.regularisers.nonuniform.selection import (
    BIN,
    Candidate,
    Rule,
    Selection,
    select,
    taps_of,
)
from sparsecv.engine.refine.regularisers.sparse_tv.half_problem import HalfProblem
from sparsecv.engine.refine.regularisers.sparse_tv.regulariser import SparseTv
from sparsecv.engine.refine.regularisers.sparse_tv.splitting import solve
from sparsecv.engine.refine.regularisers.sparse_tv.strengths import Kappas, NoiseUnits
from sparsecv.kernels.contract import bin_places

KEPT_CORRELATION = 1 / 3  # between quarters: where the half's signal is as strong as its noise
KAPPAS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
QUARTER_ITERATIONS = 8
LEAST_POWER = 1e-12  # of a band, relative to its largest: where there is nothing to correlate


@dataclass(frozen=True)
class Filtered:
    """A family's choice: the selection, and what the numbers in it stand for.

    Attributes
    ----------
    selection
        Whose numbers index ``values``.
    values
        Cut-offs in shells, or strengths, by number.
    """

    selection: Selection
    values: np.ndarray


class Family(Protocol):
    """A family of regularisers with a parameter theta that varies in space."""

    @property
    def is_band_limit(self) -> bool:
        """Whether theta is a cut-off, so that it can be told as a wavelength."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether it needs the box's own grid."""
        ...

    def apply(self, ops: Any, maps: RawMaps, evidence: Evidence | None, rule: Rule, *, keep_predictions: bool
              ) -> Filtered:  # fmt: skip
        """Choose theta at each voxel, and filter."""
        ...


@dataclass(frozen=True)
class Butterworth:
    """Low-pass filters; theta is the wavelength of the cut-off."""

    bank: Bank
    is_band_limit: bool = True
    is_full: bool = False

    def candidates(self, ops: Any, maps: RawMaps, cutoffs: np.ndarray) -> Iterator[Candidate]:
        """The maps through each filter: two transforms of both maps together, and two more for each filter."""
        transforms = [ops.rfftn(one) for one in (maps.first, maps.second)]
        for cutoff in cutoffs:
            first, second = (
                ops.irfftn(ops.butterworth(one, float(cutoff), self.bank.order), maps.side) for one in transforms
            )
            whole = first + second
            whole *= np.float32(0.5)
            candidate = Candidate(maps.length / cutoff, first, second, whole)
            del first, second, whole  # gigabytes, at the largest boxes: only the receiver holds them
            yield candidate
            del candidate

    def apply(self, ops: Any, maps: RawMaps, evidence: Evidence | None, rule: Rule, *, keep_predictions: bool = False
              ) -> Filtered:  # fmt: skip
        """Choose the cut-off at each voxel [Punjani2020, algorithm 2]."""
        cutoffs = self.bank.cutoffs(maps.length, maps.last_shell)
        candidates = self.candidates(ops, maps, cutoffs)
        return Filtered(select(ops, maps, candidates, rule, keep_predictions=keep_predictions), cutoffs)


@dataclass(frozen=True)
class LocalWiener:
    """A Wiener weight for each band and voxel, from the correlation of the raw maps in a window about it.

    With d1, d2 the maps' parts in a band, the gain g that minimises w * (|g d1 - d2|^2 + |g d2 - d1|^2) is their local
    correlation c = 2 w * (d1 d2) / w * (d1^2 + d2^2); for the mean of both, which has half of the noise, it is
    2 c / (1 + c).
    """

    bank: Bank
    is_band_limit: bool = True
    is_full: bool = False

    def apply(self, ops: Any, maps: RawMaps, evidence: Evidence | None, rule: Rule, *, keep_predictions: bool = False
              ) -> Filtered:  # fmt: skip
        """Weigh each band; the number is that of the last band, without a gap, with the half's signal above its noise.

        The coarsest band is left as it is, as everywhere.
        """
        xp = ops.xp
        cutoffs = self.bank.cutoffs(maps.length, maps.last_shell)
        candidates = Butterworth(self.bank).candidates(ops, maps, cutoffs)
        before = next(candidates)
        inside = maps.weight > 0  # outside the coarsest band stays alone
        whole, chosen = before.whole.copy(), xp.zeros(maps.first.shape, dtype=xp.uint8)
        predictions = [before.first.copy(), before.second.copy()] if keep_predictions else []
        goes_on = inside
        for number, candidate in enumerate(candidates, start=1):
            one, two = candidate.first - before.first, candidate.second - before.second
            correlation = self._correlation(ops, maps, one, two, candidate.wavelength, rule) * inside
            whole += (candidate.whole - before.whole) * (2 * correlation / (1 + correlation))
            for kept, band in zip(predictions, (one, two), strict=bool(predictions)):
                kept += band * correlation
            goes_on = goes_on & (correlation > np.float32(KEPT_CORRELATION))
            chosen[goes_on] = number
            before = candidate
        kept = (predictions[0], predictions[1]) if predictions else None
        return Filtered(Selection(chosen, whole, kept), cutoffs)

    def _correlation(self, ops: Any, maps: RawMaps, one: Any, two: Any, wavelength: float, rule: Rule) -> Any:
        """Local correlation of a band, between 0 and 1, at each voxel."""
        xp = ops.xp
        taps = taps_of(ops, maps, rule, wavelength)
        # sums of squares by the error's kernel: |a - b|^2 twice, and |a|^2 + |b|^2
        zero = xp.zeros_like(one)
        apart = ops.filtered_error(one, one, two, two, maps.weight, 0.0, BIN)
        power = ops.filtered_error(zero, zero, one, two, maps.weight, 0.0, BIN)
        windowed = [ops.window(values, taps) for values in (apart, power)]
        least = np.float32(LEAST_POWER * max(float(windowed[1].max()), 1e-30))
        ratio = 1 - windowed[0] / (2 * xp.maximum(windowed[1], least))
        ratio = xp.clip(xp.where(windowed[1] > least, ratio, 0), 0, 1)
        return _at_voxels(xp, ratio.astype(xp.float32), maps.side)


def _at_voxels(xp: Any, binned: Any, side: int) -> Any:
    """Values of bins at their voxels, interpolated linearly between the bins' centres."""
    lower, part = bin_places(side, BIN)
    upper = np.minimum(lower + 1, int(binned.shape[0]) - 1)
    for axis in range(3):
        shape = [-1 if a == axis else 1 for a in range(3)]
        near = xp.take(binned, xp.asarray(lower), axis=axis)
        far = xp.take(binned, xp.asarray(upper), axis=axis)
        binned = near + xp.asarray(part).reshape(shape) * (far - near)
    return binned


@dataclass(frozen=True)
class SparseTvStrength:
    """The sparse + TV prior with a strength that varies in space: theta is the factor of both kappas.

    Outside of a mask, where nothing is chosen, the strongest holds. Windows are those of the band in use, as strengths
    have no wavelength.
    """

    units: NoiseUnits
    kappas: Kappas = field(default_factory=Kappas)
    is_band_limit: bool = False
    is_full: bool = True

    def apply(self, ops: Any, maps: RawMaps, evidence: Evidence | None, rule: Rule, *, keep_predictions: bool = False
              ) -> Filtered:  # fmt: skip
        """Solve quarters and half at each strength, strongest first, and keep the best at each voxel."""
        assert evidence is not None, "sums are needed: the maps alone do not have them"
        # inside the particle's sphere in any case: a mask must not remove what the images show
        problem = HalfProblem.of(ops, replace(evidence, support=evidence.sphere))
        wavelength = maps.length / max(evidence.band, 1)
        candidates = self._candidates(ops, problem, wavelength)
        return Filtered(select(ops, maps, candidates, rule, keep_predictions=keep_predictions), np.array(KAPPAS))

    def _candidates(self, ops: Any, problem: HalfProblem, wavelength: float) -> Iterator[Candidate]:
        prior = SparseTv(self.units, self.kappas, is_chosen=False)
        for factor in KAPPAS:
            kappas = Kappas(factor * self.kappas.sparse, factor * self.kappas.variation)
            strengths = self.units.strengths(problem, kappas, quarter=True)
            penalty = strengths.penalty(ops, problem.start, problem.support)
            first, second = (
                solve(ops, strengths.data(own, problem.previous), penalty, problem.start, strengths.steps,
                      most=QUARTER_ITERATIONS, check_every=QUARTER_ITERATIONS).x
                for own in problem.quarters
            )  # fmt: skip
            whole = prior.solve(ops, problem, self.units.strengths(problem, kappas)).x
            yield Candidate(wavelength, first, second, whole)
